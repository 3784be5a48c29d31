"""What a run scores: the validation split while it trains, and at its end both other splits."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator

from lstmlm.console import Progress
from lstmlm.data.corpus import Corpus
from lstmlm.evaluation.perplexity import Evaluation, bits_per_character, evaluate_stream, evaluate_whole, word_ppl
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.training.cursor import Seconds
from lstmlm.training.step import NotFiniteError


@dataclass(frozen=True)
class Validation:
    """Scores the model of a run, the bare one; every rank calls the same methods."""

    model: LSTMLanguageModel
    corpus: Corpus
    accelerator: Accelerator
    progress: Progress
    seconds: Seconds  # of the run, where the time is added up

    def score(self, step: int, columns: int, interrupted: Callable[[], bool]) -> Evaluation:
        """Score the validation split after `step` steps, at `train.eval_columns` columns; `interrupted` is asked between segments.

        Raises:
            InterruptedError: `interrupted` said so.
            NotFiniteError: The loss is not finite.
        """
        stream = self.corpus.splits["validation"]
        with self.seconds.timed("evaluation"), self.progress.scoring("scoring validation", len(stream) - 1) as tick:
            result = evaluate_stream(self.model, stream, columns, self.accelerator, scored=tick, interrupted=interrupted)
        _refuse_unless_finite("validation", result, step)
        return result

    def final_figures(self, step: int) -> dict[str, dict[str, float]]:
        """The figures of `summary.json` for the validation and the test split, at one column, after `step` steps.

        Raises:
            NotFiniteError: A loss is not finite.
        """
        splits = ("validation", "test")
        streams = [self.corpus.splits[split] for split in splits]
        targets = sum(len(stream) - 1 for stream in streams)
        with self.seconds.timed("evaluation"), self.progress.scoring("scoring validation and test", targets) as tick:
            results = evaluate_whole(self.model, streams, self.accelerator, tick)
        figures = {}
        for split, result in zip(splits, results, strict=True):
            _refuse_unless_finite(split, result, step)
            facts = self.corpus.facts[split]
            figures[split] = {
                "loss": result.loss,
                "ppl": result.ppl,
                "word_ppl": word_ppl(result, facts.words),
                "bpc": bits_per_character(result, facts.characters),
                "targets": result.targets,
                "columns": result.columns,
            }
        return figures


def _refuse_unless_finite(split: str, result: Evaluation, step: int) -> None:
    if not math.isfinite(result.loss):
        raise NotFiniteError(
            f"the {split} loss is not finite after step {step} (nll {result.nll}): no model and no checkpoint was written since; "
            "start again in a new train.run_dir with a lower optim.lr"
        )
