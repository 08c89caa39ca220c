"""The probe over steps of several passes, and on samples without a gradient."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meanmode.sim.observe.observable_names import BACKWARD_OBSERVABLES
from meanmode.sim.observe.probe import Probe
from meanmode.sim.observe.record import Array
from meanmode.sim.observe.writer_gradients import WriterSum, writer_modes
from meanmode.sim.simulate import stream
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.stack import Stack, synthetic_input
from meanmode.theory.setting import Setting

SETTING = Setting(
    depth=3, tokens=7, text_tokens=2, batch=6, width=12, heads=2, weight_std=0.3, input_cosine=0.3
)
STACKS = [
    SETTING,
    dataclasses.replace(SETTING, merge="mv_split", alpha=0.3, text_tokens=0),
    dataclasses.replace(SETTING, mixer="uniform"),
]
NAMES = [f"{setting.merge}-{setting.mixer}" for setting in STACKS]
SHARES = {"equal": (2, 2, 2), "unequal": (1, 3, 2), "one": (6,)}
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def network(setting: Setting = SETTING, seed: int = 0) -> Stack:
    """A stack in double precision."""
    stack = Stack(setting).double()
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, seed, index))
    return stack


def data(setting: Setting = SETTING, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the whole batch."""
    x, targets = (synthetic_input(setting, stream(setting, seed, name)).double() for name in (0, 77))
    return x, targets


def share_of_loss(model: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor) -> Tensor:
    """The contribution of some samples to the mean loss of the batch."""
    return (model(x.detach().requires_grad_()) - targets).square().sum() / (
        SETTING.batch * x.shape[-2:].numel()
    )


def passed(model: Callable[[Tensor], Tensor], setting: Setting, shares: tuple[int, ...]) -> None:
    """Run the passes of a step, one after another."""
    for part, targets in zip(*(of.split(shares) for of in data(setting)), strict=True):
        share_of_loss(model, part, targets).backward()


def measured(model: nn.Module, setting: Setting = SETTING) -> dict[str, Array]:
    """The values of a single pass of the whole batch."""
    with Probe(model) as probe:
        passed(model, setting, SHARES["one"])
    model.zero_grad()
    return probe.values()


def agree(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, **CLOSE, err_msg=name)


@pytest.mark.parametrize("asked", ["inside", "afterwards"])
@pytest.mark.parametrize("share", ["equal", "unequal"])
@pytest.mark.parametrize("setting", STACKS, ids=NAMES)
def test_several_passes_have_the_values_of_one_over_the_whole_batch(
    setting: Setting, share: str, asked: str
) -> None:
    stack = network(setting)
    expected = measured(stack, setting)
    with Probe(stack, passes=3) as probe:
        passed(stack, setting, SHARES[share])
        found = probe.values() if asked == "inside" else {}
    found = found or probe.values()
    agree(found, expected)
    for name in BACKWARD_OBSERVABLES:
        has_keys = setting.mixer != "uniform" or not name.startswith("grad_rms")
        assert np.isfinite(found[name][1:]).all() == has_keys, name


def test_modes_and_sizes_of_single_passes_do_not_average() -> None:
    """Otherwise the tests above could not fail."""
    stack, whole = network(), measured(network())
    apart = []
    for part, targets in zip(*(of.split(2) for of in data()), strict=True):
        with Probe(stack) as probe:
            share_of_loss(stack, part, targets).backward()
        apart.append(probe.values())
        stack.zero_grad()
    for name in ("g_mean", "g_ctr", "g_inner", "grad_rms_q", "grad_rms_k"):
        summed = np.sum([values[name] for values in apart], axis=0)
        assert np.abs(summed / whole[name] - 1)[1:].min() > 1e-3, name


def test_backward_passes_may_follow_after_all_forward_passes() -> None:
    stack = network()
    expected = measured(stack)
    with Probe(stack, passes=3) as probe:
        losses = [share_of_loss(stack, *part) for part in zip(*(of.split(2) for of in data()), strict=True)]
        for loss in losses:
            loss.backward()
    agree(probe.values(), expected)


