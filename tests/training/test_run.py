"""A whole run in this process: what it writes, and that to be interrupted changes nothing."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import safetensors
import torch
import yaml

from lstmlm import UserError, evaluate, files, load_config, train
from lstmlm.evaluation.perplexity import Evaluation, evaluate_stream
from lstmlm.training import checkpoint
from lstmlm.training.run_directory import RunDirectory
from lstmlm.training.tracking import Tracking
from tests.helpers import (
    Small,
    assert_same_run,
    at_step,
    figures,
    fresh_train,
    interrupted,
    lose_power,
    metrics,
    skip_without_bf16,
    small_arguments,
)

Whole = Callable[..., Path]  # the fixture `whole`

# The small run has 30 windows, 15 an epoch; a checkpoint every 7. With 3 segments a window, 10 and 5.
PLATEAU = ("--optim.schedule=plateau", "--optim.lr=0.1", "--train.eval_every=2")  # a rate too high to get better for long
CASES: dict[str, tuple[list[str], list[tuple[int, int | None]]]] = {
    "before the first checkpoint": ([], [(3, None)]),
    "mid epoch": ([], [(10, None)]),
    "right after a checkpoint": ([], [(7, None)]),
    "at the epoch's last segment": (["--train.save_every=15"], [(14, None)]),
    "at the epoch's first segment": (["--train.save_every=15"], [(15, None)]),
    "mid window": (["--train.accumulate=3", "--train.save_every=2"], [(6, 1)]),
    "mid window of the last": (["--train.accumulate=3", "--train.save_every=4"], [(9, 2)]),
    "during warm-up": (["--optim.warmup_steps=12", "--optim.schedule=cosine"], [(9, None)]),
    "within a log interval, twice": (["--train.log_every=10"], [(9, None), (17, None)]),
    "evaluating by steps": (["--train.eval_every=4"], [(9, None)]),
    # Each cut falls between a validation and the next checkpoint, so that the history has to be kept.
    "plateau": ([*PLATEAU, "--train.save_every=5"], [(8, None), (22, None)]),
    "patience": ([*PLATEAU, "--train.patience=3", "--train.save_every=5"], [(5, None), (7, None)]),
    "bf16": (["--train.precision=bf16"], [(10, None)]),
    "untied": (["--model.tie_weights=false", "--model.embedding_size=8"], [(10, None)]),
}


@pytest.fixture(scope="module")
def whole(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Uninterrupted runs; one of given overrides is trained once for all tests, which leave it as it is."""
    folder, numbers = tmp_path_factory.mktemp("whole"), count()

    @cache
    def trained(*overrides: str) -> Path:
        run = str(next(numbers))
        fresh_train(load_config(small_arguments(text_folder, folder, *overrides, run=run)))
        return folder / run

    return trained


@pytest.fixture(scope="module")
def lost(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lost")
    lose_power(small_arguments(text_folder, folder), 25)
    return folder / "run"


@pytest.fixture
def unfinished(small: Small, lost: Path, tmp_path: Path) -> list[str]:
    """Arguments that go on with a run that lost power before step 25, in tmp_path / "run"."""
    shutil.copytree(lost, tmp_path / "run")
    return small("--train.resume=true")


@pytest.mark.parametrize("case", CASES)
def test_interrupted_and_resumed_is_uninterrupted(case: str, small: Small, whole: Whole, tmp_path: Path) -> None:
    overrides, cuts = CASES[case]
    if "--train.precision=bf16" in overrides:
        skip_without_bf16()
    interrupted(small, "cut", overrides, cuts)
    assert_same_run(tmp_path / "cut", whole(*(each for each in overrides if "save_every" not in each)))  # it changes no figure


def test_plateau_cuts_the_rate_after_validations_that_are_no_better(small: Small, tmp_path: Path) -> None:
    """Every line tells the rate of its last step, that of the run's end too, which follows a validation that cuts it."""
    settings = ("--train.eval_every=1", "--train.log_every=4", "--optim.plateau_factor=0.5", "--optim.warmup_steps=2")
    fresh_train(load_config(small(*PLATEAU, *settings)))
    best, rate, rates, lines = math.inf, 0.1, {1: 0.05}, metrics(tmp_path / "run")
    for line in (line for line in lines if "valid/ppl" in line):
        if line["valid/ppl"] >= best and line["step"] >= 2:
            rate /= 2
        best = min(best, line["valid/ppl"])
        rates[line["step"] + 1] = rate
    assert {line["step"]: line["train/lr"] for line in lines if "train/lr" in line} == pytest.approx(
        {step: rates[step] for step in [*range(4, 30, 4), 30]}
    )
    assert rates[31] < rates[30] < 0.1, "else the test shows nothing"


def test_patience_ends_a_run_that_gets_no_better(small: Small, tmp_path: Path) -> None:
    arguments = small(*PLATEAU, "--train.patience=3", "--train.resume=true")
    summary = fresh_train(load_config(arguments))
    assert summary["step"] == summary["best_step"] + 6 < 30, "three validations, two steps apart, after the best"
    assert summary["stale"] == 3
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line][-1] == summary["step"]
    best = evaluate(tmp_path / "run", "test", cache_dir=str(tmp_path / "cache"))
    assert best.ppl == pytest.approx(summary["test"]["ppl"], rel=1e-6), "of the best model, not of the last"
    assert fresh_train(load_config(arguments)) == summary, "finished: left alone"
    longer = fresh_train(load_config([*arguments, "--train.patience=30"]))
    assert longer["step"] == 30, "more patience goes on"


