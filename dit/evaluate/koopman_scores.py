"""The spectral (Koopman) score of runs, at standard initialisation and after their first steps."""

# R runs, B batch, S text tokens

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.batches import batch_of_runs
from meanmode.dit.data.sources import source_of
from meanmode.dit.model.network import DiT
from meanmode.dit.train.ensemble_measurements import Measured
from meanmode.dit.train.ensemble_runs import fresh_network, train_runs
from meanmode.sim.observe.functional_step import block_states
from meanmode.sim.observe.koopman import RESIDUAL, mean_koopman_share
from meanmode.sim.train.ensemble_optimiser import AdamW, EnsembleOptimiser

SAMPLES = 64
"""Samples in the profiled batch: 1280 tokens at 20 per sample, for a spectrum of width 16."""


FILTERS: Mapping[str, float] = {"": RESIDUAL, "_unfiltered": math.inf}
"""Suffix of a score -> largest residual of an eigenvalue that counts; the first is the published one."""


@torch.no_grad()
def spectral_scores(
    runs: Sequence[RunConfig], *, device: str = "cpu"
) -> tuple[list[Measured], dict[str, NDArray[np.float64]]]:
    """Train runs, and score them at standard initialisation and after their last step.

    At standard initialisation the writers have the same standard deviation as the other weights, because
    with zero writers the score is always 1. The profiled batch is the first of each run's own data.

    Args:
        runs: runs of one ensemble, as for `meanmode.dit.train.ensemble_runs.train_runs`.
        device: torch device that computes.

    Returns:
        The measurements of `train_runs`, and the scores of every run [R]: `koopman_share_start` and
        `koopman_share_trained` (NaN if the run ended before its last step), each with every suffix of
        `FILTERS`.

    Raises:
        ValueError: see `train_runs`.
    """
    where, steps, source = torch.device(device), runs[0].training.steps, source_of(runs[0])
    with torch.enable_grad():
        measured = train_runs(runs, keep_states=(steps,), device=device, source=source)
    batch = batch_of_runs(source, [run.with_fields({"batch": SAMPLES}) for run in runs], 1)
    noisy, texts = (part.to(where) for part in batch[:2])
    scores = _scored(
        "start", fresh_network([run.with_fields({"writer_std": None}) for run in runs], where), noisy, texts
    )
    network = fresh_network(runs, where)
    optimiser = EnsembleOptimiser(network, AdamW())
    for number, run in enumerate(measured):
        if steps in run.states:
            optimiser.restore(number, run.states[steps])
    scores |= _scored("trained", network, noisy, texts)
    ended = [steps not in run.states for run in measured]
    for name in scores:
        if name.startswith("koopman_share_trained"):
            scores[name][ended] = np.nan
    return measured, scores


def _scored(when: str, network: DiT, noisy: Tensor, texts: Tensor) -> dict[str, NDArray[np.float64]]:
    states = block_states(network, lambda: network.trunk(noisy, texts))
    return {
        f"koopman_share_{when}{suffix}": mean_koopman_share(states, residual=residual).cpu().numpy()
        for suffix, residual in FILTERS.items()
    }
