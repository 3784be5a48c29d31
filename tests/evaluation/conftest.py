"""What several tests of evaluation share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lstmlm import Config, LSTMLanguageModel
from lstmlm.data.corpus import load_corpus
from lstmlm.model.pretrained import save_pretrained
from lstmlm.training.run_directory import RunDirectory


@pytest.fixture
def folder(text_folder: Path, tmp_path: Path, small_config: Callable[..., Config]) -> Path:
    """An untrained model of the text folder's vocabulary, in a run's directory."""
    config = small_config()
    torch.manual_seed(0)
    vocabulary = load_corpus(config.data).vocabulary
    model = LSTMLanguageModel(config.model, len(vocabulary))
    save_pretrained(tmp_path / "model", model, vocabulary, {"dataset": text_folder.name, "subset": None, "level": "word"})
    RunDirectory(tmp_path).write_config(config)  # which says where the text is
    return tmp_path / "model"
