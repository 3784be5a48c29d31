"""The configuration: nested dataclasses, their checks, and the only place that parses a command line.

The defaults are the reference model on WikiText-2. The docstring under each field is its help text.
"""

import json
import math
import os
import re
import sys
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from lstmlm.console import UsageError, UserError, check, one_line
from lstmlm.files import RUN_FILES, user_path
from lstmlm.records import load_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

RUN_CONFIG = RUN_FILES[0]  # in a run's directory: the configuration as resolved
PRESETS = Path(__file__).parent / "configs"  # in a checkout a link, like `models`
# Keys that say where one machine keeps things, not what is computed.
PLACES = ("data.cache_dir", "train.run_dir", "train.resume")

MOST = 10**12  # of steps, rows and the like: more than anybody has, and exact in every type they are kept in
MOST_UNITS, MOST_LAYERS, MOST_THREADS = 65_536, 124, 1024  # of layers: as many as the dropout masks have numbers for
MOST_LOGGED = 10**6  # steps whose losses are kept until they are logged
MOST_PROFILED = 1000  # steps; each has some hundred events, all kept in memory


class Bounds(NamedTuple):
    """The numbers that a key takes: `least` to `most`; without `least` itself where `above`, without `most` itself where `below`."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        return (value > self.least if self.above else value >= self.least) and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        most = "finite" if self.most == math.inf else f"{'below' if self.below else 'at most'} {self.most:,}"
        return f"{'above' if self.above else 'at least'} {self.least:,} and {most}"


COUNT = Bounds(1, MOST)
POSITIVE, NOT_NEGATIVE = Bounds(0, math.inf, above=True, below=True), Bounds(0, math.inf, below=True)
FRACTION = Bounds(0, 1, below=True)


def bounded(default: Any, bounds: Bounds) -> Any:
    """A field with a default, whose numbers must be within bounds; null, where its type has it, is within all."""
    return field(default=default, metadata={"bounds": bounds})


def check_fields(values: Any, prefix: str = "") -> None:
    """Refuse (UsageError) what a field of a dataclass does not take: null where its type has none, an empty text, a text in place of a
    list, a word that is none of its own, a number out of its bounds.

    `prefix` stands before the name that is told.
    """
    for key in fields(values):
        name, value, bounds = prefix + key.name.removesuffix("_"), getattr(values, key.name), key.metadata.get("bounds")
        kinds = (key.type, *get_args(key.type))
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        null = value in (None, "null") and NoneType not in kinds
        check(not null and value != "", f"{name} is {'null' if null else 'empty'}: give it a value, or leave it out")
        check(get_origin(key.type) not in (list, Sequence) or not isinstance(value, str), f"{name} must be a list, such as [{value!r}]")
        if value is None:
            continue
        every = value if isinstance(value, tuple | list) else [value]
        fits = bounds is None or all(each is not None and each in bounds for each in every)
        check(fits, f"{name} must be {bounds}, not {as_written(value)}")
        wrong = [as_written(each) for each in every if words and each not in words]
        check(not wrong, f"{name} must be one of {', '.join(words)}, not {', '.join(wrong)}")


@dataclass(frozen=True)
class _Section:
    """What every section checks when it is made."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        check_fields(self, f"{section}.")
        for key, value in vars(self).items():
            for text in value if isinstance(value, list) else [value]:
                fits = not re.search("[\ud800-\udfff]", str(text))
                check(fits, f"{section}.{key} is {text!r}, which is not UTF-8 and could not be read again: rename it")


def as_written(value: Any) -> Any:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


