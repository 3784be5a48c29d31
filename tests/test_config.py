import dataclasses
import inspect
import io
import os
import re
import sys
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import yaml

from lstmlm import Config, load_config
from lstmlm.config import SECTIONS, DataConfig, OptimConfig, TrackingConfig
from lstmlm.console import UsageError, print_line
from lstmlm.evaluation.adaptation import Dynamic
from lstmlm.generation import Sampling
from lstmlm.training.run_directory import RunDirectory

CONFIGS = Path(__file__).parent.parent / "configs"


def test_defaults_are_the_reference_model() -> None:
    """Its sizes, and what it computes, are recorded in the tests of the model and of recipes."""
    config = load_config([])
    assert config == Config()
    assert (config.data.dataset, config.data.subset) == ("Salesforce/wikitext", None)


def test_the_sweep_searches_over_keys_of_the_configuration() -> None:
    keys = load_config(["--config", str(CONFIGS / "wikitext2.yaml")]).to_flat_dict()
    assert yaml.safe_load((CONFIGS / "wandb/sweep.yaml").read_text())["parameters"].keys() <= keys.keys()


def test_only_null_is_null() -> None:
    for name in ("#3", "~", "a: b", "[x", "1e3", "true"):
        assert load_config(["--tracking.run_name", name]).tracking.run_name == name
    assert load_config(["--tracking.run_name", "null"]).tracking.run_name is None


def test_overrides_come_after_the_file_and_numbers_may_be_scientific(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 1e-2, betas: [0.8, 0.9]}\ntrain: {max_steps: 5}\ndata.bptt: 7\n")
    config = load_config(["--config", str(path), "--optim.lr", "2e-3", "--train.max_steps", "null"])
    assert (config.optim.lr, config.optim.betas, config.train.max_steps, config.data.bptt) == (2e-3, (0.8, 0.9), None, 7)
    path.write_text("optim: {learning_rate: 1}\n")
    with pytest.raises(UsageError, match="learning_rate"):
        load_config(["--config", str(path)])


def test_a_printed_configuration_is_the_one_that_it_was_printed_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", str(CONFIGS / "wikitext2-650.yaml"), "--optim.betas", "[0.8, 0.9]", "--tracking.tags", "[a, '1']"]
    argv += ["--train.run_dir", "runs/x: y", "--train.max_steps", "null", "--data.lowercase", "true", "--optim.eps", "1e-9"]
    with pytest.raises(SystemExit) as caught:
        load_config([*argv, "--print_config"])
    assert not caught.value.code
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(["--config", str(path)]) == load_config(argv)
    with pytest.raises(UsageError, match=r"optim\.lr must be a number"):
        load_config(["--print_config", "--optim.lr", "fast"])
    assert load_config([]).optim.lr == 1e-3, "and nothing is printed"


KEYS = [(f"{name}.{key.name}", get_args(key.type)) for name, section in SECTIONS.items() for key in dataclasses.fields(section)]


