"""Dropout masks without a generator: a hash of a unit's coordinates decides whether the unit is kept.

A mask is a pure function of (seed, segment, place in the model, row, column, unit); masks that all columns share leave the column
out. So a rank computes the masks of its own columns and no others, nothing random is ever saved, and a CUDA graph needs the segment's
number alone. The hash uses only wrapping int32 multiplication, addition, exclusive or and shifts: the same bits on every device.

The idea of counters in place of a generator's history is that of Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lstmlm.config import ModelConfig

MASKS = "hash 1"  # this function by name; a checkpoint says with which one its run was made
PLACE_BITS = 24  # a place of the model has fewer than 2^24 units, and there are at most 2^7 places
# Places of what all columns share: lengths of segments, masks of recurrent weights and of types. Embedding and layers have 0 ... L.
SEGMENTS, WEIGHTS, TYPES = 125, 126, 127


class Masks(NamedTuple):
    """The dropout masks of a segment, float32: 0 where something is dropped, else 1 / (1 - p). None = nothing is dropped."""

    embedding: Tensor | None  # of the embeddings, (T, B, E); T is 1 where all rows have the same mask, E is 1 where only types are dropped
    layers: tuple[Tensor | None, ...]  # of each layer's output, (T, B, H), its own H, T as above; the last one masks the decoder's input
    weights: tuple[Tensor | None, ...]  # of each layer's recurrent weight, (4 H, H) (DropConnect: Merity et al., 2017, section 2)


def make_masks(config: ModelConfig, seed: int, segment: Tensor, tokens: Tensor, first_column: int) -> Masks | None:
    """The dropout masks of a segment, or None where nothing is dropped.

    Args:
        seed: `train.seed`, in [0, 2^32).
        segment: Number of the segment in the run, an int32 scalar on the device that is to hold the masks.
        tokens: int64 (T, B), the segment's inputs in this rank's columns.
        first_column: The first of them, in the table.
    """
    device, zero = segment.device, segment.new_zeros(1)

    def numbers(count: int, first: int = 0) -> Tensor:
        return torch.arange(first, first + count, dtype=torch.int32, device=device)

    row = zero if config.dropout_locked else numbers(len(tokens))
    column = numbers(tokens.shape[1], first_column)
    sizes = [config.embedding_size, *config.layer_sizes]
    dropped = [i for i, p in enumerate(config.unit_dropout) if p]
    masks: list[Tensor | None] = [None] * len(sizes)
    if dropped:  # one hash for the units of all places, each with its place in the high bits
        units = torch.cat([numbers(sizes[i], i << PLACE_BITS) for i in dropped])
        draws = random_words(seed, segment, row, column, units).split([sizes[i] for i in dropped], -1)
        for i, drawn in zip(dropped, draws, strict=True):
            masks[i] = _mask(drawn, config.unit_dropout[i])
    embedding, *layers = masks
    if config.dropout_types:
        # A type's mask is the same in all columns and rows, so its only coordinate is its number.
        of_types = (tokens.flatten() + (TYPES << PLACE_BITS)).int()
        of_types = _mask(random_words(seed, segment, zero, zero, of_types), config.dropout_types).view(*tokens.shape, 1)
        embedding = of_types if embedding is None else embedding * of_types
    weights: list[Tensor | None] = [None] * config.num_layers
    if config.dropout_weights:
        # The hash's row is the weight's row (0 ... 4H - 1), its unit the weight's column, its column the layer's number.
        for i, size in enumerate(config.layer_sizes):
            drawn = random_words(seed, segment, numbers(4 * size), zero + i, numbers(size, WEIGHTS << PLACE_BITS))
            weights[i] = _mask(drawn[:, 0], config.dropout_weights)
    return None if all(mask is None for mask in (embedding, *layers, *weights)) else Masks(embedding, tuple(layers), tuple(weights))


def _mask(words: Tensor, p: float) -> Tensor:
    """0 where something is dropped, with probability p, else 1 / (1 - p)."""
    return (words < threshold(1 - p)).float().div_(1 - p)


def threshold(probability: float) -> int:
    """The t such that a uniform int32 is less than t with this probability, in [0, 1], to within 2^-32."""
    return min(round(probability * 2**32), 2**32 - 1) - 2**31


def random_words(seed: int, segment: Tensor, rows: Tensor, columns: Tensor, units: Tensor) -> Tensor:
    """A word of 32 pseudo-random bits for each row, column and unit: int32 (T, B, U).

    Args:
        seed: In [0, 2^32).
        segment: int32 scalar.
        rows, columns, units: int32 (T,), (B,), (U,); equal units get equal words.
    """
    # Two words for each (row, column): with one alone, two of a run's many would share it by chance, and so have the same mask.
    keys = torch.arange(2, dtype=torch.int32, device=segment.device) * _signed(0x9E3779B9) + _signed(seed)
    words = _mix(_mix(keys) ^ segment)  # (2,)
    # (T, B): a number for each (row, column), modulo 2^32. No two are equal in 29,758 rows of 131,617 columns, nor in 2.4 M rows of 124
    # columns (masks of weights: a row for each row of the weight, a column for each layer).
    positions = rows[:, None] * _signed(0x9E3779B1) + columns * _signed(0x85EBCA77)
    words = _mix(words[:, None, None] + positions)[..., None]  # (2, T, B, 1)
    # For a given row and column every step is a bijection of the unit's number.
    x = words[0] ^ units  # (T, B, U)
    x *= _signed(0x7FEB352D)
    x ^= (x >> 16) & 0xFFFF
    x += words[1]
    x *= _signed(0x846CA68B)
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed(0x9E3779B1)
    return x


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every bit of the result depends on every bit of `x` (constants: Wellons, 2018, "lowbias32")."""
    x = x ^ ((x >> 16) & 0xFFFF)  # int32 shifts copy the sign, which the mask takes off
    x = x * _signed(0x7FEB352D)
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed(0x846CA68B)
    return x ^ ((x >> 16) & 0xFFFF)


def _signed(word: int) -> int:
    """A word of 32 bits as an int32."""
    return (word + 2**31) % 2**32 - 2**31