@pytest.mark.parametrize("source", ["the same leaf", "parts of one tensor"])
def test_inputs_that_outlive_a_pass_are_measured_in_each_once(source: str) -> None:
    """Hooks left on them must not measure again in the next pass."""
    stack = network()
    x, targets = data()
    x = torch.cat([x[:2]] * 3).requires_grad_()
    expected = []
    for part in zip(x.detach().split(2), targets.split(2), strict=True):
        with Probe(stack) as probe:
            share_of_loss(stack, *part).backward()
        expected.append(probe.values()["adjoint_tcs"])
    leaf = x.detach()[:2].requires_grad_()
    inputs = [leaf] * 3 if source == "the same leaf" else x.split(2)
    for _ in range(2):
        with Probe(stack, passes=3) as probe:
            for part, wanted in zip(inputs, targets.split(2), strict=True):
                (stack(part) - wanted).square().sum().backward(retain_graph=True)
        assert not any(part._backward_hooks for part in inputs)
        np.testing.assert_allclose(probe.values()["adjoint_tcs"], np.mean(expected, axis=0), **CLOSE)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_passes_count_once(reentrant: bool) -> None:
    stack = network()
    expected = measured(stack)

    def recomputed(x: Tensor) -> Tensor:
        for block in stack.blocks:
            x = checkpoint(block, x, SETTING.segments, use_reentrant=reentrant)
        return x

    with Probe(stack, passes=3) as probe:
        passed(recomputed, SETTING, SHARES["equal"])
    agree(probe.values(), expected)


def test_a_probe_of_passes_changes_no_bit() -> None:
    gradients = []
    for probed in (False, True):
        stack = network()
        if probed:
            with Probe(stack, passes=3):
                passed(stack, SETTING, SHARES["equal"])
        else:
            passed(stack, SETTING, SHARES["equal"])
        gradients.append([weight.grad for weight in stack.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    hooks = [(of._forward_hooks, of._forward_pre_hooks) for of in stack.modules()]
    assert not any(after or before for after, before in hooks)


def test_gradients_clipped_and_zeroed_after_the_block_were_read() -> None:
    stack = network()
    expected = measured(stack)
    with Probe(stack, passes=3) as probe:
        passed(stack, SETTING, SHARES["equal"])
    nn.utils.clip_grad_norm_(stack.parameters(), 1e-3)
    stack.zero_grad()
    agree(probe.values(), expected)


def test_every_step_is_measured_separately() -> None:
    stack = network()
    expected, probe = measured(stack), Probe(stack, passes=3)
    for _ in range(2):
        with probe:
            passed(stack, SETTING, SHARES["equal"])
        stack.zero_grad()
        agree(probe.values(), expected)
        agree(probe.values(), expected)


def test_passes_of_an_ensemble() -> None:
    members = [network(seed=seed) for seed in range(2)]
    expected = [measured(member) for member in members]
    together = stack_members(members)
    with Probe(together, passes=3) as probe:
        for part, targets in zip(*(of.split(2) for of in data()), strict=True):
            share_of_loss(together, part.expand(2, *part.shape), targets).backward()
    for name, values in probe.values().items():
        np.testing.assert_allclose(values, [of[name] for of in expected], **CLOSE, err_msg=name)


@pytest.mark.parametrize(
    "names",
    [("g_ctr",), ("g_mean", "g_inner"), ("kappa", "tcs_image"), ("grad_rms_k",), ("adjoint_tcs",)],
    ids=str,
)
@pytest.mark.parametrize("passes", [1, 3])
def test_names_and_blocks_of_a_step(names: tuple[str, ...], passes: int) -> None:
    stack = network()
    expected = measured(stack)
    with Probe(stack, passes=passes, names=names, blocks=[1, 3]) as probe:
        passed(stack, SETTING, SHARES["equal" if passes > 1 else "one"])
    found = probe.values()
    assert set(found) == set(names)
    for name in names:
        np.testing.assert_allclose(found[name][[1, 3]], expected[name][[1, 3]], **CLOSE)
        assert np.isnan(found[name][2]).all()


def test_a_step_without_gradients_has_forward_observables_only() -> None:
    stack = network()
    expected = measured(stack)
    with torch.no_grad(), Probe(stack, passes=2) as probe:
        for part in data()[0].chunk(2):
            stack(part)
    for name, values in probe.values().items():
        missing = name in BACKWARD_OBSERVABLES
        np.testing.assert_allclose(
            values, np.full_like(values, np.nan) if missing else expected[name], **CLOSE
        )


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (2, "block 1 has made 3 of the 2 passes of this step: read the values after the last pass"),
        (4, "block 1 has made 3 of the 4 passes of this step: read the values after the last pass"),
    ],
)
def test_other_passes_than_announced_are_refused(passes: int, message: str) -> None:
    stack = network()
    with Probe(stack, passes=passes) as probe:
        passed(stack, SETTING, SHARES["equal"])
    with pytest.raises(ValueError, match=message):
        probe.values()


