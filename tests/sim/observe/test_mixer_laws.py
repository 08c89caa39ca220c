"""P1, P2 and S1 measured for every mixer, in float64, against the claims of the laws (N2-N4, N8-N10)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from meanmode.sim.observe import observables
from meanmode.sim.trunk.attention import Mixer
from meanmode.sim.trunk.mixers import make_mixer
from meanmode.sim.trunk.state_space import StateSpace
from meanmode.theory.laws.mixers import MIXER_CLAIMS
from meanmode.theory.laws.state_space import decay_gradient, row_defects, state_space_matrix
from meanmode.theory.setting import MIXERS

SEGMENTS = (9, 2)
HOLDS, FAILS = 1e-10, 0.02
"""Largest relative residual where a claim holds, smallest where it fails (0.02 of the mean or gradient)."""


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixer_of(name: str, *, homogeneous: bool) -> tuple[Mixer, Tensor]:
    """A mixer, and tokens that agree in their first four features; homogeneous values read only those."""
    mixer = make_mixer(name, 16, 2, share=0.3, rope=True).double()
    with torch.no_grad():
        for seed, layer in enumerate((*mixer.readers, mixer.proj)):
            layer.weight.copy_(0.4 * draw(seed, *layer.weight.shape))
        if homogeneous:
            mixer.v_proj.weight[:, 4:] = 0
    x = draw(20, 3, 11, 16)
    x[..., :4] = x[:, :1, :4]
    return mixer, x


def test_every_mixer_has_its_claims() -> None:
    assert set(MIXER_CLAIMS) == set(MIXERS)


@pytest.mark.parametrize("name", MIXERS)
def test_mean_and_leakage_are_as_claimed(name: str) -> None:
    """P1 and P2 on homogeneous values V = 1 vbar^T, whose mixture is the row sums times vbar."""
    mixer, x = mixer_of(name, homogeneous=True)
    value = mixer.v_proj(x).unflatten(-1, (2, 8)).transpose(1, 2)
    mixed = mixer.mixed(x, SEGMENTS)
    scale = value.norm()
    lost = (mixed.mean(-2, keepdim=True) - value.mean(-2, keepdim=True)).norm() * 11**0.5 / scale
    leaked = (mixed - mixed.mean(-2, keepdim=True)).norm() / scale
    claims = MIXER_CLAIMS[name]
    assert lost < HOLDS if claims.mean_kept else lost > FAILS
    assert leaked < HOLDS if claims.no_leakage else leaked > FAILS


def gradient_sizes(name: str, *, homogeneous: bool) -> tuple[float, float]:
    """Gradient norms of the projections that make the matrix, and of the other readers except the values."""
    mixer, x = mixer_of(name, homogeneous=homogeneous)
    gates = [layer for layer in mixer.readers if layer not in (*mixer.sources, mixer.v_proj)]
    (draw(21, 3, 11, 16) * mixer(x, SEGMENTS)).sum().backward()
    parts = [[layer.weight.grad.norm().item() for layer in layers] for layers in (mixer.sources, gates)]
    return float(np.hypot.reduce(parts[0], initial=0.0)), float(np.hypot.reduce(parts[1], initial=0.0))


@pytest.mark.parametrize("name", MIXERS)
def test_homogeneous_values_silence_the_claimed_gradients(name: str) -> None:
    silent, other = (gradient_sizes(name, homogeneous=flag) for flag in (True, False))
    claims = MIXER_CLAIMS[name]
    for claimed, size, scale in zip((claims.silent_scores, claims.silent_gates), silent, other, strict=True):
        assert size <= HOLDS * scale if claimed else size > FAILS * scale


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "uniform"])
def test_other_values_silence_nothing(name: str) -> None:
    """The silence comes from the values, not the mixer: values that differ move every mixer's scores."""
    assert gradient_sizes(name, homogeneous=False)[0] > 0.1


@pytest.mark.parametrize("name", MIXERS)
def test_the_writer_gradient_of_homogeneous_values(name: str) -> None:
    """N9, N10: purely mean-coherent if nothing leaks, zero if the row sums are 0."""
    mixer, x = mixer_of(name, homogeneous=True)
    y = mixer.mixed(x, SEGMENTS).transpose(1, 2).flatten(2)
    g_mean, g_ctr, _ = observables.writer_modes(y, draw(22, 3, 11, 16))
    if name in ("a_minus_i", "i_minus_a"):
        assert g_mean < HOLDS and g_ctr < HOLDS
    elif MIXER_CLAIMS[name].no_leakage:
        assert g_ctr < HOLDS * g_mean
    else:
        assert g_ctr > FAILS * g_mean > 0


@pytest.mark.parametrize("name", ["a_minus_i", "i_minus_a"])
def test_the_difference_mixers_write_no_mean_except_leakage(name: str) -> None:
    """N2: J B X = +- J A P X, with A from softmax attention with the same weights."""
    mixer, x = mixer_of(name, homogeneous=False)
    softmax, _ = mixer_of("softmax", homogeneous=False)
    sign = 1 if name == "a_minus_i" else -1
    leaked = (softmax.matrix(x, SEGMENTS) @ observables.centered(x)[:, None]).mean(-2)
    torch.testing.assert_close((mixer.matrix(x, SEGMENTS) @ x[:, None]).mean(-2), sign * leaked)


def test_the_state_space_loses_and_backpropagates_exactly_what_the_law_says() -> None:
    """N10 on the simulated mixer: its matrix, its row sums, and dL/dz from autograd through the scan."""
    mixer, x = mixer_of("state_space", homogeneous=True)
    assert isinstance(mixer, StateSpace)
    (logit,) = (operand.detach().requires_grad_() for operand in mixer.operands(x, SEGMENTS))
    value, cotangent = draw(30, 8), draw(31, 3, 2, 11, 8)
    (cotangent * mixer.mix(value.expand(3, 2, 11, 8), logit)).sum().backward()
    matrix = mixer.matrix(x, SEGMENTS).detach().numpy()
    for sample, head in np.ndindex(3, 2):
        decay = torch.sigmoid(logit[sample, head, :, 0]).detach().numpy()
        np.testing.assert_allclose(matrix[sample, head], state_space_matrix(decay), atol=1e-12)
        np.testing.assert_allclose(matrix[sample, head].sum(1), 1 - row_defects(decay), atol=1e-12)
        np.testing.assert_allclose(
            logit.grad[sample, head, :, 0],
            decay_gradient(decay, value.numpy(), cotangent[sample, head].numpy()),
            atol=1e-12,
        )
