"""X1: repeating every token multiplies the amplification and leaves the optimiser's path unchanged."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from meanmode.sim.observe import observables
from meanmode.sim.observe.layer_hooks import watch_writer
from meanmode.sim.simulate import stream
from meanmode.sim.trunk.segments import replicate_tokens
from meanmode.sim.trunk.stack import Stack, synthetic_input
from meanmode.theory.setting import MIXERS, Setting

COPIES, STEPS = 4, 20
BASE = Setting(depth=4, tokens=8, batch=3, width=16, heads=2, weight_std=0.2, input_cosine=0.1)
VARIANTS = [
    # the state space alone depends on the order of the tokens
    *({"mixer": mixer} for mixer in MIXERS if mixer != "state_space"),
    {"merge": "mv_split", "alpha": 0.3, "beta": 0.7},
    {"merge": "layerscale", "residual_gain": 0.5},
]


WriterPair = tuple[Tensor, Tensor]
"""The input of a writer, and the cotangent of its output."""


class Path(NamedTuple):
    """A training run: losses, gradients and writer pairs of the first step, final weights."""

    losses: list[float]
    gradients: list[Tensor]
    weights: list[Tensor]
    writers: list[WriterPair]


def trained(setting: Setting, copies: int, *, reduction: str = "mean") -> Path:
    """20 AdamW steps of a small stack towards fixed targets per token, with every token repeated."""
    stack = Stack(dataclasses.replace(setting, tokens=copies * setting.tokens))
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, 0, index))
    stack.double()
    x = synthetic_input(setting, stream(setting, 0, 0)).double().repeat(1, copies, 1)
    targets = torch.randn(x.shape[0], setting.tokens, setting.width, generator=stream(setting, 1, 0))
    targets = targets.double().repeat(1, copies, 1)
    optimiser = torch.optim.AdamW(stack.parameters(), lr=1e-2)
    losses, gradients = [], []
    writers = writer_pairs(stack, x, targets)
    for step in range(STEPS):
        optimiser.zero_grad()
        loss = mse_loss(stack(x), targets, reduction=reduction)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            gradients = [weight.grad.clone() for weight in stack.parameters()]
        optimiser.step()
    return Path(losses, gradients, [weight.detach().clone() for weight in stack.parameters()], writers)


def writer_pairs(stack: Stack, x: Tensor, targets: Tensor) -> list[WriterPair]:
    """Inputs and cotangents of every writer under the mean loss."""
    seen: dict[torch.nn.Module, WriterPair] = {}
    writers = [layer for block in stack.blocks for layer in (block.operator.proj, block.ffn.w2)]
    handles = [
        watch_writer(layer, lambda y, delta, layer=layer: seen.update({layer: (y, delta)}))
        for layer in writers
    ]
    mse_loss(stack(x), targets).backward()
    for handle in handles:
        handle.remove()
    return [seen[layer] for layer in writers]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_repeated_tokens_change_only_the_amplification(fields: dict[str, object]) -> None:
    setting = dataclasses.replace(BASE, **fields)
    once, repeated = (trained(setting, copies) for copies in (1, COPIES))
    assert repeated.losses == pytest.approx(once.losses, rel=1e-9)
    assert once.losses[-1] < 0.98 * once.losses[0]
    for name in ("gradients", "weights"):
        for found, expected in zip(getattr(repeated, name), getattr(once, name), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for pair, wanted in zip(repeated.writers, once.writers, strict=True):
        amplification = observables.writer_amplification(*wanted)
        torch.testing.assert_close(observables.writer_amplification(*pair), COPIES * amplification)
        for mode, expected in zip(
            observables.writer_modes(*pair), observables.writer_modes(*wanted), strict=True
        ):
            torch.testing.assert_close(mode, expected, rtol=1e-9, atol=1e-12)


def test_kappa_gains_the_pairs_of_copies() -> None:
    """A token and its copy have M = 1: k (1 + (T - 1) kappa) = 1 + (k T - 1) kappa', exactly."""
    tokens = BASE.tokens
    once, repeated = (trained(BASE, copies).writers for copies in (1, COPIES))
    for pair, wanted in zip(repeated, once, strict=True):
        before, after = observables.kappa(*wanted), observables.kappa(*pair)
        expected = (COPIES * (1 + (tokens - 1) * before) - 1) / (COPIES * tokens - 1)
        torch.testing.assert_close(after, expected)


def test_a_summed_loss_is_not_invariant() -> None:
    """Negative control: X1 needs the mean loss; a summed loss multiplies the gradients by the copies."""
    once, repeated = (trained(BASE, copies, reduction="sum") for copies in (1, COPIES))
    for found, expected in zip(repeated.gradients, once.gradients, strict=True):
        torch.testing.assert_close(found, COPIES * expected, rtol=1e-9, atol=1e-9)
    assert repeated.losses[0] == pytest.approx(COPIES * once.losses[0])


def test_replicated_tokens_follow_each_other() -> None:
    x = torch.arange(5.0)[:, None]
    repeated, segments = replicate_tokens(x, (3, 2), 2)
    assert repeated[:, 0].tolist() == [token // 2 for token in range(10)] and segments == (6, 4)


@pytest.mark.parametrize(
    ("segments", "copies", "message"),
    [((3, 2), 0, "copies must be at least 1, got 0"), ((3, 3), 2, "hold 6 tokens, the input has 5")],
)
def test_impossible_replications_are_refused(segments: tuple[int, ...], copies: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replicate_tokens(torch.zeros(2, 5, 4), segments, copies)
