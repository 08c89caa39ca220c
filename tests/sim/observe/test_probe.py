"""The probe on resident networks: its values, that each pass counts once, and that it changes nothing."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meanmode.sim.observe import observables
from meanmode.sim.observe.layer_hooks import watch_writer
from meanmode.sim.observe.observable_names import BACKWARD_OBSERVABLES, OBSERVABLES
from meanmode.sim.observe.probe import Probe
from meanmode.sim.observe.writer_gradients import writer_modes
from meanmode.sim.simulate import ADJOINT_STREAM, simulate, simulate_ensemble, stream
from meanmode.sim.train.ensemble_optimiser import AdamW, EnsembleOptimiser
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.stack import Stack, synthetic_adjoint, synthetic_input
from meanmode.theory.setting import Setting

SETTING = Setting(
    depth=4,
    tokens=9,
    text_tokens=3,
    batch=2,
    width=16,
    heads=2,
    weight_std=0.25,
    input_cosine=0.2,
    adjoint_cosine=0.3,
    rope=True,
)
STACKS = [
    SETTING,
    dataclasses.replace(SETTING, merge="mv_split", alpha=0.3),
    dataclasses.replace(SETTING, mixer="linear", text_tokens=0),
    dataclasses.replace(SETTING, mixer="uniform"),
]
NAMES = [f"{setting.merge}-{setting.mixer}-{setting.text_tokens}" for setting in STACKS]
ROUNDING = {"rtol": 2e-3, "atol": 2e-4}


class Checkpointed(nn.Module):
    """A stack whose blocks are recomputed in the backward pass."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        for block in self.stack.blocks:
            x = checkpoint(block, x, self.stack.setting.segments, use_reentrant=False)
        return x


def resident(setting: Setting, seed: int = 0) -> tuple[Stack, Tensor, Tensor]:
    """The stack, input and adjoint that `simulate` draws."""
    stack = Stack(setting)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, seed, index))
    x = synthetic_input(setting, stream(setting, seed, 0))
    return stack, x.requires_grad_(), synthetic_adjoint(setting, stream(setting, seed, ADJOINT_STREAM))


def passed(network: nn.Module, x: Tensor, adjoint: Tensor) -> dict[str, Tensor]:
    """Output and gradients of one pass."""
    network.zero_grad()
    x.grad = None
    output = network(x)
    output.backward(adjoint)
    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    return {"output": output.detach(), "input": x.grad, **gradients}


@pytest.mark.parametrize("setting", STACKS, ids=NAMES)
def test_a_probed_stack_has_the_values_of_the_simulation(setting: Setting) -> None:
    stack, x, adjoint = resident(setting)
    with Probe(stack) as probe:
        passed(stack, x, adjoint)
    found, expected = probe.values(), simulate(setting, 0, backward=True)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, **ROUNDING, err_msg=name)


