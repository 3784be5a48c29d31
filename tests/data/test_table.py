"""The table against the definition, worked out pair by pair."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmlm.data.table import IGNORE, Table


def brute_force(n: int, columns: int) -> list[list[int]]:
    """Numbers of the pairs of each column."""
    pairs = n - 1
    owned: list[list[int]] = [[] for _ in range(columns)]
    b = 0
    for i in range(pairs):
        while i >= (b + 1) * pairs // columns:
            b += 1
        owned[b].append(i)
    return owned


sizes = st.integers(2, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, min(n - 1, 40))))


@given(sizes, st.integers(1, 8), st.lists(st.integers(1, 12), min_size=1), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_every_pair_once_in_its_place(size: tuple[int, int], world_size: int, lengths: list[int], accumulate: int) -> None:
    """Segments of any lengths, which are repeated over the rows."""
    n, columns = size
    stream = torch.arange(n, dtype=torch.int32)
    owned = brute_force(n, columns)
    assert max(map(len, owned)) - min(map(len, owned)) <= 1
    tables = [Table(stream, columns, rank, world_size) for rank in range(world_size)]
    rows = max(map(len, owned))
    assert all(table.rows == rows for table in tables)
    assert sum(table.local_columns for table in tables) == columns
    ends = [end for end in itertools.accumulate(lengths * rows) if end < rows] + [rows]
    windows = list(tables[0].cut(ends, accumulate))
    assert all(list(table.cut(ends, accumulate)) == windows for table in tables)
    assert all(list(table.windows(lengths[0])) == list(table.cut([*range(lengths[0], rows, lengths[0]), rows], 1)) for table in tables)
    for i, window in enumerate(windows):
        assert list(tables[0].cut(ends, accumulate, start=window.end)) == windows[i + 1 :]
    row = 0
    seen: list[list[int]] = [[] for _ in range(columns)]
    for window in windows:
        counted = differences = 0
        for first, end in window.segments:
            assert first == row
            assert end == ends.pop(0)
            row = end
            for table in tables:
                inputs, targets = table.segment(first, end)
                differences += int(((targets != IGNORE).sum(0) - 1).clamp(min=0).sum())
                assert inputs.shape == targets.shape == (end - first, table.local_columns)
                for place, b in enumerate(range(table.first_column, table.end_column)):
                    for x, y in zip(inputs[:, place].tolist(), targets[:, place].tolist(), strict=True):
                        if y == IGNORE:
                            continue
                        assert y == x + 1
                        seen[b].append(x)
                        counted += 1
        assert (counted, differences) == (window.num_targets, window.num_differences)
        assert window.end == row
    assert not ends
    assert seen == owned


def test_wikitext_2_has_3482_segments_and_27_targets_in_the_last() -> None:
    windows = list(Table(torch.zeros(2_088_628, dtype=torch.int32), 20).windows(30))
    assert len(windows) == 3482
    assert windows[-1].segments == [(104_430, 104_432)]
    assert windows[-1].num_targets == 27


@pytest.mark.parametrize("world_size", [1, 3])
def test_only_the_shard_is_kept(world_size: int) -> None:
    stream = torch.arange(1000, dtype=torch.int32)
    table = Table(stream, 7, 0, world_size)
    assert len(table._shard) == 999 * (7 // world_size) // 7 + 1
