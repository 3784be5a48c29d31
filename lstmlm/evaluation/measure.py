"""A saved model measured on a text: the protocol by which it is scored, and a result that says how it was obtained."""

import dataclasses
import functools
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lstmlm.config import DataConfig
from lstmlm.console import UserError, check
from lstmlm.data.corpus import load_facts, load_split
from lstmlm.data.sources import SPLITS
from lstmlm.evaluation.adaptation import (
    CacheScorer,
    CacheSettings,
    DynamicScorer,
    DynamicSettings,
    NeuralCache,
    gradient_rms,
)
from lstmlm.evaluation.perplexity import Evaluation, Scorer, StaticScorer, score_stream
from lstmlm.model.pretrained import default_device, find_model, load_pretrained, read_config

logger = logging.getLogger(__name__)
PROTOCOLS = ("static", "cache", "dynamic", "cache+dynamic")


@dataclass(frozen=True)
class Protocol:
    """How a stream is scored.

    Attributes:
        cache: Settings of the neural cache; None = none.
        dynamic: Settings of dynamic evaluation; None = the weights stay as they are.
        columns: Columns the stream is cut into; all but the first begin without context. 1 is the reference.
    """

    cache: CacheSettings | None = None
    dynamic: DynamicSettings | None = None
    columns: int = 1

    def __post_init__(self) -> None:
        check(self.columns >= 1, f"columns must be at least 1, not {self.columns}")

    @property
    def name(self) -> str:
        """`static`, `cache`, `dynamic` or `cache+dynamic`."""
        used = {"cache": self.cache, "dynamic": self.dynamic}
        return "+".join(name for name, settings in used.items() if settings) or "static"

    @property
    def settings(self) -> dict[str, Any]:
        """What the name leaves open, by the names of the command line."""
        parts = [dataclasses.asdict(settings) for settings in (self.cache, self.dynamic) if settings]
        values = {name.removesuffix("_"): value for part in parts for name, value in part.items()}
        if values.get("rule") == "sgd":
            del values["epsilon"]
        return values


@dataclass(frozen=True)
class Measurement(Evaluation):
    """The score of a text, and how it was obtained.

    Attributes:
        protocol: `static`, `cache`, `dynamic` or `cache+dynamic`.
        settings: Of the cache and of dynamic evaluation.
        characters: Of the original text, spaces and line ends counted.
        seconds: What the scoring took; loading, and statistics of gradients, are not in it.
        ids: Token id of every target in the order of the text, int32 (N,).
        token_nll: Nll of every target in nats, float32 (N,).
    """

    protocol: str
    settings: dict[str, Any]
    characters: int
    seconds: float
    ids: Tensor = field(repr=False, compare=False)
    token_nll: Tensor = field(repr=False, compare=False)

    @property
    def bpc(self) -> float:
        """Bits per character of the original text."""
        return self.nll / math.log(2) / self.characters

    def figures(self) -> dict[str, Any]:
        """What is told of it, without the single tokens."""
        names = ("tokens", "targets", "nll", "loss", "ppl", "bpc", "characters", "columns", "protocol", "settings")
        return {**{name: getattr(self, name) for name in names}, "seconds": round(self.seconds, 2)}

    def line(self) -> str:
        """The same for people."""
        settings = "".join(f", {name} {value}" for name, value in self.settings.items())
        return (
            f"{self.tokens:,} tokens, {self.targets:,} targets, nll {self.nll:.2f}, ppl {self.ppl:.4f}, bpc {self.bpc:.4f}, "
            f"{self.protocol}, {self.columns} column{'s' * (self.columns > 1)}{settings}, {self.seconds:.1f} s"
        )


class Subject:
    """A saved model, and the data it was trained on.

    Args:
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package.
        dataset: Another place of the data (as `data.dataset`); None = where training found it.
        cache_dir: As `data.cache_dir`; None = its default.

    Raises:
        UserError: The model cannot be read.
    """

    def __init__(
        self, model: str | Path | None = None, dataset: str | None = None, cache_dir: str | None = None
    ) -> None:
        folder = find_model(model)
        data = DataConfig(**read_config(folder)["data"])
        self.data = dataclasses.replace(data, dataset=dataset or data.dataset, cache_dir=cache_dir or data.cache_dir)
        self.device = default_device()
        self.model, self.vocabulary = load_pretrained(folder, self.device)

    def stream(self, split: str) -> Tensor:
        """Token ids of a split, int32 (n,).

        Raises:
            UserError: The data cannot be had.
        """
        return load_split(self.data, split, self.vocabulary)

    def characters(self, split: str) -> int:
        """Characters of a split's text, its line ends counted."""
        return load_facts(self.data, split, self.vocabulary).characters

    @functools.cached_property
    def gradient_rms(self) -> dict[str, Tensor]:
        """As the function: from the training split."""
        stream = self.stream("train")
        logger.warning("taking statistics of gradients from the training split, once")
        return gradient_rms(self.model, stream)

    def scorer(self, protocol: Protocol, columns: int) -> Scorer:
        """A fresh scorer of this protocol."""
        cache = NeuralCache(protocol.cache) if protocol.cache else None
        if protocol.dynamic:
            rms = self.gradient_rms if protocol.dynamic.rule == "rms" else None
            return DynamicScorer(self.model, columns, protocol.dynamic, rms, cache)
        return CacheScorer(self.model, columns, protocol.cache) if protocol.cache else StaticScorer(self.model, columns)

    def measure(self, split: str, protocol: Protocol) -> Measurement:
        """Score a split.

        Raises:
            UserError: The data cannot be had, or the scores are not finite.
        """
        stream = self.stream(split)
        columns = min(protocol.columns, len(stream) - 1)
        scorer = self.scorer(protocol, columns)
        begun = time.perf_counter()
        bptt = protocol.dynamic.bptt if protocol.dynamic else None
        token_nll = score_stream(scorer, stream, columns, self.device, bptt)
        seconds = time.perf_counter() - begun
        result = Measurement(
            tokens=len(stream),
            targets=len(token_nll),
            nll=token_nll.double().sum().item(),
            columns=columns,
            protocol=protocol.name,
            settings=protocol.settings,
            characters=self.characters(split),
            seconds=seconds,
            ids=stream[1:],
            token_nll=token_nll,
        )
        if not math.isfinite(result.ppl):  # NaN too
            advice = ": dynamic evaluation diverged, choose a smaller lr" if protocol.dynamic else ""
            raise UserError(f"the perplexity of split {split!r} is not finite{advice}")
        return result


def evaluate(
    model: str | Path | None = None,
    split: str = "test",
    columns: int = 1,
    dataset: str | None = None,
    cache_dir: str | None = None,
    cache: CacheSettings | None = None,
    dynamic: DynamicSettings | None = None,
) -> Measurement:
    """Perplexity of a saved model on a split of the data it was trained on.

    Args:
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package.
        split: `train`, `validation` or `test`.
        columns: At least 1; more are faster and score somewhat worse. 1 is the reference.
        dataset: Another place of the data (as `data.dataset`); None = where training found it.
        cache_dir: As `data.cache_dir`; None = its default.
        cache: Settings of the neural cache; None = none.
        dynamic: Settings of dynamic evaluation; None = the weights stay as they are.

    Raises:
        UserError: The model or the data cannot be had.
    """
    check(split in SPLITS, f"there is no split {split!r}: name one of {', '.join(SPLITS)}")
    protocol = Protocol(cache, dynamic, columns)
    return Subject(model, dataset, cache_dir).measure(split, protocol)
