import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lstmlm import LSTMLanguageModel
from lstmlm.evaluation import perplexity
from lstmlm.evaluation.adaptation import gradient_rms
from lstmlm.evaluation.perplexity import StaticScorer, Stretches, evaluate_stream, score_stream
from lstmlm.runtime.hardware import set_float32_products
from tests.helpers import sharp_model, token_by_token


@pytest.fixture
def model() -> LSTMLanguageModel:
    return sharp_model(31)


@pytest.mark.parametrize(("asked", "columns", "bptt"), [(1, 1, None), (1, 1, 1), (3, 3, 7), (10, 10, 1000), (1000, 172, None)])
def test_nll_is_the_sum_over_every_target(
    model: LSTMLanguageModel, asked: int, columns: int, bptt: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = torch.randint(31, (173,), dtype=torch.int32)
    if bptt:
        monkeypatch.setattr(perplexity, "SEGMENT_TOKENS", bptt * columns)
    result = evaluate_stream(model, stream, asked)
    assert (result.tokens, result.targets, result.columns) == (173, 172, columns)
    parts = [stream[b * 172 // columns : (b + 1) * 172 // columns + 1].tolist() for b in range(columns)]
    assert result.nll == pytest.approx(sum(sum(token_by_token(model, first, ids)[1]) for first, *ids in parts), rel=1e-6)
    assert result.ppl == pytest.approx(torch.tensor(result.nll / 172).exp().item(), rel=1e-6)


READERS: dict[str, Callable[[LSTMLanguageModel, torch.Tensor], object]] = {
    "evaluate_stream": evaluate_stream,
    "score_stream": lambda model, stream: score_stream(StaticScorer(model, 1), stream, 1, "cpu"),
    "stretches": lambda model, stream: Stretches(lambda columns: StaticScorer(model, columns), 0, "cpu").all(stream, [0]),
    "gradient_rms": gradient_rms,
}


@pytest.mark.parametrize("read", READERS)
def test_products_are_float32_where_training_uses_tf32(read: str, model: LSTMLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    set_float32_products("tf32")
    seen, run = set(), LSTMLanguageModel._run_layers

    def watched(*args: Any) -> Any:
        seen.add((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision))
        return run(*args)

    monkeypatch.setattr(LSTMLanguageModel, "_run_layers", watched)
    READERS[read](model, torch.arange(20, dtype=torch.int32))
    assert seen == {("ieee", "ieee")}


def test_what_a_scorer_returns_is_not_kept() -> None:
    """Ten thousand small tensors that stay among large ones split the heap: dynamic evaluation took 20 GB."""
    returned: list[weakref.ref[torch.Tensor]] = []

    def scorer(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert sum(ref() is not None for ref in returned) <= 1
        nll = targets.float()
        returned.append(weakref.ref(nll))
        return nll, nll[..., None]

    assert score_stream(scorer, torch.arange(41, dtype=torch.int32), 2, "cpu", 3).tolist() == list(range(1, 41))
    assert len(returned) == 7
    returned.clear()
    many = torch.arange(20_000, dtype=torch.int32)
    assert Stretches(lambda columns: scorer, 0, "cpu").all(many, [0, 12_000]).tolist() == list(range(20_000))
    assert len(returned) > 3
    columns_asked: list[int] = []
    Stretches(lambda columns: columns_asked.append(columns) or scorer, 0, "cpu").all(many, list(range(20_000)))
    assert max(columns_asked) == perplexity.SEGMENT_TOKENS, "a text of words, one a line, costs no more memory"
