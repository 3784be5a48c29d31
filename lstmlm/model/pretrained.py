"""A model on disk (docs/sharing.md says what its files hold): found, read, written, its card, and the device it is used on."""

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
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lstmlm.config import RUN_CONFIG, Config, DataConfig, ModelConfig
from lstmlm.console import UserError, check, one_line, print_line, printable
from lstmlm.data.sources import is_local, subset_in, subset_of
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.files import MODEL_FILES, read_file, replace_file, user_path
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.records import as_kind, read_json, read_yaml

CONFIG, VOCABULARY, WEIGHTS, CARD = MODEL_FILES

BUNDLED = Path(__file__).parents[1] / "models" / "wikitext2-compact"  # in a checkout `models` is a link

# The keys of `DataConfig` that a model's config.json holds. So a stranger's model cannot choose data.cache_dir, where this machine writes.
TRAINED_ON = ("dataset", "subset", "text_column", "level", "tokenizer", "lowercase", "normalize", "max_size")
UNKNOWN = "unknown"  # the dataset of a model whose text nobody told


@dataclass(frozen=True)
class Description:
    """What `config.json` says."""

    model: ModelConfig
    vocab_size: int
    data: DataConfig
    """What it was trained on; only the fields TRAINED_ON count."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """A hash of the tokens of each split; empty where an earlier version wrote it."""

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return asdict(self) | {"data": trained_on(self.data)}


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
        model, vocabulary, data: As for `save_pretrained`.
        figures: For each split that was scored: `ppl`, `targets`, `columns`.
        name: Heading.
        license: As the Hub abbreviates it, `cc-by-sa-3.0`; None = nothing is said.
        notes: More of the card, in Markdown.
    """
    from huggingface_hub import EvalResult, ModelCardData

    scores, dataset, task = figures or {}, data["dataset"], "text-generation"
    subset = subset_of(DataConfig(**data))
    results = [
        EvalResult(task, dataset, dataset, "perplexity", score["ppl"], dataset_config=subset, dataset_split=split)
        for split, score in scores.items()
    ]
    metadata = ModelCardData(
        model_name=name,
        library_name="lstmlm",
        pipeline_tag=task,
        tags=["lstm"],
        license=license,
        datasets=[dataset],
        eval_results=results or None,
    )
    source = f"{dataset} ({subset})" if subset else dataset
    tied = ", which are the decoder's weight too" if model.config.tie_weights else ""
    rows = "".join(f"\n| {split} | {score['ppl']:.2f} | {score['targets']:,} | {score['columns']} |" for split, score in scores.items())
    table = f"""
| split | perplexity | targets | columns |
|---|---|---|---|{rows}

Perplexity: exp(summed nll / targets), every target counted once, the state carried from the first to the last.
"""
    more = f"\n{notes}" if notes else ""
    return f"""\
---
{metadata.to_yaml()}
---
# {plain(name)}

An LSTM language model for lstmlm, trained on {plain(source)}: {model.num_parameters:,} parameters, {model.vocab_size:,} types, \
level {vocabulary.level}.
LSTM layers of {model.config.shape} units, embeddings of {model.config.embedding_size}{tied}.
{table if scores else ""}
    lstmlm evaluate --model <this folder> --split test
    lstmlm generate --model <this folder> --prompt "Once upon a time"

The header of `model.safetensors` says at which step it was exported and with which validation perplexity.
{more}"""


