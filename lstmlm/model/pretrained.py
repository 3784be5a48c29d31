"""A model on disk: the names of its files, reading, writing, its card, and the device it is used on.

config.json          sizes of the model; the data it was trained on
vocab.json           its tokens in order
model.safetensors    its weights; the header says at which step they were exported
README.md            the card
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from huggingface_hub import EvalResult, ModelCardData, snapshot_download

from lstmlm.config import ModelConfig
from lstmlm.console import UserError, print_line
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.files import replace_file
from lstmlm.model.language_model import LSTMLanguageModel

CONFIG, VOCABULARY, WEIGHTS, CARD = "config.json", "vocab.json", "model.safetensors", "README.md"
FILES = (CONFIG, VOCABULARY, WEIGHTS, CARD)

BUNDLED = Path(__file__).parents[1] / "models" / "wikitext2-reference"  # in a checkout `models` is a link

CARD_TEXT = """\
---
{metadata}
---
# {name}

An LSTM language model trained with lstmlm on {dataset}: {parameters:,} parameters, {vocab_size:,} types, level {level}.
{layers} layers of {hidden_size} units, embeddings of {embedding_size}{tied}.
{figures}
    lstmlm evaluate --model <this folder> --split test
    lstmlm generate --model <this folder> --prompt "Once upon a time"

The header of `model.safetensors` says at which step it was exported and with which validation perplexity.
{notes}"""


def model_card(
    model: LSTMLanguageModel,
    vocabulary: Vocabulary,
    data: dict[str, Any],
    figures: dict[str, dict[str, Any]] | None = None,
    name: str = "LSTM language model",
    license: str | None = None,
    notes: str = "",
) -> str:
    """The card of a model, as the Hub reads it.

    Args:
        model: Its sizes are told.
        vocabulary: Of the model.
        data: As for `save_pretrained`.
        figures: For each split that was scored: `ppl`, `targets`, `columns`.
        name: Heading.
        license: As the Hub abbreviates it, `cc-by-sa-3.0`; None = nothing is said.
        notes: More of the card, in Markdown.
    """
    results = [
        EvalResult("text-generation", data["dataset"], data["dataset"], "perplexity", score["ppl"], dataset_split=split)
        for split, score in (figures or {}).items()
    ]
    metadata = ModelCardData(
        model_name=name,
        library_name="lstmlm",
        pipeline_tag="text-generation",
        tags=["lstm"],
        license=license,
        datasets=[data["dataset"]],
        eval_results=results or None,
    )
    rows = [
        f"| {split} | {score['ppl']:.2f} | {score['targets']:,} | {score['columns']} |"
        for split, score in (figures or {}).items()
    ]
    told = "exp(summed nll / targets), every target counted once, the state carried from the first to the last."
    table = "\n".join(
        ["", "| split | perplexity | targets | columns |", "|---|---|---|---|", *rows, "", f"Perplexity: {told}", ""]
    )
    return CARD_TEXT.format(
        metadata=metadata.to_yaml(),
        name=name,
        dataset=data["dataset"],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=model.vocab_size,
        level=vocabulary.level,
        layers=model.config.num_layers,
        hidden_size=model.config.hidden_size,
        embedding_size=model.config.embedding_size,
        tied=", which are the decoder's weight too" if model.config.tie_weights else "",
        figures=table if rows else "",
        notes=f"\n{notes}" if notes else "",
    )


def save_pretrained(
    folder: str | Path,
    model: LSTMLanguageModel,
    vocabulary: Vocabulary,
    data: dict[str, Any],
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    card: str | None = None,
) -> None:
    """Write a model, its vocabulary and its card. Each file is replaced in one step; one that would not change is left alone.

    Args:
        folder: Made where it does not exist.
        model: On any device.
        vocabulary: Of the model.
        data: What the model was trained on: values of `DataConfig`.
        metadata: Strings for the header of `model.safetensors`.
        dtype: Of the weights on disk; in memory they are float32.
        card: None = `model_card` without figures.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model": asdict(model.config), "vocab_size": model.vocab_size, "data": data}
    contents = {
        VOCABULARY: vocabulary.to_bytes(),
        CARD: (card or model_card(model, vocabulary, data)).encode(),
        CONFIG: json.dumps(config, indent=2).encode(),
    }
    for name, content in contents.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != content:
            replace_file(folder / name, content)
    weights = {name: weight.to(dtype) for name, weight in model.weights().items()}
    replace_file(folder / WEIGHTS, safetensors.torch.save(weights, metadata))


