"""The exported tokenizer gives the ids of our vocabulary, whatever the text."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from lstmlm import Vocabulary
from lstmlm.export.transformers import build_tokenizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
LEVELS = pytest.mark.parametrize("level", ["word", "char", "bpe"])
CASES = pytest.mark.parametrize("lowercase", [False, True], ids=["as-it-is", "lowercase-normalized"])
TEXT = """The naïve <unk> of ΟΔΥΣΣΕΥΣ wasn't 1,234 m away : he said " no " .
 = Title =

He DIDN'T go to İstanbul , nor to <unk> .
"""
ODD = [
    "",
    "\n\n",
    "a\r\rb\r\n\nc\n",
    "\ufeffThe \ufeff he",
    "  He   didn't\tgo  ",
    "to\u2028no\x1caway\x85go\u3000he",
    "<unk> (<unk>) he<unk>go <UNK> <un",
    "<eos> he<eos>go <EOS> <eos>\n<eos>",
    "</s> [UNK] ",
    "na\u200bi\u0308ve naïve 語 \U0001f600",
    "".join(f"he{chr(i)}go " for i in range(0x3001) if chr(i).isspace()),
]


def build(text: str, level: str, lowercase: bool, tmp_path: Path) -> tuple[Vocabulary, Any]:
    vocabulary = Vocabulary.build([text], level, max_size=400 if level == "bpe" else 3000, lowercase=lowercase, normalize=lowercase)
    build_tokenizer(vocabulary).save_pretrained(tmp_path)
    return vocabulary, transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)


@LEVELS
@CASES
def test_odd_texts(level: str, lowercase: bool, tmp_path: Path) -> None:
    vocabulary, tokenizer = build(TEXT, level, lowercase, tmp_path)
    for text in [TEXT, *ODD]:
        assert tokenizer(text).input_ids == [vocabulary.eos, *vocabulary.encode(text, eos=False)], repr(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == vocabulary.encode(text, eos=False)
    for line in ("naïve of 1,234 m", "away naïve"):
        assert tokenizer.decode(tokenizer(line).input_ids, skip_special_tokens=True) == line
        assert tokenizer.decode(tokenizer(line).input_ids[1:]) == " " * (level == "word") + line, "what goes on with a text"
    assert tokenizer.decode([]) == ""
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (vocabulary.eos, vocabulary.eos)
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id) == (vocabulary.unk, len(vocabulary))


def test_padding_is_never_a_word(tmp_path: Path) -> None:
    vocabulary, tokenizer = build("a <pad> b", "word", False, tmp_path)
    assert tokenizer("a <pad> b").input_ids == [vocabulary.eos, *vocabulary.encode("a <pad> b", eos=False)]
    assert tokenizer.pad_token_id == len(vocabulary)


@LEVELS
def test_the_final_sigma(level: str, tmp_path: Path) -> None:
    """str.lower() looks at the letters around it."""
    rng = random.Random(0)
    texts = ["".join(rng.choices("ΣΣΣaβ. ':\u0301\u02b0\u0345-x1Ⅷª", k=rng.randrange(12))) for _ in range(500)]
    vocabulary, tokenizer = build("\n".join(texts), level, True, tmp_path)
    for text in texts:
        assert tokenizer(text).input_ids == [vocabulary.eos, *vocabulary.encode(text, eos=False)], repr(text)


@CASES
@pytest.mark.parametrize("normalize", [False, True], ids=["", "normalize"])
def test_moses(lowercase: bool, normalize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacremoses")
    raw = "Mr. O'Neil's well-known plan, in 1,999.5 days (ΣΑΣ), isn't \"cheap\" - he said.\nIt costs $5!"
    vocabulary = Vocabulary.build([TEXT, raw], tokenizer="moses", lowercase=lowercase, normalize=normalize)
    folder = tmp_path / "exported"
    build_tokenizer(vocabulary).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = [TEXT, raw, *ODD, "\ufeff\ufeffThe", "he\u00adre nai\u0308ve", "a <unk> 1,5 of go " * 900]
    for text in texts:
        assert tokenizer(text).input_ids == [vocabulary.eos, *vocabulary.encode(text, eos=False)], repr(text)
    batch = tokenizer(texts, padding=True)
    for text, ids, mask in zip(texts, batch.input_ids, batch.attention_mask, strict=True):
        assert ids[len(ids) - sum(mask) :] == tokenizer(text).input_ids
    for line in raw.split("\n"):
        ids = vocabulary.encode(line, eos=False)
        assert tokenizer.decode([vocabulary.eos, *ids], skip_special_tokens=True) == vocabulary.decode(ids)
        for place in range(1, len(ids)):
            head, rest = tokenizer.decode([vocabulary.eos, *ids[:place]], skip_special_tokens=True), ids[place:]
            if '"' not in vocabulary.decode(rest) and vocabulary.tokens[ids[place - 1]] not in ("(", "$"):  # a mark looks ahead
                assert head + tokenizer.decode(rest) == vocabulary.go_on(head, rest), (head, rest)
    tokenizer.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert again(raw).input_ids == tokenizer(raw).input_ids
    monkeypatch.setattr(sys.modules[type(again).__module__], "sacremoses", None)
    sys.modules[type(again).__module__]._moses.cache_clear()
    with pytest.raises(ImportError, match="pip install sacremoses"):
        again("a")
