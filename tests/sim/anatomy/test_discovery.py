"""Discovery leaves no trace, sees through what hides a graph, and what it finds is what hooks see."""

import dataclasses
import json
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, one_hot, softmax
from torch.utils.checkpoint import checkpoint

import meanmode
from meanmode.sim.anatomy.anatomy import Anatomy, Writer
from meanmode.sim.anatomy.anatomy_tree import tree
from meanmode.sim.anatomy.discovery import discover

WIDTH, DEPTH = 8, 3


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


X = noise(2, 5, WIDTH)


class Sublayer(nn.Module):
    """x + W2 gelu(W1 x)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def branch(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Added(Sublayer):
    """The branch is written into in place, which replaces the node of its view."""

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        branch += x
        return branch


class Multiplied(Sublayer):
    """`addcmul` with a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, self.gain, self.branch(x))


class Adapted(Sublayer):
    """A frozen writer with a low-rank adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def branch(self, x: Tensor) -> Tensor:
        inner = gelu(self.up(x))
        return self.down(inner) + 0.5 * self.b(self.a(inner))


class Routed(Sublayer):
    """Two experts, each for some tokens, and a router as wide as the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, WIDTH)
        self.experts = nn.ModuleList(Sublayer() for _ in range(2))

    def branch(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        share, choice = softmax(self.router(flat), -1)[:, :2].max(-1)
        written = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            (chosen,) = torch.where(choice == number)
            written = written.index_add(0, chosen, expert.branch(flat[chosen]) * share[chosen, None])
        return written.view_as(x)


class Conditioned(Sublayer):
    """A gate from a condition, and one from the trunk, both as wide as the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.condition, self.gate = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("given", torch.ones(2, 1, 4))

    def branch(self, x: Tensor) -> Tensor:
        return self.condition(self.given) * self.gate(x).sigmoid() * super().branch(x)


class Checkpointed(Sublayer):
    """The whole sublayer is checkpointed."""

    reentrant = True

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


class Rerun(Checkpointed):
    reentrant = False


class Chain(nn.Module):
    """Sublayers after an embedding, with things that a pass could change."""

    def __init__(self, kind: type[nn.Module], *, shared: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        first = kind()
        self.layers = nn.ModuleList(first if shared else kind() for _ in range(DEPTH))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.last: Any = None
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.count += 1
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        self.last = x
        return self.norm(x.mT).mT


@pytest.mark.parametrize(
    ("kind", "added"),
    [
        (Sublayer, ()),
        (Added, ()),
        (Multiplied, ()),
        (Adapted, ("layers.0.b.weight",)),
        (Routed, ("layers.0.experts.1.down.weight",)),
        (Conditioned, ()),
        (Checkpointed, ()),
        (Rerun, ()),
    ],
)
def test_what_hides_a_writer_hides_it_not(kind: type[nn.Module], added: tuple[str, ...]) -> None:
    found = discover(Chain(kind), X)
    inner = "experts.0.down" if kind is Routed else "down"
    assert [writer.parameter for writer in found.writers] == [
        f"layers.{n}.{inner}.weight" for n in range(DEPTH)
    ]
    assert found.writers[0].added == added and not found.unsure
    assert {writer.kind for writer in found.writers} == {"feed-forward"}
    assert [block.module for block in found.blocks] == [f"layers.{number}" for number in range(DEPTH)]


def test_shared_layers_count_by_call() -> None:
    found = discover(Chain(Sublayer, shared=True), X)
    assert [(writer.module, writer.call) for writer in found.writers] == [
        ("layers.0.down", n) for n in range(DEPTH)
    ]
    assert [(block.module, block.call) for block in found.blocks] == [("layers.0", n) for n in range(DEPTH)]


def state(model: nn.Module) -> list[Any]:
    """Everything that a pass could change, by its bits."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        *(tensor.detach().clone().numpy().tobytes() for tensor in tensors),
        *(tensor._version for tensor in model.parameters()),
        *(id(tensor) for tensor in tensors),
        *((tensor.requires_grad, tensor.grad) for tensor in model.parameters()),
        *(
            (module.training, *map(len, (module._forward_hooks, module._forward_pre_hooks)))
            for module in model.modules()
        ),
        *({name: id(value) for name, value in vars(module).items()} for module in model.modules()),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        (torch.is_grad_enabled(), torch.utils.checkpoint.CheckpointFunction),
    ]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_to_the_bit(training: bool, fails: bool) -> None:
    model = Chain(Checkpointed).train(training)
    model.layers[1].requires_grad_(False).eval()
    x = X.clone()

    def run() -> Tensor:
        out = model(x)
        if fails:
            raise OSError("no")
        return out

    before = state(model)
    if fails:
        with pytest.raises(OSError, match="no"):
            discover(model, run)
    else:
        with torch.no_grad():
            inside = state(model)
            assert len(discover(model, run).writers) == DEPTH
            assert state(model) == inside
    assert state(model) == before
    assert torch.equal(x, X) and not x.requires_grad


