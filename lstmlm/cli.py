"""The command line: a function for each command of `lstmlm`, and so for each of the scripts.

Each command imports what it needs: torch takes seconds, and a report, or a wrong option of `train`, needs none.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, get_args

import lstmlm
from lstmlm.config import argument_parser, load_config, parse
from lstmlm.console import UserError, bar, check, print_line, print_result, printable, run_script, standard_output
from lstmlm.files import Output, user_path

Arguments = Sequence[str] | None  # without the program's name; None takes the process's own

MODEL_HELP = (
    "A model's folder, a run's, or user/model on the Hub; null = the newest runs/*/model (not of the toy language), else the one that "
    "comes with lstmlm."
)
RAW_HELP = "The text is English as people write it; Moses cuts it into words for a model of words between white space."
NORMALIZE_HELP = "The text is brought to NFC and loses what nobody sees, such as zero-width spaces."
COLUMN_HELP = "Column of the text in CSV, TSV, JSON or Parquet."
THREADS_HELP = "CPU threads; null = the physical cores."


def train(argv: Arguments = None) -> int:
    """Train a language model, or go on with a run that was stopped."""
    config = load_config(argv)

    from lstmlm.runtime.hardware import keep_memory
    from lstmlm.training.loop import train as train_model

    keep_memory()
    outcome = train_model(config)
    return 128 + outcome.signal if outcome.signal else 0


def prepare(argv: Arguments = None) -> int:
    """Make the vocabulary and the token ids that training needs, beforehand."""
    config = load_config(argv, "Fetch and read the data, and keep its token ids in data.cache_dir for train, whose options this takes.")

    from lstmlm.data.corpus import load_corpus
    from lstmlm.data.vocabulary import Vocabulary
    from lstmlm.model.pretrained import VOCABULARY, find_model
    from lstmlm.runtime.hardware import cores

    origin = config.train.init_from
    vocabulary = Vocabulary.load(find_model(origin) / VOCABULARY) if origin else None
    corpus = load_corpus(config.data, vocabulary, cores())
    size = sum(4 * facts.tokens for facts in corpus.facts.values()) / 1e6
    print_result("\n".join([*corpus.lines(), f"cache: {size:,.1f} MB of token ids in {user_path(config.data.cache_dir)}"]))
    return 0


def evaluate(argv: Arguments = None) -> int:
    """Exact perplexity of a saved model, static or adapting to the text."""
    from lstmlm.data.sources import local_files
    from lstmlm.evaluation.adaptation import Cache
    from lstmlm.evaluation.breakdown import breakdown, write_tokens
    from lstmlm.evaluation.evaluate import PROTOCOLS
    from lstmlm.evaluation.protocol import Measurement, Static, measure
    from lstmlm.evaluation.text import Text, check_split, file_text, split_text
    from lstmlm.evaluation.tuning import EVALUATIONS, TOKENS, tune
    from lstmlm.model.pretrained import load
    from lstmlm.records import to_json
    from lstmlm.runtime.hardware import use_machine

    parser = argument_parser("Exact perplexity of a saved model, static or adapting to the text (docs/evaluation.md).")
    parser.add_argument("--model", type=str | None, default=None, help=MODEL_HELP)
    parser.add_argument("--split", type=str | None, default=None, help="train, validation or test; null = test.")
    parser.add_argument("--text", type=str | None, default=None, help="A file to score in place of a split.")
    parser.add_argument("--text_column", type=str, default="text", help=COLUMN_HELP)
    parser.add_argument("--raw", action="store_true", help=f"With --text: {RAW_HELP}")
    parser.add_argument("--normalize", action="store_true", help=f"With --text: {NORMALIZE_HELP}")
    parser.add_argument("--protocol", choices=[*PROTOCOLS], default="static", help="Whether and how the model adapts.")
    parser.add_argument("--dataset", type=str | None, default=None, help="Where the data is now, if it was moved.")
    parser.add_argument("--cache_dir", type=str | None, default=None, help="Where token ids are kept.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument("--tune", action="store_true", help="Search the protocol's settings on validation, then score both splits once.")
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help="With --tune: most evaluations of the search.")
    parser.add_argument("--tune_tokens", type=int, default=TOKENS, help="With --tune: how many tokens of validation's start each scores.")
    parser.add_argument("--breakdown", action="store_true", help="Show how the nll is shared among kinds of tokens.")
    parser.add_argument("--output", type=str | None, default=None, help="Parquet file for every token's nll.")
    taken = {"lambda_"}  # which Python cannot call by its name
    for kind in PROTOCOLS.values():
        parser.add_class_arguments(kind, skip=taken, as_group=False)
        taken |= {setting.name for setting in dataclasses.fields(kind)}
    parser.add_argument("--lambda", type=float, default=Cache.lambda_, help="cache: weight of its distribution, in [0, 1).")
    parser.add_argument("--threads", type=int | None, default=None, help=THREADS_HELP)
    args = parse(parser, argv)
    kind = PROTOCOLS[args.protocol]
    named = vars(parser.parse_args(argv, defaults=False)).keys()  # what the command line itself gives a value
    settings = {setting.name: args[key] for setting in dataclasses.fields(kind) if (key := setting.name.removesuffix("_")) in named}
    protocol = kind(**settings)
    misplaced = named & {name.removesuffix("_") for name in taken} - {"columns", "reset", *protocol.settings}
    rule = f" with rule {protocol.settings['rule']}" if "epsilon" in misplaced & settings.keys() else ""
    check(not misplaced, f"protocol {kind.name}{rule} has no setting {', '.join(f'--{name}' for name in sorted(misplaced))}")
    check(not (args.text and args.split), "--text and --split: the text is in place of the split, so name one of them")
    check(bool(args.text) or not (args.raw or args.normalize), "--raw and --normalize are for --text: a split is read as training read it")
    check(bool(args.text) or "text_column" not in named, "--text_column is for --text: a split is read as training read it")
    check_split(args.split or "test")
    others = args.text or args.split not in (None, "validation")
    check(not (args.tune and others), "--tune searches on validation and then scores test once: leave out --text and --split")
    check(args.tune or not named & {"evaluations", "tune_tokens"}, "--evaluations and --tune_tokens need --tune")
    split = "test" if args.tune else args.split or "test"
    output = Output(args.output, filter(None, [args.text, args.model])) if args.output else None
    if output:
        parquet = output.plain and output.path.suffix == ".parquet"
        check(parquet, f"--output {args.output}: the name of a Parquet file must end with .parquet")
    use_machine(args.threads)
    saved = load(args.model, args.raw, args.normalize, args.dataset, args.cache_dir)
    if output:
        trained_on: list[Path] = []
        with suppress(UserError, OSError):  # a model need not say where its text is, nor need it be here
            trained_on = local_files(saved.data)
        output.keep(trained_on)
    text = file_text(saved, args.text, args.text_column) if args.text else split_text(saved, split)
    train = split_text(saved, "train").stream if args.breakdown else None

    def score(text: Text, protocol: Static) -> Measurement:
        with bar(text.name, "token", len(text.stream)) as scored:
            return measure(saved, text, protocol, scored.update)

    tuned: dict[str, Any] = {}
    if args.tune:
        protocol, search = tune(saved, protocol, args.evaluations, args.tune_tokens, print_line)
        validation = score(split_text(saved, "validation"), protocol)
        tuned = {"tuning": search, "validation": {"split": "validation", **validation.figures()}}
    result = score(text, protocol)
    groups = [] if train is None else breakdown(result, saved.vocabulary, train)
    if output:
        write_tokens(output, result, saved.vocabulary)
    if args.json:
        source = {"text": args.text} if args.text else {"split": split}
        figures = {**source, **result.figures(), **tuned}
        if args.breakdown:
            figures["breakdown"] = groups
        print_result(to_json(figures).decode())
    else:
        lines = [f"validation: {validation.line()}"] if args.tune else []
        lines.append(f"{args.text or split}: {result.line()}")
        for group in groups:
            share = group["nll"] / result.nll
            lines.append(f"{group['name']:<28}{group['targets']:>12,} targets{group['ppl']:>14,.2f} ppl{share:>8.1%} of the nll")
        print_result("\n".join(lines))
    return 0


def score(argv: Arguments = None) -> int:
    """Surprisal of every word of a text, as a table."""
    from lstmlm.evaluation.surprisal_tables import Addition, Format, Scoring, score_files
    from lstmlm.runtime.hardware import use_machine

    parser = argument_parser("Surprisal (in bits) and entropy of every word of a text, as a table (docs/scoring.md).")
    parser.add_argument("files", nargs="+", type=str, help="Texts, a sentence a line, or what else training reads; - is standard input.")
    parser.add_argument("--model", type=str, action="append", help=f"{MODEL_HELP} Several: --model A --model B.")
    parser.add_class_arguments(Scoring, as_group=False, skip={"add", "line_by", "raw", "normalize"})
    parser.add_argument("--line_by", nargs="+", type=str, default=[], help="Of a table of words: columns that tell its lines apart.")
    parser.add_argument("--add", nargs="+", type=str, default=[], help=f"More columns: {', '.join(get_args(Addition))}.")
    parser.add_argument("--raw", action="store_true", help=RAW_HELP)
    parser.add_argument("--normalize", action="store_true", help=NORMALIZE_HELP)
    parser.add_argument("--format", type=Format | None, default=None, help="Form of the table; null = as --output ends, else tsv.")
    parser.add_argument("--output", type=str | None, default=None, help="File for the table; null = standard output.")
    parser.add_argument("--html", type=str | None, default=None, help="File for a page that shades each word.")
    parser.add_argument("--text_column", type=str, default="text", help=COLUMN_HELP)
    parser.add_argument("--dataset", type=str | None, default=None, help="Where the training text is, for frequency.")
    parser.add_argument("--threads", type=int | None, default=None, help=THREADS_HELP)
    args = parse(parser, argv, repeated=["--model"])
    scoring = Scoring(**{field.name: args[field.name] for field in dataclasses.fields(Scoring)})
    use_machine(args.threads)
    models = [None if model == "null" else model for model in args.model or ["null"]]
    for line in score_files(args.files, models, scoring, args.format, args.output, args.html, args.text_column, args.dataset):
        print_line(line)
    return 0


def pairs(argv: Arguments = None) -> int:
    """Accuracy on minimal pairs of sentences (BLiMP's layout)."""
    from lstmlm.evaluation.pairs import By, score_pairs, summarize, write_pairs
    from lstmlm.evaluation.surprisal_tables import form_named
    from lstmlm.runtime.hardware import use_machine

    parser = argument_parser("How often the good sentence of a minimal pair is the likelier one, for each UID and over all.")
    parser.add_argument("file", type=str, help="Rows with sentence_good, sentence_bad, perhaps UID: .jsonl, .json, .csv, .tsv, .parquet.")
    parser.add_argument("--by", type=By, default="sentence", help="What is compared: sentences, or the critical words of BLiMP's methods.")
    parser.add_argument("--model", type=str | None, default=None, help=MODEL_HELP)
    parser.add_argument("--raw", action="store_true", help=RAW_HELP)
    parser.add_argument("--normalize", action="store_true", help=NORMALIZE_HELP)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="File: .csv, .tsv, .parquet, else JSON lines; - is standard output."
    )
    parser.add_argument("--threads", type=int | None, default=None, help=THREADS_HELP)
    args = parse(parser, argv)
    output = Output(args.output, filter(None, [args.file, args.model])) if args.output else None
    form = form_named(args.output)
    tell = print_line if output and output.standard else print_result  # standard output has one result
    use_machine(args.threads)
    scored = score_pairs(args.file, args.model, args.raw, args.by, args.normalize)
    if output:
        write_pairs(output, form, scored)
    summaries = summarize(scored)
    if args.json:
        tell(json.dumps(summaries))
    else:
        tell("UID\tpairs\taccuracy\tties\tunknown\tknown_pairs\tknown_accuracy")
        for name, each in summaries.items():  # in a name, a tab would end its column
            shares = {key: "" if each[key] is None else f"{each[key]:.4f}" for key in ("accuracy", "unknown", "known_accuracy")}
            tell("\t".join(str(cell) for cell in ({"UID": printable(name)} | each | shares).values()))
    return 0


