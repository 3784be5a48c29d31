"""The masks' hash: golden values, frequencies, and independence along every coordinate. All of it is deterministic."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lstmlm.config import MOST_LAYERS, MOST_UNITS, ModelConfig
from lstmlm.model.dropout import PLACE_BITS, SEGMENTS, TYPES, WEIGHTS, Masks, make_masks, random_words, threshold


def number(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


def words(seed: int = 1, segment: int = 0, rows: int = 30, columns: int = 20, units: int = 100, place: int = 0) -> Tensor:
    """Words of one place of the model, int32 (rows, columns, units)."""
    row, column, unit = (torch.arange(n, dtype=torch.int32) for n in (rows, columns, units))
    return random_words(seed, number(segment), row, column, unit + (place << 24))


def plain_word(seed: int, segment: int, row: int, column: int, unit: int) -> int:
    """The same in Python integers, one number at a time."""
    modulus = 2**32

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % modulus
        x ^= x >> 15
        x = x * 0x846CA68B % modulus
        return x ^ x >> 16

    first, second = (
        mix((mix(mix((seed + i * 0x9E3779B9) % modulus) ^ segment) + row * 0x9E3779B1 + column * 0x85EBCA77) % modulus) for i in range(2)
    )
    x = (first ^ unit) * 0x7FEB352D % modulus
    x = ((x ^ x >> 16) + second) * 0x846CA68B % modulus
    return (x ^ x >> 15) * 0x9E3779B1 % modulus


# fmt: off
GOLDEN = [
    -1084402611, -1324305240, 537764040, -1364466147, -1874643569, -1131565779,
    2033347558, 1760441047, -1370250866, -942999806, -736806699, -403044522,
]
# fmt: on


def test_golden_values_and_those_of_plain_integers() -> None:
    """Written down once: a change here makes every earlier run impossible to reproduce."""
    assert words(seed=1, segment=0, rows=2, columns=2, units=3).flatten().tolist() == GOLDEN
    unit = (2 << 24) + 99
    (value,) = random_words(2**32 - 1, number(139_279), number(29)[None], number(19)[None], number(unit)[None]).flatten()
    assert int(value) % 2**32 == plain_word(2**32 - 1, 139_279, 29, 19, unit) == 3765320873
    for probability, word in ((0.0, -(2**31)), (0.5, 0), (1.0, 2**31 - 1), (0.25, -(2**30))):
        assert threshold(probability) == word
    ours = words(seed=7, segment=12_345, rows=3, columns=4, units=5, place=1)
    plain = [plain_word(7, 12_345, r, c, (1 << 24) + u) for r in range(3) for c in range(4) for u in range(5)]
    assert [word % 2**32 for word in ours.flatten().tolist()] == plain


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.65, 0.9])
def test_frequency(p: float) -> None:
    """Within five standard errors, over all units of 20 segments, and for every single row, column and unit."""
    kept = torch.stack([words(segment=k) < threshold(1 - p) for k in range(20)])  # (20, T, B, U)
    for dimensions in ((), (0, 2, 3), (0, 1, 3), (0, 1, 2), (1, 2, 3)):
        counts = kept.sum(dimensions) if dimensions else kept.sum()
        draws = kept.numel() // counts.numel()
        assert ((counts - draws * (1 - p)).abs() <= 5 * math.sqrt(draws * p * (1 - p))).all(), dimensions


PAIRS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "rows": lambda k: (words(segment=k)[:-1], words(segment=k)[1:]),
    "columns": lambda k: (words(segment=k)[:, :-1], words(segment=k)[:, 1:]),
    "units": lambda k: (words(segment=k)[..., :-1], words(segment=k)[..., 1:]),
    "places": lambda k: (words(segment=k), words(segment=k, place=1)),
    "places two apart": lambda k: (words(segment=k), words(segment=k, place=2)),
    "segments": lambda k: (words(segment=k), words(segment=k + 1)),
    "seeds": lambda k: (words(seed=k), words(seed=k + 1)),
    "segments and seeds exchanged": lambda k: (words(seed=k, segment=k + 1), words(seed=k + 1, segment=k)),
    "rows and columns exchanged": lambda k: (words(segment=k, rows=20), words(segment=k, rows=20).transpose(0, 1)),
    "the last row and the next segment's first": lambda k: (words(segment=k)[-1:], words(segment=k + 1)[:1]),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_neighbours_are_independent(pair: str) -> None:
    """Chi-square of the joint counts of the words' three leading bits, and of their first, which are all that a comparison reads."""
    counts = torch.zeros(8 * 8, dtype=torch.int64)
    for k in range(0, 400, 2):
        first, second = ((x.reshape(-1) >> 29) & 7 for x in PAIRS[pair](k))
        if pair == "rows and columns exchanged":  # the diagonal is a word beside itself
            apart = ~torch.eye(20, dtype=torch.bool)[..., None].expand(20, 20, 100).reshape(-1)
            first, second = first[apart], second[apart]
        counts += torch.bincount(first * 8 + second, minlength=8 * 8)
    for table in (counts, counts.view(2, 4, 2, 4).sum((1, 3)).flatten()):
        expected = table.sum() / len(table)
        chi_square = ((table - expected) ** 2 / expected).sum().item()
        freedom = len(table) - 1
        # Wilson and Hilferty (1931): the cube root of chi-square / freedom is nearly normal.
        deviation = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
        assert abs(deviation) < 4, f"chi-square {chi_square:.0f} at {freedom} degrees of freedom"