@pytest.mark.parametrize("wrap", [nn.Identity, Checkpointed], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("setting", STACKS, ids=NAMES)
def test_a_probe_changes_no_bit(setting: Setting, wrap: type[nn.Module]) -> None:
    stack, x, adjoint = resident(setting)
    network = Checkpointed(stack) if wrap is Checkpointed else stack
    bare = passed(network, x, adjoint)
    with Probe(network):
        probed = passed(network, x, adjoint)
    after = passed(network, x, adjoint)
    for name, expected in bare.items():
        assert torch.equal(probed[name], expected), name
        assert torch.equal(after[name], expected), name


@pytest.mark.parametrize("setting", STACKS, ids=NAMES)
def test_a_checkpointed_pass_counts_once(setting: Setting) -> None:
    stack, x, adjoint = resident(setting)
    with Probe(stack) as direct:
        passed(stack, x, adjoint)
    network = Checkpointed(stack)
    with Probe(network) as probe:
        calls: list[str] = []
        put = probe.record.put

        def counted(name: str, place: Any, *given: Tensor) -> None:
            calls.extend([name] * (len(place) if isinstance(place, list) else 1))
            put(name, place, *given)

        probe.record.put = counted
        passed(network, x, adjoint)
    expected = direct.values()
    for name, values in probe.values().items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert calls.count("row_div") == setting.depth and calls.count("tcs") == setting.depth + 1
    assert calls.count("kappa") == 2 * setting.depth and calls.count("adjoint_tcs") == setting.depth + 1


def test_only_the_requested_observables_are_measured() -> None:
    stack, x, adjoint = resident(SETTING)
    with Probe(stack, blocks=[2, 4], names=["tcs_image", "g_mean", "mu_eff"]) as probe:
        passed(stack, x, adjoint)
    found, expected = probe.values(), simulate(SETTING, 0, backward=True)
    assert set(found) == {"tcs_image", "g_mean", "mu_eff"}
    for name, values in found.items():
        np.testing.assert_allclose(values[[2, 4]], expected[name][[2, 4]], **ROUNDING)
        assert np.isnan(values[[0, 1, 3]]).all()


@pytest.mark.parametrize("name", sorted({*OBSERVABLES, "rho_text", "tcs_image", "var_gain_image"}))
def test_an_observable_alone_has_the_value_it_has_among_all(name: str) -> None:
    stack, x, adjoint = resident(SETTING)
    with Probe(stack) as every:
        passed(stack, x, adjoint)
    with Probe(stack, names=[name]) as alone:
        passed(stack, x, adjoint)
    np.testing.assert_allclose(alone.values()[name], every.values()[name], rtol=1e-5, atol=1e-6)


def test_a_pass_without_gradients_has_forward_observables_only() -> None:
    stack, x, _ = resident(SETTING)
    with torch.no_grad(), Probe(stack) as probe:
        stack(x)
    for name, values in probe.values().items():
        assert np.isnan(values).all() == (name in BACKWARD_OBSERVABLES), name


def test_the_last_pass_is_the_one_that_counts() -> None:
    stack, x, adjoint = resident(SETTING)
    other = synthetic_input(SETTING, stream(SETTING, 5, 0)).requires_grad_()
    with Probe(stack) as probe:
        passed(stack, other, adjoint)
        passed(stack, x, adjoint)
    np.testing.assert_allclose(probe.values()["tcs"], simulate(SETTING, 0)["tcs"], **ROUNDING)


def test_autocast_is_measured_in_single_precision() -> None:
    stack, x, adjoint = resident(SETTING)
    with torch.autocast("cpu", dtype=torch.bfloat16), Probe(stack) as probe:
        passed(stack, x, adjoint)
    expected = simulate(SETTING, 0, backward=True)
    for name in ("tcs", "r_tr", "row_div", "g_ctr", "grad_rms_q"):
        np.testing.assert_allclose(probe.values()[name], expected[name], rtol=0.1, atol=0.02, err_msg=name)


def test_autocast_affects_the_network_but_not_the_observables() -> None:
    setting = dataclasses.replace(SETTING, tokens=64, width=64, text_tokens=0)
    stack, x, adjoint = resident(setting)
    seen: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    for block in stack.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    watch_writer(stack.blocks[0].ffn.w2, lambda y, delta: pairs.append((y, delta)))
    with torch.autocast("cpu", dtype=torch.bfloat16), Probe(stack) as probe:
        stack(x).backward(adjoint)
        found = probe.values()
    for index, out in enumerate(seen, start=1):
        assert found["tcs"][index] == pytest.approx(observables.tcs(out).mean().item(), abs=1e-6)
        assert found["rho"][index] == pytest.approx(observables.rho(out).mean().item(), rel=1e-5)
    for name, value in zip(("g_mean", "g_ctr"), writer_modes(*pairs[0]), strict=False):
        assert found[name][1, 1] == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize("calls", ["two passes", "a shared block"])
def test_gradients_of_several_calls_are_summed(calls: str) -> None:
    stack, x, adjoint = resident(SETTING)
    other = synthetic_input(SETTING, stream(SETTING, 5, 0)).requires_grad_()
    pairs: list[tuple[Tensor, Tensor]] = []
    watch_writer(stack.blocks[-1].ffn.w2, lambda y, delta: pairs.append((y, delta)))
    with Probe(stack) as probe:
        if calls == "two passes":
            output = stack(x) + stack(other)
        else:
            output = stack.blocks[-1](stack(x), SETTING.segments)
        output.backward(adjoint)
    expected = writer_modes(*(torch.cat(sides) for sides in zip(*pairs, strict=True)))
    for name, value in zip(("g_mean", "g_ctr", "g_inner"), expected, strict=True):
        assert probe.values()[name][-1, 1] == pytest.approx(value.item(), rel=1e-3)


def test_a_backward_without_weight_gradients_leaves_none_of_an_earlier_pass() -> None:
    stack, x, adjoint = resident(SETTING)
    with Probe(stack) as probe:
        passed(stack, x, adjoint)
        torch.autograd.grad(stack(x), [x], adjoint)
    assert np.isnan(probe.values()["g_mean"]).all()
    assert np.isfinite(probe.values()["kappa"][1:]).all()


def test_reentrant_checkpointing_is_measured_too() -> None:
    stack, x, adjoint = resident(SETTING)

    class Reentrant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = stack

        def forward(self, x: Tensor) -> Tensor:
            for block in stack.blocks:
                x = checkpoint(block, x, SETTING.segments, use_reentrant=True)
            return x

    network = Reentrant()
    for _ in range(2):
        with Probe(network) as probe:
            passed(network, x, adjoint)
    expected = simulate(SETTING, 0, backward=True)
    for name in ("adjoint_tcs", "g_ctr", "tcs"):
        np.testing.assert_allclose(probe.values()[name], expected[name], **ROUNDING, err_msg=name)


def test_an_input_that_is_overwritten_was_measured_before() -> None:
    stack, x, _ = resident(SETTING)
    buffer = x.detach().clone()
    with torch.no_grad(), Probe(stack) as probe:
        stack(buffer)
        buffer.zero_()
    np.testing.assert_allclose(probe.values()["retention"], simulate(SETTING, 0)["retention"], **ROUNDING)


def test_a_trunk_changed_between_blocks_is_measured_as_it_is() -> None:
    stack, x, _ = resident(SETTING)
    with torch.no_grad(), Probe(stack) as probe:
        first = stack.blocks[0](x.detach(), SETTING.segments)
        first.mul_(3.0)
        kept = first.clone()
        stack.blocks[1](first, SETTING.segments)
    branch = stack.blocks[1].operator(kept, SETTING.segments)
    expected = observables.r_tr(kept, branch).mean().item()
    assert probe.values()["r_tr"][2, 0] == pytest.approx(expected, rel=1e-4)


def test_an_activation_changed_before_it_was_measured_is_an_error() -> None:
    stack, x, _ = resident(SETTING)
    with torch.no_grad(), pytest.raises(ValueError, match="changed in place"), Probe(stack):
        first = stack.blocks[0](x.detach(), SETTING.segments)
        stack.blocks[1](first, SETTING.segments)
        first.zero_()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in stack.modules())
    assert all(block.operator.seen is None for block in stack.blocks)


