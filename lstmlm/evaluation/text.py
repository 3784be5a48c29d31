"""What is scored: a split of the data or a file, as token ids and as lines; and where a model forgets what it read of it."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lstmlm.console import UserError, check
from lstmlm.data.corpus import fingerprint, load_split
from lstmlm.data.reading import check_form, check_tables, lines_of, read_blocks
from lstmlm.data.sources import SPLITS, open_source
from lstmlm.data.tokenize import EOS, Words
from lstmlm.evaluation.words import Unknown
from lstmlm.files import user_path
from lstmlm.model.pretrained import SavedModel
from lstmlm.runtime.hardware import cores

logger = logging.getLogger(__name__)

Reset = Literal["line", "document", "never"]
TITLE = re.compile(r"\s*= [^=]+ =\s*")  # of a document; `= = Heading = =` is one within a document


class Resets:
    """Tells of each line of a text in turn whether the model reads it without what stood before; the first is read so.

    `line`: each is. `document`: each title is, or in a text without titles, for which `lines` is asked, each line after an empty one.
    `never`: no other is.
    """

    def __init__(self, reset: Reset, lines: Callable[[], Iterator[str]]) -> None:
        self._reset = reset
        self._titled = reset == "document" and any(TITLE.fullmatch(line) for line in lines())
        self._fresh = True

    def __call__(self, line: str) -> bool:
        """Whether this line, the next one of the text, is read so."""
        fresh = self._fresh or (self._titled and TITLE.fullmatch(line) is not None)
        empty = self._reset == "document" and not self._titled and not line.strip()
        self._fresh = self._reset == "line" or empty
        return fresh


@dataclass(frozen=True)
class Text:
    """What is scored."""

    name: str  # what messages call it
    stream: Tensor  # its token ids, int32 (n,)
    characters: int  # of the text, spaces and line ends counted
    words: int  # of the text: what stands between white space, and the line ends
    blocks: Callable[[], Iterator[str]]  # gives the text itself, piece by piece

    def lines(self) -> Iterator[str]:
        """Its lines, without their line ends."""
        return lines_of(self.blocks())

    def starts(self, reset: Reset, eos: int) -> list[int]:
        """Where the stretches begin that are read without a reset, as for `Resets`; `eos` is the id of `<eos>`.

        Raises:
            UserError: Its lines cannot be told apart.
        """
        ends = (self.stream == eos).nonzero()[:, 0].tolist()
        starts = [0, *(end + 1 for end in ends[:-1])]
        fresh = [*map(Resets(reset, self.lines), self.lines())]
        if len(fresh) != len(starts):
            raise UserError(f"{self.name} has {EOS} in its text, so its lines cannot be told apart: use --reset never")
        return [start for start, is_fresh in zip(starts, fresh, strict=True) if is_fresh]


def check_split(name: str) -> None:
    """Refuse a split that there is not, with a UsageError."""
    check(name in SPLITS, f"there is no split {name!r}: name one of {', '.join(SPLITS)}")


def split_text(saved: SavedModel, name: str) -> Text:
    """A split of the data that a model was trained on."""
    check_split(name)
    stream, facts = load_split(saved.data, name, saved.vocabulary, cores())
    if saved.description.fingerprints.get(name) not in (None, fingerprint(stream)):
        other = f"split {name} of {saved.data.dataset} is not the text that the model was trained with"
        if saved.dataset is None:
            raise UserError(f"{other}, only its name is the same: say which you mean with --dataset")
        logger.warning(other)
    return Text(f"split {name}", stream, facts.characters, facts.words, lambda: open_source(saved.data).blocks(name))


def file_text(saved: SavedModel, path: str | Path, column: str = "text") -> Text:
    """A file of any form that training takes, cut into the model's tokens; `column` holds its text where it has rows.

    Raises:
        UserError: It cannot be read, or has nothing to score.
    """
    path = user_path(path)
    check(not path.is_dir(), f"{path} is a folder: name one file, or the folder with --dataset to score one of its splits")
    check(path.is_file(), f"there is no file {path}")
    check_form(path)
    check_tables(column, path.name)
    blocks = partial(read_blocks, path, column)
    ids, characters, words, unknown = [np.empty(0, np.int32)], 0, 0, Unknown(saved)
    for block, tokens in saved.text_vocabulary.encode_blocks(blocks(), cores()):
        ids.append(tokens)
        unknown.see(block)
        characters += len(block)
        words += len(Words().tokenize(block))
    stream = torch.from_numpy(np.concatenate(ids))
    if len(stream) < 2:
        raise UserError(f"{path} has nothing to score: {len(stream)} tokens, the least is 2")
    unknown.warn(str(path), int((stream == saved.vocabulary.unk).sum()), len(stream))
    return Text(str(path), stream, characters, words, blocks)