def generate(argv: Arguments = None) -> int:
    """Sample text from a saved model."""
    from lstmlm.data.reading import read_rows
    from lstmlm.generation import Sampling, stream_text, stream_texts
    from lstmlm.runtime.hardware import use_machine

    parser = argument_parser("Sample text from a saved model.")
    parser.add_argument("--model", type=str | None, default=None, help=MODEL_HELP)
    parser.add_argument("--prompt", type=str, default="", help="Text to go on from; empty = the beginning of a line.")
    parser.add_argument("--prompt_file", type=str | None, default=None, help="Prompts, one a line; - is standard input.")
    parser.add_argument("--count", type=int, default=1, help="Number of texts to sample for each prompt.")
    parser.add_argument("--seed", type=int | None, default=None, help="The same seed gives the same texts.")
    parser.add_class_arguments(Sampling, as_group=False, skip={"allow_unk", "ban", "stop"})
    parser.add_argument("--allow_unk", action="store_true", help="Let <unk> be sampled.")
    parser.add_argument("--ban", nargs="+", type=str, default=[], help="Tokens that are never sampled.")
    parser.add_argument("--stop", nargs="+", type=str, default=[], help="Tokens that end the text, as its last.")
    parser.add_argument("--raw", action="store_true", help="Prompt and result are text as people write it (Moses).")
    parser.add_argument("--threads", type=int | None, default=None, help=THREADS_HELP)
    args = parse(parser, argv)
    check(not args.prompt or args.prompt_file is None, "--prompt and --prompt_file: give one of the two")
    prompts = [args.prompt] if args.prompt_file is None else [text for text, _ in read_rows(Path(args.prompt_file), "text")]
    check(bool(prompts), f"there is no prompt in {args.prompt_file}")
    options = {field.name: args[field.name] for field in dataclasses.fields(Sampling)}
    use_machine(args.threads)
    with standard_output() as out:
        if len(prompts) == args.count == 1 and out.isatty() and not args.raw:
            for piece in chain(stream_text(prompts[0], args.model, args.seed, **options), ["\n"]):
                out.write(piece.encode())
                out.flush()
        else:
            for number, text in enumerate(stream_texts(prompts, args.count, args.model, args.seed, args.raw, **options)):
                apart = "\n" * (number > 0 and args.lines > 1)  # an empty line between texts of several lines
                out.write(f"{apart}{text}\n".encode())
                out.flush()
    return 0


