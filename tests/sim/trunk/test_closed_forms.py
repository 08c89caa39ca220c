"""Law R6 as autograd functions: merges with their norm, and norms, beside autograd."""

import contextlib
from collections.abc import Iterator

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


@pytest.mark.parametrize("name", sorted({"plain", "mv_split", "layerscale", "rezero", "deepnorm"}))
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
    assert len(found) == 4 and all(map(torch.equal, found, [*whole[:3], whole[3]]))
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


def test_second_derivatives_are_refused_in_a_sentence() -> None:
    merge, (trunk, branch, _) = made("mv_split"), drawn(2, 9, 6)
    for of in (lambda x: merge(x, branch, (5, 4)), lambda x: normed(x, 1e-6)):
        x = trunk.clone().requires_grad_()
        (slope,) = torch.autograd.grad(of(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"cannot be differentiated twice .*plain_torch"):
            slope.sum().backward()
        with plain_torch():
            (slope,) = torch.autograd.grad(of(x).square().sum(), x, create_graph=True)
            slope.pow(3).sum().backward()
        assert x.grad is not None and bool(x.grad.isfinite().all())


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


def test_the_result_may_be_changed_in_place() -> None:
    merge, (trunk, branch, _) = made("plain"), drawn(2, 9, 6)
    y = merge(trunk.requires_grad_(), branch, (5, 4))
    y.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
