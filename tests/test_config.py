import dataclasses
import io
import re
import sys
from pathlib import Path

import pytest
import yaml

from lstmlm import Config, UserError, load_config
from lstmlm.console import UsageError, print_line

CONFIGS = Path(__file__).parent.parent / "configs"
SWEEP = CONFIGS / "sweep.yaml"


def test_defaults_are_the_reference_model() -> None:
    config = load_config([])
    assert config == Config()
    assert (config.data.dataset, config.data.subset) == ("Salesforce/wikitext", None)
    assert (config.data.batch_size, config.data.bptt) == (20, 30)
    assert (config.model.embedding_size, config.model.hidden_size, config.model.num_layers) == (100, 100, 2)
    assert (config.model.dropout, config.model.tie_weights) == (0.5, True)
    assert (config.optim.name, config.optim.lr, config.optim.grad_clip) == ("adam", 1e-3, 0.25)


@pytest.mark.parametrize("path", sorted({*CONFIGS.glob("*.yaml")} - {SWEEP}), ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    load_config(["--config", str(path)])
    assert path.read_text().startswith("# "), "the header gives the command"


def test_the_sweep_searches_over_keys_of_the_configuration() -> None:
    keys = load_config(["--config", str(CONFIGS / "wikitext2.yaml")]).to_flat_dict()
    assert yaml.safe_load(SWEEP.read_text())["parameters"].keys() <= keys.keys()


def test_overrides_come_after_the_file_and_numbers_may_be_scientific(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 1e-2, betas: [0.8, 0.9]}\ntrain: {max_steps: 5}\n")
    config = load_config(["--config", str(path), "--optim.lr", "2e-3", "--train.max_steps", "null"])
    assert (config.optim.lr, config.optim.betas, config.train.max_steps) == (2e-3, (0.8, 0.9), None)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    config = load_config(["--model.dropout", "0.3", "--tracking.tags", "[a, b]", "--train.run_dir", "x"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert load_config(["--config", str(path)]) == config


def test_a_printed_configuration_is_the_one_that_it_was_printed_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", str(CONFIGS / "wikitext2-650.yaml"), "--optim.betas", "[0.8, 0.9]", "--tracking.tags", "[a, '1']"]
    argv += ["--train.run_dir", "runs/x: y", "--train.max_steps", "null", "--data.lowercase", "true", "--optim.eps", "1e-9"]
    with pytest.raises(SystemExit) as caught:
        load_config([*argv, "--print_config"])
    assert not caught.value.code
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(["--config", str(path)]) == load_config(argv)


def test_a_run_goes_on_with_its_own_configuration(tmp_path: Path) -> None:
    written = load_config(["--model.embedding_size", "7", "--model.hidden_size", "7", "--optim.lr", "2e-3"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(written.to_dict()))
    argv = ["--train.run_dir", str(tmp_path), "--train.resume", "true"]
    config = load_config(argv)
    assert (config.model, config.optim) == (written.model, written.optim)
    assert config.train.resume
    assert load_config([*argv, "--train.epochs", "50"]).train.epochs == 50, "overrides come after it"
    other = tmp_path / "other.yaml"
    other.write_text("optim: {lr: 0.5}\n")
    assert load_config(["--config", str(other), *argv]).optim.lr == 0.5, "what the command names comes first"
    assert load_config(argv[:2]).optim.lr == 1e-3, "a new run has nothing of an old one"
    (tmp_path / "config.yaml").write_text("optim: [")
    with pytest.raises(UsageError, match=r"config\.yaml"):
        load_config(argv)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--train.epoch", "3"], "--train.epoch"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["--data.batch_size", "1.5"], "data.batch_size"),
        (["--data.batch_size", "0"], "data.batch_size"),
        (["--data.cache_dir", ""], "data.cache_dir is empty"),
        (["--config", "absent.yaml"], "--config: cannot read absent.yaml: No such file"),
        (["--data=absent.yaml"], "unrecognized arguments: --data=absent.yaml"),
        (["--config={}"], "--config: cannot read {}: No such file"),
        (["--model.dropout_types", "1"], "model.dropout_types"),
        (["--model.dropout", "1"], "model.dropout"),
        (["--optim.lr", "nan"], "optim.lr"),
        (["--train.precision", "fp8"], "train.precision"),
        (["--train.resume", "true"], "train.run_dir"),
        (["--tracking.trackers", "[mlflow]"], "tracking.trackers"),
        (["stray"], "stray"),
        (["--data.dataset", "a\0b"], "cannot hold a NUL"),
        (["--data.subset", "\0"], "cannot hold a NUL"),
        (["--model.hidden_size=1000000000"], "model.hidden_size"),
        (["--model.num_layers=1000000000000"], "model.num_layers"),
        ([f"--data.bptt={10**21}"], "data.bptt"),
        ([f"--train.log_every={10**15}"], "train.log_every"),
        (["--train.threads=1000000"], "train.threads"),
        (["--train.timeout_minutes=1e15"], "train.timeout_minutes"),
        (["--model.init_range=1e39"], "model.init_range"),
        (["--train.run_dir="], "train.run_dir"),
        (["--tracking.run_name=a/b"], "tracking.run_name"),
        (["--tracking.run_name=.."], "tracking.run_name"),
        ([f"--tracking.run_name={'a' * 300}"], "tracking.run_name"),
    ],
)
def test_bad_input_is_one_line_that_names_it(argv: list[str], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(argv)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


def test_unknown_key_in_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {learning_rate: 1}\n")
    with pytest.raises(UsageError, match="learning_rate"):
        load_config(["--config", str(path)])


@pytest.mark.parametrize("late", [["--config", "c.yaml"], ["--config=c.yaml"]])
def test_config_must_come_first(late: list[str]) -> None:
    with pytest.raises(UserError, match="--config must come first"):
        load_config(["--optim.lr", "1", *late])


def test_a_file_that_says_a_key_in_two_forms(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {bptt: 30}\ndata.bptt: 7\n")
    with pytest.raises(UsageError, match=r"has data\.bptt beside data, which may say it too: write it below data"):
        load_config(["--config", str(path)])
    path.write_text("data.bptt: 7\n")
    assert load_config(["--config", str(path)]).data.bptt == 7


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--config is empty"):
        load_config(["--config", ""])
    with pytest.raises(UsageError, match=f"^--config: cannot read {tmp_path}: it is a folder, not a file$"):
        load_config([f"--config={tmp_path}"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"batch_size: 3\nbptt: 5\nbatch_size: 4\n", "the key batch_size stands twice in line 3"),
        (b"data:\n  batch_size: 3\n  batch_size: 4\n", "the key batch_size stands twice in line 3"),
        (b"data: {}\noptim: [\n", "in line 3"),
        (b"a: b: c\n", "in line 1"),
        (b"\x00\xff", "is damaged or not of this project"),
        (b"", "holds no keys"),
        (b"- a\n", "holds no keys"),
        (b"data: other.yaml\n", "holds no keys with values below data"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_name_and_line(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"{re.escape(str(path))} .*{told}$|{re.escape(str(path))} {told}") as caught:
        load_config(["--config", str(path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("--train.max_steps x", "train.max_steps must be a whole number or null, not x"),
        ("--train.max_steps a", "train.max_steps must be a whole number or null, not a"),
        ("--optim.betas [1,2,3]", "optim.betas: Expected a tuple with 2 elements. Got value: [1, 2, 3]"),
        ("--optim.lr fast", "optim.lr must be a number, not fast"),
        ("--optim.betas 3", "optim.betas must be a list such as [a, b], not 3"),
        ("--optim.betas [0.1", "optim.betas must be a list such as [a, b], not [0.1"),
        ("--train.resume maybe", "train.resume must be true or false, not maybe"),
        ("--data.level words", "data.level must be one of word, char, bpe, not words"),
        ("--tracking.trackers [mlflow]", "tracking.trackers must be one of wandb, tensorboard, trackio, not mlflow"),
    ],
)
def test_a_value_of_the_wrong_kind(argv: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(argv.split())
    assert str(caught.value) == f"{told} (--help lists every option)"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("--data.bptt 0", "data.bptt must be from 1 to 1,000,000,000,000, not 0"),
        ("--data.max_size 2", "data.max_size must be from 3 to 1,000,000,000,000, not 2"),
        ("--model.dropout 1", "model.dropout must be at least 0 and below 1, not 1.0"),
        ("--model.init_range 0", "model.init_range must be above 0 and at most 1,000, not 0.0"),
        ("--optim.lr .nan", "optim.lr must be above 0, not NaN"),
        ("--optim.lr .inf", "optim.lr must be above 0, not Infinity"),
        ("--optim.weight_decay -1", "optim.weight_decay must be at least 0, not -1.0"),
        ("--optim.betas [0.9,1]", "optim.betas must be at least 0 and below 1, not [0.9, 1.0]"),
        *(
            (f"--data.level bpe{size}", f"data.level bpe needs data.max_size, its number of types, of at least 258 (8000, say), not {n}")
            for size, n in (("", None), (" --data.max_size 257", 257))
        ),
        ("--data.level char --data.tokenizer moses", "data.tokenizer moses cuts words, but data.level is char: leave one of them out"),
        (f"--train.seed {2**32}", "train.seed must be at least 0 and below 4,294,967,296, not 4294967296"),
    ],
)
def test_a_value_out_of_its_bounds(argv: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(argv.split())
    assert str(caught.value) == told


def test_none_is_null_where_a_key_may_be_null() -> None:
    """As a sweep of W&B writes it."""
    config = load_config(["--train.patience=None", "--tracking.group", "None", "--data.text_column=None"])
    assert (config.train.patience, config.tracking.group, config.data.text_column) == (None, None, "None")
    with pytest.raises(UsageError, match=r"^data\.bptt must be a whole number, not None"):
        load_config(["--data.bptt=None"])


def test_keywords_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook", "--no-such-option"])
    config = load_config(data={"bptt": 7}, optim={"betas": [0.8, 0.9]}, train={"max_steps": None, "resume": False})
    assert (config.data.bptt, config.optim.betas, config.train.max_steps) == (7, (0.8, 0.9), None)
    assert load_config(["--data.bptt=9", "--data.batch_size=3"], data={"bptt": 7}).data.bptt == 7
    with pytest.raises(UsageError, match=r"data\.ghost"):
        load_config(data={"ghost": 7})


def test_every_key_has_a_help_text() -> None:
    source = (Path(__file__).parent.parent / "lstmlm" / "config.py").read_text()
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            line = next(line for line in source.splitlines() if line.startswith(f"    {field.name}: "))
            following = source.split(line + "\n", 1)[1].splitlines()[0]
            assert following.startswith('    """'), f"{section.name}.{field.name} has no help"


def test_a_line_that_nobody_can_read_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    closed = io.StringIO()
    closed.close()
    for stream in (Full(), closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        print_line("a line")