@dataclass(frozen=True)
class DataConfig(_Section):
    """The text and how it is cut into columns."""

    dataset: str = "Salesforce/wikitext"
    """Your text, a file or a folder (`.txt`, `.csv`, `.tsv`, `.json`, `.jsonl`, `.parquet`); or a data set of the Hugging Face Hub; or
    `toy`. See docs/data.md."""
    subset: str | None = None
    """Subset (configuration) of a data set in the Hub's layout. null = its only one; wikitext-2-v1 of the default data set."""
    text_column: str = "text"
    """Column that holds the text, where the data are rows."""
    level: Literal["word", "char", "bpe"] = "word"
    """What a token is: a word, a character, or a subword (byte-pair encoding over bytes). Every line ends with `<eos>`."""
    tokenizer: Literal["whitespace", "moses"] = "whitespace"
    """What a word is: what stands between white space, of text that is cut already; or, of English as people write it, a word or a
    punctuation mark by the rules of Moses (sacremoses)."""
    lowercase: bool = False
    """Whether upper case becomes lower case."""
    normalize: bool = False
    """Whether letters with accents are composed (Unicode NFC), and invisible characters within words go, such as zero-width spaces."""
    min_count: int = bounded(1, COUNT)
    """Tokens seen less often than this in the training split become `<unk>`; 2 is good for text that was not prepared. At level bpe:
    pairs seen less often are not merged."""
    max_size: int | None = bounded(None, Bounds(3, MOST))
    """Largest size of the vocabulary, `<unk>` and `<eos>` included. The most frequent tokens stay. null = no
    limit. bpe needs one, of at least 258."""
    batch_size: int = bounded(20, COUNT)
    """Number of columns: stretches of the training text that are read side by side, over ALL ranks (processes) together. A small text
    needs fewer."""
    bptt: int = bounded(30, COUNT)
    """Rows of one segment: how far back-propagation reaches, in tokens."""
    bptt_jitter: float = bounded(0.0, NOT_NEGATIVE)
    """Standard deviation of a segment's rows around bptt, drawn anew in each epoch; one segment in twenty is half as long, and the
    learning rate is in proportion to the rows (Merity et al., 2017). At most bptt / 4. 0 = every segment has bptt rows."""
    cache_dir: str = "~/.cache/lstmlm"
    """Folder that keeps token ids between runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("\0" not in f"{self.dataset}{self.subset}", "data.dataset and data.subset cannot hold a NUL")
        fits = self.level != "bpe" or (self.max_size is not None and self.max_size >= 258)
        check(fits, f"data.level bpe needs data.max_size, its number of types, of at least 258 (8000, say), not {self.max_size}")
        fits = self.tokenizer == "whitespace" or self.level == "word"
        check(fits, f"data.tokenizer {self.tokenizer} cuts words, but data.level is {self.level}: leave one of them out")
        fits = not self.bptt_jitter or (self.bptt >= 10 and self.bptt >= 4 * self.bptt_jitter)
        check(fits, f"data.bptt_jitter {self.bptt_jitter} needs a data.bptt of at least 10 and 4 times as much, not {self.bptt}")


@dataclass(frozen=True)
class ModelConfig(_Section):
    """The LSTM language model."""

    embedding_size: int = bounded(100, Bounds(1, MOST_UNITS))
    """E, number of units of a token's embedding."""
    hidden_size: int = bounded(100, Bounds(1, MOST_UNITS))
    """H, number of units of each LSTM layer. With tie_weights the last layer, or the only one, has embedding_size units instead."""
    num_layers: int = bounded(2, Bounds(1, MOST_LAYERS))
    """L, number of LSTM layers, one on top of the other."""
    dropout: float = bounded(0.5, FRACTION)
    """Probability that a unit is dropped: on the embeddings, between layers and on the output."""
    dropout_input: float | None = bounded(None, FRACTION)
    """Probability that a unit of the embeddings is dropped. null = dropout."""
    dropout_hidden: float | None = bounded(None, FRACTION)
    """Probability that a unit between layers is dropped. null = dropout."""
    dropout_output: float | None = bounded(None, FRACTION)
    """Probability that a unit of the last layer's output is dropped. null = dropout."""
    dropout_types: float = bounded(0.0, FRACTION)
    """Probability that a type's embedding is dropped at all its places in a segment (embedding dropout)."""
    dropout_weights: float = bounded(0.0, FRACTION)
    """Probability that a recurrent weight is dropped for a segment, in every layer (DropConnect)."""
    dropout_locked: bool = False
    """Drop the same units in all rows of a segment (variational dropout). false = draw anew in every row."""
    activation_penalty: float = bounded(0.0, NOT_NEGATIVE)
    """alpha, weight of the activation penalty (AR): the mean square of the last layer's output after dropout."""
    temporal_penalty: float = bounded(0.0, NOT_NEGATIVE)
    """beta, weight of the temporal penalty (TAR): the mean square of the change of that output, before dropout, from row to row."""
    tie_weights: bool = True
    """Use the embedding as the decoder's weight (Press and Wolf, 2017)."""
    init_range: float = bounded(0.1, Bounds(0, 1000, above=True))
    """The initial weights of embedding and decoder are uniform in [-init_range, init_range]."""

    @property
    def layer_sizes(self) -> list[int]:
        """Units of each layer; the last one's are those of the decoder's input."""
        last = self.embedding_size if self.tie_weights else self.hidden_size
        return [self.hidden_size] * (self.num_layers - 1) + [last]

    @property
    def shape(self) -> str:
        """The layers' sizes in a few words."""
        sizes = self.layer_sizes
        return f"{len(sizes)} x {sizes[0]}" if len({*sizes}) == 1 else "-".join(map(str, sizes))

    @property
    def unit_dropout(self) -> list[float]:
        """Probability that a unit is dropped, of the embeddings and of each layer's output."""
        kinds = [self.dropout_input] + [self.dropout_hidden] * (self.num_layers - 1) + [self.dropout_output]
        return [self.dropout if p is None else p for p in kinds]


