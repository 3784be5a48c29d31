import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmlm import UserError, Vocabulary
from lstmlm.data.tokenize import Characters, Words, plain


@pytest.mark.parametrize(
    ("texts", "rules", "tokens"),
    [
        (["b a a", "c b a <unk>"], {}, "a b c"),  # by count, then by first appearance
        (["a a a b b c"], {"min_count": 2}, "a b"),
        (["a a a b b c"], {"max_size": 3}, "a"),
    ],
)
def test_which_words_are_kept_in_which_order(texts: list[str], rules: dict[str, int], tokens: str) -> None:
    assert Vocabulary.build(texts, **rules).tokens == ["<unk>", "<eos>", *tokens.split()]  # type: ignore[arg-type]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), st.sampled_from(["word", "char"]))
def test_what_was_built_from_a_text_decodes_it(lines: list[str], level: str) -> None:
    lines = [line.replace("\r", "").replace("\n", "") for line in lines]
    vocabulary = Vocabulary.build(lines, level)
    text = vocabulary.decode(i for line in lines for i in vocabulary.encode(line))
    wanted = [" ".join(line.split()) if level == "word" else line for line in lines]
    assert text.split("\n")[:-1] == wanted


def test_file_round_trip_and_damage(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(["ein Wört"], level="char")
    path = tmp_path / "vocab.json"
    path.write_bytes(vocabulary.to_bytes())
    loaded = Vocabulary.load(path)
    assert (loaded.tokens, loaded.level) == (vocabulary.tokens, "char")
    path.write_text(path.read_text().replace("W", "V"))
    with pytest.raises(UserError, match="damaged"):
        Vocabulary.load(path)


@pytest.mark.parametrize("level", ["word", "char"])
def test_a_text_of_several_lines(level: str) -> None:
    vocabulary = Vocabulary.build(["a b\n"], level)
    a, b, eos = (vocabulary.encode(token, eos=False)[0] for token in ("a", "b", "\n"))
    assert vocabulary.encode("a\r\nb\r\n") == [a, eos, b, eos]
    assert vocabulary.encode("\ufeffa")[0] == vocabulary.unk, "only a file's start has a byte-order mark"
    assert vocabulary.encode("a\rb") == [a, eos, b, eos]
    assert vocabulary.encode("a\n\nb", eos=False) == [a, eos, eos, b]
    assert list(vocabulary.tokenize("a\nb")) == ["a", "<eos>", "b"]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["word", "char"]))
def test_much_text_is_encoded_as_little(text: str, level: str) -> None:
    text = plain(text)
    vocabulary = Vocabulary(["<unk>", "<eos>", "a", "0", " "], level)
    ((_, ids),) = vocabulary.encode_blocks([text])
    assert ids.tolist() == [
        vocabulary.encode(token, eos=False)[0] if token != "<eos>" else vocabulary.eos
        for token in (Words() if level == "word" else Characters()).tokenize(text)
    ]


def test_arrow_and_python_agree_on_white_space() -> None:
    text = "".join(f"a{chr(code)}b\n" for code in range(0x110000) if not 0xD800 <= code < 0xE000 and chr(code) not in "\r\n")
    types, places = Words().tally(text)
    assert [types[place] for place in places] == text.replace("\n", " <eos> ").split()


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ["<unk>", "<eos>", "a", "a"]},
        {"tokens": ["<unk>", "a"]},
        {"tokens": ["<unk>", "<eos>", 3]},
        {"level": "x"},
        {"level": []},
        {"tokenizer": "x"},
        {"merges": "ab"},
        {"merges": [3], "level": "bpe"},
        {"merges": ["a b"], "level": "bpe"},
    ],
)
def test_a_forged_vocabulary_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    content = {"tokens": ["<unk>", "<eos>", "a"], "level": "word"} | change
    rules = {name: value for name, value in content.items() if name in ("tokenizer", "merges")}
    parts = [content["level"], content["tokens"], *([rules] if rules else [])]
    content["fingerprint"] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    (tmp_path / "vocab.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        Vocabulary.load(tmp_path / "vocab.json")
