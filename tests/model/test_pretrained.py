"""A model on disk: written, read back, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import ModelCard

from lstmlm import LSTMLanguageModel, UserError, Vocabulary, evaluate, generate_text, load_config, score_text
from lstmlm.config import DataConfig, ModelConfig
from lstmlm.data.sources import open_source
from lstmlm.evaluation.pairs import score_pairs
from lstmlm.model import pretrained
from lstmlm.model.pretrained import SavedModel, find_model, load, model_card, model_name, save_pretrained
from tests.helpers import WORDS, data_card

SMALL = ModelConfig(embedding_size=12, hidden_size=12)
DATA: dict[str, Any] = {"dataset": "toy", "subset": None, "level": "word"}
VOCABULARY = Vocabulary(WORDS)


@pytest.fixture
def model() -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(SMALL, vocab_size=31)


@pytest.mark.parametrize(("tied", "dtype"), [(True, torch.float32), (False, torch.float32), (True, torch.float16), (False, torch.bfloat16)])
def test_save_and_load(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """A tied weight is written once and tied again; weights in one flat buffer, as cuDNN keeps them, are saved apart."""
    model = LSTMLanguageModel(ModelConfig(embedding_size=8, hidden_size=8, num_layers=3, tie_weights=tied), 17)
    expected = {name: weight.to(dtype).float() for name, weight in model.weights().items()}
    for layer in model.layers:
        parameters = list(layer.parameters())
        flat = torch.cat([p.detach().flatten() for p in parameters])
        for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.data = piece.view_as(p)
    save_pretrained(tmp_path, model, Vocabulary(WORDS[:17]), DATA, {"step": "3"}, dtype)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        assert {weight.dtype for weight in written} == {dtype}
        assert sum(weight.shape == (17, 8) for weight in written) == (1 if tied else 2)
        assert file.metadata() == {"step": "3"}
    saved = load(tmp_path)
    assert saved.model.config == model.config
    assert saved.vocabulary.tokens == Vocabulary(WORDS[:17]).tokens
    assert (saved.model.decoder.weight is saved.model.embedding.weight) == tied
    torch.testing.assert_close(saved.model.weights(), expected, rtol=0, atol=0)


def test_a_run_directory_stands_for_its_model(model: LSTMLanguageModel, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*run/config\.json"):
        load(tmp_path / "run")
    save_pretrained(tmp_path / "run" / "model", model, VOCABULARY, DATA)
    (tmp_path / "run" / "config.yaml").write_text("")
    assert load(tmp_path / "run").folder == tmp_path / "run" / "model"


def test_a_name_in_the_card_is_text(model: LSTMLanguageModel) -> None:
    text = model_card(model, VOCABULARY, DATA | {"dataset": "<b>\n# a\x1b[x](y) wiki_text"}, name="<img>\n# b")
    card = ModelCard(text)
    assert r"trained on \<b\>\\n\# a\\x1b\[x\](y) wiki_text:" in text
    assert r"# \<img\>\\n\# b" in text
    assert card.data.datasets == ["<b>\n# a\x1b[x](y) wiki_text"]
    assert (card.data.to_dict()["library_name"], card.data.eval_results) == ("lstmlm", None)


def test_the_card_tells_the_figures(model: LSTMLanguageModel) -> None:
    figures = {"test": {"ppl": 123.456, "targets": 1000, "columns": 1, "loss": 4.8}}
    card = ModelCard(model_card(model, VOCABULARY, DATA, figures, "Small", "cc-by-sa-3.0", "## Limits\n\nMany."))
    (result,) = card.data.eval_results
    assert (result.dataset_split, result.metric_type, result.metric_value) == ("test", "perplexity", 123.456)
    assert card.data.license == "cc-by-sa-3.0"
    assert "| test | 123.46 | 1,000 | 1 |" in card.text
    assert card.text.endswith("## Limits\n\nMany.")


@pytest.mark.parametrize(
    "data, name, subset",
    [
        ({"dataset": "Salesforce/wikitext"}, "Salesforce/wikitext (wikitext-2-v1)", "wikitext-2-v1"),  # null means WikiText-2 there
        ({"dataset": "Salesforce/wikitext", "subset": "wikitext-103-v1"}, "Salesforce/wikitext (wikitext-103-v1)", "wikitext-103-v1"),
        ({"dataset": "toy"}, "toy", None),
    ],
)
def test_the_card_names_the_subset(model: LSTMLanguageModel, data: dict[str, Any], name: str, subset: str | None) -> None:
    card = ModelCard(model_card(model, VOCABULARY, data, {"test": {"ppl": 2.0, "targets": 1, "columns": 1}}))
    assert f"trained on {name}: " in card.text
    (result,) = card.data.eval_results
    assert result.dataset_config == subset


@pytest.mark.parametrize("name", ["config.json", "vocab.json"])
@pytest.mark.parametrize("content", ["[]", None])
def test_what_is_not_the_file_it_should_be_is_told_in_a_line_that_names_it(
    model: LSTMLanguageModel, tmp_path: Path, name: str, content: str | None
) -> None:
    save_pretrained(tmp_path, model, VOCABULARY, DATA)
    path = tmp_path / name
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"^(cannot read )?{re.escape(str(path))}(: it is a folder| is damaged)") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": {"hidden_size": "12"}}, "model.hidden_size"),
        ({"model": {"activation": "relu"}}, "model.activation"),
        ({"model": None}, "config.json is damaged"),
        ({"vocab_size": 10**18}, "has 1000000000000000000 types but vocab.json has 31"),
        ({"data": {"dataset": 3}}, "data.dataset"),
        ({"fingerprints": {"test": 3}}, "fingerprints.test"),
        # Nothing of this size is allocated.
        ({"model": {"hidden_size": 65536, "embedding_size": 65536, "num_layers": 124}}, "cannot read the model in"),
        ({"model": {"hidden_size": 1 << 40, "embedding_size": 1 << 40}}, "must be at least 1 and at most 65,536"),
    ],
)
def test_a_forged_config_is_refused(model: LSTMLanguageModel, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    save_pretrained(tmp_path, model, VOCABULARY, DATA)
    content = json.loads((tmp_path / "config.json").read_text())
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(told)):
        load(tmp_path)


def test_of_a_strangers_config_only_what_is_needed_is_read(model: LSTMLanguageModel, tmp_path: Path) -> None:
    save_pretrained(tmp_path, model, VOCABULARY, DATA)
    content = json.loads((tmp_path / "config.json").read_text())
    content["data"] |= {"cache_dir": "/etc", "batch_size": -1, "min_count": "x"}
    (tmp_path / "config.json").write_text(json.dumps(content | {"model_type": "lstmlm", "train": {"run_dir": "/etc"}}))
    assert load(tmp_path).description.data == DataConfig(**DATA)


def test_a_models_config_chooses_no_file_of_this_machine(model: LSTMLanguageModel, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("w1 w2\n" * 50)
    save_pretrained(tmp_path / "a", model, VOCABULARY, DATA | {"dataset": str(tmp_path / "private.txt")})
    with pytest.raises(UserError, match=r"private\.txt, which is a path that only the config\.yaml of a run may tell: name its text with"):
        _ = load(tmp_path / "a").data
    for place in ("~", "~root", ".."):
        save_pretrained(tmp_path / "b", model, VOCABULARY, DATA | {"dataset": place})
        with pytest.raises(UserError, match="name its text with"):
            _ = load(tmp_path / "b").data
    assert load(tmp_path / "a", dataset=str(tmp_path / "private.txt")).data.dataset == str(tmp_path / "private.txt")


def test_a_model_in_the_home_folder(model: LSTMLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_pretrained(tmp_path / "a", model, VOCABULARY, DATA)
    assert load("~/a").vocabulary.fingerprint == VOCABULARY.fingerprint


def test_what_others_are_told_of_a_models_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alice/model_b/model").mkdir(parents=True)
    (tmp_path / "alice/model_b/config.yaml").touch()
    (tmp_path / "alice/model").mkdir()
    monkeypatch.chdir(tmp_path / "alice")
    places = ["model_b", "model_b/model", "../alice/model_b", tmp_path / "alice/model_b", "user/model_c", tmp_path / "alice/model"]
    assert [model_name(place) for place in places] == [*["model_b"] * 4, "user/model_c", "model"]


def test_a_run_that_is_not_here_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can have a model runs/a there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^there is no run runs/a here: change to the folder that has runs/, or name its path$"):
        load("runs/a")


@pytest.mark.parametrize("fault", ["int8", "bool", "nan", "inf", "float64", "missing", "more", "larger", "damaged", "F4"])
def test_weights_that_are_none_are_refused(model: LSTMLanguageModel, tmp_path: Path, fault: str) -> None:
    save_pretrained(tmp_path, model, VOCABULARY, DATA)
    path, weights, name = tmp_path / "model.safetensors", model.weights(), "layers.1.weight_hh_l0"
    assert name in weights
    if fault in ("int8", "bool"):
        weights[name], told = weights[name].to(getattr(torch, fault)), f"{name} is in {fault}"
    elif fault in ("nan", "inf"):
        weights[name][3, 2], told = float(fault), f"{name} holds a NaN, an infinity"
    elif fault == "float64":  # finite there, infinite in float32
        weights[name], told = (weights[name].double() * 1e300, f"{name} holds a NaN, an infinity, or a number that float32 cannot")
    elif fault == "missing":
        del weights[name]
        told = f"the weights are not those of a model of these sizes: {name} is missing and should be [48, 12]"
    elif fault in ("more", "larger"):
        weights["other" if fault == "more" else name], told = torch.ones(2), "is [2] and should be"
    else:
        told = f"cannot read the model in {path}"
    if fault == "damaged":
        path.write_bytes(b"x" * 40)
    elif fault == "F4":  # of which PyTorch has no numbers
        header = json.dumps({name: {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    else:
        safetensors.torch.save_file(weights, path)
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)


def test_a_model_that_was_read_stands_for_its_folder(model: LSTMLanguageModel, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "model", model, VOCABULARY, DATA)
    (tmp_path / "a.txt").write_text("w1 w2 w3\n")
    pair = {"UID": "a", "sentence_good": "w1 w2", "sentence_bad": "w2 w1"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))

    def results(model: Path | SavedModel) -> list[Any]:
        generated = generate_text("w1", model=model, seed=1)
        pairs = score_pairs(tmp_path / "pairs.jsonl", model)
        return [score_text("w1 w2", model), evaluate(model, text=tmp_path / "a.txt").nll, generated, pairs]

    expected, saved = results(tmp_path / "model"), load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert results(saved) == expected
    assert load(saved) is saved
    assert load(saved, raw=True).text_vocabulary.tokenizer == "moses"


@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_device_that_is_not_there(device: str, model: LSTMLanguageModel, tmp_path: Path) -> None:
    """No GPU is visible to the tests."""
    save_pretrained(tmp_path, model, Vocabulary(WORDS), {"dataset": "toy"})
    with pytest.raises(UserError, match=rf"^the model cannot be moved to {device}: [^\n]+; the device cpu is always there$"):
        load(tmp_path, device=device)


@pytest.mark.system
def test_scoring_and_generation_start_without_what_they_do_not_need(model: LSTMLanguageModel, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "model", model, VOCABULARY, DATA)
    (tmp_path / "a.txt").write_text("w1 w2\n")
    code = f"""
