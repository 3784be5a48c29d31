"""Models of others, none of whose code is run: PyTorch's word_language_model, awd-lstm-lm, and Gulordava et al. (2018).

`torch.save` writes a pickle, which can call any function of Python. `torch.load(weights_only=True)` would not, but refuses whole
models of PyTorch before 1.6, which name their classes in a form of its own. So the pickle is read here: a name in it stands for a class
that keeps what it is given and does nothing, and a name that these models do not have is refused.
"""

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lstmlm.config import ModelConfig
from lstmlm.console import UsageError, UserError, one_line, print_line
from lstmlm.data.reading import read_blocks
from lstmlm.data.sources import dataset_name, find_splits
from lstmlm.data.tokenize import EOS, UNK, Words
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.files import MODEL_FILES, OutputFolder, open_file, user_path
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.model.pretrained import UNKNOWN, as_weight, save_pretrained

THEIRS = {"RNNModel", "WeightDrop", "LockedDropout", "SplitCrossEntropyLoss", "Corpus", "Dictionary"}  # in any module
KNOWN = re.compile(
    r"torch\.(?!nn\.modules\.).+|torch\.nn\.modules\.(loss\.CrossEntropyLoss|sparse\.Embedding|rnn\.LSTM|linear\.Linear|dropout\.Dropout"
    r"|container\.ModuleList)|collections\..+|builtins\.(getattr|dict|list|set)"  # getattr: a method that WeightDrop swaps
)
LAYER = re.compile(r"rnns?\.(?:(\d+)\.(?:module\.)?)?((?:weight|bias)_(?:ih|hh)_l)(\d+)(?:_raw)?")


class Standin(dict[Any, Any]):
    """Stands for an object of a stranger's file: it keeps what the file says of it, and does nothing."""

    arguments: tuple[Any, ...]  # what it was to be called with
    state: Any = None  # what it was to be filled with

    def __new__(cls, *arguments: Any) -> "Standin":
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __init__(self, *arguments: Any) -> None:
        if arguments and _name(self) == "OrderedDict":  # as Python 2 wrote it
            self.update(arguments[0])

    def __setstate__(self, state: Any) -> None:
        self.state = state

    __hash__ = object.__hash__  # type: ignore[assignment]  # an optimizer has parameters as keys


class _Unpickler(pickle._Unpickler):  # the one in C makes room for any number that a file gives an object
    """Reads a pickle in which every name is a `Standin`, and each storage of numbers the pair of its key in the file and its type."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.types: dict[str, torch.dtype] = {}

    def find_class(self, module: str, name: str) -> type[Standin]:
        kind = f"{module}.{name}".replace("__builtin__", "builtins", 1)
        if not KNOWN.fullmatch(kind) and name not in THEIRS:
            raise ValueError(f"it holds {kind[:100]!r}, which no model of these kinds has; nothing of it was run")
        return type(name, (Standin,), {})  # a new one: nothing that a file does to it lasts

    def persistent_load(self, saved: Any) -> Any:
        if saved[0] == "module":  # a class, with its source code
            return saved[1]
        _, storage, key, *_ = saved
        self.types[key] = getattr(torch, storage.__name__.removesuffix("Storage").lower())
        return key, self.types[key]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of reading into one line that names the file."""
    try:
        yield
    except Exception as error:  # a forged pickle can raise anything
        if type(error) is UserError:  # which names the file
            raise
        damaged = type(error) not in (ValueError, UsageError)
        reason = f"it is damaged, or torch.save did not write it ({error!r})" if damaged else error
        raise UserError(f"cannot import {path} (docs/import.md): {one_line(reason)}") from None


