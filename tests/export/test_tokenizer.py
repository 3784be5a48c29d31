"""The exported tokenizer gives the ids of our vocabulary, whatever the text."""

import random
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from lstmlm import UserError, Vocabulary
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
]


def build(text: str, level: str, lowercase: bool, tmp_path: Path) -> tuple[Vocabulary, Any]:
    """A vocabulary, and its tokenizer written and read again."""
    vocabulary = Vocabulary.build(
        [text], level, max_size=400 if level == "bpe" else 3000, lowercase=lowercase, normalize=lowercase
    )
    build_tokenizer(vocabulary).save_pretrained(tmp_path)
    return vocabulary, transformers.AutoTokenizer.from_pretrained(tmp_path)


@LEVELS
@CASES
def test_odd_texts(level: str, lowercase: bool, tmp_path: Path) -> None:
    vocabulary, tokenizer = build(TEXT, level, lowercase, tmp_path)
    for text in [TEXT, *ODD]:
        assert tokenizer(text).input_ids == [vocabulary.eos, *vocabulary.encode(text, eos=False)], repr(text)
    line = "naïve of 1,234 m"
    assert tokenizer.decode(vocabulary.encode(line, eos=False)) == line
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (vocabulary.eos, vocabulary.eos)
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id) == (vocabulary.unk, len(vocabulary))


@LEVELS
@CASES
def test_real_sentences(level: str, lowercase: bool, tmp_path: Path, wikitext: str) -> None:
    split = "wikitext-2-v1/validation-00000-of-00001.parquet"
    lines = parquet.read_table(Path(wikitext) / split)["text"].to_pylist()[:400]
    vocabulary, tokenizer = build("".join(lines[:200]), level, lowercase, tmp_path)
    for text in ["".join(lines), *lines]:
        assert tokenizer(text).input_ids == [vocabulary.eos, *vocabulary.encode(text, eos=False)], repr(text)


@LEVELS
def test_the_final_sigma(level: str, tmp_path: Path) -> None:
    """str.lower() looks at the letters around it."""
    rng = random.Random(0)
    texts = ["".join(rng.choices("ΣΣΣaβ. ':\u0301\u02b0\u0345-x1Ⅷª", k=rng.randrange(12))) for _ in range(500)]
    vocabulary, tokenizer = build("\n".join(texts), level, True, tmp_path)
    for text in texts:
        assert tokenizer(text).input_ids == [vocabulary.eos, *vocabulary.encode(text, eos=False)], repr(text)


def test_moses_is_refused() -> None:
    vocabulary = Vocabulary(["<unk>", "<eos>", "a"], tokenizer="moses")
    with pytest.raises(UserError, match=r"cut by Moses, .* export with --to onnx"):
        build_tokenizer(vocabulary)
