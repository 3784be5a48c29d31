"""Stateful LSTM language-model training under Hugging Face Accelerate."""

from lstmlm.config import Config, UserError, load_config
from lstmlm.evaluation import evaluate, score_text
from lstmlm.generation import generate_text, generate_texts
from lstmlm.model import LSTMLanguageModel
from lstmlm.training import train
from lstmlm.vocabulary import Vocabulary

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
    "train",
]
