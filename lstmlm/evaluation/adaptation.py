"""Protocols that adapt to the text they score: the neural cache, dynamic evaluation, and both together.

Shapes: T time, B columns, H hidden, V vocabulary, M places in the cache's memory.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from lstmlm.console import check
from lstmlm.data.table import IGNORE, Table
from lstmlm.evaluation.perplexity import Scorer, StaticScorer
from lstmlm.evaluation.protocol import Static
from lstmlm.evaluation.text import split_text
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.model.layers import LSTMLayer
from lstmlm.model.pretrained import SavedModel
from lstmlm.runtime.hardware import ieee_products

QUERIES = 256  # positions looked up in the cache at a time, over all columns; the result does not depend on it
# Rule `rms` needs the gradients of segments of the training split. The paper's code cuts the split into 100 columns and takes all of it.
# Here the first segments are enough: the columns begin all over the split, so their first rows are a fair sample of it. On the reference
# model, 200 segments and 1,000 gave the same perplexity to 0.05 %.
STATISTICS_COLUMNS, STATISTICS_ROWS, STATISTICS_SEGMENTS = 100, 5, 200


def _times(value: float, factor: float) -> float:
    return float(f"{value * factor:.3g}")


def _at_most_1(value: float, factor: float) -> float:
    return min(1.0, _times(value, factor))


def _odds_times(weight: float, factor: float) -> float:
    """The odds are multiplied, so the weight stays below 1; where it would be rounded to 1, it stays as it is."""
    changed = float(f"{factor * weight / (1 + (factor - 1) * weight):.3g}")
    return weight if changed == 1 else changed


def _rows_times(rows: int, factor: float) -> int:
    return max(1, round(rows * factor))


@dataclass(frozen=True, kw_only=True)
class Cache(Static):
    """The neural cache (Grave et al., 2017, "Improving neural language models with a continuous cache", equations 2 to 5)."""

    name: ClassVar[str] = "cache"
    searched: ClassVar[dict[str, Callable[[Any, float], Any]]] = {"theta": _times, "lambda_": _odds_times}

    window: int = 2000
    """Positions before a target, in its column, that the cache remembers."""
    theta: float = 0.662
    """Sharpness: how much more a similar state counts. 0 = all of the window counts alike."""
    lambda_: float = 0.1279
    """Weight of the cache's distribution, in [0, 1); the model's has the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.window >= 1, f"window must be at least 1, not {self.window}")
        check(0 <= self.theta < math.inf, f"theta must be a number that is not negative, not {self.theta}")
        check(0 <= self.lambda_ < 1, f"lambda must be in [0, 1), not {self.lambda_}: the model keeps some weight")

    def scorer(self, saved: SavedModel, columns: int) -> Scorer:
        """As `Static`."""
        return CacheScorer(StaticScorer(saved.model, columns), self)


@dataclass(frozen=True, kw_only=True)
class Dynamic(Static):
    """Dynamic evaluation (Krause et al., 2018, "Dynamic evaluation of neural sequence models", equations 3 and 6 to 8)."""

    name: ClassVar[str] = "dynamic"
    searched: ClassVar[dict[str, Callable[[Any, float], Any]]] = {"lr": _times, "decay": _at_most_1, "bptt": _rows_times}
    advice: ClassVar[str] = "dynamic evaluation diverged, choose a smaller --lr"

    rule: Literal["sgd", "rms"] = "rms"
    """The update: plain gradient, or each weight's gradient divided by its root mean square over the training split."""
    lr: float = 0.0005
    """eta, the step along the gradient of a segment's mean nll."""
    decay: float = 0.01
    """lambda in the paper: how far each update draws the weights back to the trained ones; `rms` draws those of large gradients further."""
    epsilon: float = 0.0001
    """Added to the root mean square (`rms` only)."""
    bptt: int = 20
    """Rows of a segment: scored first, then learned from by one update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.reset == "never", f"dynamic evaluation carries what it learned across a reset: leave out --reset {self.reset}")
        check(self.rule in ("sgd", "rms"), f"there is no rule {self.rule!r}: name sgd or rms")
        check(0 <= self.lr < math.inf, f"lr must be a number that is not negative, not {self.lr}")
        check(0 <= self.decay <= 1, f"decay must be in [0, 1], not {self.decay}")
        check(0 < self.epsilon < math.inf, f"epsilon must be a positive number, not {self.epsilon}")
        check(self.bptt >= 1, f"bptt must be at least 1, not {self.bptt}")

    @property
    def settings(self) -> dict[str, Any]:
        """As `Static`."""
        return {name: value for name, value in super().settings.items() if name != "epsilon" or self.rule == "rms"}

    def scorer(self, saved: SavedModel, columns: int) -> Scorer:
        """As `Static`."""
        return self.adapting(saved, columns)

    def adapting(self, saved: SavedModel, columns: int) -> "DynamicScorer":
        """The scorer, whose outputs a cache can remember."""
        return DynamicScorer(saved.model, columns, self, training_rms(saved) if self.rule == "rms" else None)


@dataclass(frozen=True, kw_only=True)
class CacheDynamic(Cache, Dynamic):
    """The cache over a model that adapts. The updates go by the model's own nll, so the best ones do not depend on the cache."""

    name: ClassVar[str] = "cache+dynamic"

    def scorer(self, saved: SavedModel, columns: int) -> Scorer:
        """As `Static`."""
        return CacheScorer(self.adapting(saved, columns), self)


