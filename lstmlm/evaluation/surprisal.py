"""What a model says of every token of a text, and the same for words and for regions of several words.

    text -> sentences -> tokens -> stretches, each read without a reset -> side by side through the model -> pieces -> words -> regions

A window of the text is held at a time, however long the text is.
"""

import math
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, takewhile
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lstmlm.console import UserError, check
from lstmlm.data.table import IGNORE
from lstmlm.data.tokenize import EOS
from lstmlm.evaluation.perplexity import Scored, StaticScorer, Stretches
from lstmlm.evaluation.words import Unknown, cut, word_starts
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.model.loss import token_scores
from lstmlm.model.pretrained import SavedModel

By = Literal["token", "word", "region", "sentence"]
Space = Literal["before", "after"]
WINDOW_CHARACTERS = 1 << 18  # of the text, held at a time; no score depends on it
# What a model says of a unit, as a row has it. `entropy` is that of the distribution of the first token.
MEASURES: dict[By, tuple[str, ...]] = {
    "token": ("surprisal", "unk", "entropy", "rank", "word_id"),
    **dict.fromkeys(("word", "region", "sentence"), ("surprisal", "unk", "entropy", "pieces")),
}


class Sentence(NamedTuple):
    """A line of a text, or a row of a table."""

    number: int  # from 1; empty ones count
    lines: list[tuple[str, bool]]  # each with whether the model reads it without what stood before
    regions: Sequence[tuple[str, int]] = ()  # text and number of words of each
    labels: Sequence[str] = ()  # of the regions, where the table has them
    values: Sequence[Sequence[Any]] = ((),)  # of the other columns, of its row; or of the row of each region


class Pieces(NamedTuple):
    """What a model says of the tokens of a sentence, the `<eos>` of each line among them."""

    words: list[str]  # as they stood; the end of a line is one
    texts: list[str]  # of the tokens
    word_of: list[int]  # for each token the place of its word, from 0
    ends: list[bool]  # whether a token is the `<eos>` of a line
    unk: list[int]  # 1 where `<unk>` was scored in a token's place, else 0
    surprisal: list[float]  # -log2 of each token's probability: bits; with `space` after, its share of those of white space
    entropy: list[float]  # of the distribution that the token was drawn from, in bits
    rank: list[int]  # 1 + the number of types that were likelier

    def units(self, by: By, regions: Sequence[tuple[str, int]] = (), eos: bool = False) -> list[dict[str, Any]]:
        """The rows of the sentence: the place in it from 1 (`word_id`), the text as it stood (`word`), and what MEASURES names.

        `regions` are text and number of words of each; with `eos` the end of a line has a row too, or counts in that of the sentence.
        """
        if by == "token":
            own = [i for i, end in enumerate(self.ends) if eos or not end]
            return [self._unit(by, i + 1, self.texts[i], [i]) | {"rank": self.rank[i], "word_id": self.word_of[i] + 1} for i in own]
        if by == "sentence":
            breaks = {word for word, end in zip(self.word_of, self.ends, strict=True) if end}  # a blank at a line's end belongs to it
            words = [word for place, word in enumerate(self.words) if place not in breaks]
            own = [i for i, word in enumerate(self.word_of) if eos or word not in breaks]
            return [self._unit(by, 1, " ".join(words), own)] if own or words else []
        parts = [*regions, (EOS, 1)] if by == "region" else [(word, 1) for word in self.words]
        ends = [bisect_left(self.word_of, words) for words in accumulate(size for _, size in parts)]
        spans = enumerate(zip(parts, map(range, [0, *ends], ends), strict=True), 1)
        return [self._unit(by, place, text, own) for place, ((text, _), own) in spans if eos or not any(self.ends[i] for i in own)]

    def _unit(self, by: By, place: int, text: str, own: Sequence[int]) -> dict[str, Any]:
        """Of some tokens; of none, if nothing of a word is left, as of a lone zero-width space under `normalize`, or a region is empty."""
        inner = [i for i in own if not self.ends[i]]
        kinds = {i: {unicodedata.category(character)[0] for character in self.texts[i]} for i in inner}
        # No letters, their marks (vowels of Hindi) or digits.
        edges = {i for side in (inner, inner[::-1]) for i in takewhile(lambda i: not kinds[i] & {*"LMN"}, side)}
        return {
            f"{by}_id": place,
            by: text,
            "surprisal": _digits(sum(self.surprisal[i] for i in own)),
            "unk": sum(self.unk[i] for i in own),
            "entropy": _digits(self.entropy[own[0]]) if own else None,
            "pieces": len(own),
            "punctuation": _digits(sum(self.surprisal[i] for i in edges if self.texts[i].strip())),
        }


