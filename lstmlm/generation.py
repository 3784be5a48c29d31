"""Text from a trained model, one token at a time; the state is all that is carried.

Continuations run side by side, and each is what it would be alone: it has a generator of its own, seeded by the seed and by its number
among the continuations of its prompt.
"""

import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lstmlm.config import COUNT, NOT_NEGATIVE, Bounds, bounded, check_fields
from lstmlm.console import UsageError, UserError, check
from lstmlm.data.tokenize import UNK
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.evaluation.perplexity import SEGMENT_TOKENS
from lstmlm.model.language_model import LSTMLanguageModel, State
from lstmlm.model.pretrained import ModelPlace, load
from lstmlm.runtime.hardware import ieee_products

logger = logging.getLogger(__name__)
MOST_ASKED = 1_000_000  # tokens, continuations or lines that may be asked for
BATCH_LOGITS = 1 << 22  # computed at a time: BATCH_LOGITS / V continuations run side by side


@dataclass(frozen=True)
class Sampling:
    """How a continuation is drawn."""

    max_len: int = bounded(30, Bounds(0, MOST_ASKED))
    """Largest number of new tokens."""
    temperature: float = bounded(1.0, NOT_NEGATIVE)
    """Divides the logits; 0 takes the most likely token every time."""
    top_k: int | None = bounded(None, COUNT)
    """Sample among the k most likely tokens only. null = all."""
    top_p: float = bounded(1.0, Bounds(0, 1, above=True))
    """Sample among the fewest tokens whose probabilities add up to p (Holtzman et al., 2020)."""
    min_p: float = bounded(0.0, Bounds(0, 1))
    """Leave out tokens less likely than this times the most likely one (Nguyen et al., 2024)."""
    allow_unk: bool = False
    """Whether `<unk>` may be sampled."""
    ban: Sequence[str] = ()
    """Tokens that are never sampled."""
    stop: Sequence[str] = ()
    """Tokens that end the text, as its last."""
    lines: int = bounded(1, Bounds(1, MOST_ASKED))
    """Number of lines after which the text ends; the line that the prompt leaves open is the first."""

    def __post_init__(self) -> None:
        check_fields(self)


def generate_text(prompt: str, max_len: int = 30, temperature: float = 1.0, model: ModelPlace = None, **options: Any) -> str:
    """Continue a prompt until the model ends the line or `max_len` new tokens are reached.

    Args:
        prompt: Its unknown words become `<unk>`, with a warning, and its line ends `<eos>`. An empty one starts at the beginning of a line.
        max_len: Largest number of new tokens, >= 0.
        temperature: Divides the logits, >= 0; 0 takes the most likely token every time.
        model: As for `load`.
        options: `seed` and `raw` as for `stream_texts`, all others as in `Sampling`.

    Returns:
        The prompt and at most `max_len` new tokens, without the last line's `<eos>`.

    Raises:
        UserError: There is no such model, or an argument is out of range.
    """
    return generate_texts(prompt, 1, max_len, temperature, model, **options)[0]


def generate_texts(
    prompt: str | Sequence[str], count: int, max_len: int = 30, temperature: float = 1.0, model: ModelPlace = None, **options: Any
) -> list[str]:
    """`count` continuations of a prompt, or of each of several, computed side by side; the other arguments are those of `generate_text`."""
    return list(stream_texts(prompt, count, model, max_len=max_len, temperature=temperature, **options))


def stream_texts(
    prompt: str | Sequence[str], count: int = 1, model: ModelPlace = None, seed: int | None = None, raw: bool = False, **options: Any
) -> Iterator[str]:
    """The texts of `generate_texts` in their order, each as soon as it is complete and so are those before it.

    Args:
        prompt, count, model: As for `generate_texts`.
        seed: The same seed gives the same texts; None = new ones every time.
        raw: Whether the prompt is text as people write it, for a model whose words stand between white space; so is the result.
        options: As in `Sampling`.
    """
    sampling = Sampling(**options)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    most = MOST_ASKED // max(1, len(prompts))
    check(1 <= count <= most, f"count must be from 1 to {most:,}, not {count:,}: there may be {MOST_ASKED:,} texts in all")
    saved = load(model, raw)
    vocabulary = saved.text_vocabulary
    new = sample(saved.model, vocabulary, _encode(prompts, vocabulary), count, sampling, seed)
    for text in prompts:
        for ids in islice(new, count):
            yield vocabulary.go_on(text, ids)


