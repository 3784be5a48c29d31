import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from lstmlm import LSTMLanguageModel, UserError, Vocabulary, generate_text, generate_texts, generation, stream_text, stream_texts
from lstmlm.cli import generate
from lstmlm.config import ModelConfig
from lstmlm.generation import Sampling, choose, sample
from lstmlm.model.pretrained import load, save_pretrained
from lstmlm.runtime.hardware import set_float32_products
from tests.helpers import ROOT, WORDS, read_terminal, sharp_model

VOCABULARY = Vocabulary(WORDS)


@pytest.fixture
def model() -> LSTMLanguageModel:
    model = sharp_model(len(WORDS))
    with torch.no_grad():
        model.decoder.bias[1] = -3  # lines of some length
    return model


@pytest.fixture
def folder(model: LSTMLanguageModel, tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "runs/a/model", model, VOCABULARY, {"dataset": "toy"})
    return tmp_path / "runs/a/model"


def test_greedy_is_the_argmax_of_the_whole_text_each_time(model: LSTMLanguageModel) -> None:
    ids = [1, 5, 6]
    (new,) = sample(model, VOCABULARY, [ids], 1, Sampling(12, temperature=0))
    for i in range(12):
        logits, _ = model.logits(torch.tensor(ids)[:, None], model.initial_state(1))
        logits = logits[-1, 0].detach()
        logits[VOCABULARY.unk] = -torch.inf
        if i == 0:
            logits[VOCABULARY.eos] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == VOCABULARY.eos:
            ids.pop()
            break
    assert new == ids[3:]


def test_sampled_frequencies_are_the_models(model: LSTMLanguageModel) -> None:
    count = 20_000
    new = list(sample(model, VOCABULARY, [[1, 5]], count, Sampling(1, 0.7, allow_unk=True), seed=1))
    logits, _ = model.logits(torch.tensor([[1], [5]]), model.initial_state(1))
    logits = logits[-1, 0].detach() / 0.7
    logits[VOCABULARY.eos] = -torch.inf
    p = logits.softmax(-1)
    frequencies = torch.bincount(torch.tensor(new).flatten(), minlength=len(WORDS)) / count
    assert ((frequencies - p).abs() <= 5 * (p * (1 - p) / count).sqrt() + 1e-9).all()


def test_the_contract(folder: Path) -> None:
    for text in generate_texts("w1", 30, 7, 1.5, folder, seed=0):
        new = text.split()[1:]
        assert 1 <= len(new) <= 7
        assert not {"<eos>", "<unk>"} & {*new}
    texts = generate_texts("", 200, max_len=7, temperature=5.0, model=folder, seed=0, allow_unk=True)
    assert len(texts) == 200
    assert any("<unk>" in text for text in texts)
    assert min(len(text.split()) for text in texts) < 7, "a text ends with its line"
    assert generate_text("w1", max_len=0, model=folder) == "w1"


def test_unknown_words_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = generate_text("w1 zebra w2 quagga", 3, model=folder, seed=0)
    assert text.startswith("w1 zebra w2 quagga ")
    assert caplog.messages == ["not in the vocabulary, read as <unk>: quagga zebra"]


def test_the_state_is_all_that_is_carried(model: LSTMLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new token costs one row, however long the text is."""
    rows = []
    original = LSTMLanguageModel.hidden
    monkeypatch.setattr(LSTMLanguageModel, "hidden", lambda self, tokens, *rest: rows.append(len(tokens)) or original(self, tokens, *rest))
    list(sample(model, VOCABULARY, [[1, 4, 5, 6]], 3, Sampling(9), seed=2))
    assert rows[0] == 4
    assert set(rows[1:]) == {1}


def test_products_are_float32_as_in_scoring(model: LSTMLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NVIDIA GPU's LSTM would take TF32, and choose other texts."""
    set_float32_products("tf32")
    seen, original = [], LSTMLanguageModel.hidden

    def watched(*args: Any) -> Any:
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision))
        return original(*args)

    monkeypatch.setattr(LSTMLanguageModel, "hidden", watched)
    for _ in sample(model, VOCABULARY, [[1, 4]], 2, Sampling(9), seed=2):
        assert torch.backends.cudnn.rnn.fp32_precision == "tf32", "between two texts it is as the caller set it"
    assert len(seen) > 2
    assert set(seen) == {("ieee", "ieee")}