def plain(text: str) -> str:
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
        model: On any device; with its vocabulary.
        data: What the model was trained on: values of `DataConfig`.
        metadata: Strings for the header of `model.safetensors`.
        dtype: Of the weights on disk; in memory they are float32.
        card: None = `model_card` without figures.
        fingerprints: `corpus.fingerprint` of each split; None = evaluation does not notice other text under the same name.

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
    """A model that was read from disk, to be used as often as one likes."""

    folder: Path  # of its files
    description: Description  # what it was trained on
    vocabulary: Vocabulary  # its tokens, and how training cut text into them
    model: LSTMLanguageModel  # with its weights
    raw: bool = False  # this and the rest: as for `load`
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
        return self.vocabulary.for_text(self.raw, self.normalize)

    @functools.cached_property
    def data(self) -> DataConfig:
        """The data and their place: a model has the name, the config.yaml of its run the place; a UserError where neither leads to them."""
        data, dataset, run = self.description.data, self.dataset, self.folder.parent / RUN_CONFIG
        if dataset is not None:
            data = replace(data, subset=subset_in(dataset, data))
        else:
            dataset, of_run = data.dataset, False
            if self.folder.name == "model" and run.exists():
                with suppress(UserError):  # it is not a run's, or of a version that had other keys
                    place = read_yaml(run, Config).data  # a resumed run may have found its text elsewhere
                    data = replace(data, subset=subset_of(place), text_column=place.text_column)
                    dataset, of_run = place.dataset, True
            # By the name that a model has, data on the Hub, `toy`, and a file or folder of that bare name right here are found.
            # It is never a path: its maker chooses no place on this machine.
            on_hub = dataset == data.dataset and "/" in dataset and not is_local(dataset)
            bare = Path(dataset).name == dataset != ".." and not dataset.startswith("~")
            here = user_path(dataset).exists()
            if not (on_hub or dataset == "toy" or (here and (of_run or bare))):
                known = "a path that only the config.yaml of a run may tell" if here else "no file or folder here"
                where = f"was trained on {dataset}, which is {known}"
                told = "does not say what it was trained on" if dataset == UNKNOWN else where
                raise UserError(f"the model {told}: name its text with --dataset")
        return replace(data, dataset=dataset, cache_dir=self.cache_dir or data.cache_dir)


ModelPlace = str | Path | SavedModel | None  # of a model, as `load` takes it


def load(
    model: ModelPlace = None,
    raw: bool = False,
    normalize: bool = False,
    dataset: str | None = None,
    cache_dir: str | None = None,
    device: torch.device | str | None = None,
) -> SavedModel:
    """Read a saved model, once for all calls that follow: they take it in place of its path.

    Args:
        model: As for `find_model`; one that was read already is given back, with what the other arguments add.
        raw: Whether texts are English as people write it. Moses then cuts them for a model whose words stand between white space, as
            WikiText was cut.
        normalize: Whether texts are changed first as `data.normalize` does.
        dataset: Where its data is (as `data.dataset`); None = where training found it, as far as the model or its run says.
        cache_dir: As `data.cache_dir`; None = its default.
        device: Where the model goes; None = the CUDA GPU where there is one, else the CPU. One that was read already stays where it is.

    Raises:
        UserError: A file is missing or damaged, or two of them do not belong together; or the device is not there or has no room.
    """
    saved = model if isinstance(model, SavedModel) else _read(find_model(model), device)
    told: dict[str, Any] = {"raw": raw, "normalize": normalize, "dataset": dataset, "cache_dir": cache_dir}
    new = {name: value for name, value in told.items() if value}
    return replace(saved, **new) if new else saved


