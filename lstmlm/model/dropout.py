"""Dropout masks without a generator: a hash of a unit's coordinates decides whether the unit is kept.

A mask is a pure function of (seed, segment, place in the model, row, column, unit). So a rank computes the masks of its own columns and
no others, nothing random is ever saved, and a CUDA graph needs the segment's number and nothing else. The hash uses only wrapping int32
multiplication, addition, exclusive or and shifts, which give the same bits on every device.

The idea of counters in place of a generator's history is that of Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lstmlm.config import ModelConfig

MASKS = "hash 1"  # this function by name; a checkpoint says with which one its run was made
PLACE_BITS = 24  # a place of the model has fewer than 2^24 units, and there are fewer than 2^7 places


class Masks(NamedTuple):
    """The dropout masks of a segment, float32: 0 where a unit is dropped, else 1 / (1 - p).

    Attributes:
        embedding: Of the embeddings, (T, B, E).
        layers: Of each layer's output, (T, B, H) each; the last one masks the decoder's input.
    """

    embedding: Tensor
    layers: tuple[Tensor, ...]


def make_masks(config: ModelConfig, seed: int, segment: Tensor, rows: int, columns: range) -> Masks | None:
    """The dropout masks of a segment, or None where `model.dropout` is 0.

    Args:
        config: Of the model: sizes and dropout.
        seed: `train.seed`, in [0, 2^32).
        segment: Number of the segment in the run, an int32 scalar on the device that is to hold the masks.
        rows: T.
        columns: This rank's columns of the table.
    """
    if config.dropout == 0:
        return None
    sizes = [config.embedding_size] + [config.hidden_size] * config.num_layers
    device = segment.device
    units = torch.cat(
        [torch.arange(n, dtype=torch.int32, device=device) + (i << PLACE_BITS) for i, n in enumerate(sizes)]
    )
    row = torch.arange(rows, dtype=torch.int32, device=device)
    column = torch.arange(columns.start, columns.stop, dtype=torch.int32, device=device)
    draws = random_words(seed, segment, row, column, units)  # (T, B, E + L H)
    keep = 1 - config.dropout
    kept = (draws < threshold(keep)).float().div_(keep)
    embedding, *layers = kept.split(sizes, -1)
    return Masks(embedding, tuple(layers))


def threshold(probability: float) -> int:
    """The int32 that a uniform int32 is below with this probability, in [0, 1], to within 2^-32."""
    return min(round(probability * 2**32), 2**32 - 1) - 2**31


def random_words(seed: int, segment: Tensor, rows: Tensor, columns: Tensor, units: Tensor) -> Tensor:
    """A word of 32 pseudo-random bits for each row, column and unit: int32 (T, B, U).

    Args:
        seed: In [0, 2^32).
        segment: int32 scalar.
        rows: int32 (T,).
        columns: int32 (B,).
        units: int32 (U,), distinct numbers.
    """
    # Each (seed, segment, row, column) has two words, so that two of them hardly ever have the same stream of units.
    keys = torch.arange(2, dtype=torch.int32, device=segment.device) * _signed(0x9E3779B9) + _signed(seed)
    words = _mix(_mix(keys) ^ segment)  # (2,)
    # (T, B), distinct for all sizes in use
    places = rows[:, None] * _signed(0x9E3779B1) + columns * _signed(0x85EBCA77)
    words = _mix(words[:, None, None] + places)[..., None]  # (2, T, B, 1)
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
    x = x ^ (x >> 16) & 0xFFFF  # int32 shifts copy the sign, which the mask takes off
    x = x * _signed(0x7FEB352D)
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed(0x846CA68B)
    return x ^ (x >> 16) & 0xFFFF


def _signed(word: int) -> int:
    """A word of 32 bits as an int32."""
    return (word + 2**31) % 2**32 - 2**31
