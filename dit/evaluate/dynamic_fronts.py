"""The front along a training: predicted from the weights of its states, and measured on other samples."""

import torch

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.sources import Source, source_of
from meanmode.dit.evaluate.run_states import RunStates
from meanmode.dit.evaluate.state_measurements import fresh_batches
from meanmode.dit.model.network import DiT
from meanmode.dit.train.checkpoints import load_network
from meanmode.sim.observe.observables import tcs
from meanmode.sim.observe.shared_directions import block_overlaps
from meanmode.sim.onset.measured_front import collapse_front
from meanmode.theory.meanfield.dynamic_front import dynamic_front

SAMPLES = 128
"""Samples that the coherences are measured with, and as many others whose front is measured."""

FOLLOWED = 8
"""Of those others, the samples that the prediction follows."""

Row = dict[str, float | None]


def front_rows(states: RunStates) -> list[Row]:
    """Predict and measure the front of every state of a run.

    Returns:
        One row per state: `step`, the predicted `front` and its `front_std` over what the prediction leaves
        open, and `measured`, the front of the mean TCS; None where there is none within the network.

    Raises:
        StoreError: a state is gone or damaged, or the data are.
        ValueError: the theory does not cover the network.
    """
    source, rows = source_of(states.run), []
    for step, checkpoint in states.by_step.items():
        _, network = load_network(checkpoint, ema=False)
        rows.append({"step": step, **_fronts(network, states.run, source)})
    return rows


@torch.no_grad()
def _fronts(network: DiT, run: RunConfig, source: Source) -> Row:
    batches = fresh_batches(source, run, 2 * SAMPLES, SAMPLES)
    (reference, segments), (tokens, _) = (network.embed(noisy, texts) for noisy, texts, _, _ in batches)
    overlaps = block_overlaps(list(network.blocks), reference, segments)
    found = dynamic_front(run.model.setting(), overlaps, tokens[:FOLLOWED].double().numpy())
    profile, trunk = [float(tcs(tokens).mean())], tokens
    for block in network.blocks:
        trunk = block(trunk, segments)
        profile.append(float(tcs(trunk).mean()))
    return {"front": found.front, "front_std": found.front_std, "measured": collapse_front(profile)}