def test_patience_counts_anew_where_the_average_begins(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an interval of 1 the average begins with the third validation of these, where patience of 2 would end the run."""
    losses = iter([2.0, 2.1, 2.2, 2.3, 2.4])

    def worse(model: Any, stream: Any, columns: int, *args: Any, **kwargs: Any) -> Evaluation:
        return Evaluation(11, 10, 10 * (2.5 if columns == 1 else next(losses)), columns)

    monkeypatch.setattr("lstmlm.training.run.evaluate_stream", worse)
    arguments = small("--optim.name=sgd", "--optim.average=asgd", "--optim.average_interval=1", "--train.eval_every=1")
    summary = fresh_train(load_config([*arguments, "--train.patience=2"]))
    assert (summary["step"], summary["best_step"], summary["stale"]) == (5, 1, 2)
    assert "never began" not in capsys.readouterr().err


def test_an_average_that_never_began_is_told(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    fresh_train(load_config(small("--optim.name=sgd", "--optim.average=asgd", "--train.max_steps=2")))
    assert "the average of the weights never began" in capsys.readouterr().err


def test_a_line_is_the_mean_over_its_steps(whole: Whole) -> None:
    """Weighted by their targets, which are fewer at the end of an epoch."""
    steps, lines = ([line for line in metrics(run) if "train/loss" in line] for run in (whole(), whole("--train.log_every=4")))
    targets = {line["step"]: line["tokens"] - before for line, before in zip(steps, [0, *(line["tokens"] for line in steps)], strict=False)}
    assert len({*targets.values()}) > 1
    for line, before in zip(lines, [0, *(line["step"] for line in lines)], strict=False):
        own = [each for each in steps if before < each["step"] <= line["step"]]
        sums = sum(each["train/loss"] * targets[each["step"]] for each in own), sum(targets[each["step"]] for each in own)
        assert line["train/loss"] == pytest.approx(sums[0] / sums[1], rel=1e-9)
        assert line["train/grad_norm"] == pytest.approx(sum(each["train/grad_norm"] for each in own) / len(own), rel=1e-9)


@pytest.mark.parametrize("dropout", [0.5, 0.0])
def test_a_checkpoint_of_an_older_version_goes_on(dropout: float, small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of before the history was kept, and before the masks were hashed, which is told where there are masks."""
    arguments = small("--train.max_steps=16", f"--model.dropout={dropout}")
    fresh_train(load_config(arguments))

    def older(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        known = ("epoch", "row", "step", "segment", "tokens", "best", "validated", "owes_validation")
        values["cursor"] = {key: values["cursor"][key] for key in known}
        del values["seconds"], values["masks"], values["tracking"]["samples_bytes"]

    forge(tmp_path / "run/checkpoints/step_00000016", older)
    summary = fresh_train(load_config([*arguments, "--train.max_steps=30", "--train.resume=true"]))
    assert (summary["step"], summary["best_step"]) == (30, 30 if dropout else 0), "0 where the best model is of before"
    assert ("other dropout masks" in capsys.readouterr().err) == (dropout > 0)


@pytest.mark.parametrize("options", [["--train.epochs=1"], []])
def test_a_stop_within_an_owed_validation_leaves_it_owed(options: list[str], small: Small, whole: Whole, tmp_path: Path) -> None:
    """Told to stop in the first validation, which may be the last, and again in the one that the next start begins with."""
    arguments = small(*options, "--train.resume=true", run="cut")

    def told_in_evaluation(*args: Any, interrupted: Callable[[], bool], **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return evaluate_stream(*args, interrupted=interrupted, **kwargs)

    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lstmlm.training.run.evaluate_stream", told_in_evaluation)
            assert train(load_config(arguments)).signal == signal.SIGTERM
        assert [path.name for path in (tmp_path / "cut/checkpoints").glob("step_*15")] == ["step_00000015"]
    fresh_train(load_config(arguments))
    assert_same_run(tmp_path / "cut", whole(*options))
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds), "over all starts"


@pytest.mark.parametrize(("key", "lengths"), [("epochs", (2, 3)), ("max_steps", (9, 18, 25))])
def test_a_run_that_grew_is_the_longer_run(key: str, lengths: tuple[int, ...], small: Small, whole: Whole, tmp_path: Path) -> None:
    """In the middle of an epoch and of a log interval too; the shorter run's last figures leave no trace."""
    for length in lengths:
        fresh_train(load_config(small(f"--train.{key}={length}", "--train.log_every=4", "--train.resume=true")))
    assert_same_run(tmp_path / "run", whole(f"--train.{key}={lengths[-1]}", "--train.log_every=4"))


def test_what_a_run_writes(small: Small, tmp_path: Path) -> None:
    config = load_config(small("--train.log_every=4"))
    outcome = train(config)
    run = tmp_path / "run"
    assert outcome.run_dir == run
    assert outcome.signal == 0
    names = {"config.yaml", "metrics.jsonl", "samples.jsonl", "checkpoints", "model", "summary.json", ".lock"}
    assert {path.name for path in run.iterdir()} == names
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["train"]["precision"] == "fp32", "the resolved value"
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_00000028", "step_00000030"]
    lines = metrics(run)
    assert [line["step"] for line in lines if "train/loss" in line] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert [line["step"] for line in lines if "valid/ppl" in line] == [15, 30]
    assert [line["epoch"] for line in lines if "valid/ppl" in line] == [1, 2]
    assert "test/ppl" in lines[-1]
    for line in lines:
        if "train/loss" in line:
            assert line["train/ppl"] == pytest.approx(math.exp(line["train/loss"]))
    summary = json.loads((run / "summary.json").read_bytes())
    assert summary == outcome.summary
    assert summary["test"]["columns"] == 1
    assert summary["best"] == min(line["valid/ppl"] for line in lines if "valid/ppl" in line)
    result = evaluate(tmp_path / "run/model", "test", cache_dir=str(tmp_path / "cache"))
    assert result.ppl == pytest.approx(summary["test"]["ppl"], rel=1e-6)
    assert result.columns == 1


def test_logged_figures_do_not_depend_on_how_often_they_are_read(whole: Whole) -> None:
    assert metrics(whole("--train.log_every=10")) == metrics(whole("--train.log_every=10", "--train.save_every=1"))


def test_resume_before_the_first_checkpoint_refuses_another_configuration(small: Small) -> None:
    arguments = lose_power(small("--train.resume=true"), 3)
    with pytest.raises(UserError, match=r"model\.dropout was 0\.5 and is 0\.1"):
        fresh_train(load_config([*arguments, "--model.dropout=0.1"]))


def forge(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> None:
    """Write a checkpoint's content anew, changed, under a manifest that matches."""
    tensors, values = checkpoint.load_tensors(path), json.loads((path / "state.json").read_bytes())
    change(tensors, values)
    shutil.rmtree(path)
    checkpoint.publish(path.parent, int(path.name[5:]), tensors, values, 9)


def a_byte_less(path: Path) -> None:
    (path / "state.safetensors").write_bytes((path / "state.safetensors").read_bytes()[:-1])


def a_forged_header(path: Path) -> None:
    content = b"\xff" * 8 + (path / "state.safetensors").read_bytes()[8:]
    (path / "state.safetensors").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["state.safetensors"]["sha256"] = hashlib.sha256(content).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a byte less": a_byte_less,
    "a forged header": a_forged_header,
    "a tensor less": lambda path: forge(path, lambda tensors, values: tensors.pop("model.decoder.bias")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_resume_falls_back_over_a_checkpoint_that_is_not_the_runs(
    damage: str, unfinished: list[str], whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](tmp_path / "run/checkpoints/step_00000021")
    fresh_train(load_config(unfinished))
    error = capsys.readouterr().err
    assert f"skipping the damaged checkpoint {tmp_path / 'run/checkpoints/step_00000021'}" in error
    assert f"going on from {tmp_path / 'run/checkpoints/step_00000014'}" in error
    assert_same_run(tmp_path / "run", whole())


def test_a_second_process_that_the_lock_does_not_stop_ends_the_slower_one(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system whose locks do not reach from host to host."""
    folder = tmp_path / "run/checkpoints"
    at_step(monkeypatch, 10, lambda step: shutil.copytree(folder / "step_00000007", folder / "step_00000099"))
    with pytest.raises(UserError, match=r"another process saves in .*checkpoints and is further: this one ends"):
        fresh_train(load_config(small()))
    assert (folder / "step_00000099/manifest.json").exists()
    monkeypatch.undo()
    assert fresh_train(load_config(small("--train.resume=true")))["step"] == 30, "a copy that was there before is in nobody's way"


def test_no_whole_checkpoint_is_one_line(unfinished: list[str], tmp_path: Path) -> None:
    for path, damage in zip(sorted((tmp_path / "run/checkpoints").iterdir()), (a_byte_less, a_forged_header), strict=True):
        damage(path)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        fresh_train(load_config(unfinished))
    assert metrics(tmp_path / "run"), "nothing is lost"


@pytest.mark.parametrize("loss", ["deleted", "emptied", "not mounted", "a file", "of a finished run"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(loss: str, unfinished: list[str], whole: Whole, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run/checkpoints"
    if loss == "of a finished run":
        shutil.copytree(whole(), tmp_path / "run", dirs_exist_ok=True)
    shutil.rmtree(checkpoints)
    if loss == "emptied":
        checkpoints.mkdir()
    elif loss == "not mounted":
        checkpoints.symlink_to(tmp_path / "nowhere")
    elif loss == "a file":
        checkpoints.write_text("")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"the checkpoints of the run in .* are gone|cannot read .*checkpoints"):
        fresh_train(load_config(unfinished))
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", ["cut in a line", "emptied", "missing", "garbage"])
def test_damaged_metrics_are_told_and_end_as_whole_lines(
    damage: str, unfinished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run/metrics.jsonl"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut in a line": content[:999], "emptied": b"", "garbage": b"\0" * len(content)}[damage])
    fresh_train(load_config(unfinished))
    assert "metrics.jsonl was damaged" in capsys.readouterr().err
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line][-9:] == list(range(22, 31))


def test_what_kills_left_hidden_is_gone_at_the_end(unfinished: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for folder in (run, run / "model"):
        (folder / f".lstmlm-{files._HOST}-{'0' * 32}.tmp").touch()
    for name in (".step_00000007.old", ".step_00000028.tmp"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "state.json").write_text("{")
    fresh_train(load_config(unfinished))
    assert [path for path in run.rglob(".*") if path != run / ".lock"] == []


def test_a_summary_that_is_damaged_is_made_again(small: Small, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole(), tmp_path / "run")
    for content in ("null", '{"step": 3}', '{"step": 30, "valid"', ""):
        (tmp_path / "run/summary.json").write_text(content)
        if not content:
            (tmp_path / "run/summary.json").unlink()  # as where a signal ended the process during the final scoring
        again = fresh_train(load_config(small("--train.resume=true")))
        assert ("summary.json is damaged" in capsys.readouterr().err) == bool(content)
        assert json.loads((tmp_path / "run/summary.json").read_bytes()) == again
        assert figures(tmp_path / "run") == figures(whole())


def test_the_best_model_is_one_of_the_runs_own_past(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a shorter run's last validation, which was not due in the longer one; nor one that a power cut has undone."""

    def by_a_factor(*args: Any, **kwargs: Any) -> Any:
        result = evaluate_stream(*args, **kwargs)
        return dataclasses.replace(result, nll=result.nll * factor.pop(0)) if kwargs.get("interrupted") else result

    monkeypatch.setattr("lstmlm.training.run.evaluate_stream", by_a_factor)
    settings = ("--train.eval_every=6", "--train.resume=true")
    factor = [1.0, 3.0, 1, 1]  # at steps 6 and 12, then the final scores
    fresh_train(load_config(small(*settings, "--train.max_steps=12", run="long")))
    factor = [1.0, 0.5, 1, 1]  # at steps 6 and 9
    fresh_train(load_config(small(*settings, "--train.max_steps=9", run="grown")))
    factor = [3.0, 1, 1]  # at step 12
    fresh_train(load_config(small(*settings, "--train.max_steps=12", run="grown")))
    assert_same_run(tmp_path / "grown", tmp_path / "long")
    assert figures(tmp_path / "grown")["best_step"] == 6
    arguments = small("--train.eval_every=5", "--train.max_steps=12", "--train.resume=true", run="cut")
    best, kept = tmp_path / "cut/model/model.safetensors", tmp_path / "cut/checkpoints/best.safetensors"
    factor = [1.0, 0.5]  # at steps 5 and 10, of which the checkpoint of step 7 knows one
    lose_power(arguments, 11)
    swapped = best.read_bytes(), kept.read_bytes()  # as if the save had been killed before it deleted what it did not need any more
    kept.write_bytes(swapped[0])
    best.write_bytes(swapped[1])
    (tmp_path / "cut/checkpoints/step_00000007").rename(tmp_path / "cut/checkpoints/.step_00000007.old")  # by a save that was killed
    factor = [0.5]  # at step 10
    lose_power(arguments, 11)
    factor = [3.0, 3.0]  # at step 10, which a GPU may round differently, and 12
    fresh_train(load_config(arguments))
    assert not kept.exists()
    assert figures(tmp_path / "cut")["best_step"] == 5
    with safetensors.safe_open(best, "pt") as file:
        assert json.loads(file.metadata()["exported"])["step"] == 5


@pytest.mark.parametrize("settings", [[], ["--train.eval_every=1"]])
def test_a_validation_that_is_not_finite_ends_the_run(settings: list[str], small: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the validation loss is not finite after step 1"):
        fresh_train(load_config(small("--optim.lr=1e38", "--train.max_steps=1", *settings)))
    assert not (tmp_path / "run/model").exists()
    assert not (tmp_path / "run/summary.json").exists()
    if settings:
        assert list((tmp_path / "run/checkpoints").iterdir()) == []


def test_what_other_jobs_left_in_the_environment_changes_nothing(
    small: Small, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole("--train.max_steps=12")
    left = """GRADIENT_ACCUMULATION_STEPS=4 ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 ACCELERATE_GRADIENT_CLIPPING=0.001
        ACCELERATE_DEEPSPEED_ZERO_STAGE=3 ACCELERATE_DYNAMO_MODE=max-autotune ACCELERATE_CPU_AFFINITY=1 ACCELERATE_DOWNCAST_BF16=true
        FSDP_SHARDING_STRATEGY=FULL_SHARD FSDP_ACTIVATION_CHECKPOINTING=true MEGATRON_LM_TP_DEGREE=2"""
    for setting in left.split():
        monkeypatch.setenv(*setting.split("="))
    fresh_train(load_config(small("--train.max_steps=12")))
    assert_same_run(tmp_path / "run", expected)


def test_a_start_that_is_refused_leaves_a_finished_run_as_it_was(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its best model is that of the last validation, which was not due in a longer run."""

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    assert fresh_train(load_config(small("--train.eval_every=6", "--train.max_steps=9")))["best_step"] == 9
    before = content()
    with monkeypatch.context() as patch, pytest.raises(UserError, match="no such tracker"):
        patch.setattr(Tracking, "start", Mock(side_effect=UserError("no such tracker")))
        fresh_train(load_config(small("--train.eval_every=6", "--train.max_steps=12", "--train.resume=true")))
    assert content() == before


@pytest.mark.parametrize("event", ["a line of metrics", "a save"])
def test_a_run_whose_directory_was_deleted_writes_into_no_other(
    event: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it make one."""
    other = RunDirectory(tmp_path / "run")

    def begin_another(step: Any) -> None:
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()
        (tmp_path / "run/.lock").touch()

    at_step(monkeypatch, 5, begin_another)
    every = "--train.log_every=1000" if event == "a save" else "--train.save_every=1000"
    with pytest.raises(UserError, match="was deleted or moved while this run wrote there"):
        fresh_train(load_config(small(every)))
    assert [path.name for path in other.path.iterdir()] == [".lock"]


def test_checkpoints_may_lie_on_another_disk(small: Small, tmp_path: Path) -> None:
    """By a link, as where the disk was full."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs another file system")
    arguments = small("--train.eval_every=5", "--train.max_steps=12", "--train.resume=true", run="cut")
    lose_power(arguments, 8)
    place = Path(shutil.move(tmp_path / "cut/checkpoints", elsewhere / f"lstmlm-{os.getpid()}"))
    try:
        (tmp_path / "cut/checkpoints").symlink_to(place)
        lose_power(arguments, 11)
        assert (place / "best.safetensors").exists()
        fresh_train(load_config(arguments))
    finally:
        shutil.rmtree(place)
