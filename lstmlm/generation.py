"""Text from a trained model, one token at a time; the state is all that is carried, so a token's cost does not grow."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from lstmlm.console import UsageError
from lstmlm.data.vocabulary import UNK, Vocabulary
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.model.pretrained import default_device, find_model, load_pretrained

logger = logging.getLogger(__name__)


def generate_text(
    prompt: str,
    max_len: int = 30,
    temperature: float = 1.0,
    model: str | Path | None = None,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | None = None,
    allow_unk: bool = False,
) -> str:
    """Continue a prompt until the model ends the line or `max_len` new tokens are reached.

    Args:
        prompt: Its unknown words become `<unk>`, with a warning; an empty one starts at the beginning of a line.
        max_len: Most new tokens, >= 0.
        temperature: Divides the logits, >= 0; 0 takes the most likely token every time.
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package.
        top_k: Sample among the k most likely tokens only, >= 1.
        top_p: Sample among the fewest tokens whose probabilities reach p, in (0, 1] (Holtzman et al., 2020).
        seed: Same seed, same text; None = a new one every time.
        allow_unk: Whether `<unk>` may be sampled.

    Returns:
        The prompt and at most `max_len` new tokens, without `<eos>`.

    Raises:
        UserError: There is no such model, or an argument is out of range.
    """
    return generate_texts(prompt, 1, max_len, temperature, model, top_k, top_p, seed, allow_unk)[0]


def generate_texts(
    prompt: str,
    count: int,
    max_len: int = 30,
    temperature: float = 1.0,
    model: str | Path | None = None,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | None = None,
    allow_unk: bool = False,
) -> list[str]:
    """Several continuations of one prompt, computed side by side; the arguments are those of `generate_text`."""
    language_model, vocabulary = load_pretrained(find_model(model), default_device())
    unknown = sorted({token for token in vocabulary.tokenize(prompt) if token not in vocabulary})
    if unknown:
        logger.warning("not in the vocabulary, read as %s: %s", UNK, " ".join(unknown))
    ids = [vocabulary.eos, *vocabulary.encode(prompt, eos=False)]
    samples = sample(language_model, vocabulary, ids, count, max_len, temperature, top_k, top_p, seed, allow_unk)
    texts = [vocabulary.decode(new) for new in samples]
    glue = " " if vocabulary.level == "word" and prompt and not prompt[-1].isspace() else ""
    return [prompt + glue + text if text else prompt for text in texts]


@torch.inference_mode()
def sample(
    model: LSTMLanguageModel,
    vocabulary: Vocabulary,
    prompt: list[int],
    count: int,
    max_len: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | None = None,
    allow_unk: bool = False,
) -> list[list[int]]:
    """New token ids of `count` continuations, each up to its `<eos>`, which is left out and never comes first.

    Args:
        model: On any device.
        vocabulary: Of the model.
        prompt: At least one token id.
        count: Continuations, B.
        max_len, temperature, top_k, top_p, seed, allow_unk: As for `generate_text`.
    """
    for holds, message in (
        (count >= 1, f"count must be at least 1, not {count}"),
        (max_len >= 0, f"max_len must not be negative, not {max_len}"),
        (temperature >= 0, f"temperature must not be negative, not {temperature}"),
        (top_k is None or top_k >= 1, f"top_k must be at least 1, not {top_k}"),
        (0 < top_p <= 1, f"top_p must be in (0, 1], not {top_p}"),
    ):
        if not holds:
            raise UsageError(message)
    device = model.embedding.weight.device
    generator = torch.Generator(device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    # The whole prompt once, in a column of its own; then every continuation goes on from the state it left.
    outputs, state = model.hidden(torch.tensor(prompt, device=device)[:, None], model.initial_state(1))
    outputs = outputs[-1:].expand(1, count, -1)  # (1, B, H)
    state = [(h.repeat(count, 1), c.repeat(count, 1)) for h, c in state]
    new = torch.full((max_len, count), vocabulary.eos, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    for i in range(max_len):
        logits = model.decoder(outputs[0])  # (B, V)
        if not allow_unk:
            logits[:, vocabulary.unk] = -torch.inf
        if i == 0:
            logits[:, vocabulary.eos] = -torch.inf
        new[i] = choose(logits, temperature, top_k, top_p, generator).where(~ended, vocabulary.eos)
        ended |= new[i] == vocabulary.eos
        if ended.all():
            break
        outputs, state = model.hidden(new[i : i + 1], state)
    columns = new.T.tolist()
    return [ids[: ids.index(vocabulary.eos)] if vocabulary.eos in ids else ids for ids in columns]


def choose(logits: Tensor, temperature: float, top_k: int | None, top_p: float, generator: torch.Generator) -> Tensor:
    """One token id per row of logits (B, V) -> (B,): the most likely at temperature 0, else sampled."""
    if temperature == 0:
        return logits.argmax(-1)
    # Away from the maximum everything underflows to 0 at a tiny temperature, which is the right limit.
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # what stands before a token reaches p already
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
