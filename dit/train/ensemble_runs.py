"""Training runs of one network that differ in seeds and learning rates only, as one batched network."""

# R runs

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.sources import Source, source_of
from meanmode.dit.model.network import DiT, materialised
from meanmode.dit.train.ensemble_measurements import TAIL, EnsembleMeasurements, Measured, State
from meanmode.sim.train.ensemble_loop import train_ensemble
from meanmode.sim.train.ensemble_optimiser import AdamW, EnsembleOptimiser
from meanmode.sim.trunk.compiled import compiled_blocks
from meanmode.sim.trunk.ensemble import stack_members, unstack_member

OWN_FIELDS = ("seed", "data_seed", "schedule", "rate", "slope", "warmup")
"""Training fields in which the runs of an ensemble may differ."""


def train_runs(
    runs: Sequence[RunConfig],
    *,
    functional_every: int = 0,
    signals_every: int = 0,
    observe: Sequence[str] = (),
    keep_states: Sequence[int] = (),
    begin: Sequence[State] = (),
    after: int = 0,
    tail: int = TAIL,
    initial_loss: float | None = None,
    device: str = "cpu",
    source: Source | None = None,
) -> list[Measured]:
    """Train runs together; each gives what `meanmode.dit.train.trainer.Trainer` gives, up to rounding.

    A run ends `tail` steps after a collapse, another `WINDOW` steps later after a divergence, or at once if
    its loss is not finite.

    Args:
        runs: configurations that differ in `OWN_FIELDS` only. Their precision, sharding, accumulation,
            telemetry and checkpoints are ignored. With `compile`, steps that measure more than the TCS
            are not compiled.
        functional_every: steps between measurements of the functional step; 0 for none.
        signals_every: steps between measurements of `meanmode.dit.config.signals.SIGNALS`; 0 for none.
        observe: observables to measure in every block at every step, instead of those signals.
        keep_states: steps after which to keep the state of every run.
        begin: states to start from, one per run; none starts from fresh weights.
        after: number of steps that the states in `begin` have made.
        tail: steps that a run continues after its onset.
        initial_loss: loss level at the start of training, needed if the runs start later.
        device: torch device that computes.
        source: source of latents and texts; None for the one in the configuration.

    Raises:
        ValueError: there are no runs, they differ in other fields, or there is not one state per run.
    """
    base = _common(runs)
    where = torch.device(device)
    optimiser = _optimiser(runs, begin, where)
    measurements = EnsembleMeasurements(
        runs,
        optimiser,
        functional_every=functional_every,
        signals_every=signals_every,
        observe=observe,
        keep_states=keep_states,
        after=after,
        tail=tail,
        initial_loss=initial_loss,
        source=source or source_of(base),
        device=where,
    )
    return _measured(optimiser, measurements, after)


def _measured(optimiser: EnsembleOptimiser, measurements: EnsembleMeasurements, after: int) -> list[Measured]:
    """Train the runs of the measurements from the step `after` on, and return what was measured of each."""
    runs = measurements.runs
    network = optimiser.network
    compiled = compiled_blocks(network, network.blocks) if runs[0].training.compile else nullcontext()
    with measurements, compiled:
        training = train_ensemble(
            optimiser,
            measurements.losses,
            measurements.batches,
            [run.training.learning_rate(run.model.depth) for run in runs],
            steps=runs[0].training.steps,
            first=after + 1,
            ended=measurements.ended,
            updated=measurements.updated,
        )
    norms = training.gradient_norms
    return [measurements.measured(run, training.rates[run], norms[run]) for run in range(len(runs))]


@torch.no_grad()
def fresh_network(runs: Sequence[RunConfig], device: torch.device) -> DiT:
    """Return the networks of runs before their first step, stacked into one."""
    members = [materialised(run.model, run.training.seed, device) for run in runs]
    return stack_members(members).to(device)


def network_at(run: RunConfig, state: State) -> DiT:
    """The network of a run in a state that `train_runs` kept."""
    stacked = fresh_network([run], torch.device("cpu"))
    EnsembleOptimiser(stacked, AdamW()).restore(0, state)
    return unstack_member(stacked, 0)


def _common(runs: Sequence[RunConfig]) -> RunConfig:
    """Return the first run after checking that the others differ from it in `OWN_FIELDS` only."""
    if not runs:
        raise ValueError("an ensemble needs at least one run")
    base = runs[0]
    own = {name: getattr(base.training, name) for name in OWN_FIELDS}
    for number, run in enumerate(runs):
        if dataclasses.replace(run, training=dataclasses.replace(run.training, **own)) != base:
            raise ValueError(
                f"run {number} differs from run 0 in more than {', '.join(OWN_FIELDS)}: train it separately"
            )
    return base


def _optimiser(runs: Sequence[RunConfig], begin: Sequence[State], device: torch.device) -> EnsembleOptimiser:
    """Build the network and optimiser of an ensemble, in the states `begin` if there are any."""
    if begin and len(begin) != len(runs):
        raise ValueError(f"{len(runs)} runs need {len(runs)} states to begin with, got {len(begin)}")
    training = runs[0].training
    options = AdamW(
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
        clip=float("inf") if training.clip is None else training.clip,
        reader_rate=training.reader_rate,
        gain_rate=training.gain_rate,
        muon=training.optimiser == "muon",
    )
    optimiser = EnsembleOptimiser(fresh_network(runs, device), options)
    for number, state in enumerate(begin):
        optimiser.restore(number, state)
    return optimiser
