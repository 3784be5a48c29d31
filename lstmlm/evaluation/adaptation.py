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

from lstmlm.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Bounds, bounded
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
# Here the first segments are enough: the columns begin all over the split, so their first rows are a fair sample of it.
STATISTICS_COLUMNS, STATISTICS_ROWS, STATISTICS_SEGMENTS = 100, 5, 200


def _times(value: float, factor: float) -> float:
    return float(f"{value * factor:.3g}")


def _odds_times(weight: float, factor: float) -> float:
    """The odds are multiplied, so the weight stays below 1; where it would be rounded to 1, it stays as it is."""
    changed = float(f"{factor * weight / (1 + (factor - 1) * weight):.3g}")
    return weight if changed == 1 else changed


@dataclass(frozen=True, kw_only=True)
class Cache(Static):
    """The neural cache (Grave et al., 2017, "Improving neural language models with a continuous cache", equations 2 to 5)."""

    name: ClassVar[str] = "cache"
    searched: ClassVar[dict[str, Callable[[Any, float], Any]]] = {"theta": _times, "lambda_": _odds_times}

    window: int = bounded(2000, COUNT)
    """cache: positions before a target, in its column, that it remembers."""
    theta: float = bounded(0.662, NOT_NEGATIVE)
    """cache: sharpness, how much more a similar state counts. 0 = all of the window counts alike."""
    lambda_: float = bounded(0.1279, FRACTION)
    """Weight of the cache's distribution, in [0, 1); the model's has the rest."""

    def scorer(self, saved: SavedModel, columns: int) -> Scorer:
        return CacheScorer(super().scorer(saved, columns), self)


@dataclass(frozen=True, kw_only=True)
class Dynamic(Static):
    """Dynamic evaluation (Krause et al., 2018, "Dynamic evaluation of neural sequence models", equations 3 and 6 to 8)."""

    name: ClassVar[str] = "dynamic"
    searched: ClassVar[dict[str, Callable[[Any, float], Any]]] = {
        "lr": _times,
        "decay": lambda decay, factor: min(1.0, _times(decay, factor)),
        "bptt": lambda rows, factor: max(1, round(rows * factor)),
    }
    advice: ClassVar[str] = "dynamic evaluation diverged, choose a smaller --lr"

    rule: Literal["sgd", "rms"] = "rms"
    """dynamic: the update, by the plain gradient, or by each weight's gradient divided by its root mean square over the training split."""
    lr: float = bounded(0.0005, NOT_NEGATIVE)
    """dynamic: eta, the learning rate of a step of gradient descent on a segment's mean nll."""
    decay: float = bounded(0.01, Bounds(0, 1))
    """dynamic: lambda of Krause et al., how far each update draws the weights back to the trained ones; `rms` draws those of large
    gradients further."""
    epsilon: float = bounded(0.0001, POSITIVE)
    """dynamic, rule rms: added to the root mean square."""
    bptt: int = bounded(20, COUNT)
    """dynamic: rows of a segment, which is scored first, then learned from by one update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.reset == "never", f"dynamic evaluation carries what it learned across a reset: leave out --reset {self.reset}")

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings.items() if name != "epsilon" or self.rule == "rms"}

    def scorer(self, saved: SavedModel, columns: int) -> Scorer:
        return DynamicScorer(saved.model, columns, self, training_rms(saved) if self.rule == "rms" else {})


@dataclass(frozen=True, kw_only=True)
class CacheDynamic(Cache, Dynamic):
    """The cache over a model that adapts. The updates go by the model's own nll, so the best ones do not depend on the cache."""

    name: ClassVar[str] = "cache+dynamic"