@dataclass(frozen=True)
class OptimConfig(_Section):
    """One optimizer update."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """The optimizer: adam (Kingma and Ba, 2015), adamw (Loshchilov and Hutter, 2019), or sgd, the plain gradient."""
    lr: float = bounded(1e-3, POSITIVE)
    """Learning rate at the end of the warm-up."""
    betas: tuple[float, float] = bounded((0.9, 0.999), FRACTION)
    """adam, adamw: decay rates of the two moments."""
    eps: float = bounded(1e-8, POSITIVE)
    """adam, adamw: term that keeps the update's denominator from being zero."""
    weight_decay: float = bounded(0.0, NOT_NEGATIVE)
    """adam, sgd: L2 penalty, added to the gradient. adamw: share of each weight, times the learning rate, that an update takes off."""
    grad_clip: float = bounded(0.25, POSITIVE)
    """Largest global gradient norm; larger gradients are scaled down to it."""
    schedule: Literal["constant", "cosine", "plateau", "one_cycle"] = "constant"
    """Learning rate after the warm-up: constant; a half cosine down to 0 after the run's last step; plateau, constant until
    validation gets no better and then multiplied by plateau_factor; or one_cycle, which has a warm-up of its own: half a cosine up to
    lr, and half a cosine down (Smith, 2018)."""
    plateau_factor: float = bounded(0.25, Bounds(0, 1, above=True, below=True))
    """plateau: what the learning rate is multiplied by."""
    plateau_patience: int = bounded(1, COUNT)
    """plateau: validations in a row without a new best perplexity before the rate is cut, one more than the patience of PyTorch's
    ReduceLROnPlateau; those within optim.warmup_steps do not count. Where the average of `average: asgd` begins, they count anew."""
    warmup_steps: int = bounded(0, Bounds(0, MOST))
    """Steps over which the learning rate rises linearly from 0; not with one_cycle."""
    cycle_warmup: float = bounded(0.25, Bounds(0, 1, above=True, below=True))
    """one_cycle: share of the run's steps on the way up."""
    cycle_annealing: float | None = bounded(None, Bounds(0, 1, above=True, below=True))
    """one_cycle: share of the run's steps on the way down, the last ones; between the two the rate stays at lr. null = all the rest."""
    cycle_div: float = bounded(10.0, COUNT)
    """one_cycle: the first step's learning rate is lr / cycle_div."""
    cycle_final_div: float = bounded(1e5, COUNT)
    """one_cycle: the last step's learning rate is lr / cycle_final_div."""
    cycle_beta: float | None = bounded(None, FRACTION)
    """one_cycle with adam or adamw: the first of betas where the rate is highest; it begins and ends at betas[0]. null = it stays there."""
    average: Literal["ema", "asgd"] | None = None
    """Validate and export an average of the weights: ema, an exponential one; or asgd, their mean, begun at the first validation worse
    than the best of all but the average_interval before it (Merity et al., 2017). null = the weights themselves."""
    average_decay: float = bounded(0.999, FRACTION)
    """ema: share of the average that stays at each step, once the run is long; it averages the last 1 / (1 - average_decay) steps or so."""
    average_interval: int = bounded(5, Bounds(1, MOST_LOGGED))
    """asgd: n, the latest validations that do not count when the best one is looked up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        cycle, warmup, has_betas = self.schedule == "one_cycle", self.warmup_steps, self.name in ("adam", "adamw")
        check(not (cycle and warmup), f"optim.schedule one_cycle has a warm-up of its own, but optim.warmup_steps is {warmup}: leave it 0")
        annealing = self.cycle_annealing
        check(annealing is None or cycle, "optim.cycle_annealing needs optim.schedule one_cycle: set it to null")
        ways = self.cycle_warmup + (annealing or 0)
        check(ways <= 1, f"optim.cycle_warmup and optim.cycle_annealing together take {ways:g} of the run: lower one, to 1 in all")
        fits = self.cycle_beta is None or (cycle and has_betas)
        check(fits, "optim.cycle_beta needs optim.schedule one_cycle and optim.name adam or adamw: set it to null")


@dataclass(frozen=True)
class TrainConfig(_Section):
    """The run: how long, how exact, what is written when."""

    epochs: int = bounded(40, COUNT)
    """Passes over the training stream."""
    max_steps: int | None = bounded(None, COUNT)
    """Stop after this many optimizer steps, even within an epoch. null = no limit."""
    init_from: str | None = None
    """Saved model to begin with, its weights and its vocabulary (docs/checkpoints.md): a folder, a run, or `user/model` on the Hub. It is
    validated before the first step. null = random weights, and the vocabulary of the training split."""
    patience: int | None = bounded(None, COUNT)
    """Stop after this many validations in a row without a new best perplexity; those within optim.warmup_steps do not count. With
    optim.average asgd take average_interval + 1 or more: the average begins after so many, and then they count anew. null = never."""
    accumulate: int = bounded(1, COUNT)
    """Number of neighbouring segments that one optimizer step trains on."""
    seed: int = bounded(1, Bounds(0, 2**32, below=True))
    """Seed of the initial weights, of every dropout mask, and of the segment lengths of data.bptt_jitter."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Precision of the matrix products; weights stay float32. auto = what the launcher says, else fp32. fp32 is IEEE float32. tf32
    needs an NVIDIA GPU of the Ampere generation or later, fp16 a GPU. On a GPU, bf16 computes the LSTM in tf32, because autocast would
    run it in float16."""
    deterministic: bool = False
    """Use deterministic GPU kernels only, somewhat slower: resume should then be exact to the bit on a GPU, as it always is on a CPU."""
    cuda_graph: bool = False
    """Record the gradient of a full segment as one CUDA graph, and replay it. Needs one GPU without torchrun, train.accumulate 1, a
    precision other than fp16, columns of at least data.bptt rows, and no data.bptt_jitter."""
    compress_gradients: bool = False
    """Send gradients between GPUs in bf16: half the bytes, but rounded sums. Needs several GPUs (NCCL)."""
    threads: int | None = bounded(None, Bounds(1, MOST_THREADS))
    """CPU threads of each rank. null = this host's physical cores, divided among its ranks."""
    timeout_minutes: float = bounded(10.0, Bounds(0, 525_600, above=True))
    """Minutes that a rank waits for the others before the run fails."""
    log_every: int = bounded(100, Bounds(1, MOST_LOGGED))
    """Steps between two lines of training metrics."""
    eval_every: int | None = bounded(None, COUNT)
    """Steps between two validations. null = at the end of each epoch."""
    save_every: int = bounded(1000, COUNT)
    """Steps between two checkpoints. One is always written at the end, and when a signal stops the run after a step."""
    keep_checkpoints: int = bounded(2, COUNT)
    """Number of checkpoints that stay on disk, the newest ones."""
    eval_columns: int = bounded(10, COUNT)
    """Columns that validation uses during training. The final figures always use 1."""
    run_dir: str | None = None
    """Directory of the run, where all its files go. null = a new runs/<UTC time>-<name>."""
    resume: bool = False
    """Go on from the newest complete checkpoint in train.run_dir, or start afresh where there is none yet."""
    profile: int | None = bounded(None, Bounds(1, MOST_PROFILED))
    """Profile this many steps of the main rank, after the first ten of a start, into profile/ of the run's directory: a trace
    (trace.json, for Perfetto) and a table of the ten operations that take most time. null = none."""
    dry_run: bool = False
    """Only try: build everything, do a few training steps and a little scoring, say how long the run will take and what memory and
    disk it needs. Nothing is written but what the caches of the data keep: data.cache_dir, where the run finds it, and the Hub's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not self.resume or self.run_dir is not None, "train.resume needs train.run_dir: name the run that is to go on")


@dataclass(frozen=True)
class TrackingConfig(_Section):
    """Where metrics go besides `metrics.jsonl`."""

    trackers: list[Literal["wandb", "tensorboard", "trackio"]] = field(default_factory=lambda: ["wandb"])
    """Trackers to start; [] = `metrics.jsonl` and `samples.jsonl` only."""
    project: str | None = None
    """Project in W&B and trackio. null = WANDB_PROJECT, else lstmlm."""
    run_name: str | None = None
    """Name of the run, also in runs/<UTC time>-<name>. null = the data set's name; in W&B WANDB_NAME, else the run directory's."""
    group: str | None = None
    """Group in W&B and trackio, to compare runs by."""
    job_type: str | None = None
    """W&B job type, to tell runs of a group apart."""
    tags: list[str] = field(default_factory=list)
    """W&B tags. [] = WANDB_TAGS."""
    notes: str | None = None
    """W&B notes: what this run is for."""
    log_model: bool = False
    """Whether each best model is logged as a W&B artifact, with the aliases `best` and `step-N`."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """W&B mode. auto = WANDB_MODE; without it, online where W&B answers and takes the key, else offline; never asks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.run_name or "-"
        names_folder = len(os.fsencode(name)) <= 200 and name.isprintable() and name not in (".", "..") and not {*"/\\"} & {*name}
        check(names_folder, f"tracking.run_name becomes a folder's name: up to 200 bytes and no / or \\, not {name!r}")


