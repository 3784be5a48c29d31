"""The vocabulary: text to token ids and back, at word or character level."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lstmlm.console import UserError
from lstmlm.data.tokenize import EOS, UNK, plain, tokenizer_of


class Vocabulary:
    """A fixed list of tokens; a token's id is its place in the list.

    Args:
        tokens: Distinct tokens, `<unk>` and `<eos>` among them.
        level: `word` (tokens stand between white space) or `char`.

    Raises:
        ValueError: A token stands twice, is not text, or is missing.
    """

    def __init__(self, tokens: Sequence[str], level: str = "word") -> None:
        self.tokens = list(tokens)
        self.level = level
        self.tokenizer = tokenizer_of(level)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self._ids) < len(self.tokens) or not all(isinstance(token, str) for token in self.tokens):
            raise ValueError("the tokens of a vocabulary are distinct strings")
        self.unk = self._ids[UNK]
        self.eos = self._ids[EOS]

    @classmethod
    def build(
        cls, texts: Iterable[str], level: str = "word", min_count: int = 1, max_size: int | None = None
    ) -> "Vocabulary":
        """Count the tokens of the training split: `<unk>`, `<eos>`, then by falling count, ties by first appearance.

        Args:
            texts: The training split in pieces, of one line or of many; no word is in two of them.
            level: `word` or `char`.
            min_count: Tokens seen less often are left out.
            max_size: Largest size, `<unk>` and `<eos>` included.
        """
        tokenizer, counts = tokenizer_of(level), Counter[str]()
        for text in texts:
            types, places = tokenizer.tally(text)
            counts.update(dict(zip(types, np.bincount(places).tolist(), strict=True)))
        del counts[UNK], counts[EOS]  # a Counter lets go of absent keys too
        kept = [token for token, count in counts.most_common() if count >= min_count]
        return cls([UNK, EOS, *kept][:max_size], level)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def tokenize(self, text: str) -> Sequence[str]:
        """Tokens of a text, `<eos>` for every line end in it."""
        return self.tokenizer.tokenize(plain(text))

    def encode(self, text: str, eos: bool = True) -> list[int]:
        """Token ids of a text of one line or several.

        Args:
            text: Unknown tokens become `<unk>`; every line end in it becomes `<eos>`.
            eos: Whether the last line ends too, where no line end closes it.
        """
        text = plain(text)
        if eos and not text.endswith("\n"):
            text += "\n"
        return [self._ids.get(token, self.unk) for token in self.tokenizer.tokenize(text)]

    def encode_much(self, text: str) -> NDArray[np.int32]:
        """Token ids (n,) of plain text that is to go on: `encode` without `eos`, several times as fast."""
        types, places = self.tokenizer.tally(text)
        return np.array([self._ids.get(token, self.unk) for token in types], np.int32)[places]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; `<eos>` becomes a line end."""
        lines: list[list[str]] = [[]]
        for i in ids:
            if i == self.eos:
                lines.append([])
            else:
                lines[-1].append(self.tokens[i])
        return "\n".join(self.tokenizer.join(line) for line in lines)

    @property
    def fingerprint(self) -> str:
        """A hash of level and tokens in order."""
        return hashlib.sha256(json.dumps([self.level, self.tokens]).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The JSON that `load` reads back."""
        content = {"level": self.level, "fingerprint": self.fingerprint, "tokens": self.tokens}
        return json.dumps(content, ensure_ascii=False, indent=0).encode()

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read a vocabulary from JSON.

        Raises:
            UserError: The file is missing, damaged, or not a vocabulary.
        """
        try:
            content = json.loads(Path(path).read_bytes())
            vocabulary = cls(content["tokens"], content["level"])
            intact = vocabulary.fingerprint == content["fingerprint"]
        except OSError as error:
            raise UserError(f"cannot read the vocabulary {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            intact = False
        if not intact:
            raise UserError(f"{path} is damaged or not a vocabulary of this project")
        return vocabulary
