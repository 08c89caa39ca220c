"""Law R6 as autograd functions: merges with their norm, and norms, beside autograd."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from meanmode.sim.kernels.choice import plain_torch
from meanmode.sim.trunk.closed_forms import in_closed_form, normed
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.merges import FUSED, Merge, make_merge
from meanmode.sim.trunk.stack import Block
from meanmode.theory.setting import Setting

MERGES = ("plain", "mv_split", "layerscale", "rezero", "deepnorm", "highway", "hard_centering")
SEGMENTS = {"two": (5, 4), "one": (9,), "empty": (9, 0), "one token": (1,), "single tokens": (1, 1)}


def made(name: str, width: int = 6, seed: int = 0) -> Merge:
    merge = make_merge(name, width, residual_gain=0.7, alpha=0.3, beta=0.8).double()
    generator = torch.Generator().manual_seed(seed)
    for gain in merge.parameters():
        gain.data += 0.1 * torch.randn(gain.shape, generator=generator, dtype=gain.dtype)
    return merge


def drawn(*shape: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def passed(merge: Merge, segments: tuple[int, ...], given: list[Tensor]) -> list[Tensor]:
    """The result, and the gradients of trunk, branch and learned gains."""
    leaves = [x.clone().requires_grad_() for x in given[:2]]
    y = merge(*leaves, segments)
    learned = [gain for gain in merge.parameters() if gain.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *learned], given[2])]


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("where", SEGMENTS)
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_they_equal_autograd(name: str, where: str, scale: float) -> None:
    merge, segments = made(name), SEGMENTS[where]
    trunk, branch, gradient = drawn(2, sum(segments), 6)
    # nearly alike tokens, as after a collapse: what is centered is small beside the mean
    given = [x.mean(-2, keepdim=True) + scale * x for x in (trunk, branch)] + [gradient]
    found = passed(merge, segments, given)
    with plain_torch():
        expected = passed(merge, segments, given)
    assert torch.equal(found[0], expected[0]), "the forward pass computes the same numbers"
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10 * float(right.abs().max()))


@pytest.mark.parametrize("name", MERGES[:5])
def test_they_replace_autograd_where_they_should(name: str) -> None:
    merge = made(name)
    trunk, branch, _ = drawn(2, 9, 6)
    assert type(merge) in FUSED
    assert type(merge(trunk.requires_grad_(), branch, (5, 4)).grad_fn).__name__ == "_MergeNormBackward"
    assert type(normed(trunk, 1e-6).grad_fn).__name__ == "_NormBackward"
    assert merge(trunk.detach(), branch, (5, 4)).requires_grad == bool(list(merge.parameters()))
    with torch.no_grad():
        assert merge(trunk, branch, (5, 4)).grad_fn is None


@pytest.mark.parametrize("name", ["mv_split", "rezero"])
def test_an_ensemble_has_the_gradients_of_its_members(name: str) -> None:
    members = [made(name, seed=seed) for seed in range(3)]
    given = drawn(3, 2, 9, 6)
    together = passed(stack_members(members), (5, 4), given)
    for run, member in enumerate(members):
        alone = passed(member, (5, 4), [x[run] for x in given])
        for ours, right in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[run].reshape(right.shape), right, rtol=1e-10, atol=1e-12)


def test_a_frozen_gain_keeps_no_branch() -> None:
    merge = made("mv_split")
    given = drawn(2, 9, 6)
    whole, kept = passed(merge, (5, 4), given), kept_bytes(merge, given)
    merge.beta.requires_grad_(False)
    found = passed(merge, (5, 4), given)
    assert len(found) == 4 and all(map(torch.equal, found, whole[:4]))
    assert kept - kept_bytes(merge, given) == given[1].nbytes


def kept_bytes(merge: Merge, given: list[Tensor]) -> int:
    """Bytes that a merge keeps for its backward pass, beside the result, which the next layer keeps too."""
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x
        return x

    tokens = given[0].shape[-2]
    with saved_tensors_hooks(pack, lambda x: x):
        y = merge(*(x.clone().requires_grad_() for x in given[:2]), (tokens - 4, 4))
    return sum(x.nbytes for place, x in kept.items() if place != y.data_ptr())


def test_one_tensor_of_tokens_is_kept_where_autograd_keeps_three() -> None:
    merge, given = made("mv_split"), drawn(2, 400, 6)
    with plain_torch():
        before = kept_bytes(merge, given)
    assert before > 3 * given[0].nbytes
    assert kept_bytes(merge, given) < 1.5 * given[0].nbytes


PASSES = {
    "a merge": lambda x, y: made("mv_split")(x, y, (5, 4)),
    "a plain merge": lambda x, y: made("plain")(x, y, (5, 4)),
    "a norm": lambda x, y: normed(x + y, 1e-6),
}
"""Functions of trunk and branch."""


@pytest.mark.parametrize("name", PASSES)
def test_second_derivatives_are_refused_in_a_sentence(name: str) -> None:
    """However they are asked for: where autograd finds no path it is silent, and gives zeros."""
    trunk, branch, direction = drawn(2, 9, 6)
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()

    def slope() -> tuple[Tensor, Tensor]:
        x = trunk.clone().requires_grad_()
        y = PASSES[name](x @ weight, branch)
        return x, y.sum() + torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)[0].square().sum()

    def along(x: Tensor) -> Tensor:
        return PASSES[name](x, branch)

    asked: list[Callable[[], object]] = [
        lambda: slope()[1].backward(),
        lambda: slope()[1].backward(inputs=[weight]),
        lambda: torch.autograd.grad(slope()[1], weight),
        lambda: torch.autograd.functional.jvp(along, trunk, direction),
        lambda: torch.autograd.functional.hvp(lambda x: along(x).pow(3).sum(), trunk, direction),
    ]
    for ask in asked:
        with pytest.raises(RuntimeError, match=r"cannot be differentiated twice .*plain_torch"):
            ask()
        with plain_torch():
            ask()
    x, _ = slope()  # a graph that nothing is done with disturbs nobody
    assert x.grad is None


def test_a_skip_that_is_learned_has_its_gradient() -> None:
    merge, (trunk, branch, _) = make_merge("deepnorm", 6, residual_gain=1.5).double(), drawn(2, 9, 6)
    merge.gain.requires_grad_()
    merge(trunk, branch).pow(3).sum().backward()
    found = merge.gain.grad
    merge.gain.grad = None
    with plain_torch():
        merge(trunk, branch).pow(3).sum().backward()
    torch.testing.assert_close(found, merge.gain.grad, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("shape", [(9, 1), (2, 9, 6)])
def test_gains_of_other_shapes_are_left_to_torch(shape: tuple[int, ...]) -> None:
    merge, (trunk, branch, _) = made("mv_split"), drawn(2, 9, 6)
    merge.alpha = torch.nn.Parameter(torch.full(shape, 0.3, dtype=torch.float64))
    y = merge(trunk, branch, (5, 4))
    y.sum().backward()
    with plain_torch():
        assert torch.equal(y, merge(trunk, branch, (5, 4)))
    assert merge.alpha.grad is not None and merge.alpha.grad.shape == shape


@pytest.mark.parametrize("name", ["plain", "mv_split", "rezero"])
def test_many_gradients_are_taken_at_once(name: str) -> None:
    merge, (trunk, branch, gradient) = made(name), drawn(2, 9, 6)
    x = trunk.requires_grad_()
    inputs = [x, *merge.parameters()]
    several = torch.stack([gradient, 2 * gradient, gradient.square()])
    y = merge(x, branch, (5, 4))
    found = torch.autograd.grad(y, inputs, several, is_grads_batched=True, retain_graph=True)
    for number, of in enumerate(several):
        for ours, right in zip(found, torch.autograd.grad(y, inputs, of, retain_graph=True), strict=True):
            torch.testing.assert_close(ours[number], right, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_sees_the_operations_of_torch(tmp_path: Path) -> None:
    x, *_ = drawn(2, 9, 6)
    traced = torch.jit.trace(lambda z: normed(z, 1e-6), x.requires_grad_())
    torch.jit.save(traced, str(tmp_path / "norm.pt"))
    assert torch.equal(traced(x), normed(x, 1e-6))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_transforms_and_forward_mode_take_plain_torch() -> None:
    merge, (trunk, branch, gradient) = made("mv_split"), drawn(2, 9, 6)
    expected = passed(merge, (5, 4), [trunk, branch, gradient])[1]
    by_function = torch.func.grad(lambda x: (merge(x, branch, (5, 4)) * gradient).sum())(trunk)
    torch.testing.assert_close(by_function, expected, rtol=1e-10, atol=1e-12)
    with forward_ad.dual_level():
        y = merge(forward_ad.make_dual(trunk, gradient), branch, (5, 4))
        along = forward_ad.unpack_dual(y).tangent
    assert along is not None
    back = passed(merge, (5, 4), [trunk, branch, along])[1]
    torch.testing.assert_close((back * gradient).sum(), along.square().sum(), rtol=1e-8, atol=0.0)


@contextlib.contextmanager
def in_half(dtype: torch.dtype) -> Iterator[None]:
    with torch.autocast("cpu", dtype=dtype):
        yield


def test_short_types_are_left_to_torch() -> None:
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    assert not in_closed_form(x) and not in_closed_form(x.float(), x)
    block = Block(Setting(depth=1, width=16, heads=1, tokens=4, merge="mv_split"))
    trunk = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with in_half(torch.bfloat16):
        y = block(trunk, (4,))
    y.sum().backward()
    assert y.dtype == trunk.dtype and type(y.grad_fn).__name__ == "_MergeNormBackward"


def test_a_result_that_was_changed_in_place_is_refused_and_not_silently_wrong() -> None:
    merge, (trunk, branch, _) = made("plain"), drawn(2, 9, 6)
    y = merge(trunk.requires_grad_(), branch, (5, 4))
    y.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with plain_torch():
        merge(trunk, branch, (5, 4)).mul_(2.0).sum().backward()