def report(argv: Arguments = None) -> int:
    """One HTML page about runs, or a Report in W&B."""
    from lstmlm.report import page, wandb_report

    parser = argument_parser("One HTML page about runs, finished or not; or, with --wandb, a Report and a view in W&B. Prints where it is.")
    parser.add_argument("runs", nargs="*", type=str, default=[], help="Run directories, such as runs/*; none with --wandb.")
    parser.add_argument("--output", type=str, default="report.html", help="The page: one file that needs no network.")
    parser.add_argument("--png", type=str | None, default=None, help="Folder to write the plots to as PNG too.")
    parser.add_argument("--wandb", type=str | None, default=None, help="ENTITY/PROJECT: report there, on its runs.")
    parser.add_argument("--group", type=str | None, default=None, help="With --wandb: only the runs of this group.")
    args = parse(parser, argv)
    check(bool(args.runs) != bool(args.wandb), "name run directories, such as runs/*, or --wandb ENTITY/PROJECT")
    check(bool(args.wandb) or not args.group, "--group belongs to --wandb ENTITY/PROJECT")
    page_named = args.png or "output" in vars(parser.parse_args(argv, defaults=False))
    check(bool(args.runs) or not page_named, "--output and --png belong to a page about run directories")
    if args.runs:
        read = (file for run in args.runs for file in user_path(run).glob("evaluations/*.json"))
        output = Output(args.output, [*args.runs, *read])
        page.write_report(args.runs, output, args.png)
        if not output.standard:
            print_result(args.output)
        return 0
    print_result("\n".join(wandb_report.save(*wandb_report.build(args.wandb, args.group))))
    return 0