UNIFORM = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.51}, {1, 2}),
        ({"top_k": 2, "top_p": 0.6}, {1}),
        ({"temperature": 0.5, "top_p": 0.6}, {1}),
        ({"min_p": 0.29}, {0, 1, 2}),
        ({"min_p": 0.31}, {1, 2}),
        ({"top_k": 3, "min_p": 0.5}, {1, 2}),
        ({}, {0, 1, 2, 3}),
    ],
)
def test_what_is_left_to_sample(options: dict[str, float], kept: set[int]) -> None:
    p = torch.tensor([0.15, 0.5, 0.3, 0.05])
    chosen = choose(p.log().expand(4000, 4), Sampling(**options), UNIFORM)
    left = torch.tensor([p[i] if i in kept else 0 for i in range(4)])
    assert torch.bincount(chosen, minlength=4) / 4000 == pytest.approx(left / left.sum(), abs=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(UserError, match="not finite"):
        choose(torch.tensor([[0.0, bad]]), Sampling(temperature=temperature), UNIFORM[:1])


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e300, 1e308])
def test_any_temperature(temperature: float) -> None:
    logits = torch.tensor([[1.0, 3.0, -torch.inf, 2.9]]).expand(4000, 4)
    chosen = set(choose(logits, Sampling(temperature=temperature), UNIFORM).tolist())
    assert chosen == ({1} if temperature < 1 else {0, 1, 3})


def test_among_equal_logits_top_k_leaves_k_and_no_draw_takes_what_is_banned() -> None:
    assert len(set(choose(torch.zeros(4000, 9), Sampling(top_k=3), UNIFORM).tolist())) == 3
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, 3.0, -torch.inf]]).expand(2, 5)
    assert choose(logits, Sampling(), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 3]


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"max_len": 10**12},
        {"top_k": 0},
        {"top_p": 0.0},
        {"min_p": 1.1},
        {"count": 10**12},
        {"count": 500_000, "prompt": ["w1"] * 3},
        {"lines": 0},
        {"ban": ["w1", "zebra"]},
        {"stop": ["zebra"]},
        {"stop": "w1"},
    ],
)
def test_arguments_out_of_range(folder: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))) as refusal:
        generate_texts(**{"prompt": "w1", "count": 1, "model": folder, **bad})
    assert refusal.value.status == 2


def test_nothing_left_to_sample(tmp_path: Path, folder: Path) -> None:
    vocabulary = Vocabulary(["<unk>", "<eos>"])
    save_pretrained(tmp_path, LSTMLanguageModel(ModelConfig(4, 4), 2), vocabulary, {"dataset": "toy"})
    with pytest.raises(UserError, match="no token left to sample"):
        generate_text("", model=tmp_path)
    assert generate_text("", 3, model=tmp_path, allow_unk=True).split()[0] == "<unk>"
    with pytest.raises(UserError, match="no token left to sample"):
        generate_text("", model=folder, ban=WORDS[2:])


