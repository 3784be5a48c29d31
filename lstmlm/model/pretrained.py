"""A model on disk: the names of its files, reading, writing, its card, and the device it is used on.

config.json          sizes of the model; which data it was trained on, and a hash of each split's tokens
vocab.json           its tokens in order
model.safetensors    its weights; the header says at which step they were exported
README.md            the card
"""

import functools
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode

from lstmlm.config import RUN_CONFIG, Config, DataConfig, ModelConfig
from lstmlm.console import UserError, one_line, print_line, printable
from lstmlm.data.sources import has_own_splits, is_local, subset_of
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.files import MODEL_FILES, read_file, replace_file, user_path
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.records import as_kind, read_json, read_yaml

CONFIG, VOCABULARY, WEIGHTS, CARD = MODEL_FILES

BUNDLED = Path(__file__).parents[1] / "models" / "wikitext2-reference"  # in a checkout `models` is a link

# Of `DataConfig`: what reading the same text in the same way needs. A stranger's model says no more, so not where this machine writes.
TRAINED_ON = ("dataset", "subset", "text_column", "level", "tokenizer", "lowercase", "normalize", "max_size")
UNKNOWN = "unknown"  # the dataset of a model whose text nobody told
READABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

CARD_TEXT = """\
---
{metadata}
---
# {name}

An LSTM language model for lstmlm, trained on {dataset}: {parameters:,} parameters, {vocab_size:,} types, level {level}.
LSTM layers of {shape} units, embeddings of {embedding_size}{tied}.
{figures}
    lstmlm evaluate --model <this folder> --split test
    lstmlm generate --model <this folder> --prompt "Once upon a time"

The header of `model.safetensors` says at which step it was exported and with which validation perplexity.
{notes}"""


@dataclass(frozen=True)
class Description:
    """What `config.json` says.

    Attributes:
        model: Its sizes.
        vocab_size: V.
        data: What it was trained on; only the fields TRAINED_ON are.
        fingerprints: A hash of the tokens of each split; empty where an earlier version wrote it.
    """

    model: ModelConfig
    vocab_size: int
    data: DataConfig
    fingerprints: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return {
            "model": asdict(self.model),
            "vocab_size": self.vocab_size,
            "data": trained_on(self.data),
            "fingerprints": self.fingerprints,
        }


def trained_on(data: DataConfig) -> dict[str, Any]:
    """What a model's `config.json` says of the data."""
    return {name: getattr(data, name) for name in TRAINED_ON} | {"subset": subset_of(data)}


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
    from huggingface_hub import EvalResult, ModelCardData

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
    rows = [f"| {split} | {score['ppl']:.2f} | {score['targets']:,} | {score['columns']} |" for split, score in (figures or {}).items()]
    told = "exp(summed nll / targets), every target counted once, the state carried from the first to the last."
    table = "\n".join(["", "| split | perplexity | targets | columns |", "|---|---|---|---|", *rows, "", f"Perplexity: {told}", ""])
    return CARD_TEXT.format(
        metadata=metadata.to_yaml(),
        name=_plain(name),
        dataset=_plain(data["dataset"]),
        parameters=model.num_parameters,
        vocab_size=model.vocab_size,
        level=vocabulary.level,
        shape=model.config.shape,
        embedding_size=model.config.embedding_size,
        tied=", which are the decoder's weight too" if model.config.tie_weights else "",
        figures=table if rows else "",
        notes=f"\n{notes}" if notes else "",
    )


def _plain(text: str) -> str:
    """Text of anybody's in Markdown: no HTML, link or heading of its own."""
    return re.sub(r"[\\`<>\[\]&|#]", r"\\\g<0>", printable(text))


