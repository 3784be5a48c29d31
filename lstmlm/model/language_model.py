"""The model: embedding, dropout, one-layer LSTMs with dropout between them, dropout, decoder with bias, which may be tied to the embedding.

Shapes: T time, B columns, E embedding, V vocabulary, L layers, H units of the layer at hand (`config.layer_sizes`): of the last one, so
of outputs and decoder, E where the weights are tied.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lstmlm.config import ModelConfig
from lstmlm.data.table import IGNORE
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

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor with its name in a checkpoint."""
        for i, layer in enumerate(self):
            for name, tensor in layer._asdict().items():
                yield f"state.{name}.{i}", tensor

    def _map(self, function: Callable[[Tensor], Tensor]) -> "State":
        return State(type(layer)(*map(function, layer)) for layer in self)


class LSTMLanguageModel(nn.Module):
    """An LSTM language model whose decoder can be its embedding (Zaremba et al., 2014; Press and Wolf, 2017).

    The caller makes the dropout masks and hands them to `forward`. So the result for a segment depends on the arguments alone,
    whatever the number of ranks. Every layer is a module of its own, because a mask stands between two layers.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        sizes = [config.embedding_size, *config.layer_sizes]
        self.embedding = nn.Embedding(vocab_size, config.embedding_size)
        # PyTorch's initial weights: uniform in +-1 / sqrt(H), as in Merity et al. (2017); the forget gate has no bias of 1.
        self.layers = nn.ModuleList(itertools.starmap(LSTMLayer, itertools.pairwise(sizes)))
        self.decoder = nn.Linear(sizes[-1], vocab_size)
        nn.init.uniform_(self.embedding.weight, -config.init_range, config.init_range)
        nn.init.uniform_(self.decoder.weight, -config.init_range, config.init_range)
        nn.init.zeros_(self.decoder.bias)
        if config.tie_weights:
            self.decoder.weight = self.embedding.weight

    def initial_state(self, columns: int) -> State:
        """The zero state of `columns` columns."""
        zeros, sizes = self.embedding.weight.new_zeros, self.config.layer_sizes
        return State(LayerState(zeros(columns, size), zeros(columns, size)) for size in sizes)

    def forward(self, tokens: Tensor, state: State, targets: Tensor, masks: Masks | None = None) -> tuple[Tensor, Tensor, State]:
        """What training needs of a segment.

        Args:
            tokens: int64 (T, B).
            state: Of these columns. DDP hands over plain tuples on a GPU: only iterate over it.
            targets: int64 (T, B), -100 where there is none.
            masks: Dropout masks of this segment and these columns; None = no dropout.

        Returns:
            The summed nll in nats (a scalar); the summed penalties (2,) of `_penalties`, which are minimised too but not reported; and
            the new state, not detached.
        """
        embeddings, weight = self._embed(tokens)
        raw, outputs, state = self._run_layers(embeddings, state, masks)
        nll = linear_cross_entropy(outputs.flatten(0, 1), weight, self.decoder.bias, targets.flatten())
        return nll, self._penalties(raw, outputs, targets != IGNORE), state

    @torch.no_grad()
    def score(self, tokens: Tensor, state: State, targets: Tensor) -> tuple[Tensor, Tensor, State]:
        """Nll of every target in nats, (T, B), 0 where the target is -100; outputs of the last layer, (T, B, H); and the new state."""
        outputs, state = self.hidden(tokens, state)
        counted = targets != IGNORE
        nll = outputs.new_zeros(targets.shape)
        nll[counted] = token_nll(outputs[counted], self.decoder.weight, self.decoder.bias, targets[counted])
        return nll, outputs, state

    def summed_and_token_nll(self, tokens: Tensor, state: State, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
        """The summed nll in nats, a scalar, which alone has a gradient; then what `score` gives, the state not detached."""
        embeddings, weight = self._embed(tokens)
        _, outputs, state = self._run_layers(embeddings, state, None)
        nll, of_tokens = summed_and_token_nll(outputs.flatten(0, 1), weight, self.decoder.bias, targets.flatten())
        return nll, of_tokens.view_as(targets), outputs, state

    def logits(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits of the token after each token, (T, B, V), and the new state."""
        outputs, state = self.hidden(tokens, state)
        return self.decoder(outputs), state

    def hidden(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs of the last layer for tokens, int64 (T, B), without dropout, (T, B, H), and the new state."""
        _, outputs, state = self._run_layers(self.embedding(tokens), state, None)
        return outputs, state

    def _embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (T, B, E), and the decoder's weight (V, H): where they are tied, as one node of the graph."""
        if self.config.tie_weights:
            return TiedEmbedding.apply(self.embedding.weight, tokens)
        return self.embedding(tokens), self.decoder.weight

    def _run_layers(self, embeddings: Tensor, state: State, masks: Masks | None) -> tuple[Tensor, Tensor, State]:
        """The last layer's outputs (T, B, H) before and after dropout, and the state after the last row."""
        none = (None,) * len(self.layers)
        embedding_mask, layer_masks, weight_masks = masks or Masks(None, none, none)
        outputs = embeddings if embedding_mask is None else embeddings * embedding_mask
        new_state = []
        for layer, layer_state, mask, weight_mask in zip(self.layers, state, layer_masks, weight_masks, strict=True):
            weight = None if weight_mask is None else layer.get_parameter("weight_hh_l0") * weight_mask
            raw, outputs, layer_state = layer(outputs, layer_state, mask, weight)
            new_state.append(layer_state)
        return raw, outputs, State(new_state)

    def _penalties(self, raw: Tensor, outputs: Tensor, counted: Tensor) -> Tensor:
        """Activation and temporal activation regularisation (Merity et al., 2017, "Revisiting activation regularization"), (2,).

        AR of the outputs after dropout is summed over the places that have a target, TAR of the raw ones over the differences between
        two of them. A step divides each by its number over all ranks.
        """
        activation = temporal = outputs.new_zeros((), dtype=torch.float32)
        if self.config.activation_penalty:
            squares = outputs.float().square().mean(-1) * counted
            activation = self.config.activation_penalty * squares.sum()
        if self.config.temporal_penalty:
            squares = raw.float().diff(dim=0).square().mean(-1) * (counted[1:] & counted[:-1])
            temporal = self.config.temporal_penalty * squares.sum()
        return torch.stack([activation, temporal])

    @property
    def num_parameters(self) -> int:
        """Numbers that training changes, a tied weight counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def weights(self) -> dict[str, Tensor]:
        """All parameters by name, a tied one once, as contiguous copies on the CPU."""
        # On a GPU cuDNN keeps an LSTM's weights in one buffer; copies of their own are what safetensors can write.
        return {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in self.named_parameters()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy parameters in, in place: ties and flat cuDNN buffers stay as they are.

        Raises:
            ValueError: A name or a shape differs; it says which.
        """
        own = {name: list(weight.shape) for name, weight in self.named_parameters()}
        given = {name: list(weight.shape) for name, weight in weights.items()}
        for name in own | given:
            shape, right = given.get(name, "missing"), own.get(name, "missing")
            if shape != right:
                raise ValueError(f"the weights are not those of a model of these sizes: {name} is {shape} and should be {right}")
        for name, weight in self.named_parameters():
            weight.copy_(weights[name])
