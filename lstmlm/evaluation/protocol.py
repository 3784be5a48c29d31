"""A saved model measured on a text: the protocol by which it is scored, and a result that says how it was obtained."""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lstmlm.config import RUN_CONFIG, Config, DataConfig
from lstmlm.console import UserError, check
from lstmlm.data.corpus import fingerprint, load_split
from lstmlm.data.reading import form_of, lines_of, read_blocks
from lstmlm.data.sources import ENDINGS, SPLITS, is_local, open_source
from lstmlm.data.table import IGNORE
from lstmlm.data.tokenize import EOS, Words
from lstmlm.evaluation.adaptation import (
    CacheScorer,
    CacheSettings,
    DynamicScorer,
    DynamicSettings,
    NeuralCache,
    gradient_rms,
)
from lstmlm.evaluation.perplexity import (
    Evaluation,
    Scorer,
    StaticScorer,
    bits_per_character,
    score_stream,
    score_stretches,
    word_ppl,
)
from lstmlm.evaluation.surprisal import Reset, with_resets
from lstmlm.files import user_path
from lstmlm.model.pretrained import default_device, find_model, load_pretrained, read_config
from lstmlm.records import read_yaml

logger = logging.getLogger(__name__)

PROTOCOLS = ("static", "cache", "dynamic", "cache+dynamic")


