"""Stateful LSTM language-model training under Hugging Face Accelerate."""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

# OpenMP's threads wait by spinning; how long is read when torch is loaded, so it is set first. libgomp's own choice is far too long
# where others use the cores too, and not to spin costs half the speed where they do not. A setting of the user's wins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# What `from lstmlm import ...` gives, and where it stands. Torch takes seconds to load, so a module is loaded when it is asked for.
_PLACES = {
    "Config": "config",
    "LSTMLanguageModel": "model.language_model",
    "UserError": "console",
    "Vocabulary": "data.vocabulary",
    "evaluate": "evaluation.evaluate",
    "generate_text": "generation",
    "generate_texts": "generation",
    "load": "model.pretrained",
    "load_config": "config",
    "score_text": "evaluation.surprisal_tables",
    "stream_text": "generation",
    "stream_texts": "generation",
    "train": "training.loop",
}
__all__ = list(_PLACES)

if TYPE_CHECKING:
    __version__: str
    from lstmlm.config import Config as Config
    from lstmlm.config import load_config as load_config
    from lstmlm.console import UserError as UserError
    from lstmlm.data.vocabulary import Vocabulary as Vocabulary
    from lstmlm.evaluation.evaluate import evaluate as evaluate
    from lstmlm.evaluation.surprisal_tables import score_text as score_text
    from lstmlm.generation import generate_text as generate_text
    from lstmlm.generation import generate_texts as generate_texts
    from lstmlm.generation import stream_text as stream_text
    from lstmlm.generation import stream_texts as stream_texts
    from lstmlm.model.language_model import LSTMLanguageModel as LSTMLanguageModel
    from lstmlm.model.pretrained import load as load
    from lstmlm.training.loop import train as train
else:

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return version("lstmlm")
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_PLACES})
