"""The best model of a run so far, in `model/`: its files, its card, and where it waits when a run's last validation may replace it."""

import json
from typing import Any

from accelerate import Accelerator

from lstmlm import generation
from lstmlm.config import Config
from lstmlm.data.corpus import Corpus
from lstmlm.data.sources import dataset_name
from lstmlm.files import read_file, replace_file
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.model.pretrained import CARD, WEIGHTS, load, model_card, model_name, save_pretrained, trained_on
from lstmlm.runtime.distributed import fail_together, main_tensors
from lstmlm.training.cursor import Cursor
from lstmlm.training.run_directory import RunDirectory

SAMPLES, SAMPLE_LENGTH = 3, 40  # sample texts of a model


class BestModel:
    """Keeps the best model of a run; every rank calls the same methods, and the main rank writes.

    Args:
        config: Of the run.
        accelerator: Of the run.
        directory: Of the run.
        corpus: Of the run.
        model: As it is trained, the bare one.
    """

    def __init__(self, config: Config, accelerator: Accelerator, directory: RunDirectory, corpus: Corpus, model: LSTMLanguageModel) -> None:
        self._init_from = config.train.init_from
        self._accelerator = accelerator
        self._directory = directory
        self._corpus = corpus
        self._model = model
        # The data by its name: its place on this machine stays in `config.yaml`.
        self.trained_on = trained_on(config.data) | {"dataset": dataset_name(config.data.dataset)}

    def write(self, cursor: Cursor) -> None:
        """Make the model, as it is trained now, the best one: all that evaluation and generation need."""
        # One entry: the order of several in the file's header is not fixed.
        metadata = {"exported": json.dumps({"step": cursor.step, "valid_ppl": cursor.best})}
        with fail_together(self._accelerator):
            if self._accelerator.is_main_process:
                save_pretrained(
                    self._directory.model,
                    self._model,
                    self._corpus.vocabulary,
                    self.trained_on,
                    metadata,
                    card=self._card(),
                    fingerprints=self._corpus.fingerprints,
                )

    def keep_for_growth(self) -> None:
        """Keep its weights aside before a last validation that only a run of this length has: a run that grows goes on with them."""
        with fail_together(self._accelerator):
            if self._accelerator.is_main_process:
                replace_file(self._directory.due_model, read_file(self._directory.model / WEIGHTS))

    def bring_back(self) -> None:
        """Put the weights that were kept aside, where there are any, in their place again. The main rank calls it."""
        if self._directory.due_model.exists():
            self._directory.due_model.replace(self._directory.model / WEIGHTS)

    def load(self) -> None:
        """Give its weights to the model, in place of those that were trained last."""
        with fail_together(self._accelerator):
            main = self._accelerator.is_main_process
            best = load(self._directory.model, device="cpu").model.weights() if main else None
        self._model.load_weights(main_tensors(self._accelerator, best))

    def write_figures(self, figures: dict[str, dict[str, Any]]) -> None:
        """Write its card again, with the final figures of each split. The main rank calls it."""
        replace_file(self._directory.model / CARD, self._card(figures).encode())

    def samples(self) -> list[str]:
        """Texts of the model as it is trained now, the same for the same weights."""
        vocabulary = self._corpus.vocabulary
        samples = generation.sample(self._model, vocabulary, [vocabulary.eos], SAMPLES, SAMPLE_LENGTH, seed=0)
        return [vocabulary.decode(ids) for ids in samples]

    def _card(self, figures: dict[str, dict[str, Any]] | None = None) -> str:
        notes = ""
        if self._init_from:
            notes = f"Training began with the weights and the vocabulary of the model `{model_name(self._init_from)}`.\n"
        return model_card(self._model, self._corpus.vocabulary, self.trained_on, figures, notes=notes)
