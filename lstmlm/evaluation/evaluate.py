"""A saved model evaluated under any protocol."""

from pathlib import Path
from typing import Any

from lstmlm.console import check
from lstmlm.evaluation.adaptation import Cache, CacheDynamic, Dynamic
from lstmlm.evaluation.protocol import Measurement, Static, measure
from lstmlm.evaluation.text import Reset, check_split, file_text, split_text
from lstmlm.model.pretrained import ModelPlace, load

PROTOCOLS: dict[str, type[Static]] = {protocol.name: protocol for protocol in (Static, Cache, Dynamic, CacheDynamic)}


def evaluate(
    model: ModelPlace = None,
    split: str = "test",
    columns: int = 1,
    dataset: str | None = None,
    cache_dir: str | None = None,
    protocol: str = "static",
    reset: Reset = "never",
    text: str | Path | None = None,
    text_column: str = "text",
    raw: bool = False,
    normalize: bool = False,
    **settings: Any,
) -> Measurement:
    """Perplexity of a saved model on a split of the data it was trained on, or on another text.

    Args:
        model, dataset, cache_dir: As for `load`.
        split: `train`, `validation` or `test`.
        columns: At least 1; more are faster and score somewhat worse. 1 is the reference.
        protocol: `static`, `cache`, `dynamic` or `cache+dynamic`.
        reset: `never`, `line` or `document`: where the model forgets what it read.
        text: A file to score in place of the split, of any form that training takes.
        text_column: Where the text stands in that file, if it has rows.
        raw, normalize: Of that file, as for `load`.
        settings: Of the protocol, as its class has them: `theta=1`, `lr=0.001`.

    Raises:
        UserError: The model or the data cannot be had, or an argument is out of range.
    """
    check(protocol in PROTOCOLS, f"there is no protocol {protocol!r}: name one of {', '.join(PROTOCOLS)}")
    how = PROTOCOLS[protocol](columns=columns, reset=reset, **settings)
    check_split(split)
    check(text is not None or not (raw or normalize), "raw and normalize need a text: a split is read as training read it")
    saved = load(model, raw, normalize, dataset, cache_dir)
    return measure(saved, split_text(saved, split) if text is None else file_text(saved, text, text_column), how)
