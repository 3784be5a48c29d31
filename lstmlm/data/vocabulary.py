"""The vocabulary: text to token ids and back, and how its text is cut into tokens."""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmlm.console import UserError
from lstmlm.data.tokenize import CURLY, EOS, UNK, Characters, Moses, Subwords, Tokenizer, Words, plain, prepared, tallies
from lstmlm.records import damaged, read_json

Kind = tuple[str, str]  # level and tokenizer
_CUTTERS: dict[Kind, type[Tokenizer]] = {("word", "whitespace"): Words, ("word", "moses"): Moses, ("char", "whitespace"): Characters}
DEFAULT_RULES = {"tokenizer": "whitespace", "lowercase": False, "merges": [], "normalize": False}


class Vocabulary:
    """A fixed list of tokens; a token's id is its place in the list.

    Args:
        tokens: Distinct tokens, `<unk>` and `<eos>` among them.
        level, tokenizer, lowercase, normalize: As in `DataConfig`: what a token is.
        merges: Of level `bpe`: pairs of tokens that become one, `left right`, in the order in which they do.

    Raises:
        ValueError: A token stands twice or is not text, `<unk>` or `<eos>` is missing, or there is no such tokenizer.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        level: str = "word",
        tokenizer: str = "whitespace",
        lowercase: bool = False,
        merges: Sequence[str] = (),
        normalize: bool = False,
    ) -> None:
        self.tokens = list(tokens)
        self.level, self.tokenizer, self.lowercase, self.normalize = level, tokenizer, lowercase, normalize
        self.merges = list(merges)
        self._quotes: dict[int, int] = {}  # that are read as others
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self._ids) < len(self.tokens) or not all(isinstance(token, str) for token in self.tokens):
            raise ValueError("the tokens of a vocabulary are distinct strings")
        if not {UNK, EOS} <= self._ids.keys():
            raise ValueError(f"a vocabulary has {UNK} and {EOS}")
        if level != "bpe" and (level, tokenizer) not in _CUTTERS:
            raise ValueError(f"there is no tokenizer {tokenizer!r} at level {level!r}")
        self.unk = self._ids[UNK]
        self.eos = self._ids[EOS]
        self._cut: Tokenizer = Subwords(self.tokens, self.merges) if level == "bpe" else _CUTTERS[level, tokenizer]()

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        level: str = "word",
        min_count: int = 1,
        max_size: int | None = None,
        tokenizer: str = "whitespace",
        lowercase: bool = False,
        normalize: bool = False,
        processes: int = 1,
    ) -> "Vocabulary":
        """Count the tokens of the training split: `<unk>`, `<eos>`, then by falling count, ties by first appearance.

        Args:
            texts: The training split in pieces, of one line or of many; no word is cut in two where a piece ends.
            level, tokenizer, lowercase, normalize: As in `DataConfig`: what a token is.
            min_count: Tokens (at level `bpe`, pairs) seen less often are left out.
            max_size: Largest size, `<unk>` and `<eos>` included; `bpe` needs one.
            processes: That share a slow tokenizer's work.

        Raises:
            ValueError: Level bpe has no max_size.
        """
        prepare = partial(prepared, lowercase=lowercase, normalize=normalize)
        if level == "bpe":
            if max_size is None:
                raise ValueError("level bpe needs a max_size")
            tokens, merges = Subwords.train(map(prepare, texts), max_size, min_count)
            return cls(tokens, level, tokenizer, lowercase, merges, normalize)
        counts = Counter[str]()
        for _, types, places in tallies(_CUTTERS[level, tokenizer](), texts, processes, prepare):
            counts.update(dict(zip(types, np.bincount(places).tolist(), strict=True)))
        del counts[UNK], counts[EOS]  # a Counter lets go of absent keys too
        kept = [token for token, count in counts.most_common() if count >= min_count]
        return cls([UNK, EOS, *kept][:max_size], level, tokenizer, lowercase, normalize=normalize)

    def for_text(self, raw: bool, normalize: bool) -> "Vocabulary":
        """The same vocabulary for a text at hand, which is changed as by `data.normalize` first, or is English as people write it.

        Of raw English, Moses puts the white space where that parts our tokens, and a curly quote is read as a straight one if the
        straight one comes first in a vocabulary that goes by frequency, alone or within a token.
        """
        own = copy.copy(self)
        own.normalize |= normalize
        if raw and (self.level, self.tokenizer) == ("word", "whitespace"):
            own.tokenizer, own._cut = "moses", Moses(self)
            if (self.unk, self.eos) == (0, 1):  # ids go by frequency, as ours do, but not imported ones
                first, n = {ord(c): i for i, token in reversed([*enumerate(self.tokens)]) for c in token}, len(self)
                own._quotes = {mark: straight for mark, straight in CURLY.items() if first.get(straight, n) < first.get(mark, n)}
        return own

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def id_of(self, token: str) -> int:
        """Id of a token; `<unk>`'s of one that is none."""
        return self._ids.get(token, self.unk)

    @property
    def prepare(self) -> Callable[[str], str]:
        """What is done to a text before it is cut."""
        return partial(prepared, lowercase=self.lowercase, normalize=self.normalize, quotes=self._quotes)

    def tokenize(self, text: str) -> Sequence[str]:
        """Tokens of a text, `<eos>` for every line end in it."""
        return self._cut.tokenize(self.prepare(plain(text)))

    def encode(self, text: str, eos: bool = True) -> list[int]:
        """Token ids of a text of one line or several.

        Args:
            text: Unknown tokens become `<unk>`; every line end in it becomes `<eos>`.
            eos: Whether the last line ends too, where no line end closes it.
        """
        text = plain(text)
        if eos and not text.endswith("\n"):
            text += "\n"
        return [self.id_of(token) for token in self.tokenize(text)]

    def encode_blocks(self, texts: Iterable[str], processes: int = 1) -> Iterator[tuple[str, NDArray[np.int32]]]:
        """Each block of a plain text, as `reading` makes them, with its token ids (n,): `encode` without `eos`, several times as fast."""
        for text, types, places in tallies(self._cut, texts, processes, self.prepare):
            yield text, np.array([self.id_of(token) for token in types], np.int32)[places]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; `<eos>` becomes a line end."""
        return self._text(self.tokens[i] for i in ids)

    def go_on(self, prompt: str, ids: Sequence[int]) -> str:
        """A prompt, as it was written, and the text of the token ids that follow it."""
        if not ids:
            return prompt
        begun = self.tokenize(prompt)
        head, whole = self._text(begun), self._text([*begun, *(self.tokens[i] for i in ids)])
        if not whole.startswith(head):
            return whole  # a word that follows may move the marks before it
        return (prompt.rstrip(" \t") if self.level == "word" else prompt) + whole.removeprefix(head)

    def _text(self, tokens: Iterable[str]) -> str:
        lines: list[list[str]] = [[]]
        for token in tokens:
            if token == EOS:
                lines.append([])
            else:
                lines[-1].append(token)
        return "\n".join(self._cut.join(line) for line in lines)

    @property
    def rules(self) -> dict[str, Any]:
        """What a token is, as far as the level does not say it."""
        rules = {name: getattr(self, name) for name in DEFAULT_RULES}
        return {name: value for name, value in rules.items() if value != DEFAULT_RULES[name]}

    @property
    def fingerprint(self) -> str:
        """A hash of level, rules and tokens in order."""
        parts = [self.level, self.tokens, *([self.rules] if self.rules else [])]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The JSON that `load` reads back."""
        content = {"level": self.level, **self.rules, "fingerprint": self.fingerprint, "tokens": self.tokens}
        return json.dumps(content, ensure_ascii=False, indent=0).encode()

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read a vocabulary from JSON.

        Raises:
            UserError: The file cannot be read, is damaged, or is no vocabulary.
        """
        path = Path(path)
        values = read_json(path, dict[str, Any])
        fingerprint = values.pop("fingerprint", None)
        try:
            vocabulary = cls(**values)
        except UserError:  # a library is not installed
            raise
        except Exception as error:  # the library of subwords has no kinds of its own
            raise damaged(path, error) from None
        if vocabulary.fingerprint != fingerprint:
            raise UserError(f"{path} is damaged: its tokens are not those of its fingerprint")
        return vocabulary