def test_it_works_under_autocast_and_leaves_no_cast_behind() -> None:
    model = Chain(Sublayer).requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(discover(model, X).writers) == DEPTH
        assert not model(X).requires_grad


class Mixed(nn.Module):
    """A post-norm block with one head and a fused projection, written as functions of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = (nn.Parameter(noise(rows, WIDTH)) for rows in (3 * WIDTH, WIDTH))
        self.up, self.down = (nn.Parameter(noise(*shape)) for shape in ((12, WIDTH), (WIDTH, 12)))

    def forward(self, x: Tensor) -> Tensor:
        v, k, q = linear(x, self.qkv).chunk(3, -1)
        x = layer_norm(x + linear(softmax(q @ k.mT, -1) @ v, self.out), (WIDTH,))
        return layer_norm(x + linear(gelu(linear(x, self.up)), self.down), (WIDTH,))


def test_parameters_outside_of_layers_and_rows_in_any_order() -> None:
    found = discover(nn.Sequential(*(Mixed() for _ in range(2))), X)
    assert [(writer.parameter, writer.label) for writer in found.writers] == [
        *(("0.out", "attn"), ("0.down", "ffn"), ("1.out", "attn"), ("1.down", "ffn"))
    ]
    assert not any(writer.hooked for writer in found.writers)
    assert {writer.norms.placement for writer in found.writers} == {"post"}
    reader = found.readers[0]
    assert (reader.v.rows, reader.k.rows, reader.q.rows) == (((0, 8),), ((8, 16),), ((16, 24),))
    assert (reader.heads, reader.head_width, reader.source) == (1, WIDTH, ("main",))


def test_tokens_first_are_told_from_batch_first() -> None:
    for batch_first, layout in ((True, "BTD"), (False, "TBD")):
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=batch_first)
        found = discover(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), X)
        assert found.stream("main").layout == layout
    square = discover(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), noise(4, 4, WIDTH))
    assert "batch first is assumed" in square.unsure[0].reason


def test_any_way_to_run_a_pass_gives_the_same() -> None:
    model = Chain(Sublayer)
    found = discover(model, X)
    for run in ({"x": X}, (X,), [X], lambda: model(X), lambda: {"out": [model(X)]}):
        assert discover(model, run) == found


@pytest.mark.parametrize(
    ("model", "run", "said"),
    [
        (nn.Linear(WIDTH, WIDTH), X, "no residual addition"),
        (nn.Embedding(4, 4), lambda: 3, "no tensor with an autograd graph"),
        (nn.Linear(WIDTH, WIDTH), lambda: one_hot(torch.arange(3)), "no tensor with an autograd graph"),
    ],
)
def test_a_pass_without_what_is_looked_for_is_refused(model: nn.Module, run: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        discover(model, run)


def test_an_anatomy_is_read_back_and_may_be_corrected() -> None:
    found = discover(Chain(Sublayer), X)
    assert Anatomy.of_document(json.loads(json.dumps(found.document()))) == found
    least = Anatomy.of_document({"writers": [{"parameter": "layers.1.down.weight", "block": 1}]})
    assert least.writers == (Writer(parameter="layers.1.down.weight", block=1),)
    least.check(Chain(Sublayer))
    wrong = dataclasses.replace(least, writers=(Writer(parameter="nowhere", block=1),))
    with pytest.raises(ValueError, match="no parameter 'nowhere'"):
        wrong.check(Chain(Sublayer))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "has the format"),
        ({"writers": 3}, "must be a list"),
        ({"writers": [{"block": 1}]}, "lacks 'parameter'"),
        ({"writers": [{"parameter": "a", "block": "1"}]}, "must be of type int"),
        ({"writers": [{"parameter": "a", "block": 1, "color": 2}]}, "no key 'color'"),
        ({"writers": [{"parameter": "a", "block": 1, "kind": "x"}]}, "kind must be one of"),
        ({"writers": [{"parameter": "a", "block": 1, "stream": "x"}]}, "that is not listed"),
        ({"writers": [], "blocks": [{"index": 2}]}, "numbered 1, 2"),
    ],
)
def test_a_wrong_document_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Anatomy.of_document(change)


def test_the_face_of_the_package_and_the_tree() -> None:
    found = meanmode.discover(Chain(Adapted), X)
    assert isinstance(found, meanmode.Anatomy)
    assert "ffn: layers.0.down.weight [8, 12], with 1 more, norm none" in tree(found)


def test_it_needs_no_library_of_stores() -> None:
    heavy = "{'zarr', 'xarray', 'pandas', 'sympy', 'scipy'}"
    code = f"import meanmode; meanmode.discover; import sys; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