def save_pretrained(
    folder: str | Path,
    model: LSTMLanguageModel,
    vocabulary: Vocabulary,
    data: dict[str, Any],
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    card: str | None = None,
    fingerprints: dict[str, str] | None = None,
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
        fingerprints: As `Corpus` has them; None = evaluation does not notice other text under the same name.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = Description(model.config, model.vocab_size, DataConfig(**data), fingerprints or {})
    contents = {
        VOCABULARY: vocabulary.to_bytes(),
        CARD: (card or model_card(model, vocabulary, data)).encode(),
        CONFIG: json.dumps(description.to_dict(), indent=2).encode(),
    }
    for name, content in contents.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != content:
            replace_file(folder / name, content)
    weights = {name: weight.to(dtype) for name, weight in model.weights().items()}
    replace_file(folder / WEIGHTS, safetensors.torch.save(weights, metadata))


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A model that was read from disk, to be used as often as one likes.

    Attributes:
        folder: Of its files.
        description: What it was trained on.
        vocabulary: Its tokens, and how training cut text into them.
        model: With its weights.
        raw: Whether texts are English as people write it; Moses cuts them for a model of words between white space.
        normalize: Whether texts are changed first as `data.normalize` does.
        dataset: Where its data is now; None = where training found it, as far as the model or its run says.
        cache_dir: Where token ids are kept; None = as training kept them.
    """

    folder: Path
    description: Description
    vocabulary: Vocabulary
    model: LSTMLanguageModel
    raw: bool = False
    normalize: bool = False
    dataset: str | None = None
    cache_dir: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.decoder.weight.device

    @functools.cached_property
    def text_vocabulary(self) -> Vocabulary:
        """The vocabulary as it cuts texts at hand, which may be raw."""
        vocabulary = self.vocabulary.for_raw_text() if self.raw else self.vocabulary
        return vocabulary.normalized() if self.normalize else vocabulary

    @functools.cached_property
    def data(self) -> DataConfig:
        """The data, where it is: a model has its name, and a run the place.

        Raises:
            UserError: Nobody says where it is.
        """
        data, run = self.description.data, self.folder.parent / RUN_CONFIG
        dataset = self.dataset or data.dataset
        if self.dataset is None and self.folder.name == "model" and run.exists():
            with suppress(UserError):  # it is not a run's, or of a version that had other keys
                dataset = read_yaml(run, Config).data.dataset
        is_here = dataset == "toy" or user_path(dataset).exists()
        # A model has the name alone, and only what is on the Hub is found by it.
        is_place = dataset != data.dataset or is_local(dataset) or "/" not in dataset
        if self.dataset is None and not is_here and is_place:
            told = f"the model was trained on {dataset}, and there is no such file or folder here: name it with --dataset"
            raise UserError("the model does not say what it was trained on: name the text with --dataset" if dataset == UNKNOWN else told)
        subset = None if self.dataset and has_own_splits(dataset, data.subset) else data.subset
        return replace(data, dataset=dataset, subset=subset, cache_dir=self.cache_dir or data.cache_dir)


def load(
    model: str | Path | SavedModel | None = None,
    raw: bool = False,
    normalize: bool = False,
    dataset: str | None = None,
    cache_dir: str | None = None,
    device: torch.device | str | None = None,
) -> SavedModel:
    """Read a saved model, once for all calls that follow: they take it in place of its path.

    Args:
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package. One that was
            read already is given back, with what the other arguments add.
        raw: Whether texts are English as people write it. Moses then cuts them for a model whose words stand between white space, as
            WikiText was cut.
        normalize: Whether texts are changed first as `data.normalize` does.
        dataset: Where its data is (as `data.dataset`); None = where training found it, as far as the model or its run says.
        cache_dir: As `data.cache_dir`; None = its default.
        device: Where the model goes; None = the accelerator where there is one, else the CPU.

    Raises:
        UserError: A file is missing or damaged, or two of them do not belong together.
    """
    saved = model if isinstance(model, SavedModel) else _read(find_model(model), device or default_device())
    new = saved.raw or raw, saved.normalize or normalize, dataset or saved.dataset, cache_dir or saved.cache_dir
    if new == (saved.raw, saved.normalize, saved.dataset, saved.cache_dir):
        return saved
    return replace(saved, raw=new[0], normalize=new[1], dataset=new[2], cache_dir=new[3])


class _Uninitialised(TorchFunctionMode):
    """Weights stay memory that nobody has touched. (The meta device would load torch's compiler, which takes longer than torch itself.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def _read(folder: Path, device: torch.device | str) -> SavedModel:
    description, vocabulary = read_config(folder), Vocabulary.load(folder / VOCABULARY)
    if len(vocabulary) != description.vocab_size:
        raise UserError(
            f"{folder}: the model has {description.vocab_size} types but {VOCABULARY} has {len(vocabulary)}; they do not belong together"
        )
    path = folder / WEIGHTS
    try:
        weights = safetensors.torch.load(read_file(path))
    except safetensors.SafetensorError as error:
        raise UserError(f"cannot read the model in {path}: {error}") from None
    others = UserError(f"{path}: the weights are not those of the model in {folder / CONFIG}")
    if description.model.num_layers > len(weights):
        raise others
    try:
        with _Uninitialised():
            model = LSTMLanguageModel(description.model, len(vocabulary))
    except RuntimeError:  # there is no memory of such a size
        raise others from None
    if not model.fits(weights):
        raise others
    for name, weight in weights.items():
        if weight.dtype not in READABLE:
            raise UserError(f"{path}: {name} is in {str(weight.dtype).removeprefix('torch.')}, which is no type of weights")
        if not all(bound.isfinite() for bound in weight.float().aminmax()):  # as they will be in memory
            raise UserError(f"{path}: {name} holds a NaN, an infinity, or a number that float32 cannot hold")
    model.load_weights(weights)
    return SavedModel(folder, description, vocabulary, model.to(device))


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


def model_name(folder: str | Path) -> str:
    """What others are told of a model: of its path the last two parts, not the place on this machine.

    Args:
        folder: As for `model_folder`.
    """
    return "/".join(Path(folder).parts[-2:])


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, VOCABULARY, WEIGHTS, CARD], library_name="lstmlm"))
    except Exception as error:  # the Hub's client raises its transport's kinds too
        reason = one_line(error, 200)
        raise UserError(f"there is no model in {name}, which is no folder here, nor on the Hub: {reason}") from None


