"""Text to tokens: words between white space, or characters."""

from collections.abc import Sequence


def tokenize(line: str, level: str) -> Sequence[str]:
    """Tokens of one line, its line end left out.

    Args:
        line: One line of text.
        level: `word` (tokens stand between white space) or `char`.
    """
    return line.split() if level == "word" else line.rstrip("\r\n")