@pytest.mark.parametrize("key", [key for key, kinds in KEYS if NoneType not in kinds])
def test_null_is_for_keys_that_take_it(key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    (tmp_path / "a.yaml").write_text(f"{section}:\n  {name}:\n")
    with pytest.raises(UsageError, match=f"{key} is null: give it a value, or leave it out"):
        load_config(["--config", str(tmp_path / "a.yaml")])
    with pytest.raises(UsageError, match=re.escape(key)):
        load_config([f"--{key}=None"])  # as a sweep of W&B writes it


def test_text_that_looks_like_a_number_goes_on_as_text(tmp_path: Path) -> None:
    for name in ("1e5", "72e4915", "1_0e2", "3.e2", "-1e-3", "true", "a: b", "010"):
        RunDirectory(tmp_path).write_config(load_config(tracking={"run_name": f"x{name}", "notes": name}))
        assert load_config(["--config", str(tmp_path / "config.yaml")]).tracking.notes == name
        assert RunDirectory(tmp_path).read_config().tracking.notes == name


def test_a_run_goes_on_with_its_own_configuration(tmp_path: Path) -> None:
    written = load_config(["--model.dropout", "0.3", "--optim.lr", "2e-3", "--tracking.tags", "[a, b]", "--train.run_dir", str(tmp_path)])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(written.to_dict()))
    argv = ["--train.run_dir", str(tmp_path), "--train.resume", "true"]
    assert load_config(argv) == dataclasses.replace(written, train=dataclasses.replace(written.train, resume=True))
    assert load_config([*argv, "--train.epochs", "50"]).train.epochs == 50, "overrides come after it"
    other = tmp_path / "other.yaml"
    other.write_text("optim: {lr: 0.5}\n")
    assert load_config(["--config", str(other), *argv]).optim.lr == 0.5, "what the command names comes first"
    assert load_config(argv[:2]).optim.lr == 1e-3, "a new run has nothing of an old one"
    for content, more in (("optim: [", []), ("optim: {lr: -1}", []), ("{}", ["--optim.cycle_beta=0.7"])):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(UsageError, match=rf"^with the run's own configuration[^\n]* {tmp_path}/config\.yaml[^\n]+$"):
            load_config([*argv, *more])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--train.epoch", "3"], "--train.epoch"),
        (["--optim.schedule=one_cycle", "--optim.warmup_steps=3"], "leave it 0"),
        (["--optim.schedule=one_cycle", "--optim.cycle_annealing=0.8"], "optim.cycle_annealing together take 1.05 of the run: lower one"),
        (["--optim.schedule=cosine", "--optim.cycle_annealing=0.3"], "optim.cycle_annealing needs"),
        (["--optim.cycle_beta=0.7"], "optim.cycle_beta needs"),
        (["--data.bptt=30", "--data.bptt_jitter=8"], "data.bptt_jitter 8.0 needs a data.bptt of at least 10 and 4 times as much, not 30"),
        (["stray"], "stray"),
        (["--data.cache_dir", ""], "--data.cache_dir is empty"),
        (["--config", ""], "--config is empty: give it a value"),
        (["--config="], "--config is empty: give it a value"),
        (["--config", "absent.yaml"], "--config: cannot read absent.yaml: No such file"),
        (["--config", "wikitext-2"], "presets go by their names: ptb, small, smoke, wikitext103"),
        (["--config", "x" * 300], "--config: cannot read xxx"),
        (["--optim.lr", "1", "--config=c.yaml"], "--config must come first"),
        (
            ["--data=absent.yaml"],
            "arguments: --data=absent.yaml (--help lists every option); every option has two parts, as --data.dataset book.txt",
        ),
        (["--train.resume", "true"], "train.resume needs train.run_dir"),
        (
            ["--train.run_dir=absent", "--train.resume=true", "--train.threads=2"],
            "there is no absent, so no run to go on with: check train.run_dir",
        ),
        (["--data.dataset", "a\0b"], "cannot hold a NUL"),
        (["--tracking.run_name=a/b"], "tracking.run_name"),
        ([f"--tracking.run_name={'a' * 300}"], "tracking.run_name"),
        (["--data.bptt", "1.5"], "data.bptt must be a whole number, not 1.5 (--help lists every option)"),
        (["--train.max_steps", "x"], "train.max_steps must be a whole number or null, not x"),
        (["--optim.lr", "fast"], "optim.lr must be a number, not fast"),
        (["--optim.betas", "[1,2,3]"], "optim.betas: Expected a tuple with 2 elements. Got value: [1, 2, 3]"),
        (["--optim.betas", "[0.1"], "optim.betas must be a list such as [a, b], not [0.1"),
        (["--train.resume", "maybe"], "train.resume must be true or false, not maybe"),
        (["--data.level", "words"], "data.level must be one of word, char, bpe, not words"),
        (["--tracking.trackers", "[mlflow]"], "tracking.trackers must be one of wandb, tensorboard, trackio, not mlflow"),
        (["--data.bptt", str(10**21)], "data.bptt must be at least 1 and at most 1,000,000,000,000, not 1000"),
        (["--model.hidden_size=1000000000"], "model.hidden_size must be at least 1 and at most 65,536, not 1000000000"),
        (["--model.dropout", "1"], "model.dropout must be at least 0 and below 1, not 1.0"),
        (["--model.init_range", "0"], "model.init_range must be above 0 and at most 1,000, not 0.0"),
        (["--optim.lr", ".nan"], "optim.lr must be above 0 and finite, not NaN"),
        (["--optim.betas", "[0.9,1]"], "optim.betas must be at least 0 and below 1, not [0.9, 1.0]"),
        (["--data.level=bpe", "--data.max_size=257"], "of at least 258 (8000, say), not 257"),
        (["--data.level=char", "--data.tokenizer=moses"], "data.tokenizer moses cuts words, but data.level is char: leave one of them"),
        (["--train.seed", str(2**32)], "train.seed must be at least 0 and below 4,294,967,296, not 4294967296"),
    ],
)
def test_bad_input_is_one_line_that_names_it(argv: list[str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(argv)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"data:\n  batch_size: 3\n  batch_size: 4\n", "the key batch_size stands twice in line 3"),
        (b"data: {}\noptim: [\n", "in line 3"),
        (b"", "holds no keys"),
        (b"data: other.yaml\n", "write the keys of data with their values below it"),
        (b"data: {bptt: 30}\ndata.bptt: 7\n", "or each as data.KEY, but not both"),
        (b"data: {bptts: 30}\n", "c.yaml: Option 'data.bptts' is not accepted"),
        (b"optim: {lr: fast}\n", "c.yaml: optim.lr must be a number, not fast"),
        (b"data: {bptt: 0}\n", "c.yaml: data.bptt must be at least 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(content: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=rf"^(?=[^\n]*c\.yaml)[^\n]*{told}[^\n]*$"):
        load_config(["--config", "c.yaml"])


def test_none_is_null_where_a_key_may_be_null() -> None:
    """As a sweep of W&B writes it."""
    config = load_config(["--train.patience=None", "--tracking.group", "None", "--tracking.notes=NoneNone"])
    assert (config.train.patience, config.tracking.group, config.tracking.notes) == (None, None, "NoneNone")


def test_keywords_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook", "--no-such-option"])
    config = load_config(data={"bptt": 7}, optim={"betas": [0.8, 0.9]}, train={"max_steps": None, "resume": False})
    assert (config.data.bptt, config.optim.betas, config.train.max_steps) == (7, (0.8, 0.9), None)
    assert load_config(["--data.bptt=9", "--data.batch_size=3"], data={"bptt": 7}).data.bptt == 7
    with pytest.raises(UsageError, match=r"data\.ghost"):
        load_config(data={"ghost": 7})
    with pytest.raises(UsageError, match=r"seed=3: a section is a dictionary"):
        load_config(seed=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        (DataConfig, "level", "words", "data.level must be one of word, char, bpe, not words"),
        (TrackingConfig, "trackers", "wandb", "tracking.trackers must be a list, such as ['wandb']"),
        (TrackingConfig, "trackers", ["mlflow"], "tracking.trackers must be one of wandb, tensorboard, trackio, not mlflow"),
        (OptimConfig, "betas", (None, 0.9), "optim.betas must be at least 0 and below 1, not [null, 0.9]"),
        (Sampling, "ban", "the", "ban must be a list, such as ['the']"),
        (Dynamic, "rule", "adam", "rule must be one of sgd, rms, not adam"),
    ],
)
def test_what_python_gives_is_checked_as_a_command_line_is(section: type, key: str, value: object, told: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(told)}$"):
        section(**{key: value})


def test_every_key_has_a_help_text() -> None:
    for section in SECTIONS.values():
        assert re.findall(r'^    (\w+): .*\n(?!    """)', inspect.getsource(section), re.MULTILINE) == []


def test_a_line_that_nobody_can_read_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    closed = io.StringIO()
    closed.close()
    for stream in (Full(), closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        print_line("a line")


def test_text_that_no_file_can_hold_is_refused() -> None:
    """A path's bytes that are not UTF-8: a run would be trained whose checkpoints nobody could read."""
    with pytest.raises(UsageError, match=r"train\.run_dir is 'r\\udce9', which is not UTF-8"):
        load_config(["--train.run_dir", os.fsdecode(b"r\xe9")])
    with pytest.raises(UsageError, match=r"tracking\.notes is"):
        load_config(tracking={"notes": "\udce9"})
