"""Measured steps of compiled models are compiled too, without graph breaks, and measure the same."""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from meanmode.sim.watch.compiled_hooks import HANDLERS, REPORTS, seen
from meanmode.sim.watch.watch import Watch

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of what dynamo looks at

IDS = torch.arange(3, 27).reshape(3, 8)
STATES = torch.linspace(-1, 1, 240).reshape(3, 5, 16).sin()
PADDED = torch.ones(3, 8, dtype=torch.int64).tril(5)


def bert(depth: int = 2) -> nn.Module:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**sizes, **quiet, intermediate_size=32)
    return transformers.BertModel(config, add_pooling_layer=False)


class Shared(nn.Module):
    """One post-norm layer that is called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x)
        return x


class Checkpointed(nn.Module):
    """Layers in lower precision that are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0) for _ in range(2))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False)
        return x


class Named(nn.Module):
    """A block that returns a container of its own kind, which compiled hooks cannot rebuild."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> object:
        x = x + self.attention(x, x, x)[0]
        x = x + self.down(self.up(x).relu())
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=x)


class OfNamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Named() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).last_hidden_state
        return x


def loss_of(output: object) -> Tensor:
    states = output if isinstance(output, Tensor) else output.last_hidden_state
    targets = torch.linspace(-1, 1, states.numel()).reshape(states.shape)
    return (states - targets).square().mean()


def compiled(model: nn.Module, how: str, counter: Callable[..., object]) -> nn.Module:
    """The model compiled as a whole, in place or block by block."""
    torch._dynamo.reset()
    options = {"backend": counter, "fullgraph": True, "dynamic": False}
    if how == "wrapped":
        return torch.compile(model, **options)
    parts = [model] if how == "in place" else model.encoder.layer
    for part in parts:
        part.compile(**options)
    return model


def steps(
    model: nn.Module, called: nn.Module, batch: dict[str, Tensor], watch: Watch, numbers: range
) -> list[Tensor]:
    """Gradients after each step, as one vector each."""
    found = []
    for step in numbers:
        model.zero_grad()
        with watch.step(step):
            (loss_of(called(**batch)) / 2).backward()
            (loss_of(called(**batch)) / 2).backward()
        found.append(torch.cat([of.grad.flatten() for of in model.parameters()]))
    return found


@pytest.mark.parametrize(
    ("make", "how", "batch", "graphs"),
    [
        (bert, "wrapped", {"input_ids": IDS, "attention_mask": PADDED}, 2),
        # the first block, whose input differs, and all others
        (partial(bert, 4), "block by block", {"input_ids": IDS}, 4),
        (Shared, "in place", {"x": STATES}, 2),
        (Checkpointed, "wrapped", {"x": STATES}, 2),
    ],
    ids=[
        "padding",
        "blocks that share code",
        "shared layer and functional writer",
        "checkpointing and autocast",
    ],
)
def test_compiled_steps_measure_the_same_in_one_graph(
    make: Callable[[], nn.Module], how: str, batch: dict[str, Tensor], graphs: int
) -> None:
    torch.manual_seed(0)
    model = make()
    plain = copy.deepcopy(model)
    expected = Watch(plain, every=1)
    gradients = steps(plain, plain, batch, expected, range(1, 2))
    counter = CompileCounterWithBackend("aot_eager")
    called = compiled(model, how, counter)
    watch = Watch(called, every=2)
    found = steps(model, called, batch, watch, range(1, 2))
    assert counter.frame_count == 0  # values are checked, uncompiled
    found += steps(model, called, batch, watch, range(2, 5))
    assert set(watch.values) == set(expected.values)
    for name, values in expected.values.items():
        np.testing.assert_allclose(watch.values[name], values, rtol=1e-5, atol=1e-8, err_msg=name)
    for gradient in found:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-5, atol=1e-9)
    # code of plain steps and code of measured ones, without breaks
    assert counter.frame_count == graphs
    assert not HANDLERS and not REPORTS


def test_hooks_that_cannot_be_compiled_leave_measured_steps_uncompiled() -> None:
    torch.manual_seed(0)
    model, batch = OfNamed(), {"x": STATES}
    plain, names = copy.deepcopy(model), ("tcs", "rho", "g_mean", "g_ctr")
    expected = Watch(plain, every=1, names=names)
    gradients = steps(plain, plain, batch, expected, range(1, 2))
    called = compiled(model, "wrapped", CompileCounterWithBackend("aot_eager"))
    watch = Watch(called, every=2, names=names)
    with pytest.warns(UserWarning, match="measured steps run uncompiled, since the hooks could not") as said:
        found = steps(model, called, batch, watch, range(1, 5))
    assert len(said) == 1
    for name, values in expected.values.items():
        np.testing.assert_allclose(watch.values[name], values, rtol=1e-5, atol=1e-8, err_msg=name)
    for gradient in found:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-5, atol=1e-9)


class Free(nn.Module):
    """Blocks that are called by position or by name, and return a tensor or a tuple."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "dropout": 0.0, "batch_first": True}
        self.blocks = nn.ModuleList(Returning(**sizes) for _ in range(2))
        self.named = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            found = block(src=x) if self.named else block(x)
            x = found[0] if isinstance(found, tuple) else found
        return x


class Returning(nn.TransformerEncoderLayer):
    def __init__(self, **sizes: object) -> None:
        super().__init__(**sizes)
        self.as_tuple = False

    def forward(self, src: Tensor) -> Tensor | tuple[Tensor]:
        x = super().forward(src)
        return (x,) if self.as_tuple else x


def watched_steps(watch: Watch, called: nn.Module, numbers: range, tokens: int = 5) -> None:
    for step in numbers:
        with watch.step(step):
            loss_of(called(torch.ones(3, tokens, 16).cumsum(1))).backward()


def test_blocks_may_be_called_and_return_in_another_way_than_at_first() -> None:
    model = Free()
    torch._dynamo.reset()
    called = torch.compile(model, backend="eager")
    watch = Watch(called, every=1, names=("tcs", "max_logit"))
    watched_steps(watch, called, range(1, 3))
    model.named, before = True, dict(watch.values)
    watched_steps(watch, called, range(3, 4))
    for name, values in watch.values.items():
        np.testing.assert_allclose(values, before[name], rtol=1e-5)
    for block in model.blocks:
        block.as_tuple = True
    with pytest.warns(UserWarning, match="not measured.*2 of .* hooks were not seen in compiled code"):
        watched_steps(watch, called, range(4, 5))


def test_code_of_measured_steps_does_not_use_up_that_of_others() -> None:
    torch._dynamo.reset()
    called = torch.compile(Free(), backend="eager", fullgraph=True, dynamic=False)
    watch = Watch(called, every=2, names=("tcs",))
    for tokens in range(3, 8):  # each of two kinds, more than the usual limit of 8
        watched_steps(watch, called, range(2 * tokens, 2 * tokens + 2), tokens)
    assert watch.latest


def test_the_operator_passes_on_values_and_gradients() -> None:
    x, y = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    torch.library.opcheck(seen, ([x, 2 * x.detach()], [y], [0.0], torch.tensor(-1)))
    (first, second, _) = seen([x, 3 * x], [y], [0.0], torch.tensor(-1))
    (first + second).sum().backward()
    assert torch.equal(x.grad, torch.full((2, 3), 4.0))
    assert y.grad is None
