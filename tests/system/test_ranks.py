"""I1: a run does not depend on the number of ranks. Each is a process of its own; dropout is on, clipping bites."""

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from lstmlm import load_config
from lstmlm.data.table import Table
from tests.helpers import RECIPES, ROOT, Small, final_state, fresh_train, metrics, skip_without_bf16
from tests.system.launcher import launch, refused, start

# The last row of the small text's table is short, and both epochs end within the run.
PER_STEP = {"train/loss": 1e-5, "train/grad_norm": 1e-5, "valid/ppl": 1e-6, "test/ppl": 1e-6}
# bf16 rounds each rank's products to 8 bits, in another order; an epoch's last segment has few targets to average it out.
SCORES = [f"{split}/{key}" for split in ("train", "valid", "test") for key in ("loss", "ppl")] + ["final/valid_loss", "final/valid_ppl"]
PER_STEP_BF16 = {"train/grad_norm": 2e-2, **dict.fromkeys(SCORES, 3e-3)}


def assert_same_up_to_rounding(actual: Path, expected: Path, tolerances: dict[str, float], weights: float) -> None:
    assert len(metrics(actual)) == len(metrics(expected))
    for ours, theirs in zip(metrics(actual), metrics(expected), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key] == pytest.approx(theirs[key], rel=tolerances.get(key, 2e-5)), (key, theirs["step"])
    a, e = final_state(actual), final_state(expected)
    assert a.keys() == e.keys()
    for name in e:
        if name == "average.updates":
            assert torch.equal(a[name], e[name]), "the trigger came at the same validation"
        elif name.startswith(("model.", "average.")):  # Adam divides tiny by tiny, so single elements may differ: by norm
            assert torch.linalg.vector_norm(a[name] - e[name]) <= weights * torch.linalg.vector_norm(e[name]), name


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        pytest.param(2, [], id="2-seed"),
        pytest.param(3, ["--train.accumulate=3"], id="3-accumulated"),
        pytest.param(2, RECIPES["adamw"], id="2-adamw"),
        pytest.param(3, RECIPES["sgd"], id="3-asgd"),
        pytest.param(2, RECIPES["sgd"], id="2-asgd", marks=pytest.mark.slow),
        pytest.param(4, ["--train.accumulate=3"], id="4-accumulated", marks=pytest.mark.slow),
    ],
)
def test_the_same_run_on_any_number_of_ranks(ranks: int, overrides: list[str], small: Small, tmp_path: Path) -> None:
    fresh_train(load_config(small(*overrides, run="one")))
    launch(ranks, small(*overrides, run="many"))
    assert json.loads((tmp_path / "many/summary.json").read_bytes())["ranks"] == ranks
    norms = [line["train/grad_norm"] for line in metrics(tmp_path / "one") if "train/loss" in line]
    assert sum(norm > 0.05 for norm in norms) > 0.7 * len(norms), "clipping bites at most steps"
    assert_same_up_to_rounding(tmp_path / "many", tmp_path / "one", PER_STEP, weights=1e-5)


@pytest.mark.slow
def test_bf16_up_to_its_own_rounding(small: Small, tmp_path: Path) -> None:
    skip_without_bf16()
    fresh_train(load_config(small("--train.precision=bf16", run="one")))
    launch(3, small("--train.precision=bf16", run="many"))
    assert_same_up_to_rounding(tmp_path / "many", tmp_path / "one", PER_STEP_BF16, weights=1e-2)


def test_more_ranks_than_columns_are_refused(small: Small, tmp_path: Path) -> None:
    refused(launch(3, small("--data.batch_size=2"), fails=True), "3 ranks but data.batch_size 2", tmp_path)


def continued(segments: Iterable[torch.Tensor]) -> list[bool]:
    """Whether each segment (T, B) of a stream of 0, 1, 2, ... goes on where the one before it ends, in its first column."""
    seen = [tokens[:, 0].tolist() for tokens in segments]
    return [after[0] == before[-1] + 1 for before, after in itertools.pairwise(seen)]


def test_a_prepared_loader_would_break_the_state() -> None:
    """What `accelerator.prepare` makes of a loader: by default a rank's next segment does not follow its last one. With `split_batches`
    it does, where a batch is one segment with an item for each column, and the ranks divide the columns."""
    table = Table(torch.arange(121, dtype=torch.int32), columns=4)
    segments = [table.segment(*window.segments[0])[0] for window in table.windows(3)]
    columns = [column for segment in segments for column in segment.T]
    for rank in range(2):
        loader = DataLoader(segments, collate_fn=lambda batch: batch[0])  # type: ignore[arg-type]
        assert not any(continued(prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)))
        loader = DataLoader(columns, batch_size=4, collate_fn=lambda batch: torch.stack(batch, 1))  # type: ignore[arg-type]
        split = list(prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False, split_batches=True))
        own = Table(torch.arange(121, dtype=torch.int32), 4, rank, 2)
        ours = [own.segment(*window.segments[0])[0] for window in own.windows(3)]
        for theirs, segment in zip(split, ours, strict=True):
            assert torch.equal(theirs, segment)
        assert all(continued(ours))


def test_the_loop_of_the_docs_does_not_depend_on_the_ranks(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/own_loop.md").read_text(), re.DOTALL)
    (tmp_path / "own.py").write_text(code)
    one, two = (start(ranks, [], script=str(tmp_path / "own.py"), OMP_NUM_THREADS="1").wait() for ranks in (1, 2))
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    first, *lines = one.stdout.splitlines()
    first_of_two, *lines_of_two = two.stdout.splitlines()
    assert (first, first_of_two) == ("1 ranks", "2 ranks")
    perplexities, of_two = ([float(line.split()[-1]) for line in each] for each in (lines, lines_of_two))
    assert perplexities[0] > 20 > 5 > perplexities[-1], "it learns"
    assert of_two == pytest.approx(perplexities, rel=1e-3)
