"""The folder that transformers loads: same logits, state in and out, loss, generation, without this package."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm import LSTMLanguageModel, Vocabulary, generate_text
from lstmlm.config import ModelConfig
from lstmlm.export.transformers import export_transformers
from lstmlm.model.pretrained import load, save_pretrained

pytestmark = pytest.mark.system  # whole runs or processes

pytest.importorskip("transformers")
WORDS = ["<unk>", "<eos>", *(f"w{i}" for i in range(29))]


SIZES = {"hidden_size": 20}  # of the first layer; the last one has as many units as the embedding


def make_model(folder: Path, **sizes: Any) -> LSTMLanguageModel:
    torch.manual_seed(0)
    model = LSTMLanguageModel(ModelConfig(**{"embedding_size": 12, "hidden_size": 12, **sizes}), len(WORDS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        model.decoder.bias.uniform_(-1, 1)
    save_pretrained(folder, model, Vocabulary(WORDS), {"dataset": "toy"}, {"exported": "{}"})
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LSTMLanguageModel:
    return make_model(tmp_path_factory.mktemp("own"), **SIZES)


@pytest.fixture(scope="module")
def folder(model: LSTMLanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own, folder = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("exported")
    make_model(own, **SIZES)
    export_transformers(own, folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(len(WORDS), shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_logits_and_state_are_ours(model: LSTMLanguageModel, theirs: Any) -> None:
    ids, ours = tokens(3, 11), model.initial_state(3)
    state = None
    for part in ids.split(4, dim=1):
        logits, ours = model.logits(part.T, ours)
        output = theirs(part, state=state)
        state = output.state
        torch.testing.assert_close(output.logits, logits.transpose(0, 1), rtol=1e-5, atol=1e-5)
    for i, (h, c) in enumerate(ours):
        torch.testing.assert_close(state[:, 0, i, : h.shape[1]], h)
        torch.testing.assert_close(state[:, 1, i, : h.shape[1]], c)


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("told", [True, False], ids=["mask", "id"])
@torch.no_grad()
def test_padding_changes_nothing(theirs: Any, side: str, told: bool) -> None:
    lengths, size = (1, 4, 6, 0), 9
    ids = torch.full((4, size), 0 if told else len(WORDS))
    mask = torch.zeros(4, size, dtype=torch.long)
    places = []
    for row, length in enumerate(lengths):
        begin = {"left": size - length, "right": 0, "both": 2}[side]
        places.append(slice(begin, begin + length))
        ids[row, places[-1]] = tokens(length, seed=row)
        mask[row, places[-1]] = 1
    output = theirs(ids, attention_mask=mask if told else None)
    for row, place in enumerate(places[:3]):
        alone = theirs(ids[row : row + 1, place])
        torch.testing.assert_close(output.logits[row, place], alone.logits[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.state[row], alone.state[0])
    assert not output.state[3].any()


def test_the_loss_of_labels(model: LSTMLanguageModel, theirs: Any) -> None:
    ids = tokens(2, 7)
    labels = ids.masked_fill(torch.tensor([[0] * 7, [0] * 5 + [1] * 2]).bool(), -100)
    output = theirs(ids, labels=labels)
    with torch.no_grad():
        nll, _, _ = model.score(ids[:, :-1].T, model.initial_state(2), labels[:, 1:].T)
    torch.testing.assert_close(output.loss, nll.sum() / 10)
    output.loss.backward()
    assert theirs.decoder.weight is theirs.embedding.weight
    assert theirs.embedding.weight.grad.abs().sum() > 0
    theirs.zero_grad()


@torch.no_grad()
def test_greedy_generation_is_ours(model: LSTMLanguageModel, theirs: Any, tokenizer: Any, folder: Path) -> None:
    inputs = tokenizer(["w3 w4", "w5"], return_tensors="pt", padding=True, padding_side="left")
    new = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, suppress_tokens=[0])
    for prompt, row in zip(["w3 w4", "w5"], new, strict=True):
        text = generate_text(prompt, 9, 0, folder)
        assert tokenizer.decode(row, skip_special_tokens=True) == text


@torch.no_grad()
def test_beams_and_no_cache_agree(theirs: Any, tokenizer: Any) -> None:
    inputs = tokenizer("w3 w4", return_tensors="pt")
    settings = {"max_new_tokens": 8, "num_beams": 4, "do_sample": False}
    with_state = theirs.generate(**inputs, **settings, use_cache=True)
    torch.testing.assert_close(with_state, theirs.generate(**inputs, **settings, use_cache=False))


@torch.no_grad()
def test_generation_goes_on_from_a_state(theirs: Any) -> None:
    ids = tokens(1, 9)
    state = theirs(ids[:, :5]).state
    on = theirs.generate(ids[:, 5:], state=state, max_new_tokens=6, do_sample=False)
    assert on[:, 4:].tolist() == theirs.generate(ids, max_new_tokens=6, do_sample=False)[:, 9:].tolist()


def test_the_tokenizer_cuts_as_the_vocabulary_does(tokenizer: Any) -> None:
    vocabulary = Vocabulary(WORDS)
    spaces = "".join(chr(i) for i in range(0x3001) if chr(i).isspace())
    for text in (
        "w1 w2",
        "  w1\tzebra  w28 ",
        f"w1{spaces}w2",
        "".join(f"w1{space}w2 " for space in spaces),
        "<unk> w3",
        "\ufeffw1\r\rw2\r\n\nw3\n",
        "",
    ):
        ids = tokenizer(text).input_ids
        assert ids == [vocabulary.eos, *vocabulary.encode(text, eos=False)], repr(text)
    assert tokenizer("w1\nw2\r\n", add_special_tokens=False).input_ids == vocabulary.encode("w1\nw2")
    assert tokenizer.decode(vocabulary.encode("w1 w2", eos=False)) == "w1 w2"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 1, 0)
    assert tokenizer.pad_token_id == len(WORDS)


@pytest.mark.parametrize("sizes", [{"embedding_size": 8, "tie_weights": False}, {"num_layers": 1}])
@torch.no_grad()
def test_other_sizes(tmp_path: Path, sizes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    model = make_model(tmp_path / "own", **sizes)
    export_transformers(tmp_path / "own", tmp_path / "exported")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    logits, _ = model.logits(tokens(5, 2), model.initial_state(2))
    torch.testing.assert_close(theirs(tokens(5, 2).T).logits, logits.transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_weights_in_16_bits_compute_in_float32(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = make_model(tmp_path / "own")
    save_pretrained(tmp_path / "own", model, Vocabulary(WORDS), {"dataset": "toy"}, dtype=torch.float16)
    export_transformers(tmp_path / "own", tmp_path / "exported")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.float32}
    rounded = dict(load(tmp_path / "own").model.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(parameter, rounded[name], rtol=0, atol=0)


def test_the_folder_is_a_model_of_ours_too(model: LSTMLanguageModel, folder: Path) -> None:
    saved = load(folder)
    loaded, vocabulary = saved.model, saved.vocabulary
    torch.testing.assert_close(loaded.weights(), model.weights(), rtol=0, atol=0)
    assert vocabulary.tokens == WORDS
    assert "## With transformers" in (folder / "README.md").read_text()


def test_it_loads_without_this_package(folder: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules["lstmlm"] = None  # importing it fails
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(model(**tokenizer("w1 w2", return_tensors="pt")).logits.shape)
"""
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code, str(folder)]
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "torch.Size([1, 3, 31])"
