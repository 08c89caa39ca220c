"""Products by oneDNN: as accurate as torch's, differentiable, and unused where operations are inspected."""

import runpy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import linear
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import meanmode.sim.trunk.linear
import meanmode.sim.trunk.onednn
from meanmode.sim.observe.layer_hooks import watch_writer
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.linear import Linear, dot_products
from meanmode.sim.trunk.onednn import by_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")

SIZES = [(288, 256, 256), (96, 64, 768), (16, 512, 600), (300, 16, 1000), (1000, 300, 16)]
OPERATORS = torch.ops.meanmode
BATCH, READ, WRITTEN = (4, 72), 128, 160


@pytest.fixture(autouse=True)
def avx512_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use oneDNN on any processor."""
    monkeypatch.setattr(meanmode.sim.trunk.onednn, "IS_FASTER", True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def large() -> tuple[Linear, Tensor, Tensor]:
    """A layer, an input that requires a gradient, and an adjoint, large enough for oneDNN."""
    layer = Linear(READ, WRITTEN)
    with torch.no_grad():
        layer.weight.copy_(drawn(WRITTEN, READ))
    return layer, drawn(*BATCH, READ, seed=1).requires_grad_(), drawn(*BATCH, WRITTEN, seed=2)


def multiplied(x: Tensor, weight: Tensor) -> Tensor:
    """The output of the layer for this input and weight."""
    return torch.func.functional_call(Linear(*weight.shape[::-1]), {"weight": weight}, (x,))


def passed(
    multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, adjoint: Tensor
) -> dict[str, Tensor]:
    """Output and both gradients."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = multiply(x, weight)
    by_x, by_weight = torch.autograd.grad(y, (x, weight), adjoint)
    return {"output": y.detach(), "by input": by_x, "by weight": by_weight}


def is_onednn(y: Tensor) -> bool:
    return y.grad_fn is not None and "Product" in y.grad_fn.name()


