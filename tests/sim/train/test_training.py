"""Ensemble training against torch.optim.AdamW on each run alone; schedules and data orders."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from meanmode.sim.intervene.grammar import Intervention
from meanmode.sim.intervene.interventions import Interventions
from meanmode.sim.simulate import stream
from meanmode.sim.train.data_order import data_order
from meanmode.sim.train.ensemble_loop import train_ensemble
from meanmode.sim.train.ensemble_optimiser import AdamW, EnsembleOptimiser
from meanmode.sim.train.schedule import Schedule
from meanmode.sim.trunk.ensemble import stack_members, unstack_member
from meanmode.sim.trunk.stack import Stack, synthetic_input
from meanmode.theory.setting import Setting

SETTING = Setting(depth=3, tokens=4, text_tokens=2, batch=12, width=8, heads=2, weight_std=0.3)
SCHEDULES = [Schedule(slope=2e-3), Schedule(peak=1e-2), Schedule(slope=1e-2, peak=3e-2)]
OPTIONS = AdamW(clip=0.05)
STEPS, BATCH = 12, 5
MERGES = [{}, {"merge": "mv_split", "alpha": 0.3}, {"merge": "layerscale", "residual_gain": 0.5}]


def members(setting: Setting, count: int = 3) -> list[Stack]:
    """Stacks with the seeds 0, 1, ..., in float64."""
    stacks = [Stack(setting) for _ in range(count)]
    for seed, stack in enumerate(stacks):
        for index, block in enumerate(stack.blocks, start=1):
            block.reset_parameters(stream(setting, seed, index))
    return [stack.double() for stack in stacks]


DATA = synthetic_input(SETTING, stream(SETTING, 7, 0)).double()
TARGETS = synthetic_input(SETTING, stream(SETTING, 8, 0)).double()


def chosen(seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a run."""
    indices = torch.from_numpy(data_order(seed, step, len(DATA), BATCH))
    return DATA[indices], TARGETS[indices]


def batches(step: int, runs: list[int]) -> tuple[Tensor, Tensor]:
    """The batches of the runs that are still running."""
    x, targets = zip(*(chosen(run, step) for run in runs), strict=True)
    return torch.stack(x), torch.stack(targets)