def stream_text(prompt: str, model: ModelPlace = None, seed: int | None = None, **options: Any) -> Iterator[str]:
    """The text of `generate_text` in pieces, as its tokens come; where Moses cut the words, a line at a time. For raw text, give a model
    loaded so."""
    sampling = Sampling(**options)
    saved = load(model)
    vocabulary = saved.text_vocabulary
    (ids,) = _encode([prompt], vocabulary)
    begin, shown, first = prompt, "", 0  # of the line that goes on: its text before, what is shown of it, its first new token
    for (new,), complete in _grow(saved.model, vocabulary, [(ids, 0)], sampling, seed):
        text, ended = vocabulary.go_on(begin, new[first:]), new[-1:] == [vocabulary.eos]
        # With Moses a word that follows may move the marks before it; U+FFFD is a character whose other bytes may come.
        open_end = vocabulary.tokenizer == "moses" or text.endswith("\ufffd")
        if text != shown and (complete or ended or not open_end):
            yield text[len(shown) :]
            shown = text
        if ended:
            begin, shown, first = "", "", len(new)


def sample(
    model: LSTMLanguageModel, vocabulary: Vocabulary, prompts: Sequence[list[int]], count: int, sampling: Sampling, seed: int | None = None
) -> Iterator[list[int]]:
    """New token ids of `count` continuations of each prompt in order, each as soon as it is complete and so are those before it, without
    the `<eos>` of the last line. `prompts` are token ids, at least one in each."""
    asked = [(prompt, number) for prompt in prompts for number in range(count)]
    size = max(1, BATCH_LOGITS // len(vocabulary))
    for first in range(0, len(asked), size):
        given = 0
        for new, complete in _grow(model, vocabulary, asked[first : first + size], sampling, seed):
            yield from new[given:complete]
            given = complete


def _encode(prompts: Sequence[str], vocabulary: Vocabulary) -> list[list[int]]:
    strange = [prompt for prompt in prompts if re.search("[\ud800-\udfff]", prompt)]
    check(not strange, f"a prompt is not UTF-8: {''.join(strange[:1])}")
    unknown = sorted({token for prompt in prompts for token in vocabulary.tokenize(prompt) if token not in vocabulary})
    if unknown:
        logger.warning("not in the vocabulary, read as %s: %s", UNK, " ".join(unknown))
    return [[vocabulary.eos, *vocabulary.encode(prompt, eos=False)] for prompt in prompts]


@torch.no_grad()
def _grow(
    model: LSTMLanguageModel, vocabulary: Vocabulary, asked: list[tuple[list[int], int]], sampling: Sampling, seed: int | None
) -> Iterator[tuple[list[list[int]], int]]:
    """The new token ids of continuations that run side by side, and how many of the first are complete; place by place, until all are.

    Each is `asked` by its prompt and its number among the continuations of this prompt.
    """
    eos = vocabulary.eos
    banned = _ids(sampling.ban, "ban", vocabulary) + [vocabulary.unk] * (not sampling.allow_unk)
    stop = _ids(sampling.stop, "stop", vocabulary)
    if len({*banned, eos}) == len(vocabulary):
        raise UsageError("there is no token left to sample: the vocabulary has none but <eos> and those that are banned")
    generators = [random.Random(None if seed is None else f"{seed} {number}") for _, number in asked]
    new: list[list[int]] = [[] for _ in asked]
    lines = [sampling.lines] * len(asked)  # that are still to end
    running = list(range(len(asked)))
    logits, state = _read(model, [prompt for prompt, _ in asked])
    for place in range(sampling.max_len):
        logits[:, banned] = -torch.inf
        if place == 0:
            logits[:, eos] = -torch.inf
        uniform = torch.tensor([generators[row].random() for row in running], dtype=torch.float64)
        tokens = choose(logits, sampling, uniform).tolist()
        going_on = []
        for column, (row, token) in enumerate(zip(running, tokens, strict=True)):
            lines[row] -= token == eos
            if lines[row]:
                new[row].append(token)
                if token not in stop:
                    going_on.append(column)
        if not going_on or place == sampling.max_len - 1:
            break
        running = [running[column] for column in going_on]
        yield new, running[0]
        inputs, rows = torch.tensor([[tokens[column] for column in going_on], going_on], device=model.embedding.weight.device)
        with ieee_products():  # as in scoring
            of_rows, state = model.logits(inputs[None], state.select(rows))
        logits = of_rows[0].cpu()  # (B, V)
    yield new, len(new)


@ieee_products()
def _read(model: LSTMLanguageModel, prompts: list[list[int]]) -> tuple[Tensor, State]:
    """Logits of the next token on the CPU, (B, V), and the state, after each prompt; equal ones are read once."""
    device = model.embedding.weight.device
    distinct = sorted({tuple(prompt) for prompt in prompts}, key=len, reverse=True)
    state = model.initial_state(len(distinct))
    last = model.decoder.weight.new_empty(len(distinct), model.decoder.in_features)
    begin = 0
    ends = {len(prompt) for prompt in distinct}
    rows = max(1, SEGMENT_TOKENS // len(distinct))
    for end in sorted(ends.union(range(rows, max(ends), rows))):
        running = [prompt for prompt in distinct if len(prompt) >= end]  # the first columns
        tokens = torch.tensor([prompt[begin:end] for prompt in running], device=device).T  # (T, B)
        columns = slice(len(running))
        outputs, new = model.hidden(tokens, state.select(columns))
        last[columns] = outputs[-1]
        state.copy_(new, columns)
        begin = end
    places = {prompt: column for column, prompt in enumerate(distinct)}
    columns_of = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=device)
    return model.decoder(last[columns_of]).cpu(), state.select(columns_of)


def _ids(tokens: Sequence[str], option: str, vocabulary: Vocabulary) -> list[int]:
    unknown = [token for token in tokens if token not in vocabulary]
    check(not unknown, f"{option}: not in the vocabulary: {' '.join(unknown)}")
    return [vocabulary.id_of(token) for token in tokens]


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """A token id for each row of logits (B, V), int64 (B,): the most likely at temperature 0, else sampled.

    The token is the one within whose share of the unit interval the row's draw lies: uniform, float64 (B,) in [0, 1). Logits that are not
    finite are a UserError.
    """
    if not logits.amax(-1).isfinite().all():
        raise UserError("the model's scores are not finite, so there is nothing to sample from: its weights are far too large")
    if sampling.temperature == 0:
        return logits.argmax(-1)
    # In float64 no temperature overflows. At a tiny one the probabilities of all but the likeliest underflow to 0, so that one is taken,
    # as at temperature 0.
    logits = logits.double()
    logits = (logits - logits.amax(-1, True)) / sampling.temperature
    order = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits, order = logits.topk(sampling.top_k)
    elif sampling.top_p < 1:
        logits, order = logits.sort(descending=True, stable=True)
    p = logits.softmax(-1)
    if sampling.top_p < 1:
        p = p.masked_fill(p.cumsum(-1) - p >= sampling.top_p, 0)  # the likelier tokens alone add up to top_p
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(-1, True), 0)
    shares = p.cumsum(-1)
    draws = uniform[:, None] * (1 - 2**-52) * shares[:, -1:]  # less than the last share, after rounding too
    places = torch.searchsorted(shares, draws, right=True)
    return (places if order is None else order.gather(-1, places))[:, 0]