import sys
from lstmlm import cli
cli.score(["{tmp_path}/a.txt", "--model", "{tmp_path}/model"])
cli.generate(["--model", "{tmp_path}/model"])
print({{"torch._dynamo", "sympy", "accelerate", "pyarrow", "huggingface_hub", "datasets"}} & sys.modules.keys(), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stderr.splitlines()[1:]) == (0, ["set()"])


def test_the_newest_run_is_taken_where_none_is_named(
    model: LSTMLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a"):
        save_pretrained(f"runs/{name}/model", model, VOCABULARY, DATA | {"dataset": "other"})
    save_pretrained("runs/smoke/model", model, VOCABULARY, DATA | {"dataset": "toy"})  # the newest
    assert find_model() == Path("runs/a/model")
    assert capsys.readouterr().err == "using the newest model here, runs/a/model\n"
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path / "runs/b/model")
    monkeypatch.chdir(tmp_path / "runs")
    assert find_model() == tmp_path / "runs/b/model"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("using the model that comes with lstmlm")
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path / "absent")
    with pytest.raises(UserError, match="no model in"):
        find_model()
    for name in ("nosuch", "a/nosuch"):
        with pytest.raises(UserError, match=f"there is no model in {name}: it is no folder here"):
            find_model(name)


def test_a_named_folder_of_split_files_has_no_subset_unless_it_holds_it(model: LSTMLanguageModel, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "model", model, VOCABULARY, DATA | {"dataset": "owner/name", "subset": "one"})
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "test.txt").write_text("a b\n")
    saved = load(tmp_path / "model", dataset=str(texts))
    assert "".join(open_source(saved.data).blocks("test")) == "a b\n"
    (texts / "one").mkdir()
    (texts / "one" / "test.txt").write_text("c\n")
    saved = load(tmp_path / "model", dataset=str(texts))
    assert "".join(open_source(saved.data).blocks("test")) == "c\n"
    assert load(tmp_path / "model").data.subset == "one"
    assert load(tmp_path / "model", dataset="owner/other").data.subset is None
    assert load(tmp_path / "model", dataset="copies/name").data.subset == "one"
    (tmp_path / "renamed").mkdir()
    (tmp_path / "renamed/README.md").write_text(data_card("one", {"test": "y.txt"}))
    assert load(tmp_path / "model", dataset=str(tmp_path / "renamed")).data.subset == "one"


def test_the_text_of_a_run_is_where_its_last_start_found_it(model: LSTMLanguageModel, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "model", model, VOCABULARY, DATA | {"dataset": "old.jsonl", "text_column": "story"})
    (tmp_path / "new.jsonl").touch()
    moved = load_config([f"--data.dataset={tmp_path}/new.jsonl", "--data.text_column=body"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(moved.to_dict()))
    data = load(tmp_path / "model").data
    assert (data.dataset, data.text_column) == (f"{tmp_path}/new.jsonl", "body")


def test_a_run_without_a_model_yet(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match=f"^the run in {tmp_path} has no model yet: it writes one at its first validation"):
        load(tmp_path)
