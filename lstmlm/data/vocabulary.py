"""The vocabulary: text to token ids and back, at word or character level."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lstmlm.console import UserError
from lstmlm.data.tokenize import tokenize

UNK, EOS = "<unk>", "<eos>"


class Vocabulary:
    """A fixed list of tokens; a token's id is its place in the list.

    Args:
        tokens: Distinct tokens, `<unk>` and `<eos>` among them.
        level: `word` (tokens stand between white space) or `char`.
    """

    def __init__(self, tokens: Sequence[str], level: str = "word") -> None:
        self.tokens = list(tokens)
        self.level = level
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        self.unk = self._ids[UNK]
        self.eos = self._ids[EOS]

    @classmethod
    def build(
        cls, lines: Iterable[str], level: str = "word", min_count: int = 1, max_size: int | None = None
    ) -> "Vocabulary":
        """Count the tokens of the training split: `<unk>`, `<eos>`, then by falling count, ties by first appearance.

        Args:
            lines: The training split, line by line.
            level: `word` or `char`.
            min_count: Tokens seen less often are left out.
            max_size: Largest size, `<unk>` and `<eos>` included.
        """
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(tokenize(line, level))
        del counts[UNK], counts[EOS]  # a Counter lets go of absent keys too
        kept = [token for token, count in counts.most_common() if count >= min_count]
        return cls([UNK, EOS, *kept][:max_size], level)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def encode(self, line: str, eos: bool = True) -> list[int]:
        """Token ids of one line; unknown tokens become `<unk>`, and `<eos>` ends the line unless `eos` is false."""
        ids, unk = self._ids, self.unk
        encoded = [ids.get(token, unk) for token in tokenize(line, self.level)]
        if eos:
            encoded.append(self.eos)
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; `<eos>` becomes a line end."""
        lines: list[list[str]] = [[]]
        for i in ids:
            if i == self.eos:
                lines.append([])
            else:
                lines[-1].append(self.tokens[i])
        return "\n".join((" " if self.level == "word" else "").join(line) for line in lines)

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
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise UserError(f"{path} is damaged or not a vocabulary of this project")
        return vocabulary
