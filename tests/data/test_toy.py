"""The toy language's own figures against ones computed from nothing but its text."""

import dataclasses
import math
from collections import Counter, defaultdict

import pytest

from lstmlm.config import DataConfig
from lstmlm.data import toy


@pytest.fixture(scope="module")
def text() -> toy.ToyText:
    return toy.generate(8_000, seed=3)


def test_same_seed_same_text_and_its_lines_are_its_tokens(text: toy.ToyText) -> None:
    assert toy.generate(8_000, seed=3) == text
    assert toy.generate(1000, seed=4).tokens != text.tokens[:1000]
    assert " ".join(f"{line} <eos>" for line in text.lines).split() == text.tokens
    assert text.lines[0].startswith("= ")


def test_every_line_uses_the_attributes_of_its_title(text: toy.ToyText) -> None:
    titles = 0
    for line in text.lines:
        if line.startswith("="):
            values, titles = set(line.split()[1:-1]), titles + 1
            assert len(values) == len(toy.ATTRIBUTES)
        else:
            assert values <= set(line.split())
    assert titles > 20


def test_log_probs_are_those_of_the_choices() -> None:
    """An independent parse: at each place the set of possible next tokens, counted, must match the reported probability."""
    text = toy.generate(60_000, seed=5)
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    reported: dict[tuple[str, str], float] = {}
    line: list[str] = []
    values: dict[str, str] = {}
    for token, log_prob in zip(text.tokens[1:], text.log_probs[1:], strict=True):
        # Context with the document's attributes replaced by their names: what is left decides the distribution.
        context = " ".join(values.get(word, word) for word in line) if line and line[0] != "=" else f"title {len(line)}"
        context = "start" if not line and values else context
        if context != "title 0":
            seen[context][values.get(token, token)] += 1
            key = (context, values.get(token, token))
            assert reported.setdefault(key, log_prob) == log_prob, key
        if token == "<eos>":
            line = []
            continue
        if token == "=" and not line:
            values = {}
        for name, options in toy.ATTRIBUTES.items():
            if line and line[0] == "=" and token in options:
                values[token] = name
        line.append(token)
    checked = 0
    for context, counts in seen.items():
        total = sum(counts.values())
        if total < 2000 or context.startswith("title"):
            continue
        for token, count in counts.items():
            p = math.exp(reported[context, token])
            assert abs(count / total - p) < 5 * math.sqrt(p * (1 - p) / total) + 1e-9, (context, token)
            checked += 1
    assert checked > 10


def brute_force_reset_nll(text: toy.ToyText, bptt: int) -> float:
    pairs = len(text.tokens) - 1
    total = 0.0
    for i in range(pairs):
        name, document = text.attributes[i + 1], text.documents[i + 1]
        visible = [j for j in range(i // bptt * bptt, i + 1) if text.attributes[j] == name and text.documents[j] == document]
        total += math.log(60) if name and not visible else -text.log_probs[i + 1]
    return total / pairs


@pytest.mark.parametrize("bptt", [30, 7])
def test_reset_bound_against_its_definition(text: toy.ToyText, bptt: int) -> None:
    assert text.reset_ppl(bptt) == pytest.approx(math.exp(brute_force_reset_nll(text, bptt)), rel=1e-12)


def test_bound_and_oracle_meet_where_nothing_is_reset_and_differ_where_it_is(text: toy.ToyText) -> None:
    assert text.reset_ppl(10**6) == pytest.approx(text.oracle_ppl(), rel=1e-12)
    assert text.reset_ppl(30) >= 1.4 * text.oracle_ppl()


def test_the_proof_is_for_the_language_as_it_is() -> None:
    data = DataConfig(dataset="toy")
    for ppl, shown in ((1.764, "ours is less: the state is carried"), (2.5, "ours is not less, so it shows nothing")):
        best, ours, bound = toy.proof(data, ppl).values()
        assert (best[:5], ours, bound[:5]) == ("1.511", f"{ppl:.3f}", "2.142"), "as README has them"
        assert shown in bound
    changes = ({"dataset": "x"}, {"level": "char"}, {"min_count": 2}, {"max_size": 9}, {"lowercase": True}, {"bptt_jitter": 5.0})
    for change in changes:
        assert toy.proof(dataclasses.replace(data, **change), 1.0) == {}  # type: ignore[arg-type]
