"""An exported model in the tools that people score with: minicons and lm-eval give our scores."""

import math
from pathlib import Path

import pytest

from lstmlm import score_text
from lstmlm.export.transformers import export_transformers
from tests.export.test_transformers import make_model

pytestmark = pytest.mark.slow
TEXTS = ["w1 w2 w3", "w9", "w5 w5 w6 w7 w8"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(tmp_path / "own")
    export_transformers(tmp_path / "own", tmp_path / "exported")
    return tmp_path / "exported"


def test_minicons(folder: Path) -> None:
    scorer = pytest.importorskip("minicons.scorer")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    theirs = scorer.IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    for text, scores in zip(TEXTS, theirs.token_score(TEXTS, surprisal=True, base_two=True), strict=True):
        own = score_text(text, model=folder)
        words = text.split()
        assert [token for token, _ in scores] == ["<eos>", *words]
        assert [value for _, value in scores[1:]] == pytest.approx([r.surprisal for r in own[: len(words)]], abs=1e-4)


def test_lm_eval(folder: Path) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    theirs = huggingface.HFLM(pretrained=str(folder), trust_remote_code=True, device="cpu", batch_size=2)
    requests = [Instance("loglikelihood", {}, ("", text), i) for i, text in enumerate(TEXTS)]
    for text, (logprob, _) in zip(TEXTS, theirs.loglikelihood(requests, disable_tqdm=True), strict=True):
        own = score_text(text, model=folder)[: len(text.split())]
        assert -logprob / math.log(2) == pytest.approx(sum(row.surprisal for row in own), abs=1e-3)
