"""Measurements of an ensemble in training: losses, TCS, gradient signals, labels, and when each run ends."""

# R runs, B batch, D width, N steps

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.signals import AVERAGED, SIGNALS
from meanmode.dit.data.batches import batch_of_runs
from meanmode.dit.data.sources import Source
from meanmode.dit.model.flow import flow_losses
from meanmode.dit.train.scheduled_interventions import ScheduledInterventions
from meanmode.sim.observe.functional_step import displacement
from meanmode.sim.observe.layer_hooks import recomputing
from meanmode.sim.observe.probe import Probe
from meanmode.sim.observe.record import Array
from meanmode.sim.onset.training_onset import (
    DIVERGED,
    INITIAL_STEPS,
    SUSTAINED_STEPS,
    WINDOW,
    Onset,
    training_onset,
)
from meanmode.sim.train.ensemble_optimiser import EnsembleOptimiser
from meanmode.theory.meanfield.front import FRONT_COSINE

WATCHED_BLOCKS = 8
"""Number of measured blocks, evenly spaced over the deeper half; their median is the TCS of a step."""


LABEL_EVERY = 10
"""Steps between checks of whether a run has ended."""


TAIL = 2 * SUSTAINED_STEPS
"""Steps that a run continues after its onset, so that its label is that of a longer run as well."""


State = Mapping[str, Tensor]
"""Weights and moments of a run after a step, from `EnsembleOptimiser.state`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of a run and its label.

    Attributes:
        series: at every step `loss`, `grad_norm` and `tcs_image` (median over the measured blocks) before the
            update, and `rate` of the update; `functional_step` and `SIGNALS` at steps that measure them,
            else NaN, and so are `average_loss` and `average_tcs` of the moving averages of the weights, on
            the batch of the step after its update; observables of every block over `step`, `block` (and
            `writer`) if these are asked for.
        onset: label of the run.
        states: state of the run after each requested step that it made.
    """

    series: xr.Dataset
    onset: Onset
    states: Mapping[int, State]


