"""The dynamic front: gains of current weights, at initialisation and with weights that vary with depth."""

import math

import numpy as np
import pytest
import torch

from meanmode.sim.observe import observables
from meanmode.sim.observe.block_gains import block_gains
from meanmode.sim.onset.measured_front import collapse_front
from meanmode.sim.simulate import stream
from meanmode.sim.trunk.stack import Stack, synthetic_input
from meanmode.theory.meanfield.dynamic_front import BlockGains, dynamic_front
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.setting import Setting

SETTING = Setting(depth=130, tokens=16, width=64, heads=2, weight_std=0.1, input_cosine=0.1)


def fresh_stack(seed: int, weaker: str = "none") -> Stack:
    """A fresh stack, with the weights of the first blocks or all writers scaled down."""
    stack = Stack(SETTING)
    for index, block in enumerate(stack.blocks):
        block.reset_parameters(stream(SETTING, seed, index + 1))
        with torch.no_grad():
            if weaker == "first blocks" and index < 25:
                for weight in block.parameters():
                    weight *= 0.6
            if weaker == "writers":
                block.operator.proj.weight *= 0.7
                block.ffn.w2.weight *= 0.7
    return stack


def measured_front(stack: Stack, seed: int) -> float:
    x = synthetic_input(SETTING, stream(SETTING, seed, 0))
    profile = [float(observables.tcs(x).mean())]
    with torch.no_grad():
        for block in stack.blocks:
            x = block(x, SETTING.segments)
            profile.append(float(observables.tcs(x).mean()))
    front = collapse_front(profile)
    assert front is not None
    return front


def test_gains_of_fresh_weights_are_those_of_the_setting() -> None:
    gains = block_gains(fresh_stack(0).blocks[3])
    read = SETTING.weight_std**2 * SETTING.width
    assert gains.attention == pytest.approx(read**2, rel=0.1)
    assert gains.ffn == pytest.approx(SETTING.ffn_ratio * read**2, rel=0.1)
    assert gains.gate_std == pytest.approx(read**0.5, rel=0.05)
    assert gains.merge_attn == SETTING.gains


def test_at_initialisation_the_dynamic_front_is_the_front() -> None:
    read = SETTING.weight_std**2 * SETTING.width
    ideal = BlockGains(
        attention=read**2,
        ffn=SETTING.ffn_ratio * read**2,
        gate_std=read**0.5,
        merge_attn=SETTING.gains,
        merge_ffn=SETTING.gains,
    )
    dynamic, static = dynamic_front(SETTING, [ideal] * SETTING.depth), predict_front(SETTING)
    assert dynamic.front == pytest.approx(static.front, rel=0.01)
    assert dynamic.front_std == pytest.approx(static.front_std, rel=0.05)


@pytest.mark.parametrize("weaker", ["first blocks", "writers"])
def test_a_changed_stack_collapses_where_its_gains_predict(weaker: str) -> None:
    measured = np.array([measured_front(fresh_stack(seed, weaker), seed) for seed in range(24)])
    predicted = dynamic_front(SETTING, [block_gains(block) for block in fresh_stack(0, weaker).blocks])
    error = measured.std(ddof=1) / math.sqrt(len(measured))
    assert abs(measured.mean() - predicted.front) < 4 * error
    assert abs(measured.mean() - predict_front(SETTING).front) > 4 * error, "the initial gains are refuted"


def test_no_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="gains of at least one block"):
        dynamic_front(SETTING, [])