def test_one_probe_at_a_time() -> None:
    stack, x, _ = resident(SETTING)
    with Probe(stack) as probe, torch.no_grad():
        with pytest.raises(ValueError, match="this model already has a probe"), Probe(stack):
            pass
        with pytest.raises(ValueError, match="already inside its `with` block"), probe:
            pass
        stack(x)
    np.testing.assert_allclose(probe.values()["tcs"], simulate(SETTING, 0)["tcs"], **ROUNDING)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in stack.modules())


def test_accumulated_gradients_are_measured_separately() -> None:
    stack, x, adjoint = resident(SETTING)
    stack(x).backward(adjoint)
    with Probe(stack) as probe:
        stack(x).backward(adjoint)
    expected = simulate(SETTING, 0, backward=True)
    np.testing.assert_allclose(probe.values()["g_ctr"], expected["g_ctr"], **ROUNDING)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"blocks": [0]}, "blocks are numbered 1 to 4, got 0"),
        ({"names": ["speed"]}, "unknown observable 'speed': choose from tcs, rho"),
    ],
    ids=str,
)
def test_bad_requests_are_named(asked: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Probe(Stack(SETTING), **asked)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no meanmode\.sim\.trunk\.stack\.Block"):
        Probe(nn.Linear(2, 2))


@pytest.mark.parametrize("setting", STACKS, ids=NAMES)
def test_an_ensemble_is_measured_like_its_members(setting: Setting) -> None:
    other = dataclasses.replace(setting, weight_std=0.3, input_cosine=0.0, alpha=0.2, adjoint_cosine=0.1)
    runs = [(setting, 0), (other, 0), (setting, 3)]
    together = simulate_ensemble(runs, backward=True)
    for place, (one, seed) in enumerate(runs):
        alone = simulate(one, seed, backward=True)
        for name, values in alone.items():
            np.testing.assert_allclose(together[name][place], values, **ROUNDING, err_msg=name)


def test_a_resident_ensemble_is_probed_with_an_axis_of_runs() -> None:
    members = [resident(SETTING, seed) for seed in range(3)]
    network = stack_members([stack for stack, _, _ in members])
    x = torch.stack([x.detach() for _, x, _ in members]).requires_grad_()
    with Probe(network) as probe:
        network(x).backward(torch.stack([adjoint for _, _, adjoint in members]))
    for seed in range(3):
        for name, values in simulate(SETTING, seed, backward=True).items():
            np.testing.assert_allclose(probe.values()[name][seed], values, **ROUNDING, err_msg=name)


def test_a_writer_frozen_inside_the_block_is_still_measured() -> None:
    stack, x, adjoint = resident(SETTING)
    layer = stack.blocks[0].operator.proj
    expected = simulate(SETTING, 0, backward=True)["g_ctr"]
    with Probe(stack) as probe:
        layer.weight.requires_grad_(False)
        passed(stack, x, adjoint)
    np.testing.assert_allclose(probe.values()["g_ctr"], expected, **ROUNDING)
    with Probe(stack) as probe:
        layer.weight.requires_grad_(True)
        passed(stack, x, adjoint)
    np.testing.assert_allclose(probe.values()["g_ctr"], expected, **ROUNDING)


def test_an_ensemble_that_shrinks_under_a_probe_is_refused() -> None:
    network = stack_members([resident(SETTING, seed)[0] for seed in range(3)])
    probe = Probe(network)
    optimiser = EnsembleOptimiser(network, AdamW())
    with probe:
        optimiser.keep([1])
        with pytest.raises(ValueError, match=r"of \(1,\) runs does not fit a record of \(3,\)"):
            network(resident(SETTING, 1)[1][None])
    with probe:
        network(resident(SETTING, 1)[1][None])
    expected = simulate(SETTING, 1)["tcs"]
    np.testing.assert_allclose(probe.values()["tcs"], expected[None], **ROUNDING)


def test_a_member_that_overflows_leaves_the_others() -> None:
    small = Setting(depth=4, tokens=4, width=8, heads=1, weight_std=0.3)
    huge = dataclasses.replace(small, weight_std=1e12)
    together = simulate_ensemble([(small, 0), (huge, 0)], backward=True)
    for name, values in simulate(small, 0, backward=True).items():
        np.testing.assert_allclose(together[name][0], values, **ROUNDING, err_msg=name)
    assert np.isnan(together["tcs"][1, 1:]).all() and np.isnan(together["g_mean"][1]).all()


def test_a_trunk_with_a_vanished_token_has_no_result() -> None:
    """Overflowing squares first turn some tokens into zeros."""
    setting = Setting(depth=4, tokens=16, width=32, heads=2, batch=2, weight_std=240000)
    recorded = simulate(setting, 0)
    assert np.isnan(recorded["tcs"][-1])


@pytest.mark.parametrize("fields", [{"width": 32}, {"depth": 5}, {"merge": "rezero"}], ids=str)
def test_members_of_different_shapes_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"share their {next(iter(fields))}"):
        simulate_ensemble([(SETTING, 0), (dataclasses.replace(SETTING, **fields), 0)])