@dataclass(frozen=True)
class Config:
    """Everything a run is a function of, besides the data."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested dictionaries of plain values, as written to `config.yaml`."""
        return asdict(self)

    def to_flat_dict(self) -> dict[str, Any]:
        """The same with dotted keys, as on the command line."""
        return flatten(self.to_dict())


SECTIONS: dict[str, Any] = {section.name: section.type for section in fields(Config)}


def flatten(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def argument_parser(description: str) -> "ArgumentParser":
    """A parser that raises instead of printing usage; give it to `parse`."""
    import yaml
    from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings

    def value(text: str) -> Any:
        """As YAML has it. But `null` alone is null: `#` and `~` may be names, or marks of regions."""
        loaded = get_loader("yaml")(text)
        return text if loaded is None else loaded

    set_loader("word", value, (yaml.YAMLError,))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # `lstmlm COMMAND`, where argparse would say `lstmlm`.
    prog = " ".join(["lstmlm", *sys.argv[1:2]]) if Path(sys.argv[0]).name == "lstmlm" else None
    return ArgumentParser(prog=prog, exit_on_error=False, description=description, allow_abbrev=False, parser_mode="word")


KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
KINDS |= dict.fromkeys(("list", "tuple"), "a list such as [a, b]")


def _shortened(reason: str) -> str:
    """jsonargparse's reason why a value does not fit, in the words of the command line; any other as it is."""
    key = re.match('Parser key "(.+?)":', reason)
    types = re.findall(r"Expected (?:an? )?(?:<class '(\w+)'>|typing\.Literal\[(.*?)\])", reason)
    if not key or not types:
        return f"{key[1]}:{reason[key.end() :]}" if key else reason
    kinds = [KINDS.get(name, name) or "one of " + choices.replace("'", "") for name, choices in types]
    return f"{key[1]} must be {' or '.join(kinds)}, not {reason.rpartition('value: ')[2]}"


def parse(parser: "ArgumentParser", argv: Sequence[str] | None = None, repeated: Container[str] | None = ()) -> "Namespace":
    """Parse `argv` (the process's own arguments when None) into dataclasses. The options `repeated` may be given again; None = all.

    Raises:
        UsageError: With jsonargparse's reason in one line; or an argument is empty where its default is not; or an option is given
            twice.
    """
    from jsonargparse import ArgumentError

    words = sys.argv[1:] if argv is None else argv
    option, may_be_empty = "an argument", [f"--{key}" for key, value in parser.get_defaults().items() if value == ""]
    given: set[str] = set()
    for word in words:
        if word.startswith("--"):
            option = word.partition("=")[0]
            check(repeated is None or option in repeated or option not in given, f"{option} is given twice")
            given.add(option)
        check(word not in ("", f"{option}=") or option in may_be_empty, f"{option} is empty: give it a value, or leave it out")
    try:
        return parser.instantiate(parser.parse_args(words))
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        reason = one_line(error).removesuffix(".")
        raise UsageError(f"{_shortened(reason)} (--help lists every option)") from None


def presets() -> dict[str, Path]:
    """Configurations that come with lstmlm, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def _check_file(argv: list[str]) -> None:
    """Refuse a YAML file that would overwrite silently what stands before it, or that says something twice or nothing."""
    places = [place for place, argument in enumerate(argv) if argument.partition("=")[0] == "--config"]
    check(places in ([], [0]), "--config must come first, and once: what stands before it would be overwritten silently")
    if not places:
        return
    path = argv[0].partition("=")[2]
    check(bool(path), "--config is empty: give it a value, or leave it out")
    try:
        content = load_yaml(user_path(path))
    except UserError as error:
        hint = "" if os.path.lexists(user_path(path)) else f"; presets go by their names: {', '.join(presets())}"
        raise UsageError(f"--config: {error}{hint}") from None
    check(isinstance(content, dict), f"{path} holds no keys with values, such as `data:` or `data.batch_size: 20`")
    for key, values in content.items():
        section, dotted, _ = str(key).partition(".")
        check(section in SECTIONS, f"{path}: there is no section {section}, only {', '.join(SECTIONS)}")
        fits = section not in content if dotted else isinstance(values, dict)
        check(fits, f"{path}: write the keys of {section} with their values below it, or each as {section}.KEY, but not both")


def _config(values: "Namespace") -> Config:
    return Config(**{name: section(**vars(values[name])) for name, section in SECTIONS.items()})


def _faulty_file(argv: list[str], error: UsageError) -> str:
    """The YAML file, with a colon, if it has this error without the options after it."""
    name, _, path = argv[0].partition("=") if argv else ("", "", "")
    if name == "--config":
        try:
            _config(parse(_parser(""), argv[:1]))
        except UsageError as own:
            return f"{path}: " if str(own) == str(error) else ""
    return ""


@cache
def _parser(description: str) -> "ArgumentParser":
    """Kept, as jsonargparse takes a fifth of a second to read all docstrings."""
    parser = argument_parser(description)
    parser.add_argument("--config", action="config", help="YAML file, or name of a preset; overrides come after it.")
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(section.__doc__.rstrip("."))
        group.add_class_arguments(section, name, as_group=False)
    return parser


def load_config(
    argv: Sequence[str] | None = None,
    description: str = "Train an LSTM language model by truncated back-propagation through time.",
    **sections: dict[str, Any],
) -> Config:
    """Read a configuration from a command line: `--config FILE` first, or the name of a preset for FILE, then dotted overrides.

    Without `--config`, a run that is to go on has the configuration of its directory, where it wrote one.

    Args:
        argv: Arguments without the program's name; None takes the process's own, or none where `sections` are given.
        description: Of the command, for its help.
        sections: Values that come last: `load_config(data={"bptt": 70}, train={"epochs": 5})`.

    Raises:
        UsageError: Unknown key, wrong type, missing file, a value out of range, a file after what it would overwrite.
    """
    for name, section in sections.items():
        check(isinstance(section, dict), f"{name}={section!r}: a section is a dictionary, as train={{'epochs': 5}}")
    argv = list(argv if argv is not None else () if sections else sys.argv[1:])
    argv = [re.sub(r"^(--[\w.]+=|)None$", r"\1null", word) for word in argv]  # as a sweep of W&B writes it
    if argv[:1] == ["--config"]:
        argv[:2] = ["=".join(argv[:2])]
    option, _, name = argv[0].partition("=") if argv else ("", "", "")
    if option == "--config" and (preset := presets().get(name)) and not user_path(name).is_file():
        argv[0] = f"--config={preset}"
    argv += [f"--{key}={as_written(value)}" for key, value in flatten(sections).items()]
    _check_file(argv)
    try:
        values = parse(_parser(description), argv, repeated=None)
        if not values.train.resume or argv[0].startswith("--config="):
            return _config(values)
    except UsageError as error:
        if any(word.startswith("--print_config") for word in argv):
            _parser.cache_clear()  # it remembers that
        two_parts = re.search("unrecognized arguments: [^. ]+[ =]", str(error))
        hint = "; every option has two parts, as --data.dataset book.txt" if two_parts else ""
        raise UsageError(f"{_faulty_file(argv, error)}{error}{hint}") from None
    run = user_path(values.train.run_dir or "")
    written = run / RUN_CONFIG
    if written.exists():
        try:
            return load_config(["--config", str(written), *argv], description)
        except UsageError as error:
            place = "" if str(written) in str(error) else f" {written}"
            raise UsageError(f"with the run's own configuration{place}: {error}") from None
    of_a_run = all(word.startswith(("--train.", "--tracking.")) for word in argv if word.startswith("--"))
    told = f"there is no {run}, so no run to go on with: check train.run_dir"
    check(run.exists() or not of_a_run, f"{told}, or say what a new run trains, such as --config wikitext2")
    return _config(values)