def test_values_asked_for_too_early_are_refused_and_come_later() -> None:
    stack = network()
    expected = measured(stack)
    with Probe(stack, passes=3) as probe:
        with pytest.raises(ValueError, match="block 1 has made 0 of the 3 passes of this step"):
            probe.values()
        *others, last = (
            share_of_loss(stack, *part) for part in zip(*(of.split(2) for of in data()), strict=True)
        )
        for loss in others:
            loss.backward()
        with pytest.raises(ValueError, match=r"in 2 of the 3 passes of this step.* backward included"):
            probe.values()
        last.backward()
        agree(probe.values(), expected)
        with pytest.raises(ValueError, match="measure the next one in its own `with` block"):
            stack(data()[0])


def test_a_step_has_a_pass() -> None:
    with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
        Probe(network(), passes=0)


@pytest.mark.parametrize("shared", [0.0, 1.0, 1e3])
def test_sums_stay_accurate_where_a_gradient_is_nearly_coherent(shared: float) -> None:
    generator = torch.Generator().manual_seed(4)
    y, delta = (torch.randn(6, 50, size, generator=generator) + shared for size in (24, 16))
    total = WriterSum()
    for part in zip(y.split((1, 3, 2)), delta.split((1, 3, 2)), strict=True):
        total.add(*part)
    found, expected = total.modes(), writer_modes(y.double(), delta.double())
    assert found.g_mean.item() == pytest.approx(expected.g_mean.item(), rel=1e-6)
    assert found.g_ctr.item() == pytest.approx(expected.g_ctr.item(), rel=1e-4)


@pytest.mark.parametrize("shares", [(6,), (2, 2, 2)], ids=["one pass", "three passes"])
@pytest.mark.parametrize(
    ("tokens", "missing"),
    [(0, ("amplification", "kappa", "kappa_abs", "adjoint_tcs")), (1, ("kappa", "kappa_abs", "adjoint_tcs"))],
    ids=["no token", "one token"],
)
def test_a_sample_without_a_direction_does_not_enter_a_mean(
    shares: tuple[int, ...], tokens: int, missing: tuple[str, ...]
) -> None:
    """At the last writer, where `tokens` tokens of the first sample have a direction."""
    stack = network()
    weights = torch.ones(6, 9, 1, dtype=torch.float64)
    weights[0, tokens:] = 0.0

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return (weight * stack(x.detach().requires_grad_()).square().cumsum(-1)).sum()

    x, _ = data()
    with Probe(stack) as others:
        loss(x[1:], weights[1:]).backward()
    with Probe(stack) as alone:
        loss(x[:1], weights[:1]).backward()
    with Probe(stack, passes=len(shares)) as probe:
        for part in zip(x.split(shares), weights.split(shares), strict=True):
            loss(*part).backward()
    last = {"adjoint_tcs": (3,)}
    for name in ("amplification", "kappa", "kappa_abs", "adjoint_tcs"):
        place = last.get(name, (3, 1))
        rest, own = others.values()[name][place], alone.values()[name][place]
        assert np.isnan(own) == (name in missing), name
        expected = rest if name in missing else (5 * rest + own) / 6
        assert probe.values()[name][place] == pytest.approx(expected, rel=1e-5), name


def test_a_sample_that_overflows_still_enters_the_mean() -> None:
    stack = network()
    x, targets = data()
    targets[0] = torch.inf
    with Probe(stack, passes=3) as probe:
        for part in zip(x.split(2), targets.split(2), strict=True):
            share_of_loss(stack, *part).backward()
    for name in ("amplification", "kappa", "adjoint_tcs", "g_mean"):
        assert np.isnan(probe.values()[name][3]).all(), name