def watched_blocks(depth: int) -> tuple[int, ...]:
    """Return the numbers (from 1) of the measured blocks, which include the last one."""
    deeper = depth - depth // 2
    count = min(WATCHED_BLOCKS, deeper)
    return tuple(depth // 2 + -(-deeper * number // count) for number in range(1, count + 1))


class EnsembleMeasurements:
    """Batches, losses and measurements of an ensemble in training, as `train_ensemble` calls for them.

    Runs are identified by their position in `runs`, also after others have ended.

    Args:
        runs: configurations of the runs.
        optimiser: optimiser of the ensemble.
        functional_every: steps between measurements of the functional step, and of the moving averages of the
            weights where the runs keep them; 0 for none.
        signals_every: steps between measurements of `SIGNALS`; 0 for none.
        observe: observables to measure in every block at every step, instead of `SIGNALS`.
        keep_states: steps after which to keep the state of every run.
        after: last step before the first measured one.
        tail: steps that a run continues after its onset.
        initial_loss: loss level at the start of training; None takes it from the measured steps.
        source: source of latents and texts.
        device: torch device that computes.
    """

    def __init__(
        self,
        runs: Sequence[RunConfig],
        optimiser: EnsembleOptimiser,
        *,
        functional_every: int,
        signals_every: int,
        observe: Sequence[str],
        keep_states: Sequence[int],
        after: int,
        tail: int,
        initial_loss: float | None,
        source: Source,
        device: torch.device,
    ) -> None:
        self.runs = runs
        self.optimiser = optimiser
        self.functional_every = functional_every
        self.signals_every = signals_every
        self.observe = tuple(observe)
        self.observed: dict[str, NDArray[np.float32]] = {}
        self._dims: dict[str, tuple[str, ...]] = {}
        self.keep_states = set(keep_states)
        self.after, self.tail = after, tail
        self.about = {} if initial_loss is None else {"initial_loss": initial_loss}
        self.source = source
        self.device = device
        steps = runs[0].training.steps
        names = ("loss", "tcs_image", "functional_step", *SIGNALS, *AVERAGED)
        self.rows = {name: np.full((len(runs), steps), np.nan) for name in names}
        self.states: list[dict[int, State]] = [{} for _ in runs]
        self._blocks = watched_blocks(runs[0].model.depth)
        self._cosine = "tcs_image" if runs[0].model.text_tokens else "tcs"
        self._last = np.zeros(len(runs), np.int64)
        self._trunk: Tensor | None = None
        self._batch: tuple[Tensor, ...] = ()
        self._step = 0
        self._running: Sequence[int] = ()
        self._probes: dict[tuple[tuple[str, ...], bool], Probe] = {}
        self._probe: Probe | None = None
        self._interventions = ScheduledInterventions(optimiser.network, runs[0].training.interventions)
        self._undo = ExitStack()
        self._average = optimiser.values.clone() if runs[0].training.ema else None
        self._averaged: Sequence[int] = range(len(runs))

    def __enter__(self) -> "EnsembleMeasurements":
        hook = self.optimiser.network.blocks[-1].register_forward_hook(self._keep_trunk)
        self._undo.callback(hook.remove)
        self._undo.callback(self._interventions.close)
        self._probing = self._undo.enter_context(ExitStack())
        return self

    def __exit__(self, *failure: object) -> None:
        self._undo.close()

    def _keep_trunk(self, _: nn.Module, __: object, trunk: Tensor) -> None:
        """Keep the last state of a training pass."""
        if torch.is_grad_enabled() and not recomputing():
            self._trunk = trunk.detach()

    def batches(self, step: int, running: Sequence[int]) -> tuple[Tensor, ...]:
        """Return noisy latents, texts, clean latents and noise, with a leading axis of runs."""
        self._interventions.begin_step(step)
        if step == self._step:  # requested again because runs have ended: leave theirs out
            kept = torch.tensor([self._running.index(run) for run in running])
            self._batch = tuple(part[kept] for part in self._batch)
        else:
            parts = batch_of_runs(self.source, [self.runs[run] for run in running], step)
            self._batch = tuple(part.to(self.device) for part in parts)
        self._step, self._running = step, list(running)
        return self._batch

    def losses(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss of every run [R] on its batch."""
        noisy, texts, clean, noise = batch
        self._probing.close()  # left open if the forward pass is repeated because runs have ended
        self._probe = self._probing.enter_context(self._probe_of(network))
        return flow_losses(network(noisy, texts), clean, noise).mean(-1)

    def _probe_of(self, network: nn.Module) -> Probe:
        """The probe of the current step, made once for all steps that measure the same."""
        names = tuple(dict.fromkeys((self._cosine, *(self.observe or self._signals()))))
        # the functional step compares two passes that must be rounded alike; the second is not compiled
        compiled = names == (self._cosine,) and not self._moves()
        if (names, compiled) not in self._probes:
            blocks = None if self.observe else self._blocks
            self._probes[names, compiled] = Probe(
                network, blocks=blocks, names=names, uncompiled=not compiled
            )
        return self._probes[names, compiled]

    def _moves(self) -> bool:
        """Whether the current step measures the functional step, and averages of the weights."""
        return bool(self.functional_every) and self._step % self.functional_every == 0

    def _signals(self) -> tuple[str, ...]:
        """Observables of the gradients that the current step measures."""
        return SIGNALS if self.signals_every and self._step % self.signals_every == 0 else ()

    def ended(self, step: int, running: Sequence[int], losses: Tensor) -> list[int]:
        """Record losses and TCS of a step, and return the runs that end before its update."""
        assert self._probe is not None
        cosines = self._probe.values()[self._cosine][:, list(self._blocks)].astype(np.float64)
        self.rows["tcs_image"][running, step - 1] = np.median(cosines, axis=1)
        self.rows["loss"][running, step - 1] = losses.double().cpu().numpy()
        self._last[running] = step
        if step % LABEL_EVERY:
            return []
        return [run for run in running if self._has_ended(run, step)]

    def _has_ended(self, run: int, step: int) -> bool:
        recent = self.rows["tcs_image"][run, max(step - self.tail, 0) : step]
        losses = self.rows["loss"][run, self.after : step]
        initial = self.about.get("initial_loss", np.median(losses[:INITIAL_STEPS]))
        if np.nanmax(recent) < FRONT_COSINE and losses[-1] < DIVERGED * initial:
            return False  # no label needed, which would be slow to compute
        onset = training_onset(self._series(run, step, ("loss", "tcs_image")))
        if onset.step is None:
            return False
        return step >= onset.step + self.tail + (WINDOW if onset.kind == "plain_divergence" else 0)

    def updated(self, step: int, running: Sequence[int]) -> None:
        """Record what is known only after the backward pass or the update."""
        self._probing.close()
        assert self._probe is not None
        values = self._probe.values()
        if self.observe:
            self._dims = self._probe.dims
            self._keep({name: values[name] for name in self.observe}, step, running)
        elif self._signals():
            for name in SIGNALS:
                watched = values[name][:, list(self._blocks)].reshape(len(running), -1)
                self.rows[name][running, step - 1] = np.median(watched, axis=1)
        if self._moves():
            assert self._trunk is not None
            with torch.no_grad():
                after = self.optimiser.network.trunk(*self._batch[:2])
            self.rows["functional_step"][running, step - 1] = displacement(self._trunk, after).cpu().numpy()
        if self._average is not None:
            kept = [self._averaged.index(run) for run in running]
            self._average = self._average[kept].lerp(self.optimiser.values, 1 - self.runs[0].training.ema)
            self._averaged = list(running)
            if self._moves():
                self._measure_average(self._average, step, running)
        if step in self.keep_states:
            for position, run in enumerate(running):
                self.states[run][step] = self.optimiser.state(position)

    @torch.no_grad()
    def _measure_average(self, average: Tensor, step: int, running: Sequence[int]) -> None:
        """Put the averages [R, P] in place of the weights for one forward pass on the batch of the step."""
        noisy, texts, clean, noise = self._batch
        network, weights = self.optimiser.network, self.optimiser.values.clone()
        self.optimiser.values.copy_(average)
        try:
            with Probe(network, blocks=self._blocks, names=(self._cosine,)) as probe:
                losses = flow_losses(network(noisy, texts), clean, noise).mean(-1)
        finally:
            self.optimiser.values.copy_(weights)
        cosines = probe.values()[self._cosine][:, list(self._blocks)].astype(np.float64)
        self.rows["average_loss"][running, step - 1] = losses.double().cpu().numpy()
        self.rows["average_tcs"][running, step - 1] = np.median(cosines, axis=1)

    def _keep(self, found: Mapping[str, Array], step: int, running: Sequence[int]) -> None:
        """Keep the observables of every block at a step."""
        for name, values in found.items():
            if name not in self.observed:
                shape = (len(self.runs), self.runs[0].training.steps, *values.shape[1:])
                self.observed[name] = np.full(shape, np.nan, np.float32)
            self.observed[name][list(running), step - 1] = values

    def _series(self, run: int, last: int, names: Sequence[str]) -> xr.Dataset:
        """Measurements of a run up to the step `last`."""
        steps = np.arange(self.after + 1, last + 1)
        rows = {name: ("step", self.rows[name][run, self.after : last]) for name in names}
        return xr.Dataset(rows, coords={"step": steps}, attrs=self.about)

    def measured(self, run: int, rates: NDArray[np.float64], norms: NDArray[np.float64]) -> Measured:
        """Collect all measurements of a run.

        Args:
            run: position of the run in `runs`.
            rates: learning rates of the run at all steps [N].
            norms: gradient norms of the run at all steps [N].
        """
        series = self._series(run, int(self._last[run]), tuple(self.rows))
        for name, values in (("rate", rates), ("grad_norm", norms)):
            series[name] = ("step", values[self.after : int(self._last[run])])
        for name, found in self.observed.items():
            # an observable of every block replaces the median of the same name
            series[name] = (("step", *self._dims[name]), found[run, self.after : int(self._last[run])])
        return Measured(series=series, onset=training_onset(series), states=self.states[run])
