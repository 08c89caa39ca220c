"""The dynamic front: gains of current weights, at initialisation and with weights that vary with depth."""

import math

import numpy as np
import pytest
import torch

from meanmode.sim.observe import observables
from meanmode.sim.observe.block_gains import block_gains
from meanmode.sim.onset.measured_front import collapse_front
from meanmode.sim.simulate import stream
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.stack import Block, synthetic_input
from meanmode.theory.meanfield.dynamic_front import BlockGains, dynamic_front
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.setting import Setting

SETTING = Setting(depth=130, tokens=16, width=64, heads=2, weight_std=0.1, input_cosine=0.1)


def fresh_block(seed: int, number: int, weaker: str = "none") -> Block:
    """A fresh block of a stack in which the weights of the first 25 blocks or all writers are scaled down."""
    block = Block(SETTING)
    block.reset_parameters(stream(SETTING, seed, number))
    with torch.no_grad():
        if weaker == "first blocks" and number <= 25:
            for weight in block.parameters():
                weight *= 0.6
        if weaker == "writers":
            block.operator.proj.weight *= 0.7
            block.ffn.w2.weight *= 0.7
    return block


def measured_fronts(weaker: str, seeds: int) -> np.ndarray:
    """The front of every seed; all seeds are computed as one ensemble, block by block."""
    x = torch.stack([synthetic_input(SETTING, stream(SETTING, seed, 0)) for seed in range(seeds)])
    profile = [observables.tcs(x).mean(-1).numpy()]
    with torch.no_grad():
        for number in range(1, SETTING.depth + 1):
            block = stack_members([fresh_block(seed, number, weaker) for seed in range(seeds)])
            x = block(x, SETTING.segments)
            profile.append(observables.tcs(x).mean(-1).numpy())
    fronts = [collapse_front(of) for of in np.transpose(profile)]
    assert None not in fronts
    return np.array(fronts)


def test_gains_of_fresh_weights_are_those_of_the_setting() -> None:
    gains = block_gains(fresh_block(0, 4))
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
    measured = measured_fronts(weaker, 24)
    blocks = [fresh_block(0, number, weaker) for number in range(1, SETTING.depth + 1)]
    predicted = dynamic_front(SETTING, [block_gains(block) for block in blocks])
    error = measured.std(ddof=1) / math.sqrt(len(measured))
    assert abs(measured.mean() - predicted.front) < 4 * error
    assert abs(measured.mean() - predict_front(SETTING).front) > 4 * error, "the initial gains are refuted"


def test_no_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="gains of at least one block"):
        dynamic_front(SETTING, [])
