"""An LSTM language model trained with lstmlm, for transformers.

`lstmlm export --to transformers` puts this file beside the weights. It needs torch and transformers, and nothing of lstmlm.

Shapes: B texts, T tokens, H the last layer's units, V vocabulary, L layers. The state is one tensor (B, 2, L, S), h before c.
S is the largest layer's size: a smaller layer uses the first units, and the others stay 0.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple


class LstmLmConfig(PreTrainedConfig):
    """Sizes of the model.

    Args:
        vocab_size: V.
        model: `embedding_size`, `hidden_size`, `num_layers`, `tie_weights`, `dropout`, and `dropout_input`, `dropout_hidden`,
            `dropout_output` where they differ from it, as lstmlm's `config.json` has them.
        padding_id: The id of `<pad>`, which is padding whatever the attention mask says: the one after the last token. It is not
            called `pad_token_id`, as it has no row of the embedding.
        kwargs: As for every configuration of transformers.
    """

    model_type = "lstmlm"

    def __init__(self, vocab_size: int = 0, model: dict[str, Any] | None = None, padding_id: int = -1, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.padding_id = padding_id
        self.model = model or {"embedding_size": 1, "hidden_size": 1, "num_layers": 1, "dropout": 0.0, "tie_weights": True}
        last = self.model["embedding_size" if self.model["tie_weights"] else "hidden_size"]
        self.layer_sizes: list[int] = [self.model["hidden_size"]] * (self.model["num_layers"] - 1) + [last]
        self.hidden_size: int = last
        self.state_size: int = max(self.layer_sizes)
        self.num_hidden_layers: int = self.model["num_layers"]
        super().__init__(**{**kwargs, "tie_word_embeddings": self.model["tie_weights"]})


@dataclass
class LstmLmModelOutput(ModelOutput):
    """What the model without a decoder returns."""

    last_hidden_state: Tensor | None = None  # (B, T, H), before dropout; 0 at padding
    state: Tensor | None = None  # (B, 2, L, S) after the last token; only with `use_cache`


@dataclass
class LstmLmOutput(ModelOutput):
    """What the language model returns."""

    loss: Tensor | None = None  # mean nll in nats of the labels; only where labels are given
    logits: Tensor | None = None  # (B, T, V), of the token after each token
    state: Tensor | None = None  # (B, 2, L, S) after the last token; only with `use_cache`


class LstmLmModel(PreTrainedModel):
    """The layers; their weights have the names that lstmlm gives them.

    In training they drop units, with lstmlm's probabilities, but anew for every token; of lstmlm's other regularisers they have none.
    """

    config_class = LstmLmConfig
    base_model_prefix = "model"
    _input_embed_layer = "embedding"
    _keys_to_ignore_on_load_unexpected: list[str] | None = [r"^decoder\."]  # noqa: RUF012 (transformers reads it so)

    def __init__(self, config: LstmLmConfig) -> None:
        super().__init__(config)
        sizes = [config.model["embedding_size"], *config.layer_sizes]
        self.embedding = nn.Embedding(config.vocab_size, sizes[0])
        self.layers = nn.ModuleList(nn.LSTM(*pair, batch_first=True) for pair in itertools.pairwise(sizes))
        kinds = ["dropout_input", *["dropout_hidden"] * (len(sizes) - 2), "dropout_output"]
        chances = [config.model["dropout"] if (chance := config.model.get(kind)) is None else chance for kind in kinds]
        self.dropouts = nn.ModuleList(nn.Dropout(chance) for chance in chances)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> LstmLmModelOutput:
        """The last layer's outputs, and the state, of texts side by side.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T or more), 0 at padding, on either side; padding, also by its id, leaves the state alone.
            state: (B, 2, L, S), to go on from; None = zeros, before the first token of a text.
            use_cache: Whether the new state is returned; None = it is.
        """
        outputs, state = self._read(input_ids, self._real(input_ids, attention_mask), state)
        return LstmLmModelOutput(outputs, state if use_cache is not False else None)

    def _real(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Where there is no padding, bool (B, T)."""
        real = input_ids != self.config.padding_id
        return real if attention_mask is None else real & attention_mask[:, -input_ids.shape[1] :].bool()

    def _read(self, input_ids: Tensor, real: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last layer's outputs (B, T, H), 0 at padding, and the state after each text's last token."""
        if state is None:
            state = self.embedding.weight.new_zeros(len(input_ids), 2, self.config.num_hidden_layers, self.config.state_size)
        order = (~real).byte().argsort(dim=1, stable=True)  # real tokens first, in their order
        tokens = input_ids.masked_fill(~real, 0).gather(1, order)
        outputs, state = self._run_layers(tokens, real.sum(1), state)
        outputs = torch.zeros_like(outputs).scatter(1, order[..., None].expand_as(outputs), outputs)
        return outputs.masked_fill(~real[..., None], 0), state

    def _run_layers(self, tokens: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer's outputs (B, T, H), and the state after each row's last real token."""
        outputs, states = self.embedding(tokens), []
        packed_lengths = lengths.clamp(min=1).cpu()  # an empty row can't be packed: it computes one token in vain
        for i, layer in enumerate(self.layers):
            packed = pack_padded_sequence(self.dropouts[i](outputs), packed_lengths, batch_first=True, enforce_sorted=False)
            h, c = state[:, :, i, : layer.hidden_size].transpose(0, 1).contiguous()  # (2, B, H_layer)
            packed, (h, c) = layer(packed, (h[None], c[None]))
            outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=tokens.shape[1])
            unused = self.config.state_size - layer.hidden_size
            states.append(nn.functional.pad(torch.stack([h[0], c[0]], dim=1), (0, unused)))
        empty = (lengths == 0)[:, None, None, None]
        return outputs, torch.where(empty, state, torch.stack(states, dim=2))


