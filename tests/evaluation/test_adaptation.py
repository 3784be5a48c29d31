"""The cache and dynamic evaluation against their definitions, position by position in plain PyTorch; and I7."""

import copy
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlm import LSTMLanguageModel, UserError
from lstmlm.evaluation import adaptation
from lstmlm.evaluation.adaptation import Cache, CacheDynamic, CacheScorer, Dynamic, DynamicScorer, gradient_rms
from lstmlm.evaluation.perplexity import Scorer, StaticScorer, score_stream
from lstmlm.evaluation.protocol import Static
from tests.helpers import sharp_model

V = 13
CACHE = Cache(window=7, theta=1.5, lambda_=0.3)
DYNAMIC = Dynamic(lr=0.004, decay=0.02, epsilon=0.01)


@pytest.fixture
def model() -> LSTMLanguageModel:
    return sharp_model(V, 6)


def text(length: int) -> Tensor:
    """Few types, so that the cache has something to remember."""
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(1), dtype=torch.int32) // 2


def columns_of(stream: Tensor, columns: int) -> list[Tensor]:
    """Inputs of each column and its last target."""
    pairs = len(stream) - 1
    return [stream[b * pairs // columns : (b + 1) * pairs // columns + 1].long() for b in range(columns)]


def cache_by_hand(model: LSTMLanguageModel, stream: Tensor, columns: int, settings: Cache) -> list[float]:
    result = []
    for column in columns_of(stream, columns):
        state, seen = model.initial_state(1), []
        for token, target in itertools.pairwise(column):
            output, state = model.hidden(token.view(1, 1), state)
            h = output[0, 0].double()
            p = torch.softmax(F.linear(h, model.decoder.weight.double(), model.decoder.bias.double()), 0)
            window = seen[-settings.window :]
            if window:
                exponentials = [math.exp(settings.theta * float(h @ past)) for past, _ in window]
                cache = torch.zeros(V, dtype=torch.float64)
                for weight, (_, word) in zip(exponentials, window, strict=True):
                    cache[word] += weight / sum(exponentials)
                p = (1 - settings.lambda_) * p + settings.lambda_ * cache
            assert float(p.sum()) == pytest.approx(1, abs=1e-9)
            result.append(-math.log(p[target]))
            seen.append((h, target))
    return result


@pytest.mark.parametrize(
    "settings", [CACHE, Cache(window=1000, theta=0.5, lambda_=0.9), Cache(window=1, theta=0, lambda_=0), Cache(window=9, lambda_=1 - 1e-9)]
)
@pytest.mark.parametrize(("columns", "bptt", "queries"), [(1, 1, 16), (1, 5, 16), (1, 400, 16), (1, 400, 1), (3, 4, 256), (10, 7, 16)])
def test_cache_by_its_definition(
    model: LSTMLanguageModel, settings: Cache, columns: int, bptt: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lstmlm.evaluation.adaptation.QUERIES", queries)
    stream = text(78)
    nll = score_stream(CacheScorer(StaticScorer(model, columns), settings), stream, columns, "cpu", bptt)
    with torch.no_grad():
        by_hand = cache_by_hand(model, stream, columns, settings)
    assert nll.tolist() == pytest.approx(by_hand, rel=1e-5)


def test_a_word_the_model_finds_impossible_costs_what_the_cache_gives_it() -> None:
    """exp(-nll) is below the smallest float there."""

    def certain(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([[500.0], [500.0]]), torch.zeros(2, 1, 6)

    nll, _ = CacheScorer(certain, Cache(window=5, theta=0, lambda_=0.25))(torch.tensor([[3], [3]]), torch.tensor([[3], [3]]))
    assert nll[:, 0].tolist() == pytest.approx([500, -math.log(0.25)])


class Plain:
    """The model again, in plain PyTorch, with updates written out."""

    def __init__(self, model: LSTMLanguageModel) -> None:
        self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
        self.trained = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.layers = [nn.LSTM(6, 6) for _ in range(2)]

    def nll(self, inputs: Tensor, state: list, targets: Tensor) -> tuple[Tensor, list]:
        """Nll of all targets (T, B), and the new state."""
        x, after = self.weights["embedding.weight"][inputs], []
        for i, (layer, s) in enumerate(zip(self.layers, state, strict=True)):
            own = {name: self.weights[f"layers.{i}.{name}"] for name, _ in layer.named_parameters()}
            x, s = torch.func.functional_call(layer, own, (x, s))
            after.append(tuple(part.detach() for part in s))
        weight = self.weights.get("decoder.weight", self.weights["embedding.weight"])
        log_probs = torch.log_softmax(x @ weight.T + self.weights["decoder.bias"], -1)
        return -log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * (targets >= 0), after

    def gradients(self, nll: Tensor, count: int) -> dict[str, Tensor]:
        return dict(zip(self.weights, torch.autograd.grad(nll.sum() / count, list(self.weights.values())), strict=True))


def zero_state(columns: int) -> list:
    return [(torch.zeros(1, columns, 6), torch.zeros(1, columns, 6))] * 2


def table_of(stream: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (R, B), -100 where a column has ended."""
    parts = columns_of(stream, columns)
    inputs = nn.utils.rnn.pad_sequence([part[:-1] for part in parts])
    return inputs, nn.utils.rnn.pad_sequence([part[1:] for part in parts], padding_value=-100)


def rms_by_hand(model: LSTMLanguageModel, stream: Tensor, columns: int, rows: int, segments: int | None = None) -> dict[str, Tensor]:
    plain, state, history = Plain(model), zero_state(columns), []
    for inputs, targets in zip(*(part.split(rows) for part in table_of(stream, columns)), strict=True):
        nll, state = plain.nll(inputs, state, targets)
        history.append(plain.gradients(nll, int((targets >= 0).sum())))
    return {name: torch.stack([g[name] for g in history[:segments]]).square().mean(0).sqrt() for name in history[0]}


@pytest.mark.parametrize("tied", [True, False])
def test_statistics_by_their_definition(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (adaptation.STATISTICS_COLUMNS, adaptation.STATISTICS_ROWS, adaptation.STATISTICS_SEGMENTS) == (100, 5, 200), "as the docs say"
    monkeypatch.setattr(adaptation, "STATISTICS_COLUMNS", 4)
    model = sharp_model(V, 6, tie_weights=tied)
    for segments in (200, 3):
        monkeypatch.setattr(adaptation, "STATISTICS_SEGMENTS", segments)
        for name, value in gradient_rms(model, text(103)).items():
            torch.testing.assert_close(value, rms_by_hand(model, text(103), 4, 5, segments)[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rule", ["sgd", "rms"])
@pytest.mark.parametrize(("columns", "bptt", "few"), [(1, 5, 64), (1, 1, 64), (3, 4, 64), (3, 4, 0)])
def test_dynamic_evaluation_by_its_definition(
    tied: bool, rule: str, columns: int, bptt: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lstmlm.model.loss.FEW_ROWS", few)
    model, stream = sharp_model(V, 6, tie_weights=tied), text(60)
    settings = Dynamic(rule=rule, lr=0.5 if rule == "sgd" else 0.02, decay=0.02, epsilon=0.01, bptt=bptt)
    rms = rms_by_hand(model, text(103), 4, 5)
    nll = score_stream(DynamicScorer(model, columns, settings, rms), stream, columns, "cpu", bptt)

    plain, state, total = Plain(model), zero_state(columns), []
    mean = sum(value.mean() for value in rms.values()) / len(rms)
    for inputs, targets in zip(*(part.split(bptt) for part in table_of(stream, columns)), strict=True):
        segment, state = plain.nll(inputs, state, targets)
        total.append(segment.detach())
        for name, g in plain.gradients(segment, int((targets >= 0).sum())).items():
            weight, back = plain.weights[name].data, plain.trained[name] - plain.weights[name].data
            if rule == "sgd":
                weight += 0.02 * back - settings.lr * g
            else:
                pull = torch.minimum(0.02 * rms[name] / mean, torch.tensor(1.0))
                weight += pull * back - settings.lr * g / (rms[name] + settings.epsilon)
    parts = columns_of(stream, columns)
    expected = torch.cat([torch.cat(total)[: len(part) - 1, b] for b, part in enumerate(parts)])
    torch.testing.assert_close(nll, expected, rtol=2e-4, atol=2e-5)
    static = score_stream(StaticScorer(model, columns), stream, columns, "cpu")
    assert (nll - static).abs().max() > 0.05, "the updates are large enough to be seen"


def dynamic(model: LSTMLanguageModel, columns: int) -> DynamicScorer:
    return DynamicScorer(model, columns, DYNAMIC, gradient_rms(model, text(103)))


PROTOCOLS: dict[str, Callable[[LSTMLanguageModel, int], Scorer]] = {
    "static": StaticScorer,
    "cache": lambda model, columns: CacheScorer(StaticScorer(model, columns), CACHE),
    "dynamic": dynamic,
    "cache+dynamic": lambda model, columns: CacheScorer(dynamic(model, columns), CACHE),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", [0, 1, 23])
def test_the_distribution_sums_to_one(model: LSTMLanguageModel, protocol: str, place: int) -> None:
    """Each type of the vocabulary in turn as the last target of the text."""
    scorer = PROTOCOLS[protocol](model, 2)
    stream = text(60).long().view(2, 30).T  # (30, 2)
    with torch.no_grad():
        for first in range(0, place, 5):
            end = min(first + 5, place)
            scorer(stream[first:end], stream[first + 1 : end + 1])
        total = torch.zeros(2)
        for word in range(V):
            rows = torch.stack([stream[place], torch.full((2,), word)])
            total += torch.exp(-copy.deepcopy(scorer)(rows[:1], rows[1:])[0][0])
    torch.testing.assert_close(total, torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("changed", [11, 14, 30])
def test_a_later_token_moves_no_earlier_score(model: LSTMLanguageModel, protocol: str, changed: int) -> None:
    before = text(60)
    after = before.clone()
    after[changed] = V - 1
    first, second = (score_stream(PROTOCOLS[protocol](model, 1), stream, 1, "cpu", 5) for stream in (before, after))
    assert torch.equal(first[: changed - 1], second[: changed - 1])
    assert not torch.equal(first[changed:], second[changed:])
    assert first[changed - 1] != second[changed - 1]


def test_both_is_the_cache_over_an_adapted_model(model: LSTMLanguageModel) -> None:
    """Without a step the weights stay as they are; without a share of the cache nothing is mixed in."""

    def score(protocol: Static) -> Tensor:
        saved: Any = SimpleNamespace(model=model)
        return score_stream(protocol.scorer(saved, 3), text(90), 3, "cpu", 5)

    still = CacheDynamic(window=7, theta=1.5, lambda_=0.3, rule="sgd", lr=0)
    torch.testing.assert_close(score(still), score(CACHE))
    torch.testing.assert_close(score(CacheDynamic(lambda_=0, rule="sgd", lr=0.5)), score(Dynamic(rule="sgd", lr=0.5)))


@pytest.mark.parametrize("protocol", ["dynamic", "cache+dynamic"])
def test_the_callers_model_is_left_as_it_was(model: LSTMLanguageModel, protocol: str) -> None:
    model.eval()
    before = copy.deepcopy(model.state_dict())
    score_stream(PROTOCOLS[protocol](model, 2), text(60), 2, "cpu", 5)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Cache(window=0), "window must be at least 1 and at most 1,000,000,000,000, not 0"),
        (lambda: Cache(theta=-0.1), "theta must be at least 0 .*, not -0.1"),
        (lambda: Cache(lambda_=1), "lambda must be at least 0 and below 1, not 1"),
        (lambda: Dynamic(lr=math.inf), "lr must be .* finite, not Infinity"),
        (lambda: Dynamic(decay=1.1), "decay must be at least 0 and at most 1, not 1.1"),
        (lambda: Dynamic(epsilon=0), "epsilon must be above 0 .*, not 0"),
    ],
)
def test_settings_without_a_meaning(make: Callable[[], object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make()
