"""What the single tokens of a measurement tell: a breakdown by kinds of tokens, and a file with every token's nll."""

import math
import re
from typing import Any

import torch
from torch import Tensor

from lstmlm.data.vocabulary import EOS, UNK, Vocabulary
from lstmlm.evaluation.perplexity import exponential
from lstmlm.evaluation.protocol import Measurement
from lstmlm.files import Output
from lstmlm.records import to_json

BANDS = (0, 10, 100, 1_000, 10_000)  # each begins at so many occurrences in the training split
NUMBER = re.compile(r"[\d.,:]*\d[\d.,:]*")  # 7, 1,024, 3.5


def breakdown(result: Measurement, vocabulary: Vocabulary, train: Tensor) -> list[dict[str, Any]]:
    """Nll by kinds of targets: `name`, `targets`, `nll` (their sum in nats) and `ppl` of each; kinds without a target are left out.

    Each target is `<eos>`, `<unk>`, or in the band of types that occur as often in the training split. Numbers, and first tokens after a
    reset or at the head of a column, are shown once more as kinds of their own. `train` is the training split's stream, int32 (n,).
    """
    counts = torch.bincount(train, minlength=len(vocabulary))
    counts[[vocabulary.eos, vocabulary.unk]] = -1  # in no band
    count_of = counts[result.ids]
    numbers = torch.tensor([bool(NUMBER.fullmatch(token)) for token in vocabulary.tokens])
    members = {EOS: result.ids == vocabulary.eos, UNK: result.ids == vocabulary.unk}
    for least, end in zip(BANDS, [*BANDS[1:], math.inf], strict=True):
        name = f"{least:,} or more in training" if end == math.inf else f"{least:,} to {end - 1:,} in training"
        members[name] = (count_of >= least) & (count_of < end)
    members["numbers"] = numbers[result.ids]
    members["first, from a zero state"] = result.fresh
    groups = []
    for name, of in members.items():
        if targets := int(of.sum()):
            nll = result.token_nll[of].double().sum().item()
            groups.append({"name": name, "targets": targets, "nll": nll, "ppl": exponential(nll / targets)})
    return groups


def write_tokens(output: Output, result: Measurement, vocabulary: Vocabulary) -> None:
    """Every target's nll as a Parquet file, a row each in the order of the text.

    Columns: `token`, `token_id`, `nll` (nats, float32) and `fresh` (read from the zero state). The schema's metadata has the figures of the
    whole and how they were obtained, as JSON under `lstmlm`.
    """
    import pyarrow
    import pyarrow.parquet

    ids, nll, fresh = (pyarrow.array(values.numpy()) for values in (result.ids, result.token_nll, result.fresh))
    tokens = pyarrow.DictionaryArray.from_arrays(ids, pyarrow.array(vocabulary.tokens))
    columns = {"token": tokens, "token_id": ids, "nll": nll, "fresh": fresh}
    table = pyarrow.table(columns).replace_schema_metadata({"lstmlm": to_json(result.figures())})
    with output.opened() as file:
        pyarrow.parquet.write_table(table, file)
