"""Stateful LSTM language-model training under Hugging Face Accelerate."""

import os

# OpenMP's threads wait by spinning; how long is read when torch is loaded, so it is set first. libgomp's own choice is far too long
# where others use the cores too, and not to spin costs half the speed where they do not. A setting of the user's wins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# ruff: isort: split
from lstmlm.config import Config, load_config
from lstmlm.console import UserError
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.evaluation.measure import evaluate
from lstmlm.evaluation.scoring import score_text
from lstmlm.generation import generate_text, generate_texts, stream_text, stream_texts
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.training.loop import train

__all__ = [
    "Config",
    "LSTMLanguageModel",
    "UserError",
    "Vocabulary",
    "evaluate",
    "generate_text",
    "generate_texts",
    "load_config",
    "score_text",
    "stream_text",
    "stream_texts",
    "train",
]
