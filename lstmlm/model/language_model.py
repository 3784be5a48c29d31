"""The model: embedding, dropout, one-layer LSTMs with dropout between them, dropout, tied decoder with bias.

Shapes: T time, B columns, E embedding, H hidden, V vocabulary, L layers.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lstmlm.config import ModelConfig
from lstmlm.model.dropout import Masks
from lstmlm.model.layers import LayerState, LSTMLayer, TiedEmbedding
from lstmlm.model.loss import linear_cross_entropy, summed_and_token_nll, token_nll


class State(tuple[LayerState, ...]):
    """What the model carries from row to row: a `LayerState` of each layer, whose tensors have the columns first, (B, ...)."""

    __slots__ = ()

    def detach(self) -> "State":
        """The same values, without their history."""
        return self._map(Tensor.detach)

    def select(self, columns: slice | Tensor) -> "State":
        """The state of some columns, or of numbered ones in any order."""
        return self._map(lambda tensor: tensor[columns])

    @torch.no_grad()
    def copy_(self, other: "State", columns: slice = slice(None)) -> None:
        """Take over, in place, the values of `other` for these columns."""
        for (_, own), (_, new) in zip(self.named(), other.named(), strict=True):
            own[columns].copy_(new)

    def zero_(self) -> None:
        """Zero it in place."""
        for _, tensor in self.named():
            tensor.zero_()

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor with its name in a checkpoint."""
        for i, layer in enumerate(self):
            for name, tensor in layer._asdict().items():
                yield f"state.{name}.{i}", tensor

    def _map(self, function: Callable[[Tensor], Tensor]) -> "State":
        return State(LayerState(*map(function, layer)) for layer in self)


class LSTMLanguageModel(nn.Module):
    """An LSTM language model whose decoder can be its embedding (Zaremba et al., 2014; Press and Wolf, 2017).

    The caller makes the dropout masks and hands them to `forward`. So the result for a segment depends on the arguments alone,
    whatever the number of ranks. Every layer is a module of its own, because a mask stands between two layers.

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
        self.layers = nn.ModuleList(LSTMLayer(size, config.hidden_size) for size in sizes[:-1])
        self.decoder = nn.Linear(config.hidden_size, vocab_size)
        nn.init.uniform_(self.embedding.weight, -config.init_range, config.init_range)
        nn.init.uniform_(self.decoder.weight, -config.init_range, config.init_range)
        nn.init.zeros_(self.decoder.bias)
        if config.tie_weights:
            self.decoder.weight = self.embedding.weight

    def initial_state(self, columns: int) -> State:
        """The zero state of `columns` columns."""
        weight, size = self.embedding.weight, self.config.hidden_size
        return State(LayerState(weight.new_zeros(columns, size), weight.new_zeros(columns, size)) for _ in self.layers)

    def forward(
        self, tokens: Tensor, state: State, targets: Tensor, masks: Masks | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """What training needs of a segment.

        Args:
            tokens: int64 (T, B).
            state: Of these columns.
            targets: int64 (T, B), -100 where there is none.
            masks: Dropout masks of this segment and these columns; None = no dropout.

        Returns:
            The summed nll in nats (a scalar); the summed penalty of the activations (a scalar, to be added to the nll that is
            minimised, not to the one that is reported); and the new state, not detached.
        """
        embeddings, weight = self._embed(tokens)
        raw, outputs, state = self._run_layers(embeddings, state, masks)
        nll = linear_cross_entropy(outputs.flatten(0, 1), weight, self.decoder.bias, targets.flatten())
        return nll, self._penalty(raw, outputs), state

    @torch.no_grad()
    def score(self, tokens: Tensor, state: State, targets: Tensor) -> tuple[Tensor, State]:
        """Nll of every target in nats, (T, B), 0 where the target is -100, and the new state."""
        outputs, state = self.hidden(tokens, state)
        nll = token_nll(outputs.flatten(0, 1), self.decoder.weight, self.decoder.bias, targets.flatten())
        return nll.view_as(targets), state

    def summed_and_token_nll(
        self, tokens: Tensor, state: State, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """What learning from a scored segment needs.

        Args:
            tokens: int64 (T, B).
            state: Of these columns.
            targets: int64 (T, B), -100 where there is none.

        Returns:
            The summed nll in nats (a scalar), which alone has a gradient; nll of every target, (T, B), 0 where the target is -100;
            outputs of the last layer, (T, B, H); and the new state, not detached.
        """
        embeddings, weight = self._embed(tokens)
        _, outputs, state = self._run_layers(embeddings, state, None)
        nll, token_nll = summed_and_token_nll(outputs.flatten(0, 1), weight, self.decoder.bias, targets.flatten())
        return nll, token_nll.view_as(targets), outputs, state

    def logits(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits of the token after each token, (T, B, V), and the new state."""
        outputs, state = self.hidden(tokens, state)
        return self.decoder(outputs), state

    def hidden(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs of the last layer without dropout, (T, B, H), and the new state.

        Args:
            tokens: int64 (T, B).
            state: Of these columns.
        """
        _, outputs, state = self._run_layers(self.embedding(tokens), state, None)
        return outputs, state

    def _embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (T, B, E), and the decoder's weight (V, H): where they are tied, as one node of the graph."""
        if self.config.tie_weights:
            return TiedEmbedding.apply(self.embedding.weight, tokens)
        return self.embedding(tokens), self.decoder.weight

    def _run_layers(self, embeddings: Tensor, state: State, masks: Masks | None) -> tuple[Tensor, Tensor, State]:
        """The last layer's outputs (T, B, H) before and after dropout, and the state after the last row."""
        outputs = embeddings if masks is None else embeddings * masks.embedding
        raw, new_state = outputs, []
        for i, (layer, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            raw, outputs, layer_state = layer(outputs, layer_state, None if masks is None else masks.layers[i])
            new_state.append(layer_state)
        return raw, outputs, State(new_state)

    def _penalty(self, raw: Tensor, outputs: Tensor) -> Tensor:
        """Activation and temporal activation regularisation (Merity et al., 2017, "Revisiting activation regularization"), summed over
        positions, so that a step's penalty is a mean over its targets like its nll."""
        penalty = outputs.new_zeros((), dtype=torch.float32)
        if self.config.activation_penalty:
            penalty = penalty + self.config.activation_penalty * outputs.float().square().mean(-1).sum()
        if self.config.temporal_penalty:
            penalty = penalty + self.config.temporal_penalty * raw.float().diff(dim=0).square().mean(-1).sum()
        return penalty

    def weights(self) -> dict[str, Tensor]:
        """All parameters by name, a tied one once, as contiguous copies on the CPU."""
        # On a GPU cuDNN keeps an LSTM's weights in one buffer; copies of their own are what safetensors can write.
        return {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in self.named_parameters()}

    def fits(self, weights: dict[str, Tensor]) -> bool:
        """Whether these have the names and shapes of the parameters."""
        own = {name: weight.shape for name, weight in self.named_parameters()}
        return own == {name: weight.shape for name, weight in weights.items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy parameters in, in place: ties and flat cuDNN buffers stay as they are.

        Raises:
            ValueError: A name or a shape differs.
        """
        if not self.fits(weights):
            raise ValueError("the weights are not those of this model")
        for name, weight in self.named_parameters():
            weight.copy_(weights[name])
