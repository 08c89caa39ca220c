"""Stacks whose writers have a rank-one spike, along one direction for all blocks or one each.

`python tests/bench/spiked_writers.py predict` prints the fronts forecast from the weights of fresh seeds,
and `measure` those of the same weights on other tokens. One line per spike; results are the mean over seeds
and its standard error, in blocks.
"""

import dataclasses
import sys

import numpy as np
import torch

from meanmode.sim.observe.observables import tcs
from meanmode.sim.observe.shared_directions import block_overlaps
from meanmode.sim.simulate import stream
from meanmode.sim.trunk.stack import Block, synthetic_input
from meanmode.theory.meanfield.dynamic_front import dynamic_front
from meanmode.theory.meanfield.front import crossing
from meanmode.theory.setting import Setting

SETTING = Setting(depth=64, tokens=64, width=128, heads=4, weight_std=0.0707)
CASES = ((8.0, True, 56), (14.0, True, 48), (14.0, False, 30))
"""Size of the spike, whether all blocks share its direction, and the blocks that are followed."""

SEEDS = range(100, 116)
REFERENCE, FOLLOWED, MEASURED = 8, 2, 4
"""Samples for the coherences, for the forecast and for the measurement."""


def unit(size: int, generator: torch.Generator) -> torch.Tensor:
    """A random direction."""
    return torch.nn.functional.normalize(torch.randn(size, generator=generator), dim=0)


@torch.no_grad()
def spiked_blocks(seed: int, spike: float, shared: bool, depth: int) -> list[Block]:
    """Fresh blocks with W + spike u v^T for W_O and W_2, v anew for each; u of one seed, or anew for each."""
    generator = torch.Generator().manual_seed(10**6 + seed)
    common, blocks = unit(SETTING.width, generator), []
    for number in range(1, depth + 1):
        block = Block(SETTING)
        block.reset_parameters(stream(SETTING, seed, number))
        for writer in (block.operator.proj.weight, block.ffn.w2.weight):
            into = common if shared else unit(SETTING.width, generator)
            writer += spike * torch.outer(into, unit(writer.shape[1], generator))
        blocks.append(block)
    return blocks


def inputs(seed: int, use: int, count: int) -> torch.Tensor:
    """Independent Gaussian tokens of several samples."""
    streams = (stream(SETTING, seed, 2**31 + 1000 * use + sample) for sample in range(count))
    return torch.cat([synthetic_input(SETTING, of) for of in streams])


def predicted(seed: int, blocks: list[Block]) -> float:
    """The forecast from the weights, at most the depth."""
    overlaps = block_overlaps(blocks, inputs(seed, 0, REFERENCE), SETTING.segments)
    setting = dataclasses.replace(SETTING, depth=len(blocks))
    found = dynamic_front(setting, overlaps, inputs(seed, 1, FOLLOWED).double().numpy(), 2)
    return float(np.minimum(found.samples, len(blocks)).mean())


@torch.no_grad()
def measured(seed: int, blocks: list[Block]) -> float:
    """The measured front, mean over samples, at most the depth."""
    x = inputs(seed, 2, MEASURED)
    profiles = [tcs(x).numpy()]
    for block in blocks:
        x = block(x, SETTING.segments)
        profiles.append(tcs(x).numpy())
    return float(np.minimum(crossing(np.stack(profiles).astype(float)), len(blocks)).mean())


def main() -> None:
    """Print one line per case."""
    torch.set_num_threads(1)
    front = {"predict": predicted, "measure": measured}[sys.argv[1]]
    for spike, shared, depth in CASES:
        found = np.array([front(seed, spiked_blocks(seed, spike, shared, depth)) for seed in SEEDS])
        error = found.std(ddof=1) / len(found) ** 0.5
        said = "shared" if shared else "of its own for each writer"
        print(
            f"spike {spike:g}, {said}: {found.mean():.1f} +- {error:.1f}",
            np.round(found, 1).tolist(),
            flush=True,
        )


if __name__ == "__main__":
    main()
