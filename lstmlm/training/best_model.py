"""The best model of a run so far, in `model/`: its files, its card, and what becomes of the one before when it is replaced."""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import safetensors
from accelerate import Accelerator

from lstmlm import generation
from lstmlm.config import Config
from lstmlm.data.corpus import Corpus, fingerprint
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
        """Make the model, as it is trained now, the best one: all that evaluation and generation need. Every rank calls it.

        The weights of the one before are kept aside until the next checkpoint: a run that goes on from the last one needs them.
        """
        with fail_together(self.accelerator):
            if self.accelerator.is_main_process:
                # One entry: safetensors writes several in no fixed order, and equal models are to be equal files.
                metadata = {"exported": json.dumps({"step": cursor.step, "valid_ppl": cursor.best})}
                vocabulary = self.corpus.vocabulary
                fingerprints = {split: fingerprint(stream) for split, stream in self.corpus.splits.items()}
                place, card, before = self.directory.model, self._card(), self.directory.earlier_best
                if (place / WEIGHTS).exists() and not before.exists():
                    before.parent.mkdir(exist_ok=True)
                    replace_file(before, read_file(place / WEIGHTS))
                save_pretrained(place, self.model, vocabulary, self.trained_on, metadata, card=card, fingerprints=fingerprints)

    def bring_back(self, best: float | None) -> None:
        """Put the weights that were kept aside in their place again, if they are those of this perplexity. The main rank calls it."""
        kept, place = self.directory.earlier_best, self.directory.model
        if kept.exists():
            with suppress(safetensors.SafetensorError, ValueError, TypeError, KeyError), safetensors.safe_open(kept, "pt") as file:
                if json.loads(file.metadata()["exported"])["valid_ppl"] == best:
                    place.mkdir(exist_ok=True)
                    replace_file(place / WEIGHTS, read_file(kept))  # no rename: a link may have put checkpoints/ on another disk
            kept.unlink(missing_ok=True)  # of an earlier moment: a save was killed before it deleted them

    def load(self) -> None:
        """Give its weights to the model, in place of those that were trained last. Every rank calls it."""
        with fail_together(self.accelerator):
            best = load(self.directory.model, device="cpu").model.weights() if self.accelerator.is_main_process else None
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
