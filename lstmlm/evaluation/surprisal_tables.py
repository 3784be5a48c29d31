"""Scored texts as tables: the files that are read, the columns of the rows, the forms that they are written in, and a page."""

import csv
import json
import logging
import math
import re
from collections import ChainMap, Counter, namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Literal, get_args

from lstmlm.config import check_fields
from lstmlm.console import UserError, bar, check
from lstmlm.data.reading import STANDARD_INPUT, check_tables, is_table, read_rows
from lstmlm.data.sources import local_files
from lstmlm.data.tokenize import EOS, plain
from lstmlm.evaluation.perplexity import exponential
from lstmlm.evaluation.surprisal import MEASURES, By, Pieces, Reader, Sentence, Space, Window, read_windows
from lstmlm.evaluation.surprisal_page import shaded_page
from lstmlm.evaluation.text import Reset, Resets, split_text
from lstmlm.files import Output
from lstmlm.model.pretrained import ModelPlace, SavedModel, load

logger = logging.getLogger(__name__)

Format = Literal["tsv", "csv", "jsonl", "parquet", "neural-complexity"]
Addition = Literal["length", "frequency", "punctuation", "previous", "previous2", "previous3"]
PREVIOUS: tuple[Addition, ...] = ("previous", "previous2", "previous3")  # so many rows before
Row = Sequence[Any]
Frequency = Callable[[str], float | None]
Rows = Iterator[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Scoring:
    """How texts become rows."""

    by: By | None = None
    """What has a row: a token; a word between white space; a region; a sentence. null = a region with --regions or --line_by; else a
    token where the tokens are words between white space; else a word."""
    reset: str = "line"
    """Where the state starts afresh: at each line; at each document (at a `= Title =`, or after an empty line where there are no
    titles); never; or, by the name of a column, at each row in which its value changes."""
    eos: bool = False
    """Whether the end of a line has a row too."""
    space: Space = "before"
    """Which white space counts with a word: the one before it, as in tokens of bpe and characters, or the one after it."""
    regions: str | None = None
    """What parts a sentence into regions: a column with a label for each word, or a mark that stands between them, such as |."""
    line_by: Sequence[str] = ()
    """Columns of a table that has a row for each word or region: neighbouring rows with the same values in them are one line."""
    add: Sequence[Addition] = ()
    """More columns: length in characters, frequency in the training text, surprisal of the punctuation at a row's ends, values of the
    row before in the sentence (previous), and of those two and three before."""
    layout: Literal["long", "wide"] = "long"
    """Of several models: a row for each, or columns for each."""
    raw: bool = False
    """Whether the text is English as people write it; Moses cuts it into words for a model of words between white space."""
    normalize: bool = False
    """Whether the text is brought to NFC first and loses what nobody sees: zero-width spaces, soft hyphens."""

    def __post_init__(self) -> None:
        check_fields(self)
        named = [option for option in ("regions", "line_by") if getattr(self, option)]
        check(len(named) < 2, "--regions parts lines into regions, and --line_by makes lines of them: leave one out")
        check(self.by != "region" or bool(named), "--by region needs --regions or --line_by")
        check(not named or self.by in (None, "region"), f"--{''.join(named)} has a row for each region: leave out --by {self.by}")

    def unit(self, saved: Sequence[SavedModel]) -> By:
        """What has a row with these models."""
        if self.by or self.regions or self.line_by:
            return self.by or "region"
        kinds = {(model.text_vocabulary.level, model.text_vocabulary.tokenizer) for model in saved}
        return "token" if kinds == {("word", "whitespace")} else "word"


class ScoreTable:
    """The columns and the rows of scored sentences; `values` are names of the other columns of the user's table."""

    def __init__(
        self, saved: Sequence[SavedModel], names: Sequence[str], scoring: Scoring, values: Sequence[str] = (), labelled: bool = False
    ) -> None:
        self.by, self._eos, self._names, self._wide = scoring.unit(saved), scoring.eos, names, scoring.layout == "wide"
        words = self.by != "token" or all(model.text_vocabulary.level == "word" for model in saved)
        check(words or scoring.space == "before", "--space after needs --by word: a token has the white space that is in it")
        check(not self._wide or self.by != "token", "--layout wide needs --by word: models cut a text into different tokens")
        check("frequency" not in scoring.add or words, "--add frequency needs --by word")
        check("punctuation" not in scoring.add or self.by != "token", "--add punctuation needs --by word: a mark is a token of its own")
        of_words = [name for name in ("frequency", *PREVIOUS) if name in scoring.add]
        check(self.by != "sentence" or not of_words, f"--add {' '.join(of_words)} is of words: leave it out with --by sentence")
        self._frequencies = [frequencies(model) if "frequency" in scoring.add else None for model in saved]
        own = [name for name in ("frequency", "punctuation", "length") if name in scoring.add]
        added = own + [f"{before}_{name}" for before in PREVIOUS if before in scoring.add for name in ("surprisal", "unk", *own)]
        lengths = [name for name in added if name.endswith("length")]  # of the text, so the same for every model
        self._of_models = [*MEASURES[self.by], *(name for name in added if name not in lengths)]
        self._own = [*dict.fromkeys(("sentence_id", f"{self.by}_id", self.by)), *["label"] * labelled]
        if self._wide:
            self._names = [re.sub(r"\W", "_", name) for name in names]  # as a formula of R takes them
            check(len({*self._names}) == len(names), f"--layout wide has columns of the same name for two of {', '.join(names)}")
            self._own += [f"{measure}_{name}" for name in self._names for measure in self._of_models]
        else:
            self._own += [*["model"] * (len(names) > 1), *self._of_models]
        self._own += lengths
        self.columns = [*self._own]  # their names
        for name in values:
            while name in self.columns:
                name += "_input"
            self.columns.append(name)

    def rows(self, window: Window) -> Iterator[Row]:
        """Of some sentences, in the order of the text."""
        for sentence, pieces in window:
            of_models = [self._units(sentence, *each) for each in zip(pieces, self._names, self._frequencies, strict=True)]
            units: Iterable[Mapping[str, Any]] = chain(*of_models)
            if self._wide:
                units = (ChainMap(*beside) for beside in zip(*of_models, strict=True))
            for unit in units:
                values = sentence.values[min(unit[f"{self.by}_id"], len(sentence.values)) - 1]
                yield [*(unit[name] for name in self._own), *values]

    def _units(self, sentence: Sentence, pieces: Pieces, model: str, frequency: Frequency | None) -> list[dict[str, Any]]:
        """What a model says of each unit of a sentence and of the one before it, by the names of the columns."""
        labels = dict(enumerate(sentence.labels, 1))
        units = pieces.units(self.by, sentence.regions, self._eos)
        for place, unit in enumerate(units):
            text = unit[self.by]
            unit |= {"sentence_id": sentence.number, "label": labels.get(unit[f"{self.by}_id"]), "model": model}
            unit["length"] = None if text == EOS else len(text)
            unit["frequency"] = frequency(text) if frequency and text != EOS else None
            for back, name in enumerate(PREVIOUS, 1):
                before = units[place - back] if place >= back else {}
                unit |= {f"{name}_{measure}": before.get(measure) for measure in ("surprisal", "unk", "frequency", "punctuation", "length")}
            if self._wide:
                unit |= {f"{measure}_{model}": unit[measure] for measure in self._of_models}
        return units


def score_text(text: str, model: ModelPlace = None, reset: str = "line", eos: bool = False, raw: bool = False, **options: Any) -> list[Any]:
    """The rows of `lstmlm score` for a text at hand, as named tuples; `pandas.DataFrame` takes them.

    Args:
        text: One line or several.
        model, raw: As for `load`.
        reset: Where the model forgets what it read, and goes on as after an `<eos>` at the very start: at the end of every `line`; where a
            `document` begins, which is at a `= Title =`, or after an empty line in a text without titles; or `never`.
        eos: Whether the `<eos>` at a line's end has a row too.
        options: `by`, `space`, `add`, `regions` (a mark) and `normalize`, as in `Scoring`.

    Raises:
        UserError: The model cannot be read, or the text is empty.
    """
    scoring = Scoring(reset=reset, eos=eos, raw=raw, **options)
    saved = load(model, raw, scoring.normalize)
    lines = _lines(plain(text))
    table = ScoreTable([saved], [""], scoring)
    sentences = sentences_of([("text", lambda: ((line, {}) for line in lines))], scoring)
    row = namedtuple("Row", table.columns)  # type: ignore[misc]
    windows = read_windows(sentences, [Reader(saved, scoring.space, eos)])
    rows = [row(*values) for window in windows for values in table.rows(window)]
    check(bool(rows), "there is no text to score")
    return rows


def sentences_of(texts: Sequence[tuple[str, Callable[[], Rows]]], scoring: Scoring, values: Sequence[str] = ()) -> Iterator[Sentence]:
    """Sentences of texts, one after the other: of each its name, which is a value of its sentences where there are several, and what gives
    its rows, whose other columns are `values`. A document ends with its text at the latest."""
    columns, number = scoring.line_by, 0
    for name, read in texts:
        there = "nor any other beside its text (a table has some: .csv, .tsv, .json, .jsonl, .parquet)"
        if values:
            there = f"only {', '.join(values)}"
        if is_table(name) and next(read(), None) is None:
            continue
        for column in columns:
            check(column in values, f"--line_by {column}: {name} has no such column, {there}")
        known = scoring.reset in (*get_args(Reset), *values)
        check(known, f"--reset {scoring.reset}: it is none of {', '.join(get_args(Reset))}, and {name} has no such column, {there}")
        parts = partial(_joined, name, read, values, columns) if columns else partial(_parted, name, read, values, scoring.regions)
        fresh = Resets(scoring.reset, lambda parts=parts: (line for text, *_ in parts() for line in _lines(text)))  # type: ignore[misc, arg-type]
        doubts, begun = _Doubts(name, bool(columns)), [object()]  # the latter: the value of the column where the document began
        for text, regions, labels, own in parts():
            number += 1
            lines = [(line, fresh(line) and (number == 1 or scoring.reset != "never")) for line in _lines(text)]
            if scoring.reset not in get_args(Reset):
                before, begun = begun, [own[0][values.index(scoring.reset)]]
                lines = [(line, place == 0 and begun != before) for place, (line, _) in enumerate(lines)]
            doubts.see(text, regions, own)
            yield Sentence(number, lines, regions, labels, [[name, *row] for row in own] if len(texts) > 1 else own)
        doubts.warn()


class _Doubts:
    """What a text has that may be meant otherwise than it is read, and the warnings about it. `joined`: its rows were joined to lines."""

    def __init__(self, name: str, joined: bool) -> None:
        self._name, self._joined, self._table, self._seen = name, joined, is_table(name), Counter[str]()

    def see(self, text: str, regions: Sequence[tuple[str, int]], own: Sequence[Row]) -> None:
        """Take note of a sentence."""
        missing = sum(text.strip() == "NA" for text in ([region for region, _ in regions] if self._joined else [text]))
        self._seen.update(lines=1, empty=not text.strip(), missing=missing, tab="\t" in text, single=len(own) == 1)
        self._seen["again"] += self._joined and any(map(_begins_again, zip(*own, strict=True)))

    def warn(self) -> None:
        """Say what there was, each in a line."""
        seen, missing, told = self._seen, f"{self._seen['missing']:,}; leave the cell empty if nothing is meant", list[str]()
        told += [f"sentences without text: {seen['empty']:,}"] * bool(self._table and seen["empty"])
        told += [f"texts that are NA, scored as a word: {missing}"] * bool(self._table and seen["missing"])
        all_tabs, all_single = (seen[kind] == seen["lines"] > 1 for kind in ("tab", "single"))
        told += ["each line has a tab; a table is read as one if its name ends with .tsv"] * (all_tabs and not self._table)
        told += ["each line has one row: for --line_by the rows of a line stand side by side"] * (all_single and self._joined)
        again = f"lines with a column that counts from 1, but not once: {seen['again']:,}; --line_by takes several columns"
        for message in [*told, *[again] * bool(seen["again"])]:
            logger.warning("%s: %s", self._name, message)


def _begins_again(column: Sequence[Any]) -> bool:
    """Whether a column counts from 1 to 3 or further, and begins again or has a number twice."""
    numbers = [int(value) for value in map(str, column) if value.isdecimal()]
    steps = pairwise([0, *numbers])
    return len(numbers) == len(column) > max(numbers, default=0) >= 3 and all(after in (1, before, before + 1) for before, after in steps)


# Of a sentence: its text, and regions, labels and values as `Sentence` has them.
Parts = tuple[str, list[tuple[str, int]], list[str], list[Row]]


def _parted(name: str, read: Callable[[], Rows], values: Sequence[str], mark: str | None) -> Iterator[Parts]:
    """Each row of a text is a sentence; `mark` parts it into regions."""
    for place, text, row in _alike(name, read, values):
        regions, labels = list[tuple[str, int]](), list[str]()
        if mark is not None:
            text, regions, labels = _regions(place, text, row, mark)
        yield text, regions, labels, [[*row.values()]]


def _joined(name: str, read: Callable[[], Rows], values: Sequence[str], columns: Sequence[str]) -> Iterator[Parts]:
    """Neighbouring rows of a text with the same values in some columns are a sentence, each a region of it."""
    for _, rows in groupby(_alike(name, read, values), key=lambda each: [each[2][column] for column in columns]):
        regions, of_regions = list[tuple[str, int]](), list[Row]()
        for _, text, row in rows:
            words = text.split()
            regions.append((" ".join(words), len(words)))
            of_regions.append([*row.values()])
        yield " ".join(text for text, _ in regions if text), regions, [], of_regions


def _alike(name: str, read: Callable[[], Rows], values: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Place and text of each row, and its other columns, which are the same in all of them."""
    for place, (text, row) in enumerate(read(), 1):
        other = row.keys() ^ set(values)
        check(not other, f"{name}, row {place}: the column {', '.join(sorted(other))} is not in all rows and files")
        yield f"{name}, row {place}", text, {value: row[value] for value in values}


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


def _regions(place: str, text: str, row: dict[str, Any], regions: str) -> tuple[str, list[tuple[str, int]], list[str]]:
    """A sentence without marks, its regions, and their labels."""
    check(len(_lines(text)) == 1, f"{place} has a line break: regions are parts of one line")
    if regions not in row:
        check(not any(map(str.isalnum, regions)), f"--regions {regions}: there is no such column; a mark has no letters")
        parts = [part.strip() for part in text.split(regions)]
        parts = parts[parts[0] == "" : len(parts) - (parts[-1] == "")]  # a mark at a line's end parts nothing
        return " ".join(filter(None, parts)), [(part, len(part.split())) for part in parts], []
    words, labels = text.split(), str(row[regions]).split()
    check(len(words) == len(labels), f"{place} has {len(words)} words, but {len(labels)} labels in column {regions}")
    pairs = groupby(zip(labels, words, strict=True), key=lambda pair: pair[0])
    found = [(label, [word for _, word in own]) for label, own in pairs]
    return text, [(" ".join(own), len(own)) for _, own in found], [label for label, _ in found]


def score_files(
    files: Sequence[str],
    models: Sequence[str | Path | None] = (None,),
    scoring: Scoring = Scoring(),
    form: Format | None = None,
    output: str | Path | None = None,
    page: str | Path | None = None,
    column: str = "text",
    dataset: str | None = None,
) -> list[str]:
    """Score texts, read one after the other as one, and write their rows.

    Args:
        files: As for `read_rows`. A document ends with its file at the latest.
        models: Each as for `load`.
        form: None = what the name of `output` says: .csv, .jsonl, .parquet; else tsv.
        output: File that gets the rows when all are there; None = standard output, as they come.
        page: File that gets the text as an HTML page, each word shaded by its surprisal; None = no page.
        column: Where the text of a row stands, in a file that has rows.
        dataset: Where the training text is, of which `frequency` is.

    Returns:
        What was scored, in lines.

    Raises:
        UsageError: A text cannot be read or has no token, or the arguments do not go together. What was there before stays.
        UserError: A model cannot be read, its scores are not finite, or an output cannot be written.
    """
    files = ["-" if name in STANDARD_INPUT else name for name in files]
    named = form_named(output)
    check(form in (None, *FORMS), f"form must be one of {', '.join(FORMS)}, not {form!r}")
    check(not named or form in (None, named, "neural-complexity"), f"--output {output}: its name says {named}, but --format {form}")
    form = form or named or "tsv"
    plain_words = form == "neural-complexity"
    others = scoring.eos or scoring.by or scoring.regions or scoring.line_by or scoring.add or len(models) > 1
    check(not (plain_words and others), "neural-complexity's table is of words and one model, without <eos>: leave out other options")
    kept: list[str | Path] = [name for name in (*files, *models) if name is not None]
    out = Output("-" if output is None else output, kept)
    shaded = None if page is None else Output(page, [*kept, *([out.path] if out.plain else [])], "--html")
    check(form != "parquet" or not out.standard, "parquet is not for standard output: name a file with --output")
    check(not (shaded and shaded.standard and out.standard), "--html: standard output has the table: name a file")
    check(files.count("-") <= 1, "standard input can be read once only: name - once")
    check_tables(column, *files)
    check(dataset is None or "frequency" in scoring.add, "--dataset says where the training text is, for --add frequency alone")
    for name in files:
        check(name == "-" or Path(name).exists(), f"cannot read {name}: there is no such file")
    saved = [load(model, scoring.raw, scoring.normalize, dataset) for model in models]
    trained = [file for own in saved for file in local_files(own.data)] if "frequency" in scoring.add else []
    for place in filter(None, (out, shaded)):
        place.keep(trained)
    names = _names(saved, models)
    if plain_words:
        scoring = replace(scoring, by="word")
    texts = [(name, _source(name, column, scoring.reset)) for name in files]
    values = list(next(chain.from_iterable(read() for name, read in texts if name != "-"), ("", {}))[1])
    table = ScoreTable(saved, names, scoring, [*["file"] * (len(texts) > 1), *values], scoring.regions in values)
    with ExitStack() as stack:
        file = stack.enter_context(out.opened())
        bars = [stack.enter_context(bar(name, "token", shown=not out.standard)) for name in names]
        readers = [Reader(model, scoring.space, scoring.eos, shown.update) for model, shown in zip(saved, bars, strict=True)]
        windows = read_windows(sentences_of(texts, scoring, values), readers)
        if shaded:
            characters = table.by == "token" and all(model.text_vocabulary.level == "char" for model in saved)
            unit: By = "region" if table.by == "region" else "token" if characters else "word"
            windows = shaded_page(stack.enter_context(shaded.opened()), windows, ", ".join(files), names, unit)
        rows = filter(None, (list(table.rows(window)) for window in windows))
        first_rows = next(rows, [])
        check(bool(first_rows), f"there is no text to score in {', '.join(files)}")
        FORMS[form](file, table.columns, chain([first_rows], rows))
        check(all(reader.tokens for reader in readers), f"there is no text to score in {', '.join(files)}")
    for name, reader in zip(names, readers, strict=True):
        told = ", ".join(files) + f", model {name}" * (len(names) > 1)
        reader.unfamiliar.warn(told, reader.unknown, reader.tokens)
    return [
        f"{name}: {reader.tokens:,} tokens, {reader.unknown / reader.tokens:.2%} unknown, {reader.bits / reader.tokens:.4f} bits each, "
        f"ppl {exponential(reader.bits / reader.tokens * math.log(2)):.2f}"
        for name, reader in zip(names, readers, strict=True)
    ]


def _names(saved: Sequence[SavedModel], models: Sequence[str | Path | None]) -> list[str]:
    """What rows and columns call each model: its run or folder, or its path where two have the same name."""
    paths = [own.folder if model is None else Path(model) for own, model in zip(saved, models, strict=True)]
    # ., .. and the `model` of the run that one stands in have a name too
    whole = [path.resolve() if path.name in ("", "..", "model") else path for path in paths]
    names = [path.parent.name if path.name == "model" else path.name for path in whole]
    names = [str(path) if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]
    check(len({*names}) == len(names), f"--model {next((n for n in names if names.count(n) > 1), '')} is named twice")
    return names


def form_named(output: str | Path | None) -> Format | None:
    """The form that the ending of a file's name says."""
    ending = Path(output or "").suffix.lower()
    check(ending not in (".json", ".gz"), f"--output {output}: no table is written as {ending}; .csv, .tsv, .jsonl and .parquet are")
    return {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}.get(ending)  # type: ignore[return-value]


def _source(name: str, column: str, reset: str) -> Callable[[], Rows]:
    """The rows of a text, to be read more than once where documents must be told apart."""
    read: Callable[[], Rows] = partial(read_rows, Path(name), column)
    if name == "-" and reset == "document":
        held = list(read())
        return lambda: iter(held)
    return read


def frequencies(saved: SavedModel) -> Frequency:
    """Of a word: log10 of its occurrences per million words of the training text, each count plus one, so that none is 0.

    Words are compared as the model reads them, without the punctuation at their ends. None = the training text would have it in several
    words: it is a region of several, or Moses cuts it (`don 't`).
    """
    vocabulary = saved.vocabulary
    counts, written = Counter[str](), Counter[str]()
    for block in split_text(saved, "train").blocks():
        written.update(vocabulary.prepare(block).split())
    for word, count in written.items():
        counts[_bare(word)] += count
    per_million = 1e6 / (counts.total() + len(counts))

    def frequency(word: str) -> float | None:
        bare = _bare(saved.text_vocabulary.prepare(word))
        by_words = vocabulary.level == "word" and vocabulary.tokenizer == "whitespace"  # as the words of the text were counted
        words = saved.text_vocabulary.tokenize(bare) if by_words else bare.split()
        return round(math.log10((counts[bare] + 1) * per_million), 6) if bare in counts or len(words) < 2 else None

    return frequency


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word) or word


def separated(dialect: str, file: BinaryIO, columns: Sequence[str], windows: Iterable[Sequence[Row]]) -> None:
    """Columns with their names above, quoted where a token needs it, as pandas and R read them."""
    for rows in chain([[columns]], windows):
        lines: list[str] = []
        csv.writer(SimpleNamespace(write=lines.append), dialect).writerows(rows)  # that lines end with \r\n makes it quote \r too
        file.write("".join(f"{line[:-2]}\n" for line in lines).encode())


def jsonl(file: BinaryIO, columns: Sequence[str], windows: Iterable[Sequence[Row]]) -> None:
    """One JSON object a line."""
    for row in chain.from_iterable(windows):
        values = dict(zip(columns, row, strict=True))
        file.write(f"{json.dumps(values, ensure_ascii=False, default=str)}\n".encode())


def parquet(file: BinaryIO, columns: Sequence[str], windows: Iterable[Sequence[Row]]) -> None:
    """Parquet, a row group for each window of the text; the first one says of which type a column is."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    writer: Any = None
    with ExitStack() as stack:
        for rows in windows:
            arrays = {}
            for name, values in zip(columns, zip(*rows, strict=True), strict=True):
                try:
                    array = pyarrow.array(values, writer and writer.schema.field(name).type)
                    if array.type == pyarrow.null():  # nothing says yet of which type it is; those of ours that may be missing are numbers
                        whole = name.endswith("length") or re.match(r"previous\d?_unk", name)
                        array = array.cast(pyarrow.int64() if whole else pyarrow.float64())
                    arrays[name] = array
                except (pyarrow.ArrowException, OverflowError):
                    told = f"parquet takes the type of a column from its first rows, and {name} has others later"
                    raise UserError(f"{told}: use --format jsonl") from None
            table = pyarrow.table(arrays)
            writer = writer or stack.enter_context(ParquetWriter(file, table.schema))
            writer.write_table(table)


def neural_complexity(file: BinaryIO, columns: Sequence[str], windows: Iterable[Sequence[Row]]) -> None:
    """The table of neural-complexity: blanks between columns, sentences and places from 0; `entred` is by how much the entropy fell."""
    file.write(b"word sentid sentpos wlen surp entropy entred\n")
    before = 0.0
    for sentence, place, word, surprisal, _, entropy, *_ in chain.from_iterable(windows):
        entropy = before if entropy is None else entropy  # of the row before where the model does not see the word
        fall = max(0.0, before - entropy) if place > 1 else 0.0
        before = entropy
        values = (word, sentence - 1, place - 1, len(word), surprisal, entropy, f"{fall:.7g}")
        file.write(f"{' '.join(map(str, values))}\n".encode())


Writer = Callable[[BinaryIO, Sequence[str], Iterable[Sequence[Row]]], None]
FORMS: dict[Format, Writer] = {"tsv": partial(separated, "excel-tab"), "csv": partial(separated, "excel"), "jsonl": jsonl}
FORMS |= {"parquet": parquet, "neural-complexity": neural_complexity}
