"""An exported model in the tools that people score with: minicons and lm-eval give our scores."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lstmlm import score_text
from tests.export.test_transformers import make_exported, read_model, read_tokenizer

pytestmark = pytest.mark.slow
TEXTS = ["w1 w2 w3", "w9", "w5 w5 w6 w7 w8"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_exported(tmp_path)
    return tmp_path / "exported"


def test_minicons(folder: Path) -> None:
    scorer = pytest.importorskip("minicons.scorer")
    theirs = scorer.IncrementalLMScorer(read_model(folder), "cpu", tokenizer=read_tokenizer(folder))
    for text, scores in zip(TEXTS, theirs.token_score(TEXTS, surprisal=True, base_two=True), strict=True):
        assert [token for token, _ in scores] == ["<eos>", *text.split()]
        assert [value for _, value in scores[1:]] == pytest.approx(bits(folder, text), abs=1e-4)


def bits(folder: Path, text: str) -> list[float]:
    return [row.surprisal for row in score_text(text, model=folder)]


def test_lm_eval(folder: Path) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    theirs = huggingface.HFLM(pretrained=str(folder), trust_remote_code=True, device="cpu", batch_size=2)
    pairs = [("", text) for text in TEXTS] + [("w1 w2", " w3 w9"), ("w4", " w5")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (context, text), (logprob, _) in zip(pairs, theirs.loglikelihood(requests, disable_tqdm=True), strict=True):
        own = bits(folder, context + text)[len(context.split()) :]
        assert -logprob / math.log(2) == pytest.approx(sum(own), abs=1e-3)


def test_lm_eval_from_its_command_line(folder: Path, tmp_path: Path) -> None:
    """As docs/sharing.md says: tasks of one's own on local files, without a network."""
    pytest.importorskip("lm_eval")
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    pairs = [{"good": TEXTS[0], "bad": "w1 w2 w4"}, {"good": TEXTS[2], "bad": "w5 w5 w6 w8 w8"}]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    tasks = {
        "texts": {"output_type": "loglikelihood_rolling", "doc_to_target": "{{text}}"},
        "pairs": {"output_type": "multiple_choice", "doc_to_target": 0, "doc_to_choice": "{{[good, bad]}}"},
    }
    for (name, task), metric in zip(tasks.items(), ("word_perplexity", "acc"), strict=True):
        files = {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}}
        data = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "doc_to_text": ""}
        content = {"task": name, **data, **task, "metric_list": [{"metric": metric}]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))  # JSON is YAML
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--tasks", "texts,pairs"]
    command += ["--model_args", f"pretrained={folder},trust_remote_code=True,add_bos_token=False"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    own = [bits(folder, text) for text in TEXTS]
    perplexity = 2 ** (sum(map(sum, own)) / sum(map(len, own)))
    assert results["texts"]["word_perplexity,none"] == pytest.approx(perplexity, rel=1e-5)
    right = [sum(bits(folder, pair["good"])) < sum(bits(folder, pair["bad"])) for pair in pairs]
    assert results["pairs"]["acc,none"] == sum(right) / 2
    (file,) = (tmp_path / "out").rglob("samples_pairs_*.jsonl")
    for line in file.read_text().splitlines():
        sample = json.loads(line)
        for name, (logprob, _) in zip(("good", "bad"), sample["filtered_resps"], strict=True):
            assert -float(logprob) / math.log(2) == pytest.approx(sum(bits(folder, sample["doc"][name])), abs=1e-3)
