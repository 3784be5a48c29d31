"""What a validation changes, and when a run has ended."""

import math

from lstmlm.config import OptimConfig, TrainConfig
from lstmlm.training.cursor import Cursor


def test_what_is_no_better_cuts_the_rate_except_in_the_warm_up() -> None:
    optim = OptimConfig(schedule="plateau", plateau_patience=2, warmup_steps=3)
    cursor, seen = Cursor(), []
    for step, ppl in enumerate([50, 60, 61, 62, 49, math.inf, 51, 52, 53], start=1):
        cursor.step = step
        best = cursor.note_validation(ppl, optim)
        seen.append((best, cursor.stale, cursor.rate_cuts))
    in_warm_up = [(True, 0, 0), (False, 0, 0)]
    after = [(False, 1, 0), (False, 2, 1), (True, 0, 1), (False, 1, 1), (False, 2, 2), (False, 3, 2), (False, 4, 3)]
    assert seen == in_warm_up + after
    assert (cursor.best, cursor.best_step, cursor.validated) == (49, 5, 9)


def test_a_run_has_ended() -> None:
    assert Cursor(epoch=2).ended(TrainConfig(epochs=2))
    assert not Cursor(epoch=1, step=9).ended(TrainConfig(epochs=2))
    assert Cursor(step=9).ended(TrainConfig(max_steps=9))
    assert not Cursor(step=8).ended(TrainConfig(max_steps=9))
    assert Cursor(stale=3).ended(TrainConfig(patience=3))
    assert not Cursor(stale=3).ended(TrainConfig())
