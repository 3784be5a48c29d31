"""The folder that transformers loads: same logits, state in and out, loss, generation, without this package."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils.modeling import load_state_dict

from lstmlm import LSTMLanguageModel, UserError, Vocabulary, generate_text
from lstmlm.export.onnx import export_onnx
from lstmlm.export.transformers import export_transformers
from lstmlm.model.pretrained import load, plain, save_pretrained
from tests.helpers import WORDS, sharp_model

pytestmark = pytest.mark.system  # whole runs or processes

transformers = pytest.importorskip("transformers")


def make_model(folder: Path, **sizes: Any) -> LSTMLanguageModel:
    model = sharp_model(len(WORDS), **sizes)
    torch.nn.init.uniform_(model.decoder.bias, -1, 1)
    save_pretrained(folder, model, Vocabulary(WORDS), {"dataset": "toy"}, {"exported": "{}"})
    return model


def make_exported(folder: Path, **sizes: Any) -> LSTMLanguageModel:
    model = make_model(folder / "own", **sizes)
    export_transformers(folder / "own", folder / "exported")
    return model


def read_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def read_tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model; its first layer has 20 units, and the last one as many as the embedding."""
    folder = tmp_path_factory.mktemp("model")
    make_exported(folder, hidden_size=20)
    return folder / "exported"


@pytest.fixture(scope="module")
def model(folder: Path) -> LSTMLanguageModel:
    return load(folder.parent / "own", device="cpu").model


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return read_model(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return read_tokenizer(folder)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(len(WORDS), shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [{"hidden_size": 20}, {"embedding_size": 8, "tie_weights": False}, {"num_layers": 1}])
@torch.no_grad()
def test_logits_and_state_are_ours(tmp_path: Path, sizes: dict[str, Any]) -> None:
    model = make_exported(tmp_path, **sizes)
    theirs, ids, ours = read_model(tmp_path / "exported"), tokens(3, 11), model.initial_state(3)
    state = None
    for part in ids.split(4, dim=1):
        logits, ours = model.logits(part.T, ours)
        output = theirs(part, state=state)
        state = output.state
        torch.testing.assert_close(output.logits, logits.transpose(0, 1), rtol=1e-5, atol=1e-5)
    for i, (h, c) in enumerate(ours):
        torch.testing.assert_close(state[:, 0, i, : h.shape[1]], h)
        torch.testing.assert_close(state[:, 1, i, : h.shape[1]], c)


@pytest.mark.parametrize("tied", [True, False])
def test_the_layers_without_the_decoder(tmp_path: Path, tied: bool, caplog: pytest.LogCaptureFixture) -> None:
    """What a classifier is put upon, as BabyLM's pipeline does; texts are padded on the left."""
    model = make_exported(tmp_path, hidden_size=20, tie_weights=tied)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    assert not caplog.messages
    inputs = read_tokenizer(tmp_path / "exported")(["w1 w2 w3", "w4"], padding=True, return_tensors="pt")
    output = theirs(**inputs)
    assert output.last_hidden_state.shape == (2, 4, theirs.config.hidden_size)
    for row, ids in enumerate(inputs.input_ids):
        logits, _ = model.logits(ids[ids < len(WORDS)][:, None], model.initial_state(1))
        torch.testing.assert_close(model.decoder(output.last_hidden_state[row, -1]), logits[-1, 0], rtol=1e-5, atol=1e-5)
    assert not output.last_hidden_state[1, :2].any(), "padding"
    assert not theirs(**inputs | {"attention_mask": torch.zeros(2, 4)}).last_hidden_state.any()
    output.last_hidden_state[:, -1].square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in theirs.parameters())


def test_each_place_drops_its_own_share(tmp_path: Path) -> None:
    make_exported(tmp_path, hidden_size=20, dropout=0.5, dropout_input=0.25, dropout_output=0.75)
    theirs, shares = read_model(tmp_path / "exported").train(), []
    for dropout in theirs.dropouts:
        dropout.register_forward_hook(
            lambda module, inputs, output: shares.append((output.shape[-1], (output == 0).double().mean().item()))
        )
    theirs(tokens(50, 40))
    assert [size for size, _ in shares] == [theirs.embedding.embedding_dim, 20, theirs.embedding.embedding_dim]
    assert [share for _, share in shares] == pytest.approx([0.25, 0.5, 0.75], abs=0.02)


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
    alone = [theirs(ids[row : row + 1, places[row]], labels=ids[row : row + 1, places[row]]).loss.item() for row in (1, 2)]
    loss = theirs(ids, attention_mask=mask if told else None, labels=ids).loss.item()
    assert loss == pytest.approx((3 * alone[0] + 5 * alone[1]) / 8), "each text's first token has nothing before it"


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
    inputs = tokenizer(["w3 w4", "w5"], return_tensors="pt", padding=True)
    new = theirs.generate(**inputs, max_new_tokens=9, do_sample=False)
    for prompt, row in zip(["w3 w4", "w5"], new, strict=True):
        text = generate_text(prompt, 9, 0, folder)
        assert tokenizer.decode(row, skip_special_tokens=True) == text


@torch.no_grad()
def test_generation_goes_on_from_a_state(theirs: Any) -> None:
    ids, settings = tokens(2, 3), {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}
    state = 5 * torch.randn(2, 2, 2, 20, generator=torch.Generator().manual_seed(0))
    expected = ids
    for _ in range(6):
        logits = theirs(expected, state=state).logits[:, -1]
        logits[:, :2] = -torch.inf  # <unk>, and <eos> as min_new_tokens asks for
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    for use_cache in (True, False):
        assert theirs.generate(ids, state=state, use_cache=use_cache, **settings).tolist() == expected.tolist()
    assert theirs.generate(ids, **settings).tolist() != expected.tolist(), "the state matters"
    for start in (state, None):
        beams = [theirs.generate(ids, state=start, use_cache=use, num_beams=4, **settings).tolist() for use in (True, False)]
        assert beams[0] == beams[1]


