"""What may have changed when a run goes on, and which checkpoint it takes."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm import Config, UserError, load_config
from lstmlm.data.table import Table
from lstmlm.training import checkpoint, resume
from lstmlm.training.checkpoint import Logged, Saved
from lstmlm.training.cursor import Cursor, Interval
from tests.helpers import ROOT
from tests.training.test_checkpoint import tensors, values


def config(**changes: Any) -> Config:
    return load_config([f"--{key.replace('__', '.')}={'null' if value is None else value}" for key, value in changes.items()])


def test_free_keys_may_change_and_epochs_may_grow() -> None:
    resume.check_config(config(), config(train__log_every=9))
    resume.check_config(config(), config(train__epochs=50))
    resume.check_config(config(), config(tracking__project="b", data__cache_dir="elsewhere"))
    resume.check_config(config(train__max_steps=4), config(train__max_steps=6))
    resume.check_config(config(train__max_steps=4), config())


def test_the_docs_list_the_free_keys() -> None:
    page = (ROOT / "docs/checkpoints.md").read_text()
    listed = page.split("## Keys that may change on resume\n\n")[1].split("- every key of `tracking`")[0]
    assert set(re.findall(r"`([a-z_.]+)`", listed)) == resume.FREE_KEYS


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({}, {"optim__lr": 0.2}, "optim.lr was 0.001 and is 0.2"),
        ({}, {"train__epochs": 1}, "train.epochs was 40 and is 1 now; it may only grow"),
        ({}, {"train__max_steps": 5}, "train.max_steps was null and is 5"),
        *(
            ({key: value}, {key: value, name: 50}, f"{name.replace('__', '.')} was {before} and is 50")
            for key, value, name, before in (
                ("optim__schedule", "cosine", "train__epochs", 40),
                ("optim__schedule", "one_cycle", "train__epochs", 40),
                ("optim__schedule", "plateau", "train__eval_every", "null"),
                ("optim__average", "asgd", "train__eval_every", "null"),
            )
        ),
    ],
)
def test_another_configuration_is_refused(before: dict[str, Any], now: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resume.check_config(config(**before), config(**now))


def test_a_key_that_an_older_checkpoint_does_not_have_was_at_its_default(tmp_path: Path) -> None:
    old = values(1)
    del old["config"]["model"]["init_range"]
    checkpoint.publish(tmp_path, 1, tensors(1), old, 1)
    ((_, saved),) = checkpoint.whole(tmp_path)
    resume.check_config(saved.config, config())
    with pytest.raises(UserError, match=r"model\.init_range was 0\.1 and is 0\.2"):
        resume.check_config(saved.config, config(model__init_range=0.2))


@pytest.mark.parametrize(
    ("cursor", "change", "named"),
    [
        ({}, {}, None),
        ({"epoch": 1, "row": 10, "step": 7}, {}, None),
        ({"row": 25}, {}, "no step begins at row 25 of 25"),
        ({"row": -10}, {}, "no step begins at row -10"),
        ({"row": 3}, {}, "no step begins at row 3"),
        ({"row": 10, "step": 3}, {}, "step 3 is not the one at row 10 of epoch 0"),
        ({}, {"weight": torch.zeros(3, 50)}, "weight is torch.float32 .3, 50. instead of torch.float32 .50, 3."),
        ({}, {"weight": torch.zeros(50, 3, dtype=torch.int8)}, "weight is torch.int8"),
        ({}, {"ghost": torch.zeros(1)}, "has a foreign ghost"),
    ],
)
def test_a_cursor_that_no_run_reaches_and_tensors_of_others(
    cursor: dict[str, int], change: dict[str, torch.Tensor], named: str | None
) -> None:
    table = Table(torch.zeros(101, dtype=torch.int32), columns=4)  # 25 rows: 5 windows of 5 rows
    saved = Saved(config(data__bptt=5, data__batch_size=4), "", Cursor(**cursor), Interval(), Logged("a", 0, 0), {})
    with nullcontext() if named is None else pytest.raises(UserError, match=named):
        resume.check_fit(saved, tensors(1) | change, tensors(1), list(table.windows(5)))
