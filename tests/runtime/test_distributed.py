"""Which signals stop a run, and when several ranks agree on it."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest
from torch import distributed as dist

from lstmlm.runtime.distributed import StopRequest, rounds

ONE_RANK: Any = SimpleNamespace(num_processes=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_the_run_to_stop(number: signal.Signals) -> None:
    def before(*_: object) -> None:
        pytest.fail("the handler of before")

    signal.signal(number, before)
    with StopRequest(ONE_RANK, 1) as stop:
        assert not stop.heard()
        signal.raise_signal(number)
        assert stop.heard()
        assert stop.agreed(1, at_event=False) == number
    assert signal.getsignal(number) is before, "it is back"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_nohup_or_a_script_s_background_keeps_from_a_run(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with StopRequest(ONE_RANK, 1) as stop:
        signal.raise_signal(number)
        assert not stop.heard()


def test_several_ranks_ask_each_other_at_events_and_every_ten_steps() -> None:
    several: Any = SimpleNamespace(num_processes=2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with StopRequest(several, 1) as stop:
            signal.raise_signal(signal.SIGTERM)
            answers = [stop.agreed(step, at_event=event) for step, event in ((7, False), (7, True), (10, False))]
    finally:
        dist.destroy_process_group()
    assert answers == [0, signal.SIGTERM, signal.SIGTERM]


def test_rounds_end_where_somebody_was_told_to_stop() -> None:
    told, had = iter([False, False, True]), list[Any]()
    with pytest.raises(InterruptedError):
        had.extend(rounds(None, "ab", lambda: False))
        had.extend(rounds(None, "abcd", lambda: next(told)))
    assert had == [("a", 1), ("b", 1), ("a", 1), ("b", 1)]
