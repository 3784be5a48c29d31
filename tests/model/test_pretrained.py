"""A model on disk: written, read back, and what is refused."""

from pathlib import Path

import pytest
import safetensors
import torch
from huggingface_hub import ModelCard

from lstmlm import LSTMLanguageModel, UserError, Vocabulary
from lstmlm.config import ModelConfig
from lstmlm.model import pretrained
from lstmlm.model.pretrained import find_model, load_pretrained, model_card, read_config, save_pretrained

SMALL = ModelConfig(embedding_size=12, hidden_size=12)
DATA = {"dataset": "toy", "subset": None, "level": "word"}


def words(size: int) -> Vocabulary:
    return Vocabulary(["<unk>", "<eos>", *(f"w{i}" for i in range(size - 2))])


@pytest.fixture
def model() -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(SMALL, vocab_size=31)


def test_a_tied_weight_is_written_once_and_tied_again(model: LSTMLanguageModel, tmp_path: Path) -> None:
    save_pretrained(tmp_path, model, words(31), DATA, {"step": "3"})
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert [name for name in file.keys() if file.get_tensor(name).shape == (31, 12)] == ["embedding.weight"]  # noqa: SIM118
        assert file.metadata() == {"step": "3"}
    loaded, _ = load_pretrained(tmp_path)
    assert loaded.decoder.weight is loaded.embedding.weight


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tied: bool, tmp_path: Path) -> None:
    model = LSTMLanguageModel(ModelConfig(embedding_size=8, hidden_size=8, num_layers=3, tie_weights=tied), 17)
    save_pretrained(tmp_path, model, words(17), DATA)
    loaded, vocabulary = load_pretrained(tmp_path)
    assert loaded.config == model.config
    assert vocabulary.tokens == words(17).tokens
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_weights_in_one_flat_buffer_are_saved_apart(model: LSTMLanguageModel, tmp_path: Path) -> None:
    """As cuDNN keeps them on a GPU."""
    expected = {name: weight.clone() for name, weight in model.weights().items()}
    for layer in model.layers:
        parameters = list(layer.parameters())
        flat = torch.cat([p.detach().flatten() for p in parameters])
        for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.data = piece.view_as(p)
    save_pretrained(tmp_path, model, words(31), DATA)
    torch.testing.assert_close(load_pretrained(tmp_path)[0].weights(), expected, rtol=0, atol=0)


def test_a_run_directory_stands_for_its_model(model: LSTMLanguageModel, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"there is no model in .*run: cannot read .*run/config\.json"):
        load_pretrained(tmp_path / "run")
    save_pretrained(tmp_path / "run" / "model", model, words(31), DATA)
    (tmp_path / "run" / "config.yaml").write_text("")
    assert read_config(tmp_path / "run")["data"] == DATA
    loaded, vocabulary = load_pretrained(tmp_path / "run")
    assert vocabulary.tokens == words(31).tokens
    torch.testing.assert_close(loaded.weights(), model.weights(), rtol=0, atol=0)


def test_the_card_names_data_and_size(model: LSTMLanguageModel, tmp_path: Path) -> None:
    save_pretrained(tmp_path, model, words(31), DATA)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict()["library_name"] == "lstmlm"
    assert card.data.datasets == ["toy"]
    assert card.data.eval_results is None
    assert "31 types" in card.text
    assert "perplexity |" not in card.text


def test_the_card_tells_the_figures(model: LSTMLanguageModel) -> None:
    figures = {"test": {"ppl": 123.456, "targets": 1000, "columns": 1, "loss": 4.8}}
    card = ModelCard(model_card(model, words(31), DATA, figures, "Small", "cc-by-sa-3.0", "## Limits\n\nMany."))
    (result,) = card.data.eval_results
    assert (result.dataset_split, result.metric_type, result.metric_value) == ("test", "perplexity", 123.456)
    assert card.data.license == "cc-by-sa-3.0"
    assert "| test | 123.46 | 1,000 | 1 |" in card.text
    assert card.text.endswith("## Limits\n\nMany.")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_low_precision_are_read_as_float32(
    model: LSTMLanguageModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_pretrained(tmp_path / "half", model, words(31), DATA, dtype=dtype)
    save_pretrained(tmp_path / "full", model, words(31), DATA)
    loaded = load_pretrained(tmp_path / "half")[0].weights()
    assert {weight.dtype for weight in loaded.values()} == {torch.float32}
    expected = {name: weight.to(dtype).float() for name, weight in model.weights().items()}
    torch.testing.assert_close(loaded, expected, rtol=0, atol=0)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]


def test_broken_model_folders(model: LSTMLanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model in"):
        load_pretrained(tmp_path)
    save_pretrained(tmp_path, model, words(31), DATA)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match="cannot read the model"):
        load_pretrained(tmp_path)
    save_pretrained(tmp_path / "other", LSTMLanguageModel(SMALL, 7), words(7), DATA)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="not those of this model"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a model configuration"):
        load_pretrained(tmp_path)


def test_the_newest_run_is_taken_where_none_is_named(
    model: LSTMLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "a"):
        save_pretrained(tmp_path / name / "model", model, words(31), DATA)
    assert find_model(runs=tmp_path) == tmp_path / "a" / "model"
    assert capsys.readouterr().err == f"using the newest model here, {tmp_path / 'a' / 'model'}\n"
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path / "b" / "model")
    assert find_model(runs=tmp_path / "a") == tmp_path / "b" / "model"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("using the model that comes with lstmlm")
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path / "absent")
    with pytest.raises(UserError, match="no model in"):
        find_model(runs=tmp_path / "a")