class NeuralCache:
    """What the columns saw: each position's output of the model, and the token that followed it.

    The distribution for position t is softmax over the i in [t - window, t) of theta h_t . h_i, summed over the i that a token followed.

    Args:
        settings: Window, theta, lambda.
    """

    def __init__(self, settings: Cache) -> None:
        self._settings = settings
        self._outputs: Tensor | None = None  # (B, M, H), M up to the window
        self._tokens: Tensor | None = None  # (B, M), IGNORE where a column had ended

    def mix(self, nll: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        """Nll (T, B) of (1 - lambda) times the model's distribution plus lambda times the cache's.

        Args:
            nll: The model's, (T, B).
            outputs: Of the last layer, (T, B, H).
            targets: int64 (T, B), -100 where there is none.
        """
        return mixed_nll(nll, self.probability(outputs, targets), self._settings.lambda_)

    def probability(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cache's probability of each target, (T, B), -1 where it has none: nothing is remembered yet, or there is no target.
        Then these positions are remembered too."""
        queries, tokens = outputs.transpose(0, 1), targets.T  # (B, T, H), (B, T)
        before, columns = 0, len(tokens)
        if self._outputs is None or self._tokens is None:
            self._outputs, self._tokens = queries, tokens
        else:
            before = self._tokens.shape[1]
            # Of the columns that go on.
            self._outputs = torch.cat([self._outputs[:columns], queries], 1)
            self._tokens = torch.cat([self._tokens[:columns], tokens], 1)
        rows = tokens.shape[1]
        at_once = max(1, QUERIES // columns)
        parts = [self._look_up(before + row, before + min(row + at_once, rows)) for row in range(0, rows, at_once)]
        self._outputs = self._outputs[:, -self._settings.window :]
        self._tokens = self._tokens[:, -self._settings.window :]
        return torch.cat(parts, 1).T

    def _look_up(self, first: int, end: int) -> Tensor:
        """Probabilities (B, t) of the tokens at places first ... end - 1 of the memory, each from the window before it."""
        assert self._outputs is not None
        assert self._tokens is not None
        start = max(0, first - self._settings.window)
        queries, targets = self._outputs[:, first:end], self._tokens[:, first:end]  # (B, t, H), (B, t)
        keys, tokens = self._outputs[:, start:end], self._tokens[:, start:end]  # (B, m, H), (B, m)
        places = torch.arange(start, end, device=tokens.device)
        age = places[first - start :, None] - places  # (t, m)
        usable = ((age >= 1) & (age <= self._settings.window)) & (tokens != IGNORE)[:, None]  # (B, t, m)
        similarity = torch.bmm(queries * self._settings.theta, keys.transpose(1, 2))
        weights = torch.softmax(similarity.masked_fill_(~usable, -math.inf), -1)
        probability = (weights * (tokens[:, None] == targets[:, :, None])).sum(-1)
        return torch.where(usable.any(-1) & (targets != IGNORE), probability, -1)


def mixed_nll(nll: Tensor, probability: Tensor, lambda_: float) -> Tensor:
    """Nll of a mixture of the model's distribution and the cache's; the model's alone where the cache has none.

    Args:
        nll: The model's, any shape.
        probability: The cache's, the same shape; -1 where it has none.
        lambda_: Weight of the cache's, in [0, 1).
    """
    # In float64: 1 - lambda would be rounded to 0 where lambda is close to 1.
    own, cached = math.log1p(-lambda_), math.log(lambda_) if lambda_ else -math.inf
    mixed = -torch.logaddexp(own - nll, cached + probability.clamp(min=0).log())
    return torch.where(probability < 0, nll, mixed)


class CacheScorer:
    """The neural cache over another scorer; neither the state nor the cache of a column sees another column.

    Args:
        scorer: Fresh; its outputs are remembered.
        settings: Of the cache.
    """

    def __init__(self, scorer: "StaticScorer | DynamicScorer", settings: Cache) -> None:
        self._scorer, self._cache = scorer, NeuralCache(settings)

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """As `Scorer`."""
        nll, outputs = self._scorer.read(inputs, targets)
        return self._cache.mix(nll, outputs, targets)


class DynamicScorer:
    """A model that learns from what it has scored. Each call is a segment: scored first, then one update by the gradient of its mean nll.

    The update goes by all columns at once, so the result depends on their number. The caller's model is left as it is.

    Args:
        model: The bare model, not wrapped.
        columns: B.
        settings: Of the updates.
        rms: Of each parameter's gradient, as `gradient_rms` gives them; rule `rms` needs them.
    """

    def __init__(self, model: LSTMLanguageModel, columns: int, settings: Dynamic, rms: dict[str, Tensor] | None = None) -> None:
        self._model = _learning_copy(model)
        self._state = self._model.initial_state(columns)
        self._settings = settings
        self._weights = dict(self._model.named_parameters())
        self._trained = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._steps: dict[str, Tensor] = {}  # of `rms`: lr / (rms + epsilon)
        self._pulls: dict[str, Tensor] = {}  # of `rms`: decay in proportion to rms, at most 1: it must not overshoot
        if settings.rule == "rms":
            assert rms is not None, "rule rms needs the statistics of gradients"
            # The paper's code takes the mean of each tensor, then the mean over tensors, so a small tensor counts like a large one.
            mean = sum(value.mean() for value in rms.values()) / len(rms)
            self._steps = {name: settings.lr / (value + settings.epsilon) for name, value in rms.items()}
            self._pulls = {name: (settings.decay * value / mean).clamp_(max=1) for name, value in rms.items()}

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """As `Scorer`."""
        return self.read(inputs, targets)[0]

    def read(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `Scorer`; and the last layer's outputs, (T, B, H), of the model before this update."""
        with torch.enable_grad():
            nll, token_nll, outputs, state = self._model.summed_and_token_nll(inputs, self._state, targets)
            gradients = torch.autograd.grad(nll / (targets != IGNORE).sum(), list(self._weights.values()))
        self._state = state.detach()
        with torch.no_grad():
            for (name, weight), gradient in zip(self._weights.items(), gradients, strict=True):
                if self._settings.rule == "rms":
                    weight.lerp_(self._trained[name], self._pulls[name])
                    weight.addcmul_(gradient, self._steps[name], value=-1)
                else:
                    weight.lerp_(self._trained[name], self._settings.decay)
                    weight.sub_(gradient, alpha=self._settings.lr)
        return token_nll, outputs.detach()


@functools.lru_cache(maxsize=1)
def training_rms(saved: SavedModel) -> dict[str, Tensor]:
    """`gradient_rms` of a model's training split.

    Raises:
        UserError: The split cannot be had.
    """
    return gradient_rms(saved.model, split_text(saved, "train").stream)


@ieee_products()
def gradient_rms(model: LSTMLanguageModel, stream: Tensor) -> dict[str, Tensor]:
    """Root mean square of each weight's gradient of a segment's mean nll, by the parameter's name.

    Args:
        model: The bare model, not wrapped.
        stream: Of the training split, int32 (n,).
    """
    model = _learning_copy(model)
    table = Table(stream, min(STATISTICS_COLUMNS, len(stream) - 1), device=model.embedding.weight.device)
    weights = dict(model.named_parameters())
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    state = model.initial_state(table.columns)
    segments = [window.segments[0] for window in itertools.islice(table.windows(STATISTICS_ROWS), STATISTICS_SEGMENTS)]
    for first, end in segments:
        inputs, targets = table.segment(first, end)
        with torch.enable_grad():
            nll, _, state = model(inputs, state.detach(), targets)
            gradients = torch.autograd.grad(nll / table.targets_in(first, end), list(weights.values()))
        for square, gradient in zip(squares.values(), gradients, strict=True):
            square.addcmul_(gradient, gradient)
    return {name: (square / len(segments)).sqrt() for name, square in squares.items()}


def _learning_copy(model: LSTMLanguageModel) -> LSTMLanguageModel:
    # In train mode, as cuDNN computes no gradient of an LSTM in eval mode. Nothing else depends on the mode: dropout comes as masks.
    model = copy.deepcopy(model).train()
    for layer in model.layers:
        cast(LSTMLayer, layer).flatten_parameters()  # a copy's weights lie apart, and cuDNN warns of that
    return model