def test_a_continuation_is_what_it_is_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of continuations and of other prompts, their lengths and how many run side by side."""
    prompts = ["w1 w2 w3", "", "w4", "w5\nw6", "w4", "w7 w8 w9 w10 w11 w12"]
    alone = [text for prompt in prompts for text in generate_texts(prompt, 3, 12, 1.2, folder, seed=5)]
    assert generate_texts(prompts, 3, 12, 1.2, folder, seed=5) == alone
    monkeypatch.setattr(generation, "BATCH_LOGITS", 2 * len(WORDS))
    assert generate_texts(prompts, 3, 12, 1.2, folder, seed=5) == alone
    firsts = [generate_text(prompt, 12, 1.2, folder, seed=5) for prompt in prompts]
    assert alone[::3] == firsts
    assert len(set(alone[:3])) == 3


@pytest.mark.parametrize("seed", [-1, 2**64, 10**40])
def test_any_seed(folder: Path, seed: int) -> None:
    first, again = (generate_text("w1", 20, model=folder, seed=seed) for _ in range(2))
    assert first == again != generate_text("w1", 20, model=folder, seed=seed + 1)


def test_a_line_end_in_a_prompt_is_eos(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = generate_text("w1 w2\n", 1, 0, folder)
    assert text.startswith("w1 w2\n")
    (new,) = sample(load(folder).model, VOCABULARY, [[1, 3, 4, 1]], 1, Sampling(1, temperature=0))
    assert text == f"w1 w2\n{WORDS[new[0]]}"
    assert caplog.messages == []


def test_lines_stop_and_ban(folder: Path) -> None:
    many = generate_texts("w1", 30, 3000, 1.5, folder, seed=1, lines=3)
    assert {text.count("\n") for text in many} == {2}
    assert all(len(line) == len(line.strip()) for text in many for line in text.split("\n"))
    assert generate_texts("w1", 30, 3000, 1.5, folder, seed=1) == [text.split("\n")[0] for text in many]
    for text in generate_texts("w1", 30, 3000, 1.5, folder, seed=1, stop=["w3", "w4"], ban=["<eos>", "w5"]):
        new = text.split()[1:]
        assert new[-1] in ("w3", "w4")
        assert not {"w3", "w4", "w5"} & set(new[:-1])


@pytest.mark.parametrize("prompt", ["", "w1 w2", "w1\n", "w1 "])
def test_a_stream_is_the_text_in_pieces(folder: Path, prompt: str) -> None:
    """A piece takes as much work as its line is long, not as the text is."""
    options = {"max_len": 25, "temperature": 1.5, "lines": 4}
    with patch.object(Vocabulary, "go_on", autospec=True, side_effect=Vocabulary.go_on) as joined:
        pieces = list(stream_text(prompt, folder, 7, **options))
    text = generate_text(prompt, model=folder, seed=7, **options)  # type: ignore[arg-type]
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert max(len(call.args[2]) for call in joined.call_args_list) <= max(len(line.split()) for line in text.split("\n")) + 1
    assert list(stream_text("w1", folder, max_len=0)) == ["w1"]


def test_a_stream_of_bytes_is_the_text_too(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(["né né"], "bpe", max_size=258)
    torch.manual_seed(0)
    model = LSTMLanguageModel(ModelConfig(embedding_size=8, hidden_size=8), len(vocabulary))
    save_pretrained(tmp_path, model, vocabulary, {"dataset": "toy", "level": "bpe", "max_size": 258})
    options = {"max_len": 12, "temperature": 2.0, "ban": [f"{chr(code)}" for code in range(33, 127)]}
    cut = 0
    for seed in range(20):
        text = generate_text("né", model=tmp_path, seed=seed, **options)
        assert "".join(stream_text("né", tmp_path, seed, **options)) == text
        cut += text.endswith("\ufffd")
    assert cut > 5, "some end within a character"


def test_a_text_comes_as_soon_as_it_is_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order; by then no more places are computed than it needs, and one to see that it has ended."""
    places, grow = [0], generation._grow

    def counted(*args: Any) -> Iterator[tuple[list[list[int]], int]]:
        for place in grow(*args):
            places[0] += 1
            yield place

    monkeypatch.setattr(generation, "_grow", counted)
    options = {"max_len": 400, "temperature": 1.5, "seed": 3}
    needed, texts = 0, []
    for text in stream_texts(["w1", "w2 w3"], 4, folder, **options):
        texts.append(text)
        needed = max(needed, len(text.split()) - (1 if len(texts) <= 4 else 2))
        assert needed <= places[0] <= needed + 1
    assert texts == generate_texts(["w1", "w2 w3"], 4, model=folder, **options)
    assert len(texts[0].split()) < needed, "the first is not the longest"


def test_prompts_from_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """UTF-8 whatever the locale says."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("w1 naïve\n\nw3\n".encode()), "ascii"))
    arguments = ["--model", str(folder.parent), "--seed", str(10**30), "--temperature", "1e308", "--prompt_file", "-", "--count", "2"]
    assert generate(arguments) == 0
    expected = generate_texts(["w1 naïve", "", "w3"], 2, 30, 1e308, folder, seed=10**30)
    assert capfdbinary.readouterr().out == "".join(f"{text}\n" for text in expected).encode()


def test_the_example_of_the_docs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/generation.md").read_text(), re.DOTALL)
    exec(code, {})
    assert "The river" in capsys.readouterr().out


def test_a_table_of_prompts_and_texts_of_several_lines(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.csv").write_text("text,item\nw1,1\nw3 w4,2\n")
    prompts = ["--prompt_file", str(tmp_path / "prompts.csv"), "--seed", "1", "--lines", "2"]
    assert generate(["--model", str(folder), *prompts]) == 0
    assert capfd.readouterr().out == "\n".join(f"{text}\n" for text in generate_texts(["w1", "w3 w4"], 1, model=folder, seed=1, lines=2))


@pytest.mark.system
def test_on_a_terminal_it_is_the_same_text(folder: Path) -> None:
    main, side = os.openpty()
    command = [sys.executable, f"{ROOT}/scripts/generate.py", "--model", str(folder), "--seed", "7", "--prompt", "w1"]
    with subprocess.Popen([*command, "--lines", "9"], stdout=side) as process:
        os.close(side)
        shown = read_terminal(main)
    assert process.returncode == 0
    assert shown.decode().replace("\r\n", "\n") == generate_text("w1", model=folder, seed=7, lines=9) + "\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--prompt", "w1", "--prompt_file", "a"], "one of the two"), (["--prompt_file", "empty"], "no prompt in empty")],
)
def test_wrong_use_of_the_command(arguments: list[str], named: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    with pytest.raises(UserError, match=named) as refusal:
        generate(["--model", str(folder), *arguments])
    assert refusal.value.status == 2
