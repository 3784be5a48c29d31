"""The loop that one would simplify ours to: a loader of segments given to `accelerator.prepare`. Prints each rank's first tokens."""

import json

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from lstmlm.console import print_line
from lstmlm.data.table import Table


def main() -> None:
    """Segments of 3 rows of one table, in order; a token's id is its place in the stream."""
    accelerator = Accelerator(cpu=True)
    table = Table(torch.arange(121, dtype=torch.int32), columns=4)
    segments = [table.segment(*window.segments[0])[0] for window in table.windows(3)]
    loader = accelerator.prepare(DataLoader(segments, collate_fn=lambda batch: batch[0]))  # type: ignore[arg-type]
    seen = [tokens[:, 0].tolist() for tokens in loader]
    print_line(json.dumps({"rank": accelerator.process_index, "column 0": seen}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
