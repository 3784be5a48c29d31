"""The tokenizer of a model of words, for transformers.

`lstmlm export --to transformers` puts this file beside the weights. It needs transformers, sacremoses where Moses cut the words, and
nothing of lstmlm.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerFast

try:
    import sacremoses
except ImportError:
    sacremoses = None

MARKS = ("@-@", "@,@", "@.@")  # WikiText's words for what stands within a word or a number: two @-@ way, 1 @,@ 000, 3 @.@ 5
INVISIBLE = "[\u00ad\u200b\u2060\ufeff]"  # soft hyphen, zero-width space, word joiner, byte-order mark
BETWEEN_WORDS = re.compile(r"(?<=[^\W_]) (?=[^\W_])")  # no rule of Moses looks across it


@functools.cache
def _moses(kind: str) -> Any:
    if sacremoses is None:
        raise ImportError("sacremoses cuts the words of this model: pip install sacremoses")
    return getattr(sacremoses, f"Moses{kind}")("en")


class LstmLmTokenizer(PreTrainedTokenizerFast):
    """Words between white space; with `moses`, words and punctuation marks by the English rules of Moses (Koehn et al., 2007).

    A text begins with `<eos>`. Ids that begin with another token continue a text, so their text begins with a space.

    `tokenizer_config.json` says `moses`, `lowercase` and `normalize`. Where Moses cuts the text, offsets are those of the cut text.
    There is no `__init__`, as transformers would read `tokenizer.json` in another way if there were one.
    """

    _auto_class = "AutoTokenizer"  # so that `save_pretrained` copies this file

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:
        return super()._encode_plus(self._cut(text), self._cut(text_pair), **kwargs)

    def _cut(self, text: Any) -> Any:
        """A text, or texts in lists, with white space between its words."""
        if text is None or not self.init_kwargs["moses"]:
            return text
        if not isinstance(text, str):
            return [self._cut(one) for one in text]
        if self.init_kwargs["normalize"]:
            text = unicodedata.normalize("NFC", re.sub(INVISIBLE, "", text))
        text = re.sub(r"\r\n|\r", "\n", text.lower() if self.init_kwargs["lowercase"] else text)
        return "\n".join(" ".join(self._cut_line(line)) for line in text.split("\n"))

    def _cut_line(self, line: str) -> Iterator[str]:
        whole = [re.escape(token) for token in (self.unk_token, self.eos_token, *MARKS)]
        line = re.sub(r"(?<=\d)([,.])(?=\d)", r" @\1@ ", line)
        start = 0
        while start < len(line):  # in pieces whose words are those of the line: sacremoses takes 1000 of `whole` at a time
            cut = BETWEEN_WORDS.search(line, start + 1000)
            end = cut.start() if cut else len(line)
            yield from _moses("Tokenizer").tokenize(line[start:end], aggressive_dash_splits=True, escape=False, protected_patterns=whole)
            start = end

    def _decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        ids = token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids
        ids = [ids] if isinstance(ids, int) else ids
        first = next((i for i in ids if i != self.pad_token_id), self.bos_token_id)
        text = super()._decode(ids, *args, **kwargs)
        # A word before text that goes on, taken off again: so Moses joins marks as it would within a text.
        before = "a " if first != self.bos_token_id and text else ""
        if not self.init_kwargs["moses"]:
            return f"{before[1:]}{text}"
        words = re.sub(r"(?:^| )@([-,.])@(?: |$)", r"\1", f"{before}{text}").split()
        return _moses("Detokenizer").detokenize(words, unescape=False).removeprefix(before.strip())
