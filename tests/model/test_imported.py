"""Models of others: what is read gives the scores that plain PyTorch gives, whatever wrote the file, and none of its code runs."""

import copyreg
import io
import math
import os
import pickle
import re
import sys
import zipfile
from collections import Counter, OrderedDict
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlm import UserError, cli, evaluate, score_text
from lstmlm.model.imported import import_model
from lstmlm.model.pretrained import load
from tests.helpers import little_memory


class Theirs(nn.Module):
    """Like a class of those projects: it computes while a file is written, and what reads the file must not make one."""

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("their code was run")


class WeightDrop(Theirs):  # a comment that is no ASCII: ╯
    def __init__(self, module: nn.LSTM) -> None:
        super().__init__()
        self.module: Any = module
        self.module.weight_hh_l0_raw = nn.Parameter(self.module.weight_hh_l0.data)
        del self.module.weight_hh_l0
        self.module.flatten_parameters = self.nothing
        self.set_weights()

    def nothing(self) -> None:
        pass

    def set_weights(self) -> None:
        self.module.weight_hh_l0 = nn.Parameter(F.dropout(self.module.weight_hh_l0_raw, 0.5, self.training))

    def forward(self, inputs: Tensor) -> Any:
        self.set_weights()
        return self.module(inputs)


class RNNModel(Theirs):
    """With `rnn`, like that of PyTorch's examples; with a `wrap` around each LSTM, like that of awd-lstm-lm."""

    def __init__(
        self, words: int, embedding: int, hidden: int, layers: int, tied: bool = False, rnn: Any = nn.LSTM, wrap: Any = None
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.drop, self.encoder = nn.Dropout(0.5), nn.Embedding(words, embedding)
        if wrap:
            sizes = [embedding, *[hidden] * (layers - 1), embedding]
            self.rnns: Any = nn.ModuleList([wrap(nn.LSTM(a, b)) for a, b in pairwise(sizes)])
        else:
            self.rnn: Any = rnn(embedding, hidden, layers)
        self.decoder = nn.Linear(hidden, words)
        if tied or wrap:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs = self.drop(self.encoder(tokens))
        for rnn in self.rnns if hasattr(self, "rnns") else [self.rnn]:
            outputs, _ = rnn(outputs)
        return self.decoder(self.drop(outputs))


class SplitCrossEntropyLoss(Theirs):
    def __init__(self, splits: list[int]) -> None:
        super().__init__()
        self.splits = [0, *splits, 100_000_000]


class Dictionary:
    pass


class Corpus:
    pass


TRAIN, VALID, TEST = "the cat sat\nthe <unk> ran\n", "a dog sat\n", "a cat slept\n"
WORDS = ["the", "cat", "sat", "<eos>", "<unk>", "ran", "a", "dog"]  # as they appear in TRAIN and VALID


def their_nll(model: nn.Module, text: str, words: list[str]) -> Tensor:
    """Nll of each token of a text in nats, from the state after one <eos>, as the model's own code computes it."""
    ids = [words.index(word) for line in text.splitlines() for word in [*line.split(), "<eos>"]]
    with torch.no_grad():
        log_probabilities = model.eval()(torch.tensor([words.index("<eos>"), *ids[:-1]])[:, None]).log_softmax(-1)
    return -log_probabilities[torch.arange(len(ids)), 0, torch.tensor(ids)]


@pytest.mark.parametrize(
    ("kind", "whole"),
    [*((kind, True) for kind in ("tied", "awd", "awd without DropConnect", "one layer")), ("untied", False), ("awd", False)],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_scores_are_those_of_the_models_own_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, whole: bool, legacy: bool
) -> None:
    makes = {
        "tied": lambda: RNNModel(8, 6, 6, 2, tied=True),
        "untied": lambda: RNNModel(8, 5, 7, 2),
        "awd": lambda: RNNModel(8, 5, 7, 3, wrap=WeightDrop),
        "awd without DropConnect": lambda: RNNModel(8, 5, 7, 2, wrap=lambda rnn: rnn),
        "one layer": lambda: RNNModel(8, 6, 6, 1),
    }
    model = makes[kind]()
    content = model if whole else model.state_dict()
    if whole and kind == "awd":
        optimizer = torch.optim.ASGD(model.parameters())
        optimizer.state[model.decoder.bias] = {"ax": model.decoder.bias.data}
        content = [model, SplitCrossEntropyLoss([]), optimizer]
    expected = their_nll(model, TEST.replace("slept", "<unk>"), WORDS)
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    vocab, folder = str(tmp_path / "vocab.txt"), str(tmp_path / "out")
    assert cli.import_model([str(tmp_path / "model.pt"), "--vocab", vocab, "--output", folder]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    saved = load(folder)
    assert saved.vocabulary.tokens == WORDS
    assert saved.model.config.tie_weights == (kind not in ("untied", "one layer"))

    surprisal = torch.tensor([row.surprisal for row in score_text(TEST, saved, eos=True)])  # "slept" is not known
    torch.testing.assert_close(surprisal * math.log(2), expected, rtol=1e-5, atol=1e-6)
    (tmp_path / "text.txt").write_text(f"\n{TEST}")  # the first token of a text is no target
    assert evaluate(saved, text=tmp_path / "text.txt").ppl == pytest.approx(expected.mean().exp().item(), rel=1e-5)
    with pytest.raises(UserError, match="the model does not say what it was trained on: name its text with --dataset"):
        evaluate(saved)


def test_files_of_old_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 0.3 had other functions for tensors and parameters, left cuDNN's things in modules, and all weights in one storage."""

    def old(self: Tensor, protocol: int) -> tuple[Any, ...]:
        if isinstance(self, nn.Parameter):
            return nn.Parameter, (self.data,), (self.requires_grad, False, OrderedDict())
        storage = self._typed_storage()
        return torch._utils._rebuild_tensor, (storage, self.storage_offset(), tuple(self.size()), self.stride())  # type: ignore[attr-defined]

    model = RNNModel(8, 5, 7, 2)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name, place in {"torch.nn.backends.thnn": "_get_thnn_function_backend", "torch.backends.cudnn.rnn": "Unserializable"}.items():
        kind = type(place, (), {"__module__": name, "__qualname__": place})
        module = ModuleType(name)
        setattr(module, place, kind)
        monkeypatch.setitem(sys.modules, name, module)
        setattr(model.rnn, place, kind())
    flat = torch.cat([parameter.data.flatten() for parameter in model.rnn.parameters()])
    pieces = flat.split([parameter.numel() for parameter in model.rnn.parameters()])
    for parameter, piece in zip(model.rnn.parameters(), pieces, strict=True):
        parameter.data = piece.view_as(parameter)
    vars(model.rnn)["_parameters"] = OrderedDict(model.rnn._parameters)
    python2 = lambda entries: (OrderedDict, ([[name, value] for name, value in entries.items()],))  # noqa: E731
    monkeypatch.setitem(copyreg.dispatch_table, OrderedDict, python2)
    monkeypatch.setattr(torch.Tensor, "__reduce_ex__", old)
    monkeypatch.setattr(nn.Parameter, "__reduce_ex__", old)
    torch.save(model, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert b"_rebuild_tensor\n" in (tmp_path / "model.pt").read_bytes()
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    import_model(tmp_path / "model.pt", tmp_path / "vocab.txt", tmp_path / "out")
    weights = load(tmp_path / "out").model.weights()
    for ours, name in {"layers.1.weight_hh_l0": "rnn.weight_hh_l1", "decoder.bias": "decoder.bias"}.items():
        torch.testing.assert_close(weights[ours], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["folder", "vocab.txt in it", "text", "Corpus", "Dictionary"])
def test_words_in_the_order_of_their_ids(tmp_path: Path, kind: str) -> None:
    words = WORDS[:6] if kind == "text" else WORDS
    place = tmp_path / "corpus"
    place.mkdir()
    for name, text in {"train": TRAIN, "valid": VALID, "test": TEST}.items():
        (place / f"{name}.txt").write_text(text)
    if kind == "text":
        place /= "train.txt"
    elif kind == "vocab.txt in it":
        (place / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    elif kind in ("Corpus", "Dictionary"):
        dictionary, saved = Dictionary(), Corpus()
        dictionary.idx2word, dictionary.counter, saved.train = words, Counter({0: 3}), torch.zeros(9, dtype=torch.int64)
        saved.dictionary = dictionary
        place = tmp_path / "words.data"
        torch.save(saved if kind == "Corpus" else dictionary, place, _use_new_zipfile_serialization=kind == "Corpus")
    for count in (len(words), 1000):
        torch.save(RNNModel(count, 2, 2, 1).state_dict(), tmp_path / f"{count}.pt")
    import_model(tmp_path / f"{len(words)}.pt", place, tmp_path / "out")
    assert load(tmp_path / "out").vocabulary.tokens == words
    count = 9 if kind == "folder" else len(words)  # with the word of test.txt
    with pytest.raises(UserError, match=f"^--vocab {re.escape(str(tmp_path))}.* has {count} types, but the model has 1,000 "):
        import_model(tmp_path / "1000.pt", place, tmp_path / "other")


def test_a_model_without_unk_keeps_its_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word if word != "<unk>" else "an" for word in WORDS]
    model = RNNModel(8, 6, 6, 2, tied=True)
    expected = their_nll(model, VALID, words)
    torch.save(model, tmp_path / "model.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    import_model(tmp_path / "model.pt", tmp_path / "vocab.txt", tmp_path / "out")
    assert "<unk>" in capsys.readouterr().err
    saved = load(tmp_path / "out")
    loaded, vocabulary = saved.model, saved.vocabulary
    assert vocabulary.tokens == [*words, "<unk>"]
    ids = torch.tensor(vocabulary.encode(VALID))[:, None]
    nll, _, _ = loaded.score(torch.cat([torch.tensor([[vocabulary.eos]]), ids[:-1]]), loaded.initial_state(1), ids)
    torch.testing.assert_close(nll.flatten(), expected)
    logits, _ = loaded.logits(ids, loaded.initial_state(1))
    assert not logits.softmax(-1)[..., vocabulary.unk].any()
    (tmp_path / "vocab.txt").write_text("\n".join(words).replace("<eos>", "</s>"))
    with pytest.raises(UserError, match="has no <eos>"):
        import_model(tmp_path / "model.pt", tmp_path / "vocab.txt", tmp_path / "other")


def test_words_of_a_lower_cased_text(tmp_path: Path) -> None:
    for name, words in {"lower": WORDS, "mixed": [*WORDS[:-1], "N"]}.items():
        torch.save(RNNModel(8, 6, 6, 1), tmp_path / "model.pt")
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        import_model(tmp_path / "model.pt", tmp_path / "vocab.txt", tmp_path / name)
        rows = score_text("The CAT", tmp_path / name)
        assert [(row.token, row.unk) for row in rows] == [("The", name == "mixed"), ("CAT", name == "mixed")]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


class QRNNLayer(nn.Module):
    pass


def spoiled(kind: str, model: Any) -> Any:
    """A model with one thing wrong, or its state dict."""
    state = model.state_dict()
    changes = {"code": (model.drop, "p", Evil()), "QRNN": (model, "rnn", QRNNLayer()), "max_norm": (model.encoder, "max_norm", 1.0)}
    if kind in changes:
        setattr(*changes[kind])
    elif kind == "cycle":
        model._modules["again"] = model
    elif kind == "infinite in float32":
        model.encoder.double().weight.data[3, 2] = 1e300
    return {
        "code in a state dict": state | {"encoder.weight": Evil()},
        "split softmax": [model, SplitCrossEntropyLoss([2800, 20000, 76000]), None],
        "integers": state | {"decoder.bias": torch.ones(8, dtype=torch.int64)},
        "quantized": state | {"decoder.bias": torch.quantize_per_tensor(torch.ones(8), 0.1, 0, torch.qint8)},
        "gru's state": state,
        "more": state | {"rnn.weight_hr_l0": torch.ones(3, 3)},
        "no decoder": {name: weight for name, weight in state.items() if "decoder" not in name},
        "a tensor": torch.ones(3),
    }.get(kind, model)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("code", r"it holds 'posix\.system', which no model of these kinds has; nothing of it was run"),
        ("code in a state dict", r"it holds 'posix\.system'"),
        ("QRNN", r"it holds 'tests\.model\.test_imported\.QRNNLayer'"),
        ("gru", r"it holds 'torch\.nn\.modules\.rnn\.GRU', which no model of these kinds has"),
        ("gru's state", r"the weights are not those of .*: layers\.0\.weight_ih_l0 is \[21, 5\] and should be \[28, 5\]"),
        ("quantized", "its decoder.bias is in qint8"),
        ("split softmax", "its softmax is split"),
        ("max_norm", "its embeddings are scaled"),
        ("cycle", "it is damaged.*RecursionError"),
        ("infinite in float32", "its encoder.weight holds a NaN, an infinity, or a number that float32 cannot hold"),
        ("integers", "its decoder.bias is in int64"),
        ("more", r"its rnn\.weight_hr_l0 is no weight"),
        ("no decoder", r"it has no weights for decoder\.bias and decoder\.weight$"),
        ("a tensor", "it holds no model, but a _rebuild_tensor_v2"),
    ],
)
def test_what_is_no_such_model_is_refused_and_nothing_of_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, told: str, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    model = RNNModel(8, 5, 7, 2, rnn=nn.GRU if "gru" in kind else nn.LSTM)
    torch.save(spoiled(kind, model), tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(UserError, match=rf"^cannot import {re.escape(str(tmp_path / 'model.pt'))} .*: {told}") as caught:
        import_model(tmp_path / "model.pt", tmp_path / "vocab.txt", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["any number", "names of one storage", "nested words"])
def test_a_small_file_does_not_fill_the_memory(tmp_path: Path, kind: str) -> None:
    vocabulary, path = tmp_path / "vocab.txt", tmp_path / "model.pt"
    vocabulary.write_text("\n".join(WORDS))
    torch.save(RNNModel(8, 5, 7, 2), path)
    if kind == "any number":  # of an object that is named again: a list in C has room for all before it
        pickles = [pickle.dumps(0, 2)] * 3 + [b"\x80\x02Nr" + (20_000_000).to_bytes(4, "little") + b".", pickle.dumps([], 2)]
        path.write_bytes(b"".join(pickles))
        told = "it holds no model, but a NoneType"
    elif kind == "names of one storage":
        numbers = torch.zeros(500, 500)
        views = (numbers[:1], numbers.T)  # the second has to be copied
        torch.save({f"rnns.{layer}.weight_hh_l0": views[layer % 2] for layer in range(100)}, path)
        told = "its weights are the same numbers again and again"
    else:
        words = ["word"]
        for _ in range(20):
            words = [words, words]  # type: ignore[list-item]
        dictionary = Dictionary()
        dictionary.idx2word = words  # type: ignore[attr-defined]
        torch.save(dictionary, vocabulary)
        told = "its words are not text"
    with little_memory(30e6), pytest.raises(UserError, match=told):
        import_model(path, vocabulary, tmp_path / "out")


@pytest.mark.parametrize("kind", ["empty", "text", "cut legacy", "cut zip", "deflated", "class", "forged size"])
def test_what_torch_did_not_write_is_told_in_a_line(tmp_path: Path, kind: str) -> None:
    path, model = tmp_path / "model.pt", RNNModel(8, 5, 7, 2)
    torch.save(model, path, _use_new_zipfile_serialization=kind != "cut legacy")
    content = path.read_bytes()
    if kind in ("deflated", "class", "forged size"):
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                entry = old.read(name)
                if name.endswith("data.pkl"):
                    entry = b"\x80\x02cmodel\nRNNModel\n}X\x01\x00\x00\x00aK\x01sb." if kind == "class" else entry
                    # the size (8, 5) of the embedding, K 8 and K 5, made (200, 5)
                    entry = entry.replace(b"K\x08K\x05\x86", b"K\xc8K\x05\x86") if kind == "forged size" else entry
                new.writestr(name, entry, zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED)
    else:
        path.write_bytes({"empty": b"", "text": b"the cat sat"}.get(kind, content[: -len(content) // 3]))
    with pytest.raises(UserError, match=rf"^cannot (read|import) {re.escape(str(path))}(: | .docs/import.md.: (it is|its))") as caught:
        import_model(path, tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)