class LstmLmForCausalLM(LstmLmModel, GenerationMixin):
    """The layers and the decoder."""

    _keys_to_ignore_on_load_unexpected = None
    _tied_weights_keys = {"decoder.weight": "embedding.weight"}  # noqa: RUF012 (transformers reads it so)
    _is_stateful = True

    def __init__(self, config: LstmLmConfig) -> None:
        super().__init__(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> LstmLmOutput:
        """Logits, loss and state of texts side by side.

        Args:
            input_ids, attention_mask, state, use_cache: As for the layers.
            labels: (B, T), the input ids; they are shifted here. Padding is not scored, nor what is -100.
            kwargs: To transformers' loss.
        """
        real = self._real(input_ids, attention_mask)
        outputs, state = self._read(input_ids, real, state)
        logits = self.decoder(self.dropouts[-1](outputs))  # (B, T, V)
        loss = None
        if labels is not None:
            before = nn.functional.pad(real[:, :-1], (1, 0), value=True)  # else padding would predict a text's first token
            scored = labels.masked_fill(~(real & before), -100)
            loss = self.loss_function(logits=logits, labels=scored, vocab_size=self.config.vocab_size, **kwargs)
        return LstmLmOutput(loss, logits, state if use_cache is not False else None)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, state: Tensor | None = None, use_cache: bool | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The tokens that the state has not read: all, as the caller's state has read none; after the first call with a cache the last."""
        if state is not None and use_cache is not False and not is_first_iteration:
            input_ids = input_ids[:, -1:]
        mask = kwargs.get("attention_mask")
        return {"input_ids": input_ids, "attention_mask": mask, "state": state, "use_cache": use_cache}

    def _update_model_kwargs_for_generation(
        self, outputs: LstmLmOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        if outputs.state is not None:  # else without a cache, where every call goes on from the caller's state
            model_kwargs["state"] = outputs.state
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def _reorder_cache(self, state: Tensor | None, beams: Tensor) -> Tensor | None:
        return None if state is None else state.index_select(0, beams)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False
