"""The state-space scan against its recursion, its matrix and its gradients, at hard lengths and decays."""

import pytest
import torch
from torch import Tensor

from meanmode.sim.trunk.ensemble import stack_members, unstack_member
from meanmode.sim.trunk.state_space import CHUNK, StateSpace, decay_products, scan


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recursion(values: Tensor, decay: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + v_t, token by token."""
    states, state = [], torch.zeros_like(values[..., 0, :])
    for token in range(values.shape[-2]):
        state = decay[..., token, None] * state + values[..., token, :]
        states.append(state)
    return torch.stack(states, dim=-2)


@pytest.mark.parametrize("chunk", [1, 4, CHUNK])
@pytest.mark.parametrize("tokens", [1, 3, 64, 65, 200])
def test_scan_is_its_recursion(tokens: int, chunk: int) -> None:
    values, decay = draw(1, 2, 3, tokens, 5), torch.sigmoid(draw(2, 2, 3, tokens))
    torch.testing.assert_close(scan(values, decay.log(), chunk), recursion(values, decay))


@pytest.mark.parametrize("tokens", [1, 7, 130])
def test_scan_and_its_gradients_are_those_of_the_matrix(tokens: int) -> None:
    mixer = StateSpace(12, 3).double()
    logit = draw(3, 2, 3, tokens, 1).requires_grad_()
    values = draw(4, 2, 3, tokens, 4).requires_grad_()
    cotangent = draw(5, 2, 3, tokens, 4)
    fast = mixer.mix(values, logit)
    slow = mixer.matrix_of(logit) @ values
    torch.testing.assert_close(fast, slow)
    expected = torch.autograd.grad(slow, (values, logit), cotangent)
    for found, wanted in zip(torch.autograd.grad(fast, (values, logit), cotangent), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("scale", [0.0, 3.0, 60.0], ids=["even", "mixed", "saturated"])
def test_four_thousand_tokens_in_single_precision(scale: float) -> None:
    """The sum of thousands of logarithms of decays would overflow if exponentiated with a plus sign."""
    logit = scale * draw(6, 1, 2, 4096, 1) + 2
    values = draw(7, 1, 2, 4096, 4)
    mixer = StateSpace(8, 2).double()
    exact = mixer.mix(values, logit)
    single = mixer.float().mix(values.float(), logit.float())
    assert single.isfinite().all()
    assert (single - exact).norm() < 1e-5 * exact.norm()


def test_a_decay_of_zero_forgets_and_of_one_keeps() -> None:
    """sigmoid(-1e4) is 0 in any precision: its logarithm must not cause a NaN, forward or backward."""
    logit = torch.tensor([1e4, -1e4, 1e4, 1e4])[None, None, :, None].requires_grad_()
    values = torch.arange(1.0, 5.0)[None, None, :, None]
    output = StateSpace(1, 1).mix(values, logit)
    torch.testing.assert_close(output.flatten(), torch.tensor([1.0, 2.0, 1.0, 1.0]))
    output.sum().backward()
    assert logit.grad.isfinite().all()


def test_products_of_decays_are_those_between_two_tokens() -> None:
    decay = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64)
    expected = torch.tensor([[1, 0, 0], [0.25, 1, 0], [0.25 * 0.125, 0.125, 1]], dtype=torch.float64)
    torch.testing.assert_close(decay_products(decay.log()), expected)


def test_images_are_read_both_ways() -> None:
    """Tokens in reversed order give the reversed output; a shuffle is not followed."""
    mixer, x = StateSpace(12, 3).double(), draw(8, 2, 9, 12)
    torch.testing.assert_close(mixer(x.flip(1), (9, 0)), mixer(x, (9, 0)).flip(1))
    order = torch.tensor([3, 0, 1, 2, 4, 5, 6, 7, 8])
    assert not torch.allclose(mixer(x[:, order], (9, 0)), mixer(x, (9, 0))[:, order], atol=1e-3)


def test_heads_remember_two_four_and_eight_tokens_where_the_projection_is_silent() -> None:
    mixer, x = StateSpace(12, 3).double(), draw(9, 1, 5, 12)
    torch.nn.init.zeros_(mixer.decay_proj.weight)
    diagonal = mixer.matrix(x, (5, 0)).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(1 / diagonal[0, :, 0], torch.tensor([2.0, 4.0, 8.0], dtype=torch.float64))


def test_members_of_an_ensemble_are_computed_alone() -> None:
    members = [StateSpace(12, 3).double() for _ in range(4)]
    x = draw(10, 4, 2, 9, 12)
    ensemble = stack_members(members)
    for run, member in enumerate(members):
        expected = member(x[run], (9, 0))
        torch.testing.assert_close(ensemble(x, (9, 0))[run], expected)
        torch.testing.assert_close(unstack_member(ensemble, run)(x[run], (9, 0)), expected)


def test_half_precision_stays_near_the_exact_scan() -> None:
    """bfloat16: at most twice the error of the matrix path in the same precision."""
    mixer, logit, values = StateSpace(8, 2).double(), draw(11, 1, 2, 300, 1) + 2, draw(12, 1, 2, 300, 4)
    exact = mixer.mix(values, logit)
    half = mixer.bfloat16()
    plain = half.matrix_of(logit.bfloat16()) @ values.bfloat16()
    fast = half.mix(values.bfloat16(), logit.bfloat16())
    assert (fast.double() - exact).norm() <= 2 * (plain.double() - exact).norm()
