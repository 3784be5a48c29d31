"""Where the segments of an epoch end: every `data.bptt` rows, or at rows drawn for each epoch."""

import torch

from lstmlm.config import Config, DataConfig
from lstmlm.model.dropout import PLACE_BITS, SEGMENTS, random_words

HALF = 0.05  # share of the segments that are half as long (Merity et al., 2017, section 5)
LEAST = 5  # rows of a segment as it is drawn


def segment_ends(data: DataConfig, seed: int, rows: int, epoch: int) -> list[int]:
    """The row after each segment's last one, in order, of a table of `rows` rows; `epoch` counts from 0.

    With `data.bptt_jitter` a length is drawn as Merity et al. do: around bptt, or bptt / 2 in one case of twenty, with that standard
    deviation. The lengths of an epoch are then scaled to fill its rows, so every epoch has the same number of segments. A draw is a
    pure function of (seed, epoch, segment), in whole numbers up to the last rounding: it needs no generator and no rank differs.
    """
    if not data.bptt_jitter:
        return [*range(data.bptt, rows, data.bptt), rows]
    count = max(1, round(rows / (data.bptt * (1 - HALF / 2))))
    zero = torch.zeros(1, dtype=torch.int32)
    number = torch.tensor(epoch % 2**31, dtype=torch.int32)  # where a mask has its segment; the segment stands where a mask has its row
    # Thirteen words a segment: one decides whether it is half as long, twelve make a normal deviate.
    units = torch.arange(13, dtype=torch.int32) + (SEGMENTS << PLACE_BITS)
    words = random_words(seed, number, torch.arange(count, dtype=torch.int32), zero, units)[:, 0]  # (count, 13)
    uniform = words.long() & 0xFFFFFFFF
    mean = torch.where(uniform[:, 0] < int(HALF * 2**32), data.bptt / 2, float(data.bptt)).double()
    # The sum of twelve uniform numbers, less 6, is nearly normal, and no logarithm or cosine of a library can round it otherwise.
    normal = uniform[:, 1:].sum(1).double() / 2**32 - 6
    lengths = (mean + data.bptt_jitter * normal).round().long().clamp(min=LEAST)
    ends: list[int] = (lengths.cumsum(0) * rows // lengths.sum()).tolist()
    return ends


def steps_per_epoch(config: Config, rows: int) -> int:
    """Windows of one pass over a table of so many rows; every epoch has as many."""
    return -(-len(segment_ends(config.data, config.train.seed, rows, 0)) // config.train.accumulate)
