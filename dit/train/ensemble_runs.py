"""Runs of one network, alike but for seeds and rates, trained as one batched network and labelled each."""

# R runs, B batch, C channels, H height, W width of a latent, S text tokens, N steps

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.signals import SIGNALS
from meanmode.dit.data.batches import batch_of
from meanmode.dit.data.sources import Source, source_of
from meanmode.dit.model.flow import flow_losses
from meanmode.dit.model.network import DiT, materialised
from meanmode.sim.intervene.grammar import Intervention
from meanmode.sim.intervene.interventions import Interventions
from meanmode.sim.observe.functional_step import displacement
from meanmode.sim.observe.observables import tcs
from meanmode.sim.observe.probe import Probe
from meanmode.sim.onset.training_onset import (
    DIVERGED,
    INITIAL_STEPS,
    SUSTAINED_STEPS,
    WINDOW,
    Onset,
    training_onset,
)
from meanmode.sim.train.ensemble_loop import train_ensemble
from meanmode.sim.train.ensemble_optimiser import AdamW, EnsembleOptimiser
from meanmode.sim.train.schedule import Schedule
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.theory.meanfield.predicted_front import FRONT_COSINE

OWN_FIELDS = ("seed", "data_seed", "schedule", "rate", "slope", "warmup")
"""Fields of the training in which the runs of an ensemble may differ."""


WATCHED_BLOCKS = 8
"""Blocks of the deeper half, evenly spaced, whose median is the TCS of a step."""


LABEL_EVERY = 10
"""Steps between looks whether a run has ended."""


TAIL = 2 * SUSTAINED_STEPS
"""Steps a run goes on behind its onset, so that the label is that of a longer run too."""


State = Mapping[str, Tensor]
"""Weights and moments of a run behind a step (`meanmode.sim.train.ensemble_optimiser.EnsembleOptimiser.state`)."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What became of a run.

    Attributes:
        series: `loss`, `rate`, `grad_norm`, `tcs_image` (median over the watched blocks) of every step before
            its update; `functional_step` and `SIGNALS` where they were measured, else NaN.
        onset: its label.
        states: step -> the run behind it, of those that were asked for and made.
    """

    series: xr.Dataset
    onset: Onset
    states: Mapping[int, State]


