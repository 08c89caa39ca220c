"""The estimated cost: what it counts, how it grows, and how it divides a sweep into shards."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from meanmode.sim.trunk.stack import Block
from meanmode.sweeps.engine.cost import (
    BLOCK_FLOPS,
    DRAW_FLOPS,
    MATRIX_FLOPS,
    block_products,
    block_weights,
    setting_cost,
    unit_cost,
)
from meanmode.sweeps.engine.shards import Shard, largest_first, shares
from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import MIXERS, Setting

UNEVEN = Sweep(
    name="uneven",
    claim="cells of very different cost",
    base=Setting(),
    axes={"depth": (3, 10, 40), "tokens": (4, 16, 64, 256), "width": (32, 64), "batch": (1, 4)},
    seeds=3,
    laws=(),
)
BACKWARD = dataclasses.replace(UNEVEN, backward=True)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mixer": "uniform", "batch": 3},
        {"mixer": "gated"},
        {"mixer": "lazy", "text_tokens": 7},
        {"ffn_ratio": 2.0, "heads": 8},
        {"tokens": 64, "width": 32},
    ],
    ids=str,
)
def test_products_are_those_torch_counts(change: dict[str, object]) -> None:
    setting = Setting(**{"tokens": 16, "width": 64, **change})
    block, x = Block(setting), torch.randn(setting.batch, sum(setting.segments), setting.width)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:  # the only one torch counts on CPUs
        block(x, setting.segments)
    assert counter.get_total_flops() == block_products(setting)


@pytest.mark.parametrize("mixer", MIXERS)
def test_weights_are_those_of_a_block(mixer: str) -> None:
    setting = Setting(width=64, mixer=mixer, ffn_ratio=2.0)
    assert block_weights(setting) == sum(weight.numel() for weight in Block(setting).parameters())


def test_a_cost_is_depth_times_its_parts() -> None:
    setting = Setting(depth=10, tokens=64, width=256, batch=2)
    drawn = DRAW_FLOPS * block_weights(setting)
    read = MATRIX_FLOPS * 2 * 4 * 64**2
    once = block_products(setting) + BLOCK_FLOPS
    assert setting_cost(setting) == pytest.approx(10 * (once + drawn + read))
    assert setting_cost(setting, backward=True) == pytest.approx(10 * (3 * once + 2 * drawn + read))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("name", "exponent"), [("depth", 1), ("batch", 1), ("tokens", 2), ("width", 2)], ids=lambda value: value
)
def test_a_large_stack_costs_its_leading_power(name: str, exponent: int, backward: bool) -> None:
    large = Setting(**{"depth": 64, "batch": 64, "tokens": 64, "width": 256, name: 2**16})
    twice = dataclasses.replace(large, **{name: 2**17})
    ratio = setting_cost(twice, backward=backward) / setting_cost(large, backward=backward)
    assert ratio == pytest.approx(2**exponent, rel=0.01)


def test_a_unit_costs_its_deepest_stack_of_every_seed() -> None:
    sweep = dataclasses.replace(UNEVEN, axes={"depth": (5, 20)}, seeds=2)
    deep = setting_cost(dataclasses.replace(sweep.base, depth=20))
    assert [unit_cost(sweep, unit) for unit in sweep.units()] == [deep, deep]
    assert unit_cost(sweep, (0, 1, 2, 3)) == 2 * deep
    backward = dataclasses.replace(sweep, backward=True)
    costs = [unit_cost(backward, unit) for unit in backward.units()]
    assert costs == [setting_cost(cell.setting, backward=True) for cell in backward.cells]


def test_the_largest_units_come_first() -> None:
    units = largest_first(UNEVEN)
    costs = [unit_cost(UNEVEN, unit) for unit in units]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 16
    assert sorted(units) == sorted(UNEVEN.units())
    assert units == largest_first(dataclasses.replace(UNEVEN))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40, 10**15])
@pytest.mark.parametrize(
    "sweep",
    [UNEVEN, BACKWARD, UNEVEN.with_options({"depth": (7,)}, seeds=1)],
    ids=["forward", "backward", "small"],
)
def test_shards_are_disjoint_complete_and_balanced(sweep: Sweep, count: int) -> None:
    found = [Shard(index=index + 1, count=count).units(sweep) for index in range(min(count, 300))]
    assert [share for share in found if share] == shares(sweep, count)
    assert sorted(unit for share in found for unit in share) == sorted(sweep.units())
    loads = [sum(unit_cost(sweep, unit) for unit in share) for share in found]
    largest = unit_cost(sweep, largest_first(sweep)[0])
    assert max(loads) - min(loads) <= largest * (1 + 1e-9)
    for share in found:
        costs = [unit_cost(sweep, unit) for unit in share]
        assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("text", ["1/1", "3/4", "4/4", "01/04"])
def test_a_shard_is_parsed(text: str) -> None:
    index, count = map(int, text.split("/"))
    assert Shard.parse(text) == Shard(index=index, count=count)
    assert str(Shard.parse(text)) == f"{index}/{count}"