def _load(path: Path) -> tuple[Any, dict[str, bytearray]]:
    """What a file of `torch.save` holds, and its numbers by their keys."""
    with open_file(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):  # a small file could fill the memory
                    raise ValueError("it is compressed, which torch.save does not do")
                entries = {name.partition("/")[2]: name for name in archive.namelist()}
                loaded = _Unpickler(archive.open(entries["data.pkl"])).load()
                return loaded, {name[5:]: bytearray(archive.read(entries[name])) for name in entries if name.startswith("data/")}
        file.seek(0)
        for _ in ("magic number", "version", "sizes of integers"):
            _Unpickler(file).load()
        unpickler = _Unpickler(file)
        loaded, numbers = unpickler.load(), {}
        for key in _Unpickler(file).load():
            count = int.from_bytes(file.read(8), "little")
            numbers[key] = bytearray(file.read(count * unpickler.types[key].itemsize))
        return loaded, numbers


def _name(value: Any) -> str:
    """Of the class that a value has, or stands for."""
    return type(value).__name__


def _weights(loaded: Any, numbers: dict[str, bytearray]) -> dict[str, Tensor]:
    """Weights of a model or a state dict, float32, by the names that they have in `LSTMLanguageModel`, untied."""
    parts = loaded if isinstance(loaded, list | tuple) else [loaded]  # of awd-lstm-lm: model, criterion, optimizer
    for part in parts:
        if _name(part) == "SplitCrossEntropyLoss" and len(part.state["splits"]) > 2:
            raise ValueError("its softmax is split, as awd-lstm-lm does for more than 75,000 words; no model here is")
    if _name(parts[0]) not in ("RNNModel", "OrderedDict", "dict"):
        raise ValueError(f"it holds no model, but a {_name(parts[0])}")
    named = dict(_parameters(parts[0]) if _name(parts[0]) == "RNNModel" else parts[0])
    weights, room = {}, sum(map(len, numbers.values()))
    for name in sorted(named):  # `weight_hh_l0_raw`, which DropConnect takes units from, comes after `weight_hh_l0`
        ours = {"encoder.weight": "embedding.weight", "decoder.weight": name, "decoder.bias": name}.get(name)
        if match := LAYER.fullmatch(name):
            ours = f"layers.{match[1] or match[3]}.{match[2]}0"
        if ours is None:
            raise ValueError(f"its {name} is no weight of an LSTM language model here")
        weights[ours] = _tensor(name, named[name], numbers)
        room -= weights[ours].numel()
        if room < 0:  # a tied weight in 16 bits, with two names, has as many numbers as the file has bytes
            raise ValueError("its weights are the same numbers again and again")
    if missing := {"embedding.weight", "decoder.weight", "decoder.bias", "layers.0.weight_hh_l0"} - weights.keys():
        raise ValueError(f"it has no weights for {' and '.join(sorted(missing))}")
    return weights