@pytest.mark.parametrize("quantity", ["output", "by input", "by weight"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_error_is_at_most_twice_that_of_torch(sizes: tuple[int, int, int], quantity: str) -> None:
    tokens, read, written = sizes
    x, weight, adjoint = drawn(tokens, read), drawn(written, read, seed=1), drawn(tokens, written, seed=2)
    assert by_onednn(x, weight)
    exact = passed(linear, x.double(), weight.double(), adjoint.double())[quantity]
    ours, plain = (
        torch.linalg.vector_norm(passed(multiply, x, weight, adjoint)[quantity] - exact)
        for multiply in (multiplied, linear)
    )
    assert 0 < ours <= 2 * plain


def transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def sliced(x: Tensor) -> Tensor:
    return torch.cat([x, x], dim=-1)[..., : x.shape[-1]]


def expanded(x: Tensor) -> Tensor:
    return x[..., :1, :].expand_as(x)


LAYOUTS = [transposed, sliced, expanded]


@pytest.mark.parametrize("operand", [0, 1, 2], ids=["input", "weight", "adjoint"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_strides_are_multiplied(layout: Callable[[Tensor], Tensor], operand: int) -> None:
    layer, x, adjoint = large()
    given = [x.detach(), layer.weight.detach(), adjoint]
    given[operand] = layout(given[operand])
    assert not given[operand].is_contiguous() and by_onednn(given[0], given[1])
    torch.testing.assert_close(
        passed(multiplied, *given), passed(linear, *given), rtol=1e-4, atol=1e-3, check_stride=False
    )


class Strides(torch.utils._python_dispatch.TorchDispatchMode):
    """Records whether each second operand passed to oneDNN is a dense matrix or the transpose of one."""

    def __init__(self) -> None:
        super().__init__()
        self.dense: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "_linear_pointwise" in str(func):
            self.dense.append(args[1].is_contiguous() or args[1].mT.is_contiguous())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_onednn_gets_no_strided_rows(layout: Callable[[Tensor], Tensor]) -> None:
    """oneDNN would take a path a thousand times slower for them."""
    layer, x, _ = large()
    with Strides() as strides, torch.no_grad():
        meanmode.sim.trunk.onednn.onednn_product(x, layout(layer.weight))
    assert strides.dense == [True]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_output_is_the_same(context: Callable[[], AbstractContextManager]) -> None:
    layer, x, _ = large()
    with context():
        alone = layer(x)
    watched = layer(x)
    assert is_onednn(watched) and alone.grad_fn is None
    assert torch.equal(alone, watched)


def test_only_the_required_gradients_are_computed_and_paid_for() -> None:
    layer, x, adjoint = large()
    both = passed(multiplied, x, layer.weight, adjoint)
    fixed = layer(x.detach())
    assert fixed.grad_fn.saved_tensors[1] is None
    fixed.backward(adjoint)
    assert torch.equal(layer.weight.grad, both["by weight"])
    layer.weight.requires_grad_(False)
    frozen = layer(x)
    assert frozen.grad_fn.saved_tensors[0] is None, "frozen weights keep no activation"
    frozen.backward(adjoint)
    assert torch.equal(x.grad, both["by input"])


def test_the_output_may_be_changed_in_place() -> None:
    layer, x, adjoint = large()
    layer(x).mul_(2.0).backward(adjoint)
    torch.testing.assert_close(x.grad, 2 * adjoint @ layer.weight)


def test_second_derivatives() -> None:
    layer, x, adjoint = large()

    def curvature(multiply: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        inputs = tuple(given.detach().requires_grad_() for given in (x, layer.weight, adjoint))
        y = multiply(*inputs[:2])
        slopes = torch.autograd.grad(y, inputs[:2], inputs[2], create_graph=True)
        return torch.autograd.grad(sum(slope.pow(3).sum() for slope in slopes), inputs)

    torch.testing.assert_close(curvature(multiplied), curvature(linear), rtol=1e-3, atol=1.0)
    assert min(part.abs().max() for part in curvature(linear)) > 1e4, "far above that tolerance"


def test_checkpointing_and_hooks_see_what_they_see_with_torch() -> None:
    layer, x, adjoint = large()
    expected = passed(multiplied, x, layer.weight, adjoint)
    hooked, seen = [], []
    layer.weight.register_hook(hooked.append)
    watch_writer(layer, lambda y, delta: seen.append((y, delta)))
    checkpoint(layer, x, use_reentrant=False).backward(adjoint)
    assert torch.equal(hooked[0], expected["by weight"]) and torch.equal(x.grad, expected["by input"])
    ((y, delta),) = seen
    assert torch.equal(y, x) and torch.equal(delta, adjoint)


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("sharded", [fully_shard, DistributedDataParallel])
def test_a_distributed_layer_is_multiplied_by_onednn(
    sharded: Callable[..., nn.Module], process_group: None
) -> None:
    layer, x, adjoint = large()
    expected = passed(multiplied, x, layer.weight, adjoint)
    if sharded is fully_shard:
        y = fully_shard(layer, mesh=dist.init_device_mesh("cpu", (1,)))(x)
    else:
        y = DistributedDataParallel(layer)(x)
    y.backward(adjoint)
    gradient = layer.weight.grad
    assert torch.equal(y, expected["output"])
    assert torch.equal(gradient.full_tensor() if sharded is fully_shard else gradient, expected["by weight"])


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "counted operations": lambda: FlopCounterMode(display=False),
    "oneDNN switched off": lambda: torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
}


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")  # of the flags' exit
@pytest.mark.parametrize("name", CONTEXTS)
def test_inspected_operations_are_those_of_torch(name: str) -> None:
    layer, x, _ = large()
    with CONTEXTS[name]():
        y, expected = layer(x), linear(x, layer.weight)
    assert not is_onednn(y) and is_onednn(layer(x))
    assert y.dtype == expected.dtype and torch.equal(y, expected)


def test_operations_are_counted() -> None:
    layer, x, _ = large()
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * x[..., 0].numel() * READ * WRITTEN


# torch implements its forward-mode derivatives in TorchScript, which it has deprecated
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_function_transforms_and_forward_mode() -> None:
    layer, x, adjoint = large()
    x, direction = x.detach(), drawn(*x.shape, seed=3)
    with torch.no_grad():
        expected = linear(direction, layer.weight)
    _, tangent = torch.func.jvp(layer, (x,), (direction,))
    torch.testing.assert_close(tangent, expected)
    slope = torch.func.grad(lambda given: (layer(given) * adjoint).sum())(x)
    torch.testing.assert_close(slope, adjoint @ layer.weight)
    torch.testing.assert_close(torch.vmap(layer)(x[None])[0], linear(x, layer.weight))
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(x, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected)


@pytest.mark.parametrize("faster", [True, False])
def test_a_compiler_gets_one_graph_with_one_product(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meanmode.sim.trunk.onednn, "IS_FASTER", faster)
    layer, x, _ = large()
    # loaded again, since the compiler cannot trace the test run's checks of shapes
    unchecked = runpy.run_path(meanmode.sim.trunk.linear.__file__)["Linear"](READ, WRITTEN)
    unchecked.weight = layer.weight
    targets = []

    def compiler(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        targets.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    with torch.no_grad():
        y = torch.compile(unchecked, backend=compiler, fullgraph=True)(x)
    assert targets == [OPERATORS.product.default if faster else torch._C._nn.linear]
    torch.testing.assert_close(y, layer(x))


def test_the_product_that_compilers_see() -> None:
    layer, x, adjoint = large()
    torch.library.opcheck(OPERATORS.product, (x, layer.weight))
    found = [
        torch.autograd.grad(call(x, layer.weight), (x, layer.weight), adjoint)
        for call in (OPERATORS.product, linear)
    ]
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


class Subclass(Tensor):
    """A tensor subclass."""


REFUSED = {
    "small": lambda x, weight: (x[:, :8], weight),
    "few tokens": lambda x, weight: (x.flatten(0, 1)[:15], torch.cat([weight] * 100)),
    "few features": lambda x, weight: (torch.cat([x] * 20)[..., :15], weight[:, :15]),
    "few written": lambda x, weight: (torch.cat([x] * 20), weight[:15]),
    "nothing": lambda x, weight: (x[:0], weight),
    "double precision": lambda x, weight: (x.double(), weight.double()),
    "half precision": lambda x, weight: (x.bfloat16(), weight.bfloat16()),
    "subclass": lambda x, weight: (x.as_subclass(Subclass), weight),
    "elsewhere": lambda x, weight: (x.to("meta"), weight.to("meta")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_products_go_to_torch(case: str) -> None:
    layer, x, _ = large()
    x, weight = REFUSED[case](x, layer.weight)
    assert not by_onednn(x, weight)
    layer.weight = nn.Parameter(weight.detach())
    y = layer(x)
    assert not is_onednn(y)
    assert y.is_meta or torch.equal(y, linear(x, weight))


def test_intel_processors_are_left_to_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rule = meanmode.sim.trunk.onednn._has_idle_avx512
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    found = {}
    for name in ("Intel Xeon Platinum 8480C", "AMD EPYC 9654"):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda name=name: {"cpu_name": name}, raising=False
        )
        found[name] = rule()
    assert list(found.values()) == [False, True]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not rule()


@pytest.mark.parametrize("tokens", [3, 72], ids=["torch", "oneDNN"])
def test_a_bias_is_added_and_learned(tokens: int) -> None:
    layer = Linear(READ, WRITTEN, bias=True)
    x = drawn(8, tokens, READ).requires_grad_()
    y = layer(x)
    assert by_onednn(x, layer.weight) == (tokens == 72)
    torch.testing.assert_close(y, linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)
    adjoint = drawn(*y.shape, seed=1)
    y.backward(adjoint)
    torch.testing.assert_close(layer.bias.grad, adjoint.sum((0, 1)), rtol=1e-4, atol=1e-4)


def test_an_ensemble_of_layers_with_biases() -> None:
    members = [Linear(READ, WRITTEN, bias=True) for _ in range(3)]
    x = drawn(3, *BATCH, READ)
    together = stack_members(members)
    assert together.bias.shape == (3, 1, 1, WRITTEN)
    alone = torch.stack([member(part) for member, part in zip(members, x, strict=True)])
    torch.testing.assert_close(together(x), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("differentiated", [(True, False), (False, True), (True, True)], ids=str)
def test_dot_products_of_a_batch_of_one(differentiated: tuple[bool, bool]) -> None:
    a, b = (drawn(1, 1, 300, 64, seed=seed) for seed in (0, 1))
    adjoint = drawn(1, 1, 300, 300, seed=2)
    for operand, wanted in zip((a, b), differentiated, strict=True):
        operand.requires_grad_(wanted)
    found = dot_products(a, b)
    assert is_onednn(found)
    torch.testing.assert_close(found, a @ b.mT, rtol=1e-4, atol=1e-4)
    found.backward(adjoint)
    for operand, expected in ((a, adjoint @ b), (b, adjoint.mT @ a)):
        if operand.requires_grad:
            torch.testing.assert_close(operand.grad, expected, rtol=1e-4, atol=1e-3)
        else:
            assert operand.grad is None


def test_a_batch_of_several_is_multiplied_at_once() -> None:
    a, b = drawn(2, 300, 64).requires_grad_(), drawn(2, 300, 64, seed=1)
    found = dot_products(a, b)
    assert not is_onednn(found)
    assert torch.equal(found, a @ b.mT)