Window = list[tuple[Sentence, list[Pieces]]]  # some sentences, each with what every model says of it


class Reader:
    """A model that reads the sentences of a text, and what it has read so far; `space` and `eos` are those of `Scoring`.

    Raises:
        UsageError: The model has no tokens that begin with white space.
    """

    def __init__(self, saved: SavedModel, space: Space = "before", eos: bool = False, scored: Scored = lambda tokens: None) -> None:
        self._vocabulary, self._eos = saved.text_vocabulary, eos
        fits = space == "before" or self._vocabulary.level != "word"
        check(fits, "--space after is for models whose tokens have white space in them: of characters or bpe")
        starts = word_starts(self._vocabulary).to(saved.device) if space == "after" else None
        self._stretches = Stretches(lambda columns: TokenScorer(saved.model, columns, starts), self._vocabulary.eos, saved.device, scored)
        self.unfamiliar = Unknown(saved)
        self.tokens, self.unknown, self.bits = 0, 0, 0.0  # scored so far, ends of lines only with `eos`; the `<unk>` among them; their sum

    def __call__(self, sentences: Sequence[Sentence]) -> list[Pieces]:
        """What it says of sentences that follow those of the call before."""
        vocabulary, cuts = self._vocabulary, []
        ids, starts, fresh = list[int](), list[int](), list[int]()  # places where lines begin, and where those begin that are read afresh
        for sentence in sentences:
            words, texts, word_of, ends, first = list[str](), list[str](), list[int](), list[bool](), len(ids)
            for text, is_fresh in sentence.lines:
                self.unfamiliar.see(text)
                line = cut(text, vocabulary)
                starts.append(len(ids))
                fresh += [len(ids)] * is_fresh
                ids += [*line.ids, vocabulary.eos]
                texts += [*line.texts, EOS]
                ends += [*[False] * len(line.ids), True]
                word_of += [len(words) + word for word in (*line.word_of, len(line.words))]
                words += [*line.words, EOS]
            cuts.append((words, texts, word_of, ends, slice(first, len(ids))))
        scores = self._stretches(torch.tensor(ids), fresh)  # (4, n)
        if not scores.isfinite().all():
            raise UserError("the model's scores are not finite: its weights are far too large")
        scores[3, starts] = 0
        nll, entropy, boundary = scores[[0, 1, 3]].double() / math.log(2)
        # The boundary after a token counts in place of the one before it (Pimentel and Meister, 2024); after a line's end there is none.
        bits, entropy = (nll - boundary + boundary.roll(-1)).tolist(), entropy.tolist()
        rank, unk = scores[2].long().tolist(), [int(i == vocabulary.unk) for i in ids]
        pieces = [
            Pieces(words, texts, word_of, ends, unk[own], bits[own], entropy[own], rank[own]) for words, texts, word_of, ends, own in cuts
        ]
        for each in pieces:
            counted = [value for value, end in zip(each.surprisal, each.ends, strict=True) if self._eos or not end]
            self.tokens += len(counted)
            self.unknown += sum(each.unk)
            self.bits += sum(counted)
        return pieces


class TokenScorer(StaticScorer):
    """The model as it is. For every target: nll, entropy, rank and nll of `starts`, float32 (4, T, B)."""

    def __init__(self, model: LSTMLanguageModel, columns: int, starts: Tensor | None) -> None:
        super().__init__(model, columns)
        self._starts = starts

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs, self._state = self.model.hidden(inputs, self._state.select(slice(inputs.shape[1])))
        counted, decoder = targets != IGNORE, self.model.decoder
        scores = outputs.new_zeros(4, *targets.shape)  # a float32 holds ranks up to 2^24
        of_targets = token_scores(outputs[counted], decoder.weight, decoder.bias, targets[counted], self._starts)
        scores[:, counted] = torch.stack([score.float() for score in of_targets])
        return scores, outputs


def read_windows(sentences: Iterable[Sentence], readers: Sequence[Reader]) -> Iterator[Window]:
    """Sentences with what each model says of them, in memory that does not grow with the text."""
    rest = iter(sentences)
    while window := list(_first(rest)):
        pieces = zip(*(reader(window) for reader in readers), strict=True)
        yield [(sentence, list(of_models)) for sentence, of_models in zip(window, pieces, strict=True)]


def _first(sentences: Iterator[Sentence]) -> Iterator[Sentence]:
    """As many as make a window."""
    characters = 0
    while characters < WINDOW_CHARACTERS and (sentence := next(sentences, None)):
        characters += sum(len(line) + 1 for line, _ in sentence.lines)
        yield sentence


def _digits(number: float) -> float:
    return float(f"{number:.7g}")