def test_coordinates_are_distinct() -> None:
    assert MOST_LAYERS < SEGMENTS < WEIGHTS < TYPES < 2**7
    assert MOST_UNITS < 2**PLACE_BITS
    rows, columns = 2000, 2000
    places = (torch.arange(rows)[:, None] * 0x9E3779B1 + torch.arange(columns) * 0x85EBCA77) % 2**32
    assert len(places.unique()) == rows * columns


CONFIG = ModelConfig(embedding_size=12, hidden_size=20, num_layers=3, dropout=0.3, tie_weights=False)
KINDS = {"dropout_input": 0.2, "dropout_hidden": 0.4, "dropout_output": 0.6, "dropout_types": 0.1, "dropout_weights": 0.5}
EVERY_KIND = ModelConfig(embedding_size=12, hidden_size=20, num_layers=3, dropout_locked=True, **KINDS)
TOKENS = torch.arange(70).view(7, 10) % 9


def masks_of(config: ModelConfig, tokens: Tensor = TOKENS, first_column: int = 0) -> Masks:
    masks = make_masks(config, 1, number(5), tokens, first_column)
    assert masks is not None
    return masks


@pytest.mark.parametrize("config", [CONFIG, EVERY_KIND], ids=["units", "every kind"])
def test_every_mask_follows_from_its_probability_and_its_coordinates(config: ModelConfig) -> None:
    """A type's mask and a weight's have no column; a locked one has no row, and is the same in all of them."""
    tokens, zero = TOKENS[:, 3:8], torch.zeros(1, dtype=torch.int32)
    row, column = zero if config.dropout_locked else torch.arange(7).int(), torch.arange(3, 8).int()
    masks = masks_of(config, tokens, 3)

    def mask(p: float, rows: Tensor, columns: Tensor, units: Tensor) -> Tensor:
        return (random_words(1, number(5), rows, columns, units.int()) < threshold(1 - p)) / torch.tensor(1 - p)

    for i, (size, p) in enumerate(zip([12, *config.layer_sizes], config.unit_dropout, strict=True)):
        expected = mask(p, row, column, torch.arange(size) + (i << 24))  # the masks of the first release
        if i == 0 and config.dropout_types:
            expected = expected * mask(config.dropout_types, zero, zero, tokens.flatten() + (TYPES << 24)).view(7, 5, 1)
        assert torch.equal((masks.embedding, *masks.layers)[i], expected)
    for i, size in enumerate(config.layer_sizes if config.dropout_weights else []):
        assert torch.equal(masks.weights[i], mask(0.5, torch.arange(4 * size).int(), zero + i, torch.arange(size) + (WEIGHTS << 24))[:, 0])
    assert make_masks(dataclasses.replace(CONFIG, dropout=0), 1, number(5), tokens, 0) is None


@pytest.mark.parametrize("config", [CONFIG, EVERY_KIND], ids=["units", "every kind"])
def test_masks_of_some_columns_are_those_columns_of_all(config: ModelConfig) -> None:
    """A rank computes its own columns only, whatever the other ranks own; what all columns share is the same on every rank."""
    before = torch.get_rng_state()
    whole = masks_of(config)
    part = masks_of(config, TOKENS[:4, 3:8], 3)  # fewer rows too, as an epoch's last segment has
    for p, w in zip((part.embedding, *part.layers), (whole.embedding, *whole.layers), strict=True):
        assert torch.equal(p, w[:4, 3:8])  # type: ignore[arg-type, index]
    for p, w in zip(part.weights, whole.weights, strict=True):
        assert p is w is None or torch.equal(p, w)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
