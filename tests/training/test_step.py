"""One update against an independent loop in plain PyTorch, and the figures an update leaves behind."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lstmlm import LSTMLanguageModel
from lstmlm.data.corpus import load_corpus
from tests.helpers import ADAMW, EVERYTHING, SmallConfig, build_step, run_steps


class PlainModel(nn.Module):
    def __init__(self, model: LSTMLanguageModel) -> None:
        super().__init__()
        e, h, n = model.config.embedding_size, model.config.hidden_size, model.config.num_layers
        self.embedding = nn.Embedding(model.vocab_size, e)
        self.lstm = nn.LSTM(e, h, n)
        self.decoder = nn.Linear(h, model.vocab_size)
        self.decoder.weight = self.embedding.weight
        with torch.no_grad():
            self.embedding.weight.copy_(model.embedding.weight)
            self.decoder.bias.copy_(model.decoder.bias)
            for i, layer in enumerate(model.layers):
                for name, weight in layer.named_parameters():
                    getattr(self.lstm, name.replace("l0", f"l{i}")).copy_(weight)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None) -> tuple[torch.Tensor, tuple]:
        y, state = self.lstm(self.embedding(x), state)
        return self.decoder(y), state


def test_equals_an_independent_loop(small_config: SmallConfig) -> None:
    """Of plain PyTorch, whose columns are cut by hand; all of the same length here, as everybody else has them."""
    config = small_config("--model.dropout=0", "--data.batch_size=5", "--train.log_every=1000", "--optim.lr=0.02")
    stream = load_corpus(config.data).splits["train"]
    stream = stream[: (len(stream) - 1) // 50 * 50 + 1]
    train_step = build_step(config, stream)
    plain, optim = PlainModel(train_step.model), config.optim
    optimizer = torch.optim.Adam(plain.parameters(), optim.lr, optim.betas, optim.eps)
    inputs, targets = (tokens.long().view(5, -1).T for tokens in (stream[:-1], stream[1:]))
    state, losses = None, []
    for start in range(0, min(400, len(inputs)), 10):
        logits, state = plain(inputs[start : start + 10], state)
        state = tuple(s.detach() for s in state)
        loss = F.cross_entropy(logits.flatten(0, 1), targets[start : start + 10].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), optim.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    assert run_steps(train_step, 40) == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < 0.99 * losses[0], "the updates matter"


def test_the_layout_is_that_of_the_state_dict(small_config: SmallConfig) -> None:
    train_step = build_step(small_config("--model.tie_weights=false", "--model.embedding_size=8"))
    tensors, layout = train_step.state_dict()[0], train_step.layout()
    assert {name: (t.shape, t.dtype) for name, t in layout.items()} == {name: (t.shape, t.dtype) for name, t in tensors.items()}
    assert all(tensor.is_meta for tensor in layout.values())


def test_accumulated_gradient_is_that_of_the_whole_window(small_config: SmallConfig) -> None:
    """A window of 3 segments: the gradient of the mean nll over all its targets, cut at the segments' borders."""
    config = small_config("--model.dropout=0", "--train.accumulate=3", "--optim.grad_clip=1e9", "--train.log_every=100")
    train_step = build_step(config)
    plain = PlainModel(train_step.model)
    windows = list(train_step.windows(epoch=0))
    train_step(windows[0], step=0, segment=0)
    (result,) = train_step.read()
    total, state = torch.zeros(()), None
    for first, end in windows[0].segments:
        inputs, targets = train_step.table.segment(first, end)
        logits, state = plain(inputs, state)
        state = tuple(s.detach() for s in state)
        total = total + F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    (total / windows[0].num_targets).backward()
    assert result.nll == pytest.approx(total.item(), rel=1e-5)
    norm = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm().item()
    assert result.grad_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.usefixtures("recorded_graphs")
@pytest.mark.parametrize(
    "recipe",
    [
        ["--optim.schedule=cosine", "--optim.warmup_steps=5"],
        ["--model.dropout=0", "--optim.name=sgd", "--optim.schedule=one_cycle"],
        [*EVERYTHING, *ADAMW, "--train.accumulate=1", "--data.bptt_jitter=0", "--optim.average=ema"],
    ],
    ids=["adam", "sgd", "adamw"],
)
def test_a_recorded_update_is_the_eager_one(recipe: list[str], small_config: SmallConfig) -> None:
    """Over the epoch's short last segment, an epoch's reset and a resume; the rate changes with every step."""
    overrides = [*recipe, "--train.log_every=99"]
    losses, ends = [], []
    for graph in ("true", "false"):
        config = small_config(*overrides, f"--train.cuda_graph={graph}")
        train_step = build_step(config)
        windows = list(train_step.windows(epoch=0))
        assert windows[-1].num_targets < windows[0].num_targets
        for number, window in enumerate(windows):
            train_step(window, step=number, segment=number)
        train_step.reset_state()
        for number, window in enumerate(windows[:6], start=len(windows)):
            train_step(window, step=number, segment=number)
        resumed = build_step(config)
        resumed.load_state_dict(*train_step.state_dict())
        for number, window in enumerate(windows[6:9], start=len(windows) + 6):
            resumed(window, step=number, segment=number)
        results = train_step.read() + resumed.read()
        losses.append([value for result in results for value in (result.nll, result.grad_norm)])
        ends.append(resumed.state_dict()[0])
        if graph == "true":
            assert train_step._recording is not None and resumed._recording is not None
            assert train_step._recording.graph.replays == len(windows) - 1 + 6  # type: ignore[attr-defined]
            assert resumed._recording.graph.replays == 3  # type: ignore[attr-defined]
    assert losses[0] == losses[1]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