def load_pretrained(folder: str | Path, device: torch.device | str = "cpu") -> tuple[LSTMLanguageModel, Vocabulary]:
    """Read back what `save_pretrained` wrote.

    Args:
        folder: As for `model_folder`.
        device: Where the model goes.

    Raises:
        UserError: A file is missing or damaged, or two of them do not belong together.
    """
    folder = model_folder(folder)
    content = read_config(folder)
    path = folder / WEIGHTS
    try:
        with torch.device("meta"):
            model = LSTMLanguageModel(ModelConfig(**content["model"]), content["vocab_size"])
        model.to_empty(device=device)
        if model.config.tie_weights:
            model.decoder.weight = model.embedding.weight
        model.load_weights(safetensors.torch.load_file(path))
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read the model in {path}: {error}") from None
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    if len(vocabulary) != model.vocab_size:
        raise UserError(
            f"{folder}: the model has {model.vocab_size} types but {VOCABULARY} has {len(vocabulary)}; they do not belong together"
        )
    return model, vocabulary


def model_folder(folder: str | Path) -> Path:
    """The folder of a model's files.

    Args:
        folder: Itself; or the directory of a run, for the `model` in it; or, where there is no such folder, `user/model` on the Hub.

    Raises:
        UserError: The Hub has no such model, or cannot be reached.
    """
    folder = Path(folder)
    within = folder / "model"
    if (within / CONFIG).exists() and not (folder / CONFIG).exists():
        return within
    on_hub = len(folder.parts) == 2 and not folder.parent.exists()  # where the first part is a folder, it is a path
    return _download(str(folder)) if on_hub else folder


def _download(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, VOCABULARY, WEIGHTS, CARD], library_name="lstmlm"))
    except Exception as error:  # the Hub's client raises its transport's kinds too
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"there is no model in {name}, which is no folder here, nor on the Hub: {reason}") from None


def read_config(folder: str | Path) -> dict[str, Any]:
    """`config.json` of a saved model: `model`, `vocab_size`, and `data`, values of `DataConfig`.

    Args:
        folder: As for `model_folder`.

    Raises:
        UserError: It is missing or is not one of this project.
    """
    path = model_folder(folder) / CONFIG
    try:
        content = json.loads(path.read_bytes())
        if (
            isinstance(content, dict)
            and {"model", "vocab_size", "data"} <= content.keys()
            and isinstance(content["data"], dict)
        ):
            content["data"].pop("cache_dir", None)  # a stranger's model does not say where this machine writes
            return content
    except OSError as error:
        raise UserError(f"there is no model in {folder}: cannot read {path} ({error.strerror})") from None
    except ValueError:
        pass
    raise UserError(f"{path} is not a model configuration of this project")


def find_model(model: str | Path | None = None, runs: str | Path = "runs") -> Path:
    """The folder of the model that a user means.

    Args:
        model: As for `model_folder`; None = the model exported last below `runs`, else the one that comes with this package. What
            is taken for None is said in one line on standard error.
        runs: Where the runs are.

    Raises:
        UserError: There is none.
    """
    if model is not None:
        return model_folder(model)
    exported = sorted(Path(runs).glob(f"*/model/{WEIGHTS}"), key=lambda path: path.stat().st_mtime)
    if exported:
        print_line(f"using the newest model here, {exported[-1].parent}")
        return exported[-1].parent
    if not BUNDLED.exists():
        raise UserError(f"no model in {Path(runs).absolute()}/*/model: train one first, or name its folder")
    print_line(f"using the model that comes with lstmlm, {BUNDLED.name}, as there is no {runs}/*/model here")
    return BUNDLED


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
