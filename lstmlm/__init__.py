"""Stateful LSTM language-model training under Hugging Face Accelerate."""

from lstmlm.config import Config, load_config
from lstmlm.console import UserError
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.evaluation.measure import evaluate
from lstmlm.evaluation.scoring import score_text
from lstmlm.generation import generate_text, generate_texts, stream_text
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
    "train",
]