def watched_blocks(depth: int) -> tuple[int, ...]:
    """The blocks whose TCS is taken, from 1, the last among them."""
    deeper = depth - depth // 2
    count = min(WATCHED_BLOCKS, deeper)
    return tuple(depth // 2 + -(-deeper * place // count) for place in range(1, count + 1))


def train_runs(
    runs: Sequence[RunConfig],
    *,
    functional_every: int = 0,
    signals_every: int = 0,
    keep_states: Sequence[int] = (),
    begin: Sequence[State] = (),
    behind: int = 0,
    initial_loss: float | None = None,
    device: str = "cpu",
    source: Source | None = None,
) -> list[Measured]:
    """Train runs together; each is what `meanmode.dit.train.trainer.Trainer` makes of it, up to rounding.

    A run ends `TAIL` steps behind a collapse, `WINDOW` more behind a divergence, or where its loss is not
    finite.

    Args:
        runs: alike but for `OWN_FIELDS`. Precision, sharding, accumulation, telemetry and checkpoints of
            their configurations play no part here.
        functional_every: steps between measurements of Delta; 0 for none.
        signals_every: steps between measurements of `SIGNALS`; 0 for none.
        keep_states: steps behind which the state of every run is kept.
        begin: states to go on from, one a run; none to begin with fresh weights.
        behind: the step that `begin` is behind.
        initial_loss: level of the loss at the beginning of the training, where `begin` lies behind it.
        device: where to compute, as torch names it.
        source: of latents and texts; None for the one the configuration names.

    Raises:
        ValueError: no runs, runs that differ in anything else, or not one state a run.
    """
    base = _common(runs)
    if begin and len(begin) != len(runs):
        raise ValueError(f"{len(runs)} runs need as many states to begin with, got {len(begin)}")
    place = torch.device(device)
    network = fresh_network(runs, place)
    optimiser = EnsembleOptimiser(network, _options(base))
    for number, state in enumerate(begin):
        optimiser.restore(number, state)
    watch = _EnsembleWatch(
        runs,
        optimiser,
        functional_every=functional_every,
        signals_every=signals_every,
        keep_states=keep_states,
        behind=behind,
        initial_loss=initial_loss,
        source=source or source_of(base),
        device=place,
    )
    with watch:
        training = train_ensemble(
            optimiser,
            watch.losses,
            watch.batches,
            [_schedule(run) for run in runs],
            steps=base.training.steps,
            first=behind + 1,
            ended=watch.ended,
            updated=watch.updated,
        )
    return [
        watch.measured(run, training.rates[run], training.gradient_norms[run]) for run in range(len(runs))
    ]


@torch.no_grad()
def fresh_network(runs: Sequence[RunConfig], device: torch.device) -> DiT:
    """The networks of runs before their first step, stacked."""
    members = [materialised(run.model, run.training.seed, device) for run in runs]
    return stack_members(members).to(device)


def _common(runs: Sequence[RunConfig]) -> RunConfig:
    """The run that all are, but for their own fields."""
    if not runs:
        raise ValueError("an ensemble needs at least one run")
    base = runs[0]
    own = {name: getattr(base.training, name) for name in OWN_FIELDS}
    for number, run in enumerate(runs):
        if dataclasses.replace(run, training=dataclasses.replace(run.training, **own)) != base:
            raise ValueError(
                f"run {number} differs from run 0 in more than {', '.join(OWN_FIELDS)}: "
                "an ensemble is one network"
            )
    return base


def _schedule(run: RunConfig) -> Schedule:
    return run.training.learning_rate(run.model.depth)


def _options(run: RunConfig) -> AdamW:
    training = run.training
    return AdamW(
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
        clip=float("inf") if training.clip is None else training.clip,
        reader_rate=training.reader_rate,
        gain_rate=training.gain_rate,
        muon=training.optimiser == "muon",
    )


class _EnsembleWatch:
    """Data, losses and measurements of an ensemble in training; runs are named by their first places."""

    def __init__(
        self,
        runs: Sequence[RunConfig],
        optimiser: EnsembleOptimiser,
        *,
        functional_every: int,
        signals_every: int,
        keep_states: Sequence[int],
        behind: int,
        initial_loss: float | None,
        source: Source,
        device: torch.device,
    ) -> None:
        self.runs = runs
        self.optimiser = optimiser
        self.functional_every = functional_every
        self.signals_every = signals_every
        self.keep_states = set(keep_states)
        self.behind = behind
        self.about = {} if initial_loss is None else {"initial_loss": initial_loss}
        self.source = source
        self.device = device
        steps = runs[0].training.steps
        names = ("loss", "tcs_image", "functional_step", *SIGNALS)
        self.rows = {name: np.full((len(runs), steps), np.nan) for name in names}
        self.states: list[dict[int, State]] = [{} for _ in runs]
        self._blocks = watched_blocks(runs[0].model.depth)
        self._last = np.zeros(len(runs), np.int64)
        self._cosines: list[Tensor] = []
        self._trunk: Tensor | None = None
        self._batch: tuple[Tensor, ...] = ()
        self._step = 0
        self._running: Sequence[int] = ()
        self._probe: Probe | None = None
        self._undo = ExitStack()
        self._acting: tuple[str, ...] = ()

    def __enter__(self) -> "_EnsembleWatch":
        blocks = self.optimiser.network.blocks
        for number in self._blocks:
            hook = blocks[number - 1].register_forward_hook(self._seen)
            self._undo.callback(hook.remove)
        self._interventions = self._undo.enter_context(ExitStack())
        self._probing = self._undo.enter_context(ExitStack())
        return self

    def __exit__(self, *failure: object) -> None:
        self._undo.close()

    def _seen(self, _: nn.Module, __: object, trunk: Tensor) -> None:
        """The TCS of a watched block, the batch mean of every run [R]."""
        if torch.is_grad_enabled():
            model = self.runs[0].model
            image = model.copies * model.image_tokens
            self._trunk = trunk.detach()
            self._cosines.append(tcs(self._trunk[..., :image, :]).mean(-1))

    def batches(self, step: int, running: Sequence[int]) -> tuple[Tensor, ...]:
        """Noisy latents, texts, clean latents and noise, all behind an axis of runs."""
        self._intervene(step)
        if step == self._step:  # asked for again, since runs have ended: theirs are left out
            kept = torch.tensor([self._running.index(run) for run in running])
            self._batch = tuple(part[kept] for part in self._batch)
        else:
            own = [batch_of(self.source, self.runs[run], step) for run in running]
            self._batch = tuple(torch.stack(parts).to(self.device) for parts in zip(*own, strict=True))
        self._step, self._running = step, list(running)
        return self._batch

    def _intervene(self, step: int) -> None:
        """Have those interventions act that begin at this step or began before it."""
        wanted = tuple(text for first, text in self.runs[0].training.interventions if first <= step)
        if wanted != self._acting:
            self._interventions.close()
            self._acting = wanted
            asked = [Intervention.parse(text) for text in wanted]
            self._interventions.enter_context(Interventions(self.optimiser.network, asked))

    def losses(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Of every run [R], the mean over its samples."""
        noisy, texts, clean, noise = batch
        self._cosines = []
        self._probing.close()  # of a forward pass that is made again, since runs have ended
        if self.signals_every and self._step % self.signals_every == 0:
            self._probe = self._probing.enter_context(Probe(network, blocks=self._blocks, names=SIGNALS))
        return flow_losses(network(noisy, texts), clean, noise).mean(-1)

    def ended(self, step: int, running: Sequence[int], losses: Tensor) -> list[int]:
        """Which runs have ended before this step's update."""
        cosines = np.median(torch.stack(self._cosines).double().cpu().numpy(), axis=0)
        self.rows["tcs_image"][running, step - 1] = cosines
        self.rows["loss"][running, step - 1] = losses.double().cpu().numpy()
        self._last[running] = step
        if step % LABEL_EVERY:
            return []
        return [run for run in running if self._over(run, step)]

    def _over(self, run: int, step: int) -> bool:
        recent = self.rows["tcs_image"][run, max(step - TAIL, 0) : step]
        losses = self.rows["loss"][run, self.behind : step]
        initial = self.about.get("initial_loss", np.median(losses[:INITIAL_STEPS]))
        if np.nanmax(recent) < FRONT_COSINE and losses[-1] < DIVERGED * initial:
            return False  # what a label costs is saved
        onset = training_onset(self._series(run, step, ("loss", "tcs_image")))
        if onset.step is None:
            return False
        return step >= onset.step + TAIL + (WINDOW if onset.kind == "plain_divergence" else 0)

    def updated(self, step: int, running: Sequence[int]) -> None:
        """Measure what the update did."""
        self._probing.close()
        if self._probe is not None:
            for name, values in self._probe.values().items():
                watched = values[:, list(self._blocks)].reshape(len(running), -1)
                self.rows[name][running, step - 1] = np.median(watched, axis=1)
            self._probe = None
        if self.functional_every and step % self.functional_every == 0:
            assert self._trunk is not None
            with torch.no_grad():
                after = self.optimiser.network.trunk(*self._batch[:2])
            self.rows["functional_step"][running, step - 1] = displacement(self._trunk, after).cpu().numpy()
        if step in self.keep_states:
            for place, run in enumerate(running):
                self.states[run][step] = self.optimiser.state(place)

    def _series(self, run: int, last: int, names: Sequence[str]) -> xr.Dataset:
        """What was measured of a run up to a step."""
        steps = np.arange(self.behind + 1, last + 1)
        rows = {name: ("step", self.rows[name][run, self.behind : last]) for name in names}
        return xr.Dataset(rows, coords={"step": steps}, attrs=self.about)

    def measured(self, run: int, rates: NDArray[np.float64], norms: NDArray[np.float64]) -> Measured:
        """All that is known of a run; rates and gradient norms of every step are its own [N]."""
        series = self._series(run, int(self._last[run]), tuple(self.rows))
        for name, values in (("rate", rates), ("grad_norm", norms)):
            series[name] = ("step", values[self.behind : int(self._last[run])])
        return Measured(series=series, onset=training_onset(series), states=self.states[run])
