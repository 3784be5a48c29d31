"""The model: embedding, dropout, one-layer LSTMs with dropout between them, dropout, tied decoder with bias.

Shapes: T time, B columns, E embedding, H hidden, V vocabulary, L layers.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlm.config import ModelConfig, UserError
from lstmlm.dropout import Masks
from lstmlm.files import replace_file
from lstmlm.loss import linear_cross_entropy, token_nll
from lstmlm.vocabulary import Vocabulary

State = list[tuple[Tensor, Tensor]]  # (h, c) of each layer, each float32 (B, H_layer)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
VOCABULARY = "vocab.json"


class LSTMLanguageModel(nn.Module):
    """An LSTM language model whose decoder can be its embedding (Zaremba et al., 2014; Press and Wolf, 2017).

    Dropout is the caller's: masks are handed to `forward`, so what a segment computes is a function of its arguments
    alone, whatever the number of ranks. That is why every layer is an `nn.LSTM` module of its own.

    Args:
        config: Sizes, dropout, tying.
        vocab_size: V.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        sizes = [config.embedding_size] + [config.hidden_size] * config.num_layers
        self.embedding = nn.Embedding(vocab_size, config.embedding_size)
        self.layers = nn.ModuleList(nn.LSTM(size, config.hidden_size) for size in sizes[:-1])
        self.decoder = nn.Linear(config.hidden_size, vocab_size)
        nn.init.uniform_(self.embedding.weight, -config.init_range, config.init_range)
        nn.init.uniform_(self.decoder.weight, -config.init_range, config.init_range)
        nn.init.zeros_(self.decoder.bias)
        if config.tie_weights:
            self.decoder.weight = self.embedding.weight

    def initial_state(self, columns: int) -> State:
        """The zero state of `columns` columns."""
        weight = self.embedding.weight
        return [
            (weight.new_zeros(columns, layer.hidden_size), weight.new_zeros(columns, layer.hidden_size))
            for layer in self._lstms()
        ]

    def hidden(self, embeddings: Tensor, state: State, masks: Masks | None = None) -> tuple[Tensor, State]:
        """Outputs of the last layer, (T, B, H), and the state after the last row.

        Args:
            embeddings: Of the tokens, (T, B, E).
            state: (h, c) of each layer, (B, H).
            masks: Of this segment and these columns; None = no dropout.
        """
        outputs = embeddings if masks is None else embeddings * masks.embedding
        new_state = []
        with _lstm_precision(embeddings.device.type):
            for i, (layer, (h, c)) in enumerate(zip(self._lstms(), state, strict=True)):
                outputs, (h, c) = layer(outputs, (h[None], c[None]))
                new_state.append((h[0].float(), c[0].float()))
                if masks is not None:
                    outputs = outputs * masks.layers[i]
        return outputs, new_state

    def forward(
        self, tokens: Tensor, state: State, targets: Tensor | None = None, masks: Masks | None = None
    ) -> tuple[Tensor, State]:
        """Summed nll of a segment, or its logits, and the new state.

        Args:
            tokens: int64 (T, B).
            state: (h, c) of each layer, (B, H).
            targets: int64 (T, B), -100 where there is none; None = return logits.
            masks: Dropout masks; None = no dropout.

        Returns:
            The summed nll in nats (a scalar) with targets, else logits (T, B, V); and the state, not detached.
        """
        if self.config.tie_weights:
            embeddings, weight = _TiedEmbedding.apply(self.embedding.weight, tokens)
        else:
            embeddings, weight = self.embedding(tokens), self.decoder.weight
        outputs, state = self.hidden(embeddings, state, masks)
        if targets is None:
            return F.linear(outputs, weight, self.decoder.bias), state
        nll = linear_cross_entropy(outputs.flatten(0, 1), weight, self.decoder.bias, targets.flatten())
        return nll, state

    @torch.no_grad()
    def score(self, tokens: Tensor, state: State, targets: Tensor) -> tuple[Tensor, State]:
        """Nll of every target in nats, (T, B), 0 where the target is -100, and the new state."""
        outputs, state = self.hidden(self.embedding(tokens), state)
        nll = token_nll(outputs.flatten(0, 1), self.decoder.weight, self.decoder.bias, targets.flatten())
        return nll.view_as(targets), state

    def weights(self) -> dict[str, Tensor]:
        """All parameters by name, a tied one once, as contiguous copies on the CPU."""
        # On a GPU cuDNN keeps an LSTM's weights in one buffer; copies of their own are what safetensors can write.
        return {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in self.named_parameters()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy parameters in, in place: ties and flat cuDNN buffers stay as they are.

        Raises:
            ValueError: A name or a shape differs.
        """
        own = dict(self.named_parameters())
        if {n: w.shape for n, w in own.items()} != {n: w.shape for n, w in weights.items()}:
            raise ValueError("the weights are not those of this model")
        for name, weight in own.items():
            weight.copy_(weights[name])

    def save_pretrained(self, folder: str | Path, data: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
        """Write `config.json` and `model.safetensors`; the vocabulary is the caller's.

        Args:
            folder: Made where it does not exist.
            data: What the model was trained on: `dataset`, `subset`, `level`.
            metadata: Strings for the header of `model.safetensors`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"model": asdict(self.config), "vocab_size": self.vocab_size, "data": data}
        config = json.dumps(content, indent=2).encode()
        if not (folder / CONFIG).exists() or (folder / CONFIG).read_bytes() != config:
            replace_file(folder / CONFIG, config)
        replace_file(folder / WEIGHTS, safetensors.torch.save(self.weights(), metadata))

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> "LSTMLanguageModel":
        """Read back what `save_pretrained` wrote.

        Raises:
            UserError: A file is missing or is not a model of this project.
        """
        content = pretrained_config(folder)
        path = Path(folder) / WEIGHTS
        try:
            with torch.device("meta"):
                model = cls(ModelConfig(**content["model"]), content["vocab_size"])
            model.to_empty(device=device)
            if model.config.tie_weights:
                model.decoder.weight = model.embedding.weight
            model.load_weights(safetensors.torch.load_file(path))
        except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
            raise UserError(f"cannot read the model in {path}: {error}") from None
        return model

    def _lstms(self) -> list[nn.LSTM]:
        return [layer for layer in self.layers if isinstance(layer, nn.LSTM)]