def export(argv: Arguments = None) -> int:
    """A saved model for others: ONNX, transformers, or a repository on the Hub."""
    parser = argument_parser("A saved model in the formats of others. Prints where it is now.")
    parser.add_argument("model", type=str | None, nargs="?", default=None, help=MODEL_HELP)
    parser.add_argument("--to", choices=("onnx", "transformers", "hub"), required=True, help="The format (docs/sharing.md).")
    parser.add_argument("--output", type=str, required=True, help="Folder to write; for the Hub, user/model.")
    parser.add_argument("--private", action="store_true", help="Hub: a new repository is seen by its owner alone.")
    args = parse(parser, argv)
    check(args.to == "hub" or not args.private, f"--private is for --to hub, not {args.to}")

    from lstmlm.export.onnx import export_onnx
    from lstmlm.export.transformers import export_transformers, push_to_hub

    if args.to == "hub":
        print_result(push_to_hub(args.model, args.output, args.private))
    else:
        write = {"onnx": export_onnx, "transformers": export_transformers}[args.to]
        write(args.model, args.output)
        print_result(args.output)
    return 0


def import_model(argv: Arguments = None) -> int:
    """A model trained with other code, as one of this project."""
    parser = argument_parser(
        "A model of word_language_model, awd-lstm-lm or colorlessgreenRNNs as one of this project, without running any of its code "
        "(docs/import.md). Prints where it is now."
    )
    parser.add_argument("file", type=str, help="The model or its state dict, as torch.save wrote it.")
    parser.add_argument("--vocab", type=str, required=True, help="Its words: vocab.txt, or the folder of its training text.")
    parser.add_argument("--output", type=str, required=True, help="Folder to write.")
    args = parse(parser, argv)

    from lstmlm.model import imported

    imported.import_model(args.file, args.vocab, args.output)
    print_result(args.output)
    return 0


COMMANDS = {command.__name__: command for command in (train, prepare, evaluate, score, pairs, generate, report, export)}
COMMANDS["import"] = import_model  # a word of Python's own


def overview() -> str:
    """The commands, each with its sentence."""
    lines = [f"  lstmlm {name:<10} {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(["Stateful LSTM language models.", "", *lines, "", "lstmlm COMMAND --help explains its options; lstmlm --version."])


def dispatch() -> int:
    """Run the command that the first argument names."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print_result(overview())
        return 0
    if name == "--version":
        print_result(f"lstmlm {lstmlm.__version__}")
        return 0
    check(name in COMMANDS, f"there is no command {name!r}: name one of {', '.join(COMMANDS)}")
    return COMMANDS[name](argv)


def main(command: Callable[[], int] = dispatch) -> NoReturn:
    """The entry point of `lstmlm`, and of each script."""
    sys.exit(run_script(command))
