"""The score of every token of a text."""

from pathlib import Path

import torch

from lstmlm.console import UsageError
from lstmlm.model.pretrained import default_device, find_model, load_pretrained


@torch.inference_mode()
def score_text(text: str, model: str | Path | None = None) -> list[tuple[str, float]]:
    """Each token of a text with its negative log likelihood in nats, the state carried from the first to the last.

    Args:
        text: One line or several; scored as if it stood at the start of a line, `<eos>` scored at every line's end.
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package.

    Raises:
        UserError: The model cannot be read, or the text is empty.
    """
    if not text:
        raise UsageError("there is no text to score")
    language_model, vocabulary = load_pretrained(find_model(model), default_device())
    ids = [vocabulary.eos] + [i for line in text.removesuffix("\n").split("\n") for i in vocabulary.encode(line)]
    tokens = torch.tensor(ids, device=language_model.embedding.weight.device)[:, None]  # (T + 1, 1)
    nll, _ = language_model.score(tokens[:-1], language_model.initial_state(1), tokens[1:])
    return [(vocabulary.tokens[i], value) for i, value in zip(ids[1:], nll[:, 0].tolist(), strict=True)]