def losses(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, targets = batch
    return (network(x) - targets).square().mean((1, 2, 3))


def trained_alone(stack: Stack, seed: int, schedule: Schedule) -> tuple[list[float], Stack]:
    """Train one run with torch's own optimiser."""
    matrices = [weight for weight in stack.parameters() if weight.ndim == 2]
    vectors = [weight for weight in stack.parameters() if weight.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, weight_decay=OPTIONS.weight_decay, eps=OPTIONS.eps)
    found = []
    for step in range(1, STEPS + 1):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        x, targets = chosen(seed, step)
        optimiser.zero_grad()
        loss = mse_loss(stack(x), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stack.parameters(), OPTIONS.clip)
        optimiser.step()
        found.append(loss.item())
    return found, stack


@pytest.mark.parametrize("fields", MERGES, ids=str)
def test_members_are_trained_as_they_are_alone(fields: dict[str, object]) -> None:
    setting = dataclasses.replace(SETTING, **fields)
    network = stack_members(members(setting))
    training = train_ensemble(EnsembleOptimiser(network, OPTIONS), losses, batches, SCHEDULES, steps=STEPS)
    for run, stack in enumerate(members(setting)):
        alone, stack = trained_alone(stack, run, SCHEDULES[run])
        np.testing.assert_allclose(training.losses[run], alone, rtol=1e-9)
        own = unstack_member(network, run)
        for name, weight in stack.named_parameters():
            torch.testing.assert_close(own.get_parameter(name), weight, rtol=1e-7, atol=1e-9)
        assert training.losses[run, -1] < training.losses[run, 0]
    assert (training.steps == STEPS).all()
    assert (training.gradient_norms > OPTIONS.clip).any()


def test_runs_that_end_leave_the_others_unchanged() -> None:
    whole = train_ensemble(
        EnsembleOptimiser(stack_members(members(SETTING)), OPTIONS), losses, batches, SCHEDULES, steps=STEPS
    )
    network = stack_members(members(SETTING))
    ended = train_ensemble(
        EnsembleOptimiser(network, OPTIONS),
        losses,
        batches,
        SCHEDULES,
        steps=STEPS,
        ended=lambda step, runs, values: [1] if step == 5 else [],
    )
    assert ended.steps.tolist() == [STEPS, 4, STEPS]
    np.testing.assert_allclose(ended.losses[[0, 2]], whole.losses[[0, 2]], rtol=1e-9)
    np.testing.assert_allclose(ended.losses[1, :5], whole.losses[1, :5], rtol=1e-9)
    assert np.isnan(ended.losses[1, 5:]).all() and np.isnan(ended.rates[1, 4:]).all()
    assert next(network.parameters()).shape[0] == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"merge": "deepnorm", "residual_gain": 1.5},
        {"merge": "highway", "residual_gain": 2.0},
        {"mixer": "state_space"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kept", [[2], [2, 0]], ids=str)
def test_an_ensemble_keeps_only_the_remaining_runs(fields: dict[str, object], kept: list[int]) -> None:
    """Buffers and frozen weights stay with their runs."""
    gains = (1.5, 2.0, 3.0)
    settings = [dataclasses.replace(SETTING, **fields) for _ in gains]
    if "residual_gain" in fields:
        settings = [
            dataclasses.replace(one, residual_gain=gain) for one, gain in zip(settings, gains, strict=True)
        ]
    stacks = [members(one, 3)[seed] for seed, one in enumerate(settings)]
    network = stack_members(stacks)
    for block in network.blocks:
        block.ffn.w2.requires_grad_(False)
    optimiser = EnsembleOptimiser(network, OPTIONS)
    optimiser.gradient_norms = torch.arange(3.0)
    optimiser.keep(kept)
    assert optimiser.gradient_norms.tolist() == kept
    output = network(DATA[:2].expand(len(kept), -1, -1, -1))
    for position, run in enumerate(kept):
        torch.testing.assert_close(output[position], stacks[run](DATA[:2]), rtol=1e-9, atol=1e-9)


def test_tied_weights_are_refused() -> None:
    stacks = members(SETTING)
    for stack in stacks:
        stack.blocks[1].ffn.w2.weight = stack.blocks[0].ffn.w2.weight
    with pytest.raises(
        ValueError, match=r"blocks\.0\.ffn\.w2\.weight and blocks\.1\.ffn\.w2\.weight are one tensor"
    ):
        stack_members(stacks)


def test_a_run_that_diverges_ends_alone() -> None:
    def poisoned(step: int, runs: list[int]) -> tuple[Tensor, Tensor]:
        x, targets = batches(step, runs)
        if step == 3 and 0 in runs:
            targets = targets.clone()
            targets[runs.index(0)] = math.inf
        return x, targets

    training = train_ensemble(
        EnsembleOptimiser(stack_members(members(SETTING)), OPTIONS), losses, poisoned, SCHEDULES, steps=STEPS
    )
    assert training.steps.tolist() == [2, STEPS, STEPS]
    assert training.losses[0, 2] == math.inf and np.isfinite(training.losses[1:]).all()


def test_a_run_at_rate_zero_does_not_move() -> None:
    network = stack_members(members(SETTING))
    optimiser = EnsembleOptimiser(network, OPTIONS)
    before = optimiser.values.clone()
    losses(network, batches(1, [0, 1, 2])).sum().backward()
    optimiser.step([1e-2, 0.0, 1e-3])
    assert (optimiser.values != before).any(1).tolist() == [True, False, True]


@pytest.mark.parametrize("group", ["queries-keys", "writers", "gates"])
def test_parameters_frozen_during_training_stand_still(group: str) -> None:
    """Neither their accumulated moments nor weight decay move them."""
    network = stack_members(members(dataclasses.replace(SETTING, merge="mv_split", alpha=0.3)))
    optimiser = EnsembleOptimiser(network, OPTIONS)

    def stepped(frozen: list[Intervention]) -> dict[str, bool]:
        before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
        with Interventions(network, frozen):
            optimiser.zero_grad()
            losses(network, batches(1, [0, 1, 2])).sum().backward()
            optimiser.step([1e-2, 1e-3, 2e-2])
        return {name: bool((weight != before[name]).any()) for name, weight in network.named_parameters()}

    assert all(stepped([]).values())
    moved = stepped([Intervention(action="freeze", target=group)])
    held = {"queries-keys": ("q_proj", "k_proj"), "writers": ("operator.proj", "w2"), "gates": ("merge",)}
    assert moved == {name: not any(part in name for part in held[group]) for name in moved}
    assert all(stepped([]).values())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(slope=0.5), [0.5, 1.0, 1.5, 2.0]),
        (Schedule(peak=0.5), [0.5, 0.5, 0.5, 0.5]),
        (Schedule(slope=0.5, peak=1.2), [0.5, 1.0, 1.2, 1.2]),
    ],
    ids=str,
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.rate(step) for step in range(1, 5)] == expected


@pytest.mark.parametrize("fields", [{}, {"slope": 0.0}, {"peak": -1.0}, {"slope": math.nan}], ids=str)
def test_schedules_without_a_rate_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Schedule(**fields)


@pytest.mark.parametrize(("size", "batch"), [(12, 5), (12, 12), (7, 1), (10, 4)])
def test_every_epoch_holds_every_sample_once(size: int, batch: int) -> None:
    epochs = 3
    steps = -(-epochs * size // batch)
    seen = np.concatenate([data_order(3, step, size, batch) for step in range(1, steps + 1)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert (data_order(3, 2, size, batch) == data_order(3, 2, size, batch)).all()
    assert size == 1 or (seen[:size] != seen[size : 2 * size]).any()
    assert (data_order(4, 1, size, size) != data_order(3, 1, size, size)).any()


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 13 is larger than the data, 12 samples"):
        data_order(0, 1, 12, 13)


def test_a_network_that_is_not_an_ensemble_is_refused() -> None:
    with pytest.raises(ValueError, match="stack_members"):
        EnsembleOptimiser(members(SETTING, 1)[0], OPTIONS)


def test_schedules_must_match_the_runs() -> None:
    with pytest.raises(ValueError, match="3 runs need 3 schedules, got 2"):
        train_ensemble(
            EnsembleOptimiser(stack_members(members(SETTING)), OPTIONS),
            losses,
            batches,
            SCHEDULES[:2],
            steps=1,
        )


def test_the_order_of_an_epoch_is_drawn_once_for_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of more runs than one would think of."""
    drawn, draw = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda key: drawn.append(key) or draw(key))
    for step in (1, 2, 3):
        for seed in range(1000, 1100):
            data_order(seed, step, 50, 4)
    assert len(drawn) == 100
