"""The streamed backward pass against torch.autograd on the resident stack, and what it must not change."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import meanmode.sim.simulate
from meanmode.sim.observe import observables
from meanmode.sim.observe.layer_hooks import watch_writer
from meanmode.sim.observe.observable_names import BACKWARD_OBSERVABLES, WRITERS, observable_dims
from meanmode.sim.simulate import ADJOINT_STREAM, simulate, stream
from meanmode.sim.trunk.stack import Stack, synthetic_adjoint, synthetic_input
from meanmode.theory.setting import MERGES, MIXERS, Setting

SMALL = Setting(
    depth=3,
    tokens=9,
    text_tokens=2,
    batch=2,
    width=16,
    heads=2,
    weight_std=0.3,
    input_cosine=0.2,
    adjoint_cosine=0.3,
    residual_gain=0.5,
)
STACKS = [
    *(dataclasses.replace(SMALL, merge=merge) for merge in MERGES),
    *(dataclasses.replace(SMALL, mixer=mixer, rope=True) for mixer in MIXERS),
]
NAMES = [f"{setting.merge}-{setting.mixer}" for setting in STACKS]


def resident(setting: Setting, seed: int) -> tuple[Stack, Tensor, Tensor]:
    """The stack with the weights of a seed, its input and its adjoint, in float64."""
    stack = Stack(setting)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, seed, index))
    x = synthetic_input(setting, stream(setting, seed, 0))
    adjoint = synthetic_adjoint(setting, stream(setting, seed, ADJOINT_STREAM))
    return stack.double(), x.double(), adjoint.double()


class BlockPairs(NamedTuple):
    """Inputs and output cotangents of a block's writers, and its query and key gradients."""

    writers: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    queries: Tensor | None
    keys: Tensor | None


def walked(setting: Setting, seed: int) -> tuple[Stack, list[BlockPairs], Tensor]:
    """A resident stack with its autograd gradients, what every block saw, and dL/dX_0."""
    stack, x, adjoint = resident(setting, seed)
    seen: dict[torch.nn.Module, tuple[Tensor, Tensor]] = {}
    for block in stack.blocks:
        for layer in (block.operator.proj, block.ffn.w2):
            watch_writer(layer, lambda y, delta, layer=layer: seen.update({layer: (y, delta)}))
    start = x.clone().requires_grad_()
    stack(start).backward(adjoint)
    found = [
        BlockPairs(
            (seen[block.operator.proj], seen[block.ffn.w2]),
            *(
                getattr(block.operator, name).weight.grad if hasattr(block.operator, name) else None
                for name in ("q_proj", "k_proj")
            ),
        )
        for block in stack.blocks
    ]
    return stack, found, start.grad


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("setting", STACKS, ids=NAMES)
def test_watched_writers_give_the_gradients_of_autograd(setting: Setting) -> None:
    stack, found, _ = walked(setting, 4)
    for block, back in zip(stack.blocks, found, strict=True):
        for layer, (y, delta) in zip((block.operator.proj, block.ffn.w2), back.writers, strict=True):
            close(torch.einsum("btm,btn->mn", delta, y), layer.weight.grad)
            g_mean, g_ctr, g_inner = observables.writer_modes(y, delta)
            square = g_mean.square() + 2 * g_inner + g_ctr.square()
            torch.testing.assert_close(square.sqrt(), layer.weight.grad.norm())


@pytest.mark.parametrize("setting", STACKS, ids=NAMES)
def test_simulation_records_the_values_of_the_resident_stack(setting: Setting) -> None:
    _, found, at_input = walked(setting, 6)
    recorded = simulate(setting, 6, backward=True)
    expected = observables.adjoint_tcs(at_input).mean().item()
    assert recorded["adjoint_tcs"][0] == pytest.approx(expected, abs=1e-4)
    for index, back in enumerate(found, start=1):
        for writer, (y, delta) in enumerate(back.writers):
            expected = {
                "amplification": observables.writer_amplification(y, delta).mean(),
                "kappa": observables.kappa(y, delta).mean(),
                "kappa_abs": observables.kappa(y, delta, True).mean(),
            }
            modes = observables.writer_modes(y, delta)
            expected |= dict(zip(("g_mean", "g_ctr", "g_inner"), modes, strict=True))
            for name, value in expected.items():
                measured = recorded[name][index, writer]
                assert measured == pytest.approx(value.item(), rel=2e-3, abs=2e-4), (name, WRITERS[writer])
        for name, gradient in (("grad_rms_q", back.queries), ("grad_rms_k", back.keys)):
            rms = np.nan if gradient is None else gradient.square().mean().sqrt().item()
            assert recorded[name][index] == pytest.approx(rms, rel=2e-3, nan_ok=True)