class _Uninitialised(TorchFunctionMode):
    """Weights stay memory that nobody has touched. (The meta device would load torch's compiler, which takes longer than torch itself.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def _read(folder: Path, device: torch.device | str | None) -> SavedModel:
    description, vocabulary = _read_config(folder), Vocabulary.load(folder / VOCABULARY)
    if len(vocabulary) != description.vocab_size:
        told = f"the model has {description.vocab_size} types but {VOCABULARY} has {len(vocabulary)}"
        raise UserError(f"{folder}: {told}; they do not belong together")
    path = folder / WEIGHTS
    try:
        weights = {name: as_weight(name, tensor) for name, tensor in safetensors.torch.load(read_file(path)).items()}
        with _Uninitialised():
            model = LSTMLanguageModel(description.model, len(vocabulary))
        model.load_weights(weights)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:  # the last: there is no memory of such a size
        raise UserError(f"cannot read the model in {path}: {one_line(error)}") from None
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(place)
    except (RuntimeError, AssertionError) as error:  # this PyTorch has no kernels for such a GPU, or none at all, or there is no room on it
        other = "the device cpu is always there" if device else "set CUDA_VISIBLE_DEVICES=-1 to use the CPU"
        raise UserError(f"the model cannot be moved to {place}: {one_line(error, 150)}; {other}") from None
    return SavedModel(folder, description, vocabulary, model)


def as_weight(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a file as it will be in memory, float32; a ValueError where it holds no weights, or they are not finite."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} is in {str(tensor.dtype).removeprefix('torch.')}, which is no type of weights")
    weight = tensor.float()
    if not all(bound.isfinite() for bound in weight.aminmax()):
        raise ValueError(f"{name} holds a NaN, an infinity, or a number that float32 cannot hold")
    return weight


def model_name(folder: str | Path) -> str:
    """What others are told of a model: `user/model` on the Hub, else the name of its run or folder, not the place on this machine."""
    path = user_path(folder)
    if not path.exists() and len(path.parts) == 2:
        return str(path)
    path = Path(os.path.realpath(path))
    return path.parent.name if path.name == "model" and (path.parent / RUN_CONFIG).exists() else path.name


def _read_config(folder: Path) -> Description:
    path = folder / CONFIG
    content = read_json(path, dict[str, Any])
    known = {key: value for key, value in content.items() if key in Description.__dataclass_fields__}  # of our keys alone
    if isinstance(data := known.get("data"), dict):
        known["data"] = {key: value for key, value in data.items() if key in TRAINED_ON}
    return as_kind(path, known, Description)


def read_card(folder: Path) -> str:
    """The card of a model; "" where it has none. A link to elsewhere is refused: its maker must not have files of this machine copied."""
    path = folder / CARD
    if not os.path.lexists(path):
        return ""
    cache = folder.parent.parent  # of the Hub, which keeps a model's files in its blobs/
    own = cache if cache.name.startswith("models--") else folder
    if not path.resolve().is_relative_to(own.resolve()):
        raise UserError(f"{path} is a link that leaves the model's folder: put the card itself there, or remove the link")
    return read_file(path).decode(errors="replace")


def find_model(model: str | Path | None = None) -> Path:
    """The folder of the model that a user means.

    Args:
        model: Its folder; or the directory of a run, for the `model` in it; or, where there is no such folder, `user/model` on the Hub.
            None = the newest `runs/*/model` that knows more than the toy language, else the model that comes with this package; which
            one is said in one line on standard error.

    Raises:
        UserError: There is none, or the Hub has no such model or cannot be reached.
    """
    if model is not None:
        return _named(user_path(model))
    weights = sorted(Path("runs").glob(f"*/model/{WEIGHTS}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in (path.parent for path in weights):
        if _read_config(folder).data.dataset != "toy":  # `make smoke`
            print_line(f"using the newest model here, {folder}")
            return folder
    if not BUNDLED.exists():
        raise UserError(f"no model in {Path('runs').absolute()}/*/model: train one first, or name its folder")
    print_line(f"using the model that comes with lstmlm, {BUNDLED.name}: runs/*/model has none, or the toy language's alone")
    return BUNDLED


def _named(folder: Path) -> Path:
    within = folder / "model"
    if (within / CONFIG).exists() and not (folder / CONFIG).exists():
        return within
    if (folder / RUN_CONFIG).exists() and not (folder / CONFIG).exists():
        raise UserError(f"the run in {folder} has no model yet: it writes one at its first validation, and when it is stopped")
    if len(folder.parts) != 2 or folder.parent.exists():  # where the first part is a folder, it is a path
        if not folder.exists():
            if str(folder) == BUNDLED.name and BUNDLED.exists():
                return BUNDLED
            raise UserError(f"there is no model in {folder}: it is no folder here, and the Hub's names are user/model")
        return folder
    check(folder.parts[0] != "runs", f"there is no run {folder} here: change to the folder that has runs/, or name its path")
    from huggingface_hub import snapshot_download

    print_line(f"there is no folder {folder} here: looking for {folder} on the Hugging Face Hub")
    try:
        return Path(snapshot_download(str(folder), allow_patterns=[*MODEL_FILES], library_name="lstmlm"))
    except Exception as error:  # the Hub's client raises its transport's kinds too
        reason = one_line(error, 200)
        raise UserError(f"there is no model in {folder}, which is no folder here, nor on the Hub: {reason}") from None