def _parameters(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Of a module, by their names in a state dict."""
    if module.state.get("max_norm") is not None:
        raise ValueError("its embeddings are scaled to a max_norm; none here are")
    for name, value in module.state["_parameters"].items():
        if value is not None:  # as a bias that is left out
            yield f"{prefix}{name}", value
    for name, child in module.state["_modules"].items():
        yield from _parameters(child, f"{prefix}{name}.")


def _tensor(name: str, value: Any, numbers: dict[str, bytearray]) -> Tensor:
    while _name(value) in ("Parameter", "Variable", "_rebuild_parameter"):
        value = value.arguments[0]
    (key, dtype), offset, size, stride = (value.arguments or value.state)[:4]
    if not dtype.is_floating_point:  # a quantized view of such bytes would end the process
        raise ValueError(f"its {name} is in {str(dtype).removeprefix('torch.')}, which is no type of weights")
    flat = torch.frombuffer(numbers[key], dtype=dtype)  # no copy: a storage may have any number of names
    if torch.Size(size).numel() > len(flat):  # with strides of 0, few numbers would make any size
        raise ValueError(f"its {name} is larger than its numbers")
    return as_weight(f"its {name}", flat.as_strided(size, stride, offset).contiguous())


def _words(place: Path, size: int) -> list[str]:
    """The words in the order of their ids; of a folder's splits, only as many are read as make V = `size`."""
    if (place / "vocab.txt").is_file():
        place /= "vocab.txt"
    words = dict.fromkeys([] if place.is_dir() else _saved_words(place))
    texts = [path for paths in find_splits(place).values() for path in paths] if place.is_dir() else [place] * (not words)
    for path in texts:
        listed = False
        for number, block in enumerate(read_blocks(path, "text")):
            if number == 0:
                listed = path == place and not re.search(r"\S[^\S\n]+\S", block)  # a word a line
            words |= dict.fromkeys(block.split() if listed else Words().tally(block)[0])
        if len(words) == size:
            break
    if len(words) != size:
        raise UserError(f"--vocab {place} has {len(words):,} types, but the model has {size:,} (docs/import.md)")
    return list(words)


def _saved_words(path: Path) -> list[str]:
    """Of a corpus or dictionary that `torch.save` wrote; none where the file is another one."""
    with _reading(path):
        with open_file(path) as file:
            if file.read(1) != b"\x80" and not zipfile.is_zipfile(file):
                return []
        saved, _ = _load(path)
        dictionary = saved.state["dictionary"] if _name(saved) == "Corpus" else saved
        if _name(dictionary) != "Dictionary":
            raise ValueError(f"it holds no words, but a {_name(saved)}")
        words = dictionary.state["idx2word"]
        if not all(isinstance(word, str) for word in words):  # what holds itself many times would be a text without end
            raise ValueError("its words are not text")
        return list(words)


def import_model(file: str | Path, vocab: str | Path, folder: str | Path) -> None:
    """Write a model of others as one of this project.

    Args:
        file: A whole model or its state dict, as `torch.save` wrote it.
        vocab: Its words: a file with a word a line, or a folder with one named `vocab.txt`; a text or a folder of splits, whose words
            count in the order in which they appear, `<eos>` after each line; or what `torch.save` wrote of a corpus or a dictionary.
        folder: Made where it does not exist.

    Raises:
        UserError: A file cannot be read, the two do not belong together, no model here computes the same, or `folder` holds one already.
    """
    file, vocab, folder = user_path(file), user_path(vocab), user_path(folder)
    OutputFolder(folder, MODEL_FILES)
    with _reading(file):
        weights = _weights(*_load(file))
        size, embedding_size = weights["embedding.weight"].shape
        hidden_size, layers = weights["layers.0.weight_hh_l0"].shape[1], sum("weight_hh" in name for name in weights)
        if tied := torch.equal(weights["embedding.weight"], weights["decoder.weight"]):
            del weights["decoder.weight"]
        model = LSTMLanguageModel(ModelConfig(embedding_size, hidden_size, layers, tie_weights=tied), size)
        model.load_weights(weights)
    words = _words(vocab, size)
    if EOS not in words:
        raise UserError(f"--vocab {vocab} has no {EOS}: give the word that ends each line this name there")
    if UNK not in words:
        print_line(f"the model has no {UNK}: one of probability 0 is added, for the words that it does not know")
        words.append(UNK)
        for name in weights.keys() & {"embedding.weight", "decoder.weight"}:
            weights[name] = F.pad(weights[name], (0, 0, 0, 1))
        # A logit whose probability is 0 in every precision; float16 holds it.
        weights["decoder.bias"] = F.pad(weights["decoder.bias"], (0, 1), value=-1e4)
        model = LSTMLanguageModel(model.config, len(words))
        model.load_weights(weights)
    data = {"dataset": dataset_name(str(vocab)) if vocab.is_dir() else UNKNOWN, "subset": None, "level": "word"}
    cased = [word for word in words if word.lower() != word.upper() and word not in (EOS, UNK)]
    lowercase = bool(cased) and all(word == word.lower() for word in cased)  # of a lower-cased text
    save_pretrained(folder, model, Vocabulary(words, lowercase=lowercase), data, {"imported_from": file.name})
