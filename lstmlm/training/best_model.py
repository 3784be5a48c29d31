"""The best model of a run so far, in `model/`: its files, its card, and where it waits when a run's last validation may replace it."""

import json
from dataclasses import dataclass
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


@dataclass(frozen=True)
class BestModel:
    """Keeps the best model of a run; `model` is the bare one, as it is trained. The main rank writes."""

    config: Config
    accelerator: Accelerator
    directory: RunDirectory
    corpus: Corpus
    model: LSTMLanguageModel

    @property
    def trained_on(self) -> dict[str, Any]:
        """The data by its name: its place on this machine stays in `config.yaml`."""
        return trained_on(self.config.data) | {"dataset": dataset_name(self.config.data.dataset)}

    def write(self, cursor: Cursor) -> None:
        """Make the model, as it is trained now, the best one: all that evaluation and generation need. Every rank calls it."""
        # One entry: the order of several in the file's header is not fixed.
        metadata = {"exported": json.dumps({"step": cursor.step, "valid_ppl": cursor.best})}
        vocabulary, fingerprints = self.corpus.vocabulary, self.corpus.fingerprints
        with fail_together(self.accelerator):
            if self.accelerator.is_main_process:
                place, card = self.directory.model, self._card()
                save_pretrained(place, self.model, vocabulary, self.trained_on, metadata, card=card, fingerprints=fingerprints)

    def keep_for_growth(self) -> None:
        """Keep its weights aside before a last validation that only a run of this length has: a run that grows goes on with them."""
        with fail_together(self.accelerator):
            if self.accelerator.is_main_process:
                replace_file(self.directory.due_model, read_file(self.directory.model / WEIGHTS))

    def bring_back(self) -> None:
        """Put the weights that were kept aside, where there are any, in their place again. The main rank calls it."""
        if self.directory.due_model.exists():
            self.directory.due_model.replace(self.directory.model / WEIGHTS)

    def load(self) -> None:
        """Give its weights to the model, in place of those that were trained last. Every rank calls it."""
        with fail_together(self.accelerator):
            main = self.accelerator.is_main_process
            best = load(self.directory.model, device="cpu").model.weights() if main else None
        self.model.load_weights(main_tensors(self.accelerator, best))

    def write_figures(self, figures: dict[str, dict[str, Any]]) -> None:
        """Write its card again, with the final figures of each split. The main rank calls it."""
        replace_file(self.directory.model / CARD, self._card(figures).encode())

    def samples(self) -> list[str]:
        """Texts of the model as it is trained now, the same for the same weights."""
        vocabulary = self.corpus.vocabulary
        samples = generation.sample(self.model, vocabulary, [[vocabulary.eos]], SAMPLES, generation.Sampling(SAMPLE_LENGTH), seed=0)
        return [vocabulary.decode(ids) for ids in samples]

    def _card(self, figures: dict[str, dict[str, Any]] | None = None) -> str:
        origin = self.config.train.init_from
        begun = f"Training began with the weights and the vocabulary of the model `{model_name(origin)}`.\n" if origin else ""
        return model_card(self.model, self.corpus.vocabulary, self.trained_on, figures, notes=begun)