@dataclass(frozen=True)
class Protocol:
    """How a stream is scored.

    Attributes:
        cache: Settings of the neural cache; None = none.
        dynamic: Settings of dynamic evaluation; None = the weights stay as they are.
        columns: Columns the stream is cut into; all but the first begin without context. 1 is the reference.
        reset: Where state and cache are emptied: `never`; at each `line`; at each `document`, as `score_text` finds them. The first
            token after a reset is scored after `<eos>`.
    """

    cache: CacheSettings | None = None
    dynamic: DynamicSettings | None = None
    columns: int = 1
    reset: Reset = "never"

    def __post_init__(self) -> None:
        check(self.columns >= 1, f"columns must be at least 1, not {self.columns}")
        check(
            self.reset in get_args(Reset), f"there is no reset {self.reset!r}: name one of {', '.join(get_args(Reset))}"
        )
        if self.reset != "never":
            check(
                self.columns == 1,
                f"reset is {self.reset}, so stretches run side by side by themselves: leave columns at 1, not {self.columns}",
            )
            check(
                self.dynamic is None,
                f"reset is {self.reset}, but dynamic evaluation takes what it learned across a reset: use reset never",
            )

    @property
    def name(self) -> str:
        """`static`, `cache`, `dynamic` or `cache+dynamic`."""
        used = {"cache": self.cache, "dynamic": self.dynamic}
        return "+".join(name for name, settings in used.items() if settings) or "static"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the cache and of dynamic evaluation, under their names on the command line."""
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
        words: Of the original text: what stands between white space, and the line ends.
        seconds: What the scoring took; loading, and statistics of gradients, are not in it.
        reset: `never`, `line` or `document`.
        ids: Token id of every target in the order of the text, int32 (N,).
        token_nll: Nll of every target in nats, float32 (N,).
        fresh: Whether a target is scored without context: a column's or a stretch's first, bool (N,).
    """

    protocol: str
    settings: dict[str, Any]
    characters: int
    words: int
    reset: str
    seconds: float
    ids: Tensor = field(repr=False, compare=False)
    token_nll: Tensor = field(repr=False, compare=False)
    fresh: Tensor = field(repr=False, compare=False)

    @property
    def bpc(self) -> float:
        """Bits per character of the original text."""
        return bits_per_character(self, self.characters)

    @property
    def word_ppl(self) -> float:
        """Perplexity per word of the original text."""
        return word_ppl(self, self.words)

    def figures(self) -> dict[str, Any]:
        """What is told of it, without the single tokens."""
        names = (
            "tokens",
            "targets",
            "nll",
            "loss",
            "ppl",
            "word_ppl",
            "bpc",
            "words",
            "characters",
            "columns",
            "protocol",
            "reset",
            "settings",
        )
        return {**{name: getattr(self, name) for name in names}, "seconds": round(self.seconds, 2)}

    def line(self) -> str:
        """The figures in one line, to be read."""
        settings = "".join(f", {name} {value}" for name, value in self.settings.items())
        per_word = f", ppl per word {self.word_ppl:.4f}" if self.word_ppl != self.ppl else ""
        return (
            f"{self.tokens:,} tokens, {self.targets:,} targets, nll {self.nll:.2f}, ppl {self.ppl:.4f}{per_word}, bpc {self.bpc:.4f}, "
            f"{self.protocol}, {self.columns} column{'s' * (self.columns > 1)}, reset {self.reset}{settings}, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class Text:
    """What is scored.

    Attributes:
        name: What messages call it.
        stream: Its token ids, int32 (n,).
        characters: Of the text, spaces and line ends counted.
        words: Of the text: what stands between white space, and the line ends.
        blocks: The text itself, piece by piece.
    """

    name: str
    stream: Tensor
    characters: int
    words: int
    blocks: Callable[[], Iterator[str]]

    def lines(self) -> Iterator[str]:
        """Its lines, without their line ends."""
        return lines_of(self.blocks())


class Subject:
    """A saved model, and the data it was trained on.

    Args:
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package.
        dataset: Where the data is (as `data.dataset`); None = where training found it, as far as the model or its run says.
        cache_dir: As `data.cache_dir`; None = its default.

    Raises:
        UserError: The model cannot be read.
    """

    def __init__(
        self, model: str | Path | None = None, dataset: str | None = None, cache_dir: str | None = None
    ) -> None:
        folder = find_model(model)
        description = read_config(folder)
        self._fingerprints, self._dataset, self._folder = description.fingerprints, dataset, folder
        self._data = dataclasses.replace(description.data, cache_dir=cache_dir or description.data.cache_dir)
        self.device = default_device()
        self.model, self.vocabulary = load_pretrained(folder, self.device)

    @functools.cached_property
    def data(self) -> DataConfig:
        """The data, where it is: a model has its name, and a run the place.

        Raises:
            UserError: Nobody says where it is.
        """
        dataset, run = self._dataset or self._data.dataset, self._folder.parent / RUN_CONFIG
        if self._dataset is None and self._folder.name == "model" and run.exists():
            with suppress(UserError):  # it is not a run's, or of a version that had other keys
                dataset = read_yaml(run, Config).data.dataset
        is_here = dataset == "toy" or user_path(dataset).exists()
        # A model has the name alone, and only what is on the Hub is found by it.
        is_place = dataset != self._data.dataset or is_local(dataset) or "/" not in dataset
        if self._dataset is None and not is_here and is_place:
            raise UserError(
                f"the model was trained on {dataset}, and there is no such file or folder here: name it with --dataset"
            )
        return dataclasses.replace(self._data, dataset=dataset)

    def split(self, name: str) -> Text:
        """A split of the data.

        Raises:
            UserError: There is no such split, or the data cannot be had.
        """
        check_split(name)
        stream, facts = load_split(self.data, name, self.vocabulary)
        if fingerprint(stream) != self._fingerprints.get(name, fingerprint(stream)):
            other = f"split {name} of {self.data.dataset} is not the text that the model was trained with"
            if self._dataset is None:
                raise UserError(f"{other}, only its name is the same: say which you mean with --dataset")
            logger.warning(other)
        return Text(f"split {name}", stream, facts.characters, facts.words, lambda: open_source(self.data).blocks(name))

    def file(self, path: str | Path, column: str = "text", raw: bool = False) -> Text:
        """A file of any form that training takes.

        Args:
            path: Of the file.
            column: Where the text stands in CSV, JSON lines and Parquet.
            raw: As for `score_text`.

        Raises:
            UserError: It cannot be read, or has nothing to score.
        """
        path = Path(path)
        check(path.is_file(), f"{path} is not a file" if path.exists() else f"there is no file {path}")
        check(form_of(path) is not None, f"{path}: its name must end with one of {ENDINGS}")

        def blocks() -> Iterator[str]:
            return read_blocks(path, column)

        vocabulary = self.vocabulary.for_raw_text() if raw else self.vocabulary
        ids, characters, words = [np.empty(0, np.int32)], 0, 0
        try:
            for block, tokens in vocabulary.encode_blocks(blocks()):
                ids.append(tokens)
                characters += len(block)
                words += len(Words().tokenize(block))
        except UserError as error:
            raise type(error)(str(error).replace("--data.text_column", "--text_column")) from None
        stream = torch.from_numpy(np.concatenate(ids))
        if len(stream) < 2:
            raise UserError(f"{path} has nothing to score: {len(stream)} tokens, the least is 2")
        return Text(str(path), stream, characters, words, blocks)

    @functools.cached_property
    def gradient_rms(self) -> dict[str, Tensor]:
        """As the function: from the training split."""
        return gradient_rms(self.model, self.split("train").stream)

    def scorer(self, protocol: Protocol, columns: int) -> Scorer:
        """A fresh scorer of this protocol."""
        cache = NeuralCache(protocol.cache) if protocol.cache else None
        if protocol.dynamic:
            rms = self.gradient_rms if protocol.dynamic.rule == "rms" else None
            return DynamicScorer(self.model, columns, protocol.dynamic, rms, cache)
        return CacheScorer(self.model, columns, protocol.cache) if protocol.cache else StaticScorer(self.model, columns)

    def measure(
        self, text: Text, protocol: Protocol, scored: Callable[[int], object] = lambda targets: None
    ) -> Measurement:
        """Score a text.

        Args:
            text: As `split` or `file` give it.
            protocol: How.
            scored: Called with the number of targets of each segment when it is done.

        Raises:
            UserError: The scores are not finite, or its lines cannot be told apart.
        """
        stream = text.stream
        columns = min(protocol.columns, len(stream) - 1)
        if protocol.dynamic and protocol.dynamic.rule == "rms":
            _ = self.gradient_rms  # computed before the clock starts

        def make_scorer(columns: int) -> Scorer:
            scorer = self.scorer(protocol, columns)

            def score(inputs: Tensor, targets: Tensor) -> Tensor:
                nll = scorer(inputs, targets)
                scored(int((targets != IGNORE).sum()))
                return nll

            return score

        begun = time.perf_counter()
        if protocol.reset == "never":
            ids = stream[1:]
            starts = [b * len(ids) // columns for b in range(columns)]
            bptt = protocol.dynamic.bptt if protocol.dynamic else None
            token_nll = score_stream(make_scorer(columns), stream, columns, self.device, bptt)
        else:
            ids, starts = stream, self._starts(text, protocol.reset)
            token_nll = score_stretches(make_scorer, ids, starts, self.vocabulary.eos, self.device)
        seconds = time.perf_counter() - begun
        fresh = torch.zeros(len(ids), dtype=torch.bool)
        fresh[starts] = True
        result = Measurement(
            tokens=len(stream),
            targets=len(token_nll),
            nll=token_nll.double().sum().item(),
            columns=columns,
            protocol=protocol.name,
            reset=protocol.reset,
            settings=protocol.settings,
            characters=text.characters,
            words=text.words,
            seconds=seconds,
            ids=ids,
            token_nll=token_nll,
            fresh=fresh,
        )
        if not math.isfinite(result.ppl):  # NaN too
            advice = ": dynamic evaluation diverged, choose a smaller lr" if protocol.dynamic else ""
            raise UserError(f"the perplexity of {text.name} is not finite{advice}")
        return result

    def _starts(self, text: Text, reset: Reset) -> list[int]:
        """Where the stretches of a text begin."""
        ends = (text.stream == self.vocabulary.eos).nonzero()[:, 0].tolist()
        starts = [0, *(end + 1 for end in ends[:-1])]
        lines = list(with_resets(text.lines(), reset))
        if len(lines) != len(starts):
            raise UserError(f"{text.name} has {EOS} in its text, so its lines cannot be told apart: use reset never")
        return [start for start, (_, fresh) in zip(starts, lines, strict=True) if fresh]


def check_split(name: str) -> None:
    """Refuse a split that there is not.

    Raises:
        UsageError: Naming those that there are.
    """
    check(name in SPLITS, f"there is no split {name!r}: name one of {', '.join(SPLITS)}")


def evaluate(
    model: str | Path | None = None,
    split: str = "test",
    columns: int = 1,
    dataset: str | None = None,
    cache_dir: str | None = None,
    cache: CacheSettings | None = None,
    dynamic: DynamicSettings | None = None,
    reset: Reset = "never",
    text: str | Path | None = None,
    text_column: str = "text",
    raw: bool = False,
) -> Measurement:
    """Perplexity of a saved model on a split of the data it was trained on, or on another text.

    Args:
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package.
        split: `train`, `validation` or `test`.
        columns: At least 1; more are faster and score somewhat worse. 1 is the reference.
        dataset: As for `Subject`.
        cache_dir: As `data.cache_dir`; None = its default.
        cache: Settings of the neural cache; None = none.
        dynamic: Settings of dynamic evaluation; None = the weights stay as they are.
        reset: As for `Protocol`.
        text: A file to score in place of the split, of any form that training takes.
        text_column, raw: Of that file, as for `Subject.file`.

    Raises:
        UserError: The model or the data cannot be had.
    """
    protocol = Protocol(cache, dynamic, columns, reset)
    check_split(split)
    subject = Subject(model, dataset, cache_dir)
    return subject.measure(subject.split(split) if text is None else subject.file(text, text_column, raw), protocol)
