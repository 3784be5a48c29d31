from pathlib import Path

import pytest
import torch

from lstmlm import LSTMLanguageModel, UserError, Vocabulary, generate_text, generate_texts
from lstmlm.config import ModelConfig
from lstmlm.generation import choose, sample
from lstmlm.model import pretrained
from lstmlm.model.pretrained import save_pretrained

WORDS = ["<unk>", "<eos>", *(f"w{i}" for i in range(29))]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(WORDS)


@pytest.fixture
def model() -> LSTMLanguageModel:
    torch.manual_seed(0)
    model = LSTMLanguageModel(ModelConfig(embedding_size=12, hidden_size=12), len(WORDS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        model.decoder.bias[1] = -3  # lines of some length
    return model


@pytest.fixture
def folder(model: LSTMLanguageModel, vocabulary: Vocabulary, tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "runs/a/model", model, vocabulary, {"dataset": "toy"})
    return tmp_path / "runs/a/model"


def test_greedy_is_the_argmax_of_the_whole_text_each_time(model: LSTMLanguageModel, vocabulary: Vocabulary) -> None:
    ids = [1, 5, 6]
    (new,) = sample(model, vocabulary, ids, 1, max_len=12, temperature=0)
    for i in range(12):
        with torch.no_grad():
            logits, _ = model.logits(torch.tensor(ids)[:, None], model.initial_state(1))
        logits = logits[-1, 0]
        logits[vocabulary.unk] = -torch.inf
        if i == 0:
            logits[vocabulary.eos] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == vocabulary.eos:
            ids.pop()
            break
    assert new == ids[3:]


def test_sampled_frequencies_are_the_models(model: LSTMLanguageModel, vocabulary: Vocabulary) -> None:
    count = 20_000
    new = sample(model, vocabulary, [1, 5], count, max_len=1, temperature=0.7, seed=1, allow_unk=True)
    with torch.no_grad():
        logits, _ = model.logits(torch.tensor([[1], [5]]), model.initial_state(1))
    logits = logits[-1, 0] / 0.7
    logits[vocabulary.eos] = -torch.inf
    p = logits.softmax(-1)
    frequencies = torch.bincount(torch.tensor(new).flatten(), minlength=len(WORDS)) / count
    assert ((frequencies - p).abs() <= 5 * (p * (1 - p) / count).sqrt() + 1e-9).all()


def test_same_seed_same_text_and_another_seed_another(folder: Path) -> None:
    texts = [generate_text("w1 w2", 20, 0.8, folder, seed=seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("w1 w2 ")


def test_the_contract(folder: Path) -> None:
    for seed in range(30):
        text = generate_text("w1", max_len=7, temperature=1.5, model=folder, seed=seed)
        new = text.split()[1:]
        assert 1 <= len(new) <= 7
        assert "<eos>" not in new
        assert "<unk>" not in new
    texts = generate_texts("", 200, max_len=7, temperature=5.0, model=folder, seed=0, allow_unk=True)
    assert len(texts) == 200
    assert any("<unk>" in text for text in texts)
    assert min(len(text.split()) for text in texts) < 7, "a text ends with its line"
    assert generate_text("w1", max_len=0, model=folder) == "w1"


def test_unknown_words_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = generate_text("w1 zebra w2 quagga", 3, model=folder, seed=0)
    assert text.startswith("w1 zebra w2 quagga ")
    assert caplog.messages == ["not in the vocabulary, read as <unk>: quagga zebra"]


def test_characters(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(["abc"], level="char")
    model = LSTMLanguageModel(ModelConfig(embedding_size=4, hidden_size=4), len(vocabulary))
    save_pretrained(tmp_path, model, vocabulary, {"dataset": "toy"})
    text = generate_text("ab", max_len=5, model=tmp_path, seed=1)
    assert text.startswith("ab")
    assert set(text) <= set("abc")


def test_the_state_is_all_that_is_carried(
    model: LSTMLanguageModel, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every new token costs one row, however long the text is."""
    rows = []
    original = LSTMLanguageModel.hidden
    monkeypatch.setattr(
        LSTMLanguageModel,
        "hidden",
        lambda self, tokens, *rest: rows.append(len(tokens)) or original(self, tokens, *rest),
    )
    sample(model, vocabulary, [1, 4, 5, 6], 3, max_len=9, seed=2)
    assert rows[0] == 4
    assert set(rows[1:]) == {1}


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"), [(2, 1.0, {1, 2}), (None, 0.5, {1}), (None, 0.51, {1, 2}), (1, 0.1, {1})]
)
def test_top_k_and_top_p(top_k: int | None, top_p: float, kept: set[int]) -> None:
    logits = torch.tensor([0.15, 0.5, 0.3, 0.05]).log().expand(4000, 4)
    chosen = choose(logits, 1.0, top_k, top_p, torch.Generator().manual_seed(0))
    assert set(chosen.tolist()) == kept


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.9]]).expand(50, 3)
    assert set(choose(logits, 1e-30, None, 1.0, torch.Generator()).tolist()) == {1}


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"max_len": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"count": 0}]
)
def test_arguments_out_of_range(folder: Path, bad: dict[str, float]) -> None:
    arguments = {"count": 1, **bad}
    with pytest.raises(UserError, match=next(iter(bad))):
        generate_texts("w1", model=folder, **arguments)  # type: ignore[arg-type]


def test_where_no_model_is_named_the_newest_is_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert generate_text("w1", 2, seed=0).startswith("w1 ")
    monkeypatch.chdir(tmp_path / "runs")
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path / "absent")
    with pytest.raises(UserError, match="no model in"):
        generate_text("w1")
