"""Muon and relative learning rates in ensembles, against torch's optimiser on each member alone."""

import pytest
import torch
from torch import nn

from meanmode.sim.train.ensemble_optimiser import AdamW, EnsembleOptimiser
from meanmode.sim.train.stacked_muon import UPDATE_RMS, orthogonalised
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.stack import Stack
from meanmode.theory.setting import Setting

SETTING = Setting(depth=2, tokens=4, width=8, heads=1, merge="mv_split", alpha=0.3)


def members(count: int = 2) -> list[Stack]:
    found = []
    for seed in range(count):
        stack = Stack(SETTING)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for block in stack.blocks:
                block.reset_parameters(generator)
        found.append(stack)
    return found


def steps(network: nn.Module, optimiser: EnsembleOptimiser, count: int, rate: float) -> None:
    for number in range(count):
        for index, weight in enumerate(network.parameters()):
            generator = torch.Generator().manual_seed(100 * number + index)
            weight.grad = torch.randn(weight.shape[1:], generator=generator).expand_as(weight).clone()
        optimiser.step([rate] * len(optimiser.values))


def test_muon_steps_like_torch() -> None:
    """Up to bfloat16 precision, in which torch iterates."""
    network, (_, alone) = stack_members(members()), members()
    optimiser = EnsembleOptimiser(network, AdamW(muon=True, clip=float("inf")))
    steps(network, optimiser, 4, 1e-2)
    matrices = [weight for weight in alone.parameters() if weight.ndim == 2]
    theirs = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [weight.detach().clone() for weight in matrices]
    for number in range(4):
        for index, weight in enumerate(alone.parameters()):
            weight.grad = torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(100 * number + index)
            )
        theirs.step()
    own = [weight[1] for weight in network.parameters() if weight.ndim == 3]
    for found, weight, start in zip(own, matrices, before, strict=True):
        moved = torch.linalg.matrix_norm(weight - start)
        assert torch.linalg.matrix_norm(found - weight) < 0.05 * moved


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_singular_values_are_sent_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(
        orthogonalised(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))
    )
    assert values.min() > 0.3 and values.max() < 1.3
    assert UPDATE_RMS == 0.2


def test_the_remaining_runs_keep_their_momenta() -> None:
    whole, part = stack_members(members(3)), stack_members(members(3))
    optimisers = [EnsembleOptimiser(network, AdamW(muon=True)) for network in (whole, part)]
    for network, optimiser in zip((whole, part), optimisers, strict=True):
        steps(network, optimiser, 2, 1e-2)
    optimisers[1].keep([2])
    steps(whole, optimisers[0], 1, 1e-2)
    for weight in part.parameters():
        weight.grad = None
    for index, weight in enumerate(part.parameters()):
        generator = torch.Generator().manual_seed(index)
        weight.grad = torch.randn(weight.shape[1:], generator=generator).expand_as(weight).clone()
    optimisers[1].step([1e-2])
    torch.testing.assert_close(optimisers[1].values[0], optimisers[0].values[2])


@pytest.mark.parametrize(
    ("option", "slow"), [("reader_rate", ("q_proj", "k_proj", "v_proj", "w13")), ("gain_rate", ("merge_",))]
)
def test_relative_rates_scale_the_whole_update(option: str, slow: tuple[str, ...]) -> None:
    """Decay included; the other parameters are not affected."""
    fast, slowed = stack_members(members()), stack_members(members())
    before = {name: weight.detach().clone() for name, weight in fast.named_parameters()}
    steps(fast, EnsembleOptimiser(fast, AdamW()), 1, 1e-2)
    steps(slowed, EnsembleOptimiser(slowed, AdamW(**{option: 0.25})), 1, 1e-2)
    whole = dict(fast.named_parameters())
    for name, weight in slowed.named_parameters():
        factor = 0.25 if any(part in name for part in slow) else 1.0
        torch.testing.assert_close(
            weight - before[name], factor * (whole[name] - before[name]), rtol=1e-4, atol=1e-8
        )
