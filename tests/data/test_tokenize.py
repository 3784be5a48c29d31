"""Words by Moses, subwords and lower case: there and back again."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmlm import LSTMLanguageModel, UserError, Vocabulary, generate_text
from lstmlm.config import DataConfig, ModelConfig
from lstmlm.data import reading
from lstmlm.data.corpus import load_corpus, load_split
from lstmlm.data.tokenize import MARKS, Moses, plain
from lstmlm.model.pretrained import save_pretrained

RAW = """\
Once upon a time, there was a well-known fox (it weighed 3.5 kg).
"1,000,000 people," said Mr. Smith of the U.S., "don't believe it!"
The cat's dinner cost $12.50 & nobody's paid; 50% was Tom's.

Years 1990-1995: nothing happened...
"""
WORDS = """\
Once upon a time , there was a well @-@ known fox ( it weighed 3 @.@ 5 kg ) . <eos>
" 1 @,@ 000 @,@ 000 people , " said Mr. Smith of the U.S. , " don 't believe it ! " <eos>
The cat 's dinner cost $ 12 @.@ 50 & nobody 's paid ; 50 % was Tom 's . <eos>
<eos>
Years 1990 @-@ 1995 : nothing happened ... <eos>
"""


@pytest.fixture(scope="module")
def moses() -> Moses:
    return Moses()


def test_moses_cuts_as_wikitext_does_there_and_back(moses: Moses) -> None:
    assert moses.tokenize(RAW) == WORDS.split()
    vocabulary = Vocabulary.build([RAW], tokenizer="moses")
    assert vocabulary.decode(vocabulary.encode(RAW)) == RAW
    ((_, ids),) = vocabulary.encode_blocks([RAW])
    assert ids.tolist() == vocabulary.encode(RAW)


def test_several_processes_give_the_ids_of_one() -> None:
    """More blocks than the processes take at once, each with words of its own; a fault while they are read is raised here."""
    blocks = [f"{RAW}Only here: W{number}, x-{number}.\n" for number in range(21)]
    alone = Vocabulary.build(["".join(blocks)], "word", 1, None, "moses", True)
    together = Vocabulary.build(blocks, "word", 1, None, "moses", True, processes=2)
    assert together.tokens == alone.tokens
    encoded = list(together.encode_blocks(blocks, processes=2))
    assert [block for block, _ in encoded] == blocks
    assert [i for _, ids in encoded for i in ids] == alone.encode("".join(blocks))

    def broken() -> Iterator[str]:
        yield from blocks
        raise UserError("row 22")

    with pytest.raises(UserError, match="row 22"):
        list(together.encode_blocks(broken(), processes=2))


@pytest.mark.parametrize(
    ("marks", "text", "tokens"),
    [
        ((), "a well-known 3.5 and 1,000", "a well-known 3.5 and 1,000"),
        (("@,@",), "a well-known 3.5 and 1,000", "a well-known 3.5 and 1 @,@ 000"),
        (MARKS, *["the <unk> @-@ known 1 @,@ 000 <eos> x @.@ y"] * 2),  # what is cut already stays so
    ],
)
def test_words_stay_whole(marks: tuple[str, ...], text: str, tokens: str) -> None:
    assert Moses(marks).tokenize(text) == tokens.split()


def test_wikitext_there_and_back(wikitext: str, moses: Moses) -> None:
    rows = pq.read_table(f"{wikitext}/wikitext-2-v1/validation-00000-of-00001.parquet").column("text").to_pylist()
    lines = [row.split() for row in rows if row.strip() and not row.startswith(" =")][:1000]
    same = sum(moses.tokenize(moses.join(line)) == line for line in lines)
    assert same / len(lines) > 0.95, "the rest has <unk> in numbers, or dots that were cut"


def test_raw_text_for_a_model_of_words_between_white_space() -> None:
    vocabulary = Vocabulary.build([WORDS.replace("<eos>", "")])
    assert vocabulary.for_text(True, False).encode(RAW) == vocabulary.encode(" ".join(WORDS.split()).removesuffix(" <eos>"))
    assert vocabulary.for_text(True, False).decode(vocabulary.encode("a time , there was .")) == "a time, there was.\n"
    assert vocabulary.unk in vocabulary.encode("time,"), "its own reading is as it was"
    for level, tokenizer in (("char", "whitespace"), ("word", "moses")):
        own = Vocabulary.build([RAW], level, tokenizer=tokenizer)
        assert own.for_text(True, False).encode(RAW) == own.encode(RAW), "which reads raw text anyway"


@pytest.fixture(scope="module")
def subwords() -> Vocabulary:
    return Vocabulary.build([RAW * 3], "bpe", min_count=2, max_size=300)


ODD = "the, Mr., etc., 's, ', \", ., ..., 3, 3.5, 1,000, -, -known, U.S., No., <unk>, <eos>, @-@, n't, e\u0301, é, ΟΣ, İ, ½, _".split(", ")
ODD += ["日本", "한", "\u1112\u1161", *"²\u200b\u00ad\ufeff\xa0\x1c\x00\x85\u2028", *[" "] * 20, "  ", "\t", "\n", "\n", " \n"]


@pytest.fixture(scope="module")
def vocabularies(subwords: Vocabulary) -> list[Vocabulary]:
    rules = [("word", "whitespace"), ("word", "moses"), ("char", "whitespace")]
    plain_ones = [subwords, *(Vocabulary.build([RAW], level, tokenizer=tokenizer) for level, tokenizer in rules)]
    changing = [Vocabulary(v.tokens, v.level, v.tokenizer, True, v.merges, normalize=True) for v in plain_ones]
    return plain_ones + changing


@given(st.lists(st.sampled_from(ODD), max_size=60), st.integers(1, 9), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_tokens_are_those_of_the_whole_line_however_it_comes_in_blocks(
    vocabularies: list[Vocabulary], parts: list[str], block: int, piece: int
) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        blocks = list(reading.blocks_of(text[i : i + piece] for i in range(0, len(text), piece)))
    assert "".join(blocks) == text
    for vocabulary in vocabularies:
        tokens = [token for block in blocks for token in vocabulary.tokenize(block)]
        assert tokens == list(vocabulary.tokenize(text)), (vocabulary.level, vocabulary.tokenizer, blocks)


@given(st.lists(st.sampled_from(ODD), min_size=900, max_size=1200))
@settings(max_examples=20, deadline=None)
def test_moses_cuts_a_long_line_as_a_short_one(moses: Moses, parts: list[str]) -> None:
    line = "".join(parts).replace("\n", "").replace("<unk>", "x")  # at most 1000 of these in one piece
    assert moses.tokenize(line) == moses._piece(line)


def test_a_line_of_many_unknown_words(moses: Moses) -> None:
    assert moses.tokenize("a fox <unk> " * 1500) == ["a", "fox", "<unk>"] * 1500
    with pytest.raises(UserError, match=r"more than 1000 of <unk>, <eos>, .* it begins with '<unk> <unk>"):
        moses.tokenize("<unk> " * 1500)


NORMALIZED = "cafe\u0301 zero\u200bwidth so\u00adft jo\u2060in in\ufeffner it\u2019s\n", "caf\u00e9 zerowidth soft join inner it\u2019s\n"


@pytest.mark.parametrize("level", ["word", "moses", "char", "bpe"])
@pytest.mark.parametrize(("change", "odd", "clean"), [("normalize", *NORMALIZED), ("lowercase", RAW, RAW.lower())])
def test_a_text_that_is_changed_first(tmp_path: Path, level: str, change: str, odd: str, clean: str) -> None:
    rules = {"moses": ("word", 1, None, "moses"), "bpe": ("bpe", 1, 270)}.get(level, (level,))
    built = Vocabulary.build([odd], *rules, **{change: True})  # type: ignore[arg-type]
    of_clean = Vocabulary.build([clean], *rules)  # type: ignore[arg-type]
    assert built.tokens == of_clean.tokens
    assert built.fingerprint != of_clean.fingerprint
    (tmp_path / "vocab.json").write_bytes(built.to_bytes())
    for vocabulary in (Vocabulary.load(tmp_path / "vocab.json"), *[of_clean.for_text(False, True)] * (change == "normalize")):
        ((_, ids),) = vocabulary.encode_blocks([odd])
        assert ids.tolist() == vocabulary.encode(odd) == of_clean.encode(clean)
    assert of_clean.encode(odd) != of_clean.encode(clean), "which is as it was"


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=100, deadline=None)
def test_subwords_there_and_back(subwords: Vocabulary, text: str) -> None:
    text = plain(text).replace("<", "")  # `<unk>` and `<eos>` written in a text are those tokens
    ids = subwords.encode(text, eos=False)
    assert subwords.decode(ids) == text
    ((_, much),) = subwords.encode_blocks([text])
    assert ids == much.tolist()
    assert subwords.unk not in ids


def test_subwords_are_a_vocabulary(subwords: Vocabulary) -> None:
    assert len(subwords) == 300
    assert subwords.tokens[:2] == ["<unk>", "<eos>"]
    assert len(subwords.encode(RAW)) < len(RAW.encode()) * 0.8
    assert subwords.encode("a <unk> b\nc <eos>", eos=False).count(subwords.unk) == 1
    assert Vocabulary.build([RAW * 3], "bpe", min_count=2, max_size=300).fingerprint == subwords.fingerprint


def test_a_corpus_and_its_splits(tmp_path: Path) -> None:
    """Whose letters become small; characters and byte pairs are in the tests of the corpus and of its page."""
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(RAW)
    data = DataConfig(dataset=str(tmp_path), cache_dir=str(tmp_path / "cache"), bptt=3, tokenizer="moses", lowercase=True)
    corpus = load_corpus(data)
    assert corpus.vocabulary.decode(corpus.splits["test"].tolist()) == RAW.lower()
    assert corpus.facts["test"].characters == len(RAW)
    assert corpus.facts["test"].words == len(RAW.split()) + 5
    assert load_corpus(data).fingerprint == corpus.fingerprint
    # A model says with its vocabulary how text is read; the keys of the configuration are not asked again.
    stream, _ = load_split(DataConfig(dataset=str(tmp_path), cache_dir=data.cache_dir), "test", corpus.vocabulary)
    assert stream.equal(corpus.splits["test"])


@pytest.mark.parametrize("library", ["sacremoses", "tokenizers"])
def test_a_library_that_is_missing_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(UserError, match=rf"pip install 'lstmlm\[{ {'sacremoses': 'moses', 'tokenizers': 'bpe'}[library] }\]'"):
        Vocabulary.build(["a"], "word" if library == "sacremoses" else "bpe", 1, 300, "moses")


def test_generation_from_raw_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vocabulary = Vocabulary.build([WORDS.replace("<eos>", "")])
    torch.manual_seed(0)
    model = LSTMLanguageModel(ModelConfig(embedding_size=8, hidden_size=8), len(vocabulary))
    with torch.no_grad():
        model.decoder.bias.fill_(-50)
        for word in (",", "fox", "time"):  # nothing but these is likely
            model.decoder.bias[vocabulary.tokens.index(word)] = 0
    save_pretrained(tmp_path, model, vocabulary, {"dataset": "x"})
    raw = generate_text("Once upon a time, there was", 8, model=tmp_path, seed=3, raw=True)
    assert raw.startswith("Once upon a time, there was")
    assert caplog.messages == [], "every word of the prompt is known"
    assert " ," not in raw
    assert Moses(vocabulary).tokenize(raw) == generate_text("Once upon a time , there was", 8, model=tmp_path, seed=3).split()


def test_a_prompt_stands_as_it_was_written() -> None:
    words = Vocabulary.build([WORDS.replace("<eos>", "")])
    ids = words.encode("fox .", eos=False)
    assert words.go_on("A  strange\tprompt", ids) == "A  strange\tprompt fox ."
    assert words.go_on("a ", ids) == "a fox ."
    assert words.go_on("a\n", ids) == "a\nfox ."
    assert words.go_on("", ids) == "fox ."
    assert words.go_on("a ", []) == "a "
    assert words.for_text(True, False).go_on("A  strange prompt:", ids) == "A  strange prompt: fox."
    assert words.for_text(True, False).go_on("a fox", words.encode(", a @-@ fox", eos=False)) == "a fox, a-fox"
    characters = Vocabulary.build([RAW], "char")
    assert characters.go_on("a ", characters.encode(" b", eos=False)) == "a  b"