class _TiedEmbedding(torch.autograd.Function):
    """Embeddings of tokens, and the weight itself for the decoder, as one node: so the embeddings' gradient, of a few rows, is
    added into the decoder's in place, instead of into zeros of the whole vocabulary first."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens)
        return F.embedding(tokens, weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        embeddings_grad, weight_grad = grad_outputs
        (tokens,) = ctx.saved_tensors
        return weight_grad.index_add_(0, tokens.flatten(), embeddings_grad.flatten(0, -2)), None


def _lstm_precision(device: str) -> AbstractContextManager[object]:
    # Autocast runs cuDNN's LSTM in float16 whatever was asked for (AutocastRNN.cpp), and under bf16 no scaled loss keeps
    # gradients above float16's smallest normal number: it stays float32, with TF32 products (distributed.set_float32_products).
    if device == "cuda" and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16:
        return torch.autocast(device, enabled=False)
    return nullcontext()


def load_pretrained(folder: str | Path, device: torch.device | str = "cpu") -> tuple[LSTMLanguageModel, Vocabulary]:
    """A saved model and its vocabulary.

    Raises:
        UserError: A file is missing or damaged, or the two do not belong together.
    """
    model = LSTMLanguageModel.from_pretrained(folder, device)
    vocabulary = Vocabulary.load(Path(folder) / VOCABULARY)
    if len(vocabulary) != model.vocab_size:
        raise UserError(
            f"{folder}: the model has {model.vocab_size} types but {VOCABULARY} has {len(vocabulary)}; they do not belong together"
        )
    return model, vocabulary


def pretrained_config(folder: str | Path) -> dict[str, Any]:
    """`config.json` of a saved model: `model`, `vocab_size`, and `data` (`dataset`, `subset`, `level`).

    Raises:
        UserError: It is missing or is not one of this project.
    """
    path = Path(folder) / CONFIG
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and {"model", "vocab_size", "data"} <= content.keys():
            return content
    except OSError as error:
        raise UserError(f"there is no model in {folder}: cannot read {path} ({error.strerror})") from None
    except ValueError:
        pass
    raise UserError(f"{path} is not a model configuration of this project")