@pytest.mark.parametrize("setting", STACKS, ids=NAMES)
def test_forward_results_are_bitwise_those_of_a_forward_run(setting: Setting) -> None:
    whole = simulate(setting, 2, backward=True)
    other = simulate(dataclasses.replace(setting, adjoint_cosine=0.0), 2)
    for name, values in other.items():
        np.testing.assert_array_equal(whole[name], values)
    assert set(whole) == set(other) | set(BACKWARD_OBSERVABLES)
    assert set(whole) == set(observable_dims(setting, backward=True))
    assert set(other) == set(observable_dims(setting))


def test_backward_results_repeat_with_the_same_seed() -> None:
    first, again = (simulate(SMALL, 3, backward=True) for _ in range(2))
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)
        if name in BACKWARD_OBSERVABLES:
            whole = values if name == "adjoint_tcs" else values[1:]
            assert np.isfinite(whole).all(), name
            assert name == "adjoint_tcs" or np.isnan(values[0]).all()


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.9])
def test_synthetic_adjoint_has_its_cosine_and_is_drawn_independently(cosine: float) -> None:
    setting = Setting(tokens=64, batch=64, adjoint_cosine=cosine)
    adjoint = synthetic_adjoint(setting, stream(setting, 0, ADJOINT_STREAM))
    cosines = observables.adjoint_tcs(adjoint)
    assert abs(cosines.mean().item() - cosine) < 4 * cosines.std().item() / 8 + 2 / setting.width
    assert adjoint.square().mean().item() == pytest.approx(1, abs=0.05)
    x = synthetic_input(setting, stream(setting, 0, 0))
    overlap = torch.nn.functional.cosine_similarity(x, adjoint, dim=-1)
    assert abs(overlap.mean().item()) < 4 * overlap.mean(1).std().item() / 8


def test_streams_of_inputs_and_weights_are_those_of_the_first_stores() -> None:
    """Streams from before adjoints and mixers existed: committed stores stay reproducible."""
    setting = Setting(tokens=16, weight_std=0.0625, adjoint_cosine=0.5, depth=5)
    seeds = [stream(setting, 3, name).initial_seed() for name in (0, 7)]
    assert seeds == [6471162417151420580, 1561681771063694177]


@pytest.mark.parametrize(
    ("cosine", "message"), [(1.0, "got 1.0"), (-0.1, "got -0.1"), (float("nan"), "got nan")]
)
def test_adjoint_cosine_has_its_range(cosine: float, message: str) -> None:
    with pytest.raises(ValueError, match=rf"adjoint_cosine must be in \[0, 1\), {message}"):
        Setting(adjoint_cosine=cosine)


def test_a_trunk_that_overflows_has_no_gradients() -> None:
    setting = Setting(
        depth=4, tokens=4, width=8, heads=1, weight_std=1e12, merge="layerscale", residual_gain=1e12
    )
    recorded = simulate(setting, 0, backward=True)
    assert all(np.isnan(recorded[name]).all() for name in BACKWARD_OBSERVABLES)


def test_an_adjoint_that_overflows_is_nan_below(monkeypatch: pytest.MonkeyPatch) -> None:
    def huge(*given: object) -> Tensor:
        return 3e38 * torch.ones(SMALL.batch, 11, SMALL.width)

    monkeypatch.setattr(meanmode.sim.simulate, "synthetic_adjoint", huge)
    recorded = simulate(
        dataclasses.replace(SMALL, depth=12, merge="deepnorm", residual_gain=0.1), 0, backward=True
    )
    finite = np.isfinite(recorded["adjoint_tcs"])
    assert finite[-1] and not finite[0]
    assert np.isnan(recorded["g_mean"][: int(np.argmax(finite)) + 1]).all()


def test_no_depth_is_only_the_adjoint() -> None:
    recorded = simulate(dataclasses.replace(SMALL, depth=0), 0, backward=True)
    assert np.isfinite(recorded["adjoint_tcs"]).tolist() == [True] and np.isnan(recorded["g_mean"]).all()


def test_zero_writers_pass_the_adjoint_and_give_no_query_gradient() -> None:
    setting = dataclasses.replace(SMALL, writer_std=0.0, batch=64, text_tokens=0)
    recorded = simulate(setting, 1, backward=True)
    np.testing.assert_allclose(recorded["adjoint_tcs"], recorded["adjoint_tcs"][-1], atol=0.02)
    assert (recorded["grad_rms_q"][1:] == 0).all() and (recorded["grad_rms_k"][1:] == 0).all()
    assert (recorded["g_mean"][1:] > 0).all()