@torch.no_grad()
def test_the_pipeline_writes_words_with_spaces(folder: Path) -> None:
    write = transformers.pipeline("text-generation", str(folder), trust_remote_code=True)
    (written,) = write("w3 w4", max_new_tokens=9, do_sample=False)
    assert written["generated_text"] == generate_text("w3 w4", 9, 0, folder)


def test_it_loads_without_this_package_and_warns_of_nothing(folder: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules["lstmlm"] = None  # importing it fails
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = tokenizer(["w1", "w1 w2"], padding=True, return_tensors="pt")
print(model.generate(**ids, min_new_tokens=3, max_new_tokens=3).shape)
"""
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "torch.Size([2, 6])\n"), result.stderr
    assert not [line for line in result.stderr.splitlines() if "warn" in line.lower() or "pad" in line or "must" in line]


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_new_tokens_get_rows(tmp_path: Path, tied: bool) -> None:
    make_exported(tmp_path, tie_weights=tied)
    model, tokenizer = read_model(tmp_path / "exported"), read_tokenizer(tmp_path / "exported")
    ids = tokens(2, 6)
    before = model(ids).logits
    assert tokenizer.add_tokens(["new"]) == 1
    model.resize_token_embeddings(len(tokenizer))
    assert (model.decoder.weight is model.embedding.weight) == tied
    new = tokenizer("w3 new", return_tensors="pt").input_ids
    assert new[0, -1] == len(tokenizer) - 1
    for folder in ("resized", "again"):
        after = model(ids).logits
        assert after.shape == (2, 6, len(tokenizer))
        torch.testing.assert_close(after[..., : len(WORDS)], before, rtol=1e-5, atol=1e-5)
        assert not torch.equal(model(new).logits[0, -1], model(new[:, :-1]).logits[0, -1])
        model.save_pretrained(tmp_path / folder)
        model = read_model(tmp_path / folder)


def test_an_export_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    make_exported(tmp_path)
    export_onnx(tmp_path / "own", tmp_path / "exported/onnx")
    code = """
import sys
from lstmlm.export.onnx import export_onnx
from lstmlm.export.transformers import export_transformers
export_transformers(sys.argv[1], sys.argv[2])
export_onnx(sys.argv[1], sys.argv[2] + "/onnx")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "own"), str(tmp_path / "again")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}, timeout=200)
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "exported", tmp_path / "again")
    )
    assert first == second
    assert len(first) == 11
    weights = load_state_dict(str(tmp_path / "again/model.safetensors"))  # of Accelerate, which looks at the header
    torch.testing.assert_close(weights, load(tmp_path / "own").model.weights(), rtol=0, atol=0)


def test_only_a_link_within_the_cache_of_the_hub_is_followed(tmp_path: Path) -> None:
    own, blobs = tmp_path / "models--a--b/snapshots/own", tmp_path / "models--a--b/blobs"
    make_model(own)
    blobs.mkdir()
    (own / "README.md").rename(blobs / "card")
    (own / "README.md").symlink_to(blobs / "card")
    export_transformers(own, tmp_path / "exported")
    assert "pipeline_tag: text-generation" in (tmp_path / "exported/README.md").read_text()
    make_model(tmp_path / "strange")
    (tmp_path / "strange/README.md").unlink()
    (tmp_path / "strange/README.md").symlink_to(blobs / "card")
    with pytest.raises(UserError, match="is a link that leaves the model's folder"):
        export_transformers(tmp_path / "strange", tmp_path / "none")


def test_a_card_that_tells_a_place_loses_it(tmp_path: Path) -> None:
    """An earlier version wrote where the text was."""
    make_model(tmp_path / "own")
    place = "/home/alice/R&D [x]/book.txt"
    config, card = (tmp_path / "own" / name for name in ("config.json", "README.md"))
    config.write_text(config.read_text().replace('"toy"', f'"{place}"'))
    kept = "https://example.org/home/alice/R&D [x]/book.txt.gz"  # which is not that place
    card.write_text(f"datasets:\n- {place}\n\nAn LSTM language model trained on {plain(place)}: small. See {kept}\n")
    export_transformers(tmp_path / "own", tmp_path / "theirs")
    exported = (tmp_path / "theirs/README.md").read_text()
    assert exported.startswith(f"datasets:\n- book.txt\n\nAn LSTM language model trained on book.txt: small. See {kept}\n")
    assert b"alice" not in (tmp_path / "theirs/config.json").read_bytes()


def test_weights_in_16_bits_compute_in_float32(tmp_path: Path) -> None:
    model = make_model(tmp_path / "own")
    save_pretrained(tmp_path / "own", model, Vocabulary(WORDS), {"dataset": "toy"}, dtype=torch.float16)
    export_transformers(tmp_path / "own", tmp_path / "exported")
    theirs = read_model(tmp_path / "exported")
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.float32}
    rounded = dict(load(tmp_path / "own").model.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(parameter, rounded[name], rtol=0, atol=0)


def test_the_folder_is_a_model_of_ours_too(model: LSTMLanguageModel, folder: Path, tmp_path: Path) -> None:
    saved = load(folder)
    torch.testing.assert_close(saved.model.weights(), model.weights(), rtol=0, atol=0)
    assert saved.vocabulary.tokens == WORDS
    export_transformers(folder, tmp_path / "again")
    assert (tmp_path / "again/README.md").read_text().count("## With transformers") == 1
