"""The table: a stream cut into B columns side by side, and a rank's shard of it.

    stream  a b c d e f g h i j k l m n o p q r s t u v w x y
    B = 4 columns, each one contiguous stretch of the stream, read top to bottom:

            rank 0 | rank 1
            a   g  | m   s
            b   h  | n   t      <- one segment is `bptt` rows of this table
            c   i  | o   u         (T, B) token ids, time first
            d   j  | p   v
            e   k  | q   w
            f   l  | r   x      targets are the same table one token later: b h n t / ... / g m s y

n tokens make N = n - 1 pairs of an input and its target. Column b owns the pairs floor(bN/B) ... floor((b+1)N/B) - 1, so the lengths
differ by at most one, and every target counts exactly once. A column without a pair in the last row has IGNORE there.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100  # the target of a place that has none: it adds nothing to the nll and is not counted


@dataclass(frozen=True)
class Window:
    """Rows that are worked on together: those of an optimizer step (up to `accumulate` neighbouring segments), or a segment in scoring.
    Numbers are over ALL ranks."""

    segments: list[tuple[int, int]]  # (first row, end row) of each
    num_targets: int  # N_step, targets in these rows
    num_differences: int  # D_step, pairs of neighbouring rows in one segment and column that both have a target: TAR's mean is over them

    @property
    def first(self) -> int:
        """The window's first row."""
        return self.segments[0][0]

    @property
    def end(self) -> int:
        """The row after the window's last."""
        return self.segments[-1][1]


class Table:
    """The columns of a stream that one rank owns; with one rank, all of them.

    Args:
        stream: Token ids of a whole split, int32 (n,) with n >= 2; only this rank's piece is moved to `device`.
        columns: B, columns over all ranks.
        rank: This rank, in [0, world_size).
        world_size: W, number of ranks. Rank r owns columns floor(rB/W) ... floor((r+1)B/W) - 1; some own none if W > B.
        device: Where the shard goes, once.
    """

    def __init__(self, stream: Tensor, columns: int, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu") -> None:
        self.columns = columns  # B; this, num_targets and rows are of all ranks
        self.num_targets = len(stream) - 1
        self.rows = -(-self.num_targets // columns)
        self.first_column = rank * columns // world_size
        self.end_column = (rank + 1) * columns // world_size
        self.local_columns = self.end_column - self.first_column  # B_r
        bounds = [b * self.num_targets // columns for b in range(self.first_column, self.end_column + 1)]
        # Neighbouring columns, so the shard is one contiguous piece: its inputs and the last column's last target.
        self._shard = stream[bounds[0] : bounds[-1] + 1].to(device)
        starts = torch.tensor(bounds, device=device)
        self._starts = starts[:-1] - bounds[0]  # (B_r,), first pair of each column, within the shard
        self.lengths = starts[1:] - starts[:-1]  # (B_r,), pairs of each column: rows or rows - 1

    def segment(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of rows first ... end - 1 of this rank's columns, each int64 (T, B_r)."""
        rows = torch.arange(first, end, device=self._starts.device)[:, None]  # (T, 1)
        places = self._starts + rows  # (T, B_r)
        if end < self.rows:
            return self._shard[places].long(), self._shard[places + 1].long()
        # In the last row, a column that is one pair shorter reads the token after its last pair, and has no target.
        present = rows < self.lengths  # (T, B_r)
        targets = self._shard[torch.where(present, places + 1, 0)].long().masked_fill_(~present, IGNORE)
        return self._shard[places].long(), targets

    def targets_in(self, first: int, end: int) -> int:
        """Targets in rows first ... end - 1 over ALL ranks, known without communication."""
        return min(end * self.columns, self.num_targets) - first * self.columns

    def windows(self, bptt: int) -> Iterator[Window]:
        """Windows of one segment of `bptt` rows each, in one pass; the last may be shorter."""
        return self.cut([*range(bptt, self.rows, bptt), self.rows], accumulate=1)

    def cut(self, ends: list[int], accumulate: int, start: int = 0) -> Iterator[Window]:
        """Windows of `accumulate` segments in one pass, the last perhaps with fewer: `ends` are the rows after each segment's last one,
        up to the table's number of rows; `start` is the first row of the window to begin with."""
        segments = list(itertools.pairwise([0, *ends]))
        for i in range(0, len(segments), accumulate):
            own = segments[i : i + accumulate]
            first, last = own[0][0], own[-1][1]
            if first >= start:
                differences = sum(self.targets_in(row + 1, end) for row, end in own if end > row + 1)
                yield Window(own, self.targets_in(first, last), differences)