def read_config(folder: str | Path) -> Description:
    """`config.json` of a saved model.

    Args:
        folder: As for `model_folder`.

    Raises:
        UserError: It is missing, or is none of this project's.
    """
    path = model_folder(folder) / CONFIG
    try:
        path.lstat()
    except OSError as error:
        raise UserError(f"there is no model in {folder}: cannot read {path} ({error.strerror})") from None
    content = read_json(path, dict[str, Any])
    known = {key: value for key, value in content.items() if key in Description.__dataclass_fields__}  # of our keys alone
    if isinstance(data := known.get("data"), dict):
        known["data"] = {key: value for key, value in data.items() if key in TRAINED_ON}
    return as_kind(path, known, Description)


def read_card(folder: Path) -> str:
    """The card of a model; "" where it has none.

    Args:
        folder: Of its files.

    Raises:
        UserError: It cannot be read, or is a link to elsewhere: whoever made the model must not have files of this machine copied.
    """
    path = folder / CARD
    if not os.path.lexists(path):
        return ""
    cache = folder.parent.parent  # of the Hub, which keeps a model's files in its blobs/
    own = cache if cache.name.startswith("models--") else folder
    if not path.resolve().is_relative_to(own.resolve()):
        raise UserError(f"{path} is a link that leaves the model's folder: put the card itself there, or remove the link")
    return read_file(path).decode(errors="replace")


def find_model(model: str | Path | None = None, runs: str | Path = "runs") -> Path:
    """The folder of the model that a user means.

    Args:
        model: As for `model_folder`; None = the model exported last below `runs` that knows more than the toy language, else the one
            that comes with this package. What is taken for None is said in one line on standard error.
        runs: Where the runs are.

    Raises:
        UserError: There is none.
    """
    if model is not None:
        return model_folder(model)
    exported = sorted(Path(runs).glob(f"*/model/{WEIGHTS}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in (path.parent for path in exported):
        if read_config(folder).data.dataset != "toy":  # `make smoke`
            print_line(f"using the newest model here, {folder}")
            return folder
    if not BUNDLED.exists():
        raise UserError(f"no model in {Path(runs).absolute()}/*/model: train one first, or name its folder")
    print_line(f"using the model that comes with lstmlm, {BUNDLED.name}: {runs}/*/model has none, or the toy language's alone")
    return BUNDLED


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