class CacheScorer:
    """The neural cache over another scorer: each position's output is remembered with the token that followed it.

    The distribution for position t is softmax over the i in [t - window, t) of theta h_t . h_i, summed over the i that a token followed.
    A column sees neither the state nor the cache of another. The other scorer has to be fresh.
    """

    def __init__(self, scorer: Scorer, settings: Cache) -> None:
        self._scorer, self._settings = scorer, settings
        self._memory: tuple[Tensor, Tensor] | None = None  # outputs (B, M, H), M up to the window; and tokens (B, M)

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `Scorer`, with the nll of (1 - lambda) times the other scorer's distribution plus lambda times the cache's."""
        nll, outputs = self._scorer(inputs, targets)
        probability = self._probability(outputs.transpose(0, 1), targets.T).T
        # In float64: 1 - lambda would be rounded to 0 where lambda is close to 1.
        lambda_ = self._settings.lambda_
        own, cached = math.log1p(-lambda_), math.log(lambda_) if lambda_ else -math.inf
        mixed = -torch.logaddexp(own - nll, cached + probability.clamp(min=0).log())
        return torch.where(probability < 0, nll, mixed), outputs

    def _probability(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """The cache's probability of each token (B, T) that follows an output (B, T, H); -1 where nothing is remembered yet, or there is no
        token. Then these are remembered too."""
        columns, rows = tokens.shape
        if self._memory:
            outputs, tokens = (torch.cat([past[:columns], new], 1) for past, new in zip(self._memory, (outputs, tokens), strict=True))
        before = tokens.shape[1] - rows
        at_once = max(1, QUERIES // columns)
        parts = [self._look_up(outputs, tokens, before + row, before + min(row + at_once, rows)) for row in range(0, rows, at_once)]
        self._memory = outputs[:, -self._settings.window :], tokens[:, -self._settings.window :]
        return torch.cat(parts, 1)

    def _look_up(self, outputs: Tensor, tokens: Tensor, first: int, end: int) -> Tensor:
        """Probabilities (B, t) of the tokens at places first ... end - 1, each from the window before it."""
        start = max(0, first - self._settings.window)
        targets, followed = tokens[:, first:end], tokens[:, start:end]  # (B, t), (B, m)
        places = torch.arange(start, end, device=tokens.device)
        age = places[first - start :, None] - places  # (t, m)
        usable = ((age >= 1) & (age <= self._settings.window)) & (followed != IGNORE)[:, None]  # (B, t, m)
        similarity = torch.bmm(outputs[:, first:end] * self._settings.theta, outputs[:, start:end].transpose(1, 2))
        weights = torch.softmax(similarity.masked_fill_(~usable, -math.inf), -1)
        probability = (weights * (followed[:, None] == targets[:, :, None])).sum(-1)
        return torch.where(usable.any(-1) & (targets != IGNORE), probability, -1)


class DynamicScorer(StaticScorer):
    """A model that learns from what it has scored. Each call is a segment: scored first, then one update by the gradient of its mean nll.

    The update goes by all B columns at once, so the result depends on their number. The caller's model is left as it is. `rms` is what
    `gradient_rms` gives, for rule `rms`; empty for `sgd`.
    """

    def __init__(self, model: LSTMLanguageModel, columns: int, settings: Dynamic, rms: dict[str, Tensor]) -> None:
        super().__init__(_learning_copy(model), columns)
        self._settings = settings
        self._weights = dict(self.model.named_parameters())
        self._trained = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._steps = {name: settings.lr / (value + settings.epsilon) for name, value in rms.items()}
        # The paper's code takes the mean of each tensor, then the mean over tensors, so a small tensor counts like a large one.
        mean = sum(value.mean() for value in rms.values()) / max(1, len(rms))
        # In proportion to rms, at most 1: it must not overshoot.
        self._pulls = {name: (settings.decay * value / mean).clamp_(max=1) for name, value in rms.items()}

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `Scorer`, of the model before this update."""
        with torch.enable_grad():
            nll, token_nll, outputs, state = self.model.summed_and_token_nll(inputs, self._state, targets)
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
    """`gradient_rms` of a model's training split."""
    return gradient_rms(saved.model, split_text(saved, "train").stream)


@ieee_products()
def gradient_rms(model: LSTMLanguageModel, stream: Tensor) -> dict[str, Tensor]:
    """Root mean square of each weight's gradient of a segment's mean nll, by the parameter's name, over segments of the training stream."""
    model = _learning_copy(model)
    table = Table(stream, min(STATISTICS_COLUMNS, len(stream) - 1), device=model.embedding.weight.device)
    weights = dict(model.named_parameters())
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    state = model.initial_state(table.columns)
    windows = list(itertools.islice(table.windows(STATISTICS_ROWS), STATISTICS_SEGMENTS))
    for window in windows:
        inputs, targets = table.segment(*window.segments[0])
        with torch.enable_grad():
            nll, _, state = model(inputs, state.detach(), targets)
            gradients = torch.autograd.grad(nll / window.num_targets, list(weights.values()))
        for square, gradient in zip(squares.values(), gradients, strict=True):
            square.addcmul_(gradient, gradient)
    return {name: (square / len(windows)).sqrt() for name, square in squares.items()}


def _learning_copy(model: LSTMLanguageModel) -> LSTMLanguageModel:
    model = copy.deepcopy(model)
    for layer in model.layers:
        cast(LSTMLayer, layer).flatten_parameters()  # a copy's weights lie apart, and cuDNN warns of that
    return model
