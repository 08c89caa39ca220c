"""`EventStudy`: one jump of the learning rate from a healthy state, measured in every block at every step."""

# N steps, L blocks, W writers

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.observe.observable_names import BACKWARD_OBSERVABLES, WRITERS
from meanmode.sim.onset.training_onset import initial_level
from meanmode.sim.store.files import Variable
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.plan import Layout, Measured
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.engine.study_variables import KINDS, OUTCOME, SERIES
from meanmode.sweeps.engine.trained import StudyCell
from meanmode.theory.meanfield.front import FRONT_COSINE

if TYPE_CHECKING:
    from meanmode.dit.train.ensemble_measurements import Measured as MeasuredRun
    from meanmode.dit.train.ensemble_measurements import State

HELD = 10
"""Steps at the healthy rate that are measured before the jump."""


AROUND = range(-10, 7)
"""Steps around the onset at which every block is stored."""


READERS = ("grad_rms_q", "grad_rms_k")
TAIL = 28
"""Steps that a run is followed after its onset: long enough for its label."""


OBSERVED = ("tcs_image", "rho_image", "g_mean", "g_ctr", "amplification", "kappa", "kappa_abs", *READERS)
"""Observables that are measured in every block at every step from the fork on."""


WINDOW = {
    "tcs_image": Variable(
        dims=("since_onset", "block"), definition="TCS of the image tokens; mean over the batch"
    ),
    **{
        name: Variable(
            dims=("since_onset", *BACKWARD_OBSERVABLES[name][0]), definition=BACKWARD_OBSERVABLES[name][1]
        )
        for name in ("g_mean", "g_ctr", "amplification", "kappa", "kappa_abs")
    },
}
"""Variables of every block, around the onset."""


def _of_writers(mode: str, symbol: str) -> dict[str, Variable]:
    dims = ("since_jump", "writer")
    return {
        f"{mode}_all": Variable(
            dims=dims, definition=f"{symbol}, root of the sum of squares over all blocks"
        ),
        f"{mode}_deep": Variable(
            dims=dims, definition=f"{symbol}, median over the blocks of the deeper half"
        ),
    }


BY_STEP = {
    **{
        name: Variable(dims=("since_jump",), definition=SERIES[name].definition)
        for name in ("loss", "grad_norm")
    },
    "tcs_deep": Variable(
        dims=("since_jump",), definition="TCS of the image tokens, median over the deeper half"
    ),
    "rho_deep": Variable(
        dims=("since_jump",), definition="rho of the image tokens, median over the deeper half"
    ),
    "front": Variable(
        dims=("since_jump",), definition="first block whose TCS of the image tokens exceeds 0.9, L + 1: none"
    ),
    **{
        f"{name}_deep": Variable(dims=("since_jump",), definition=f"{name}, median over the deeper half")
        for name in READERS
    },
    **_of_writers("g_mean", "G_mean"),
    **_of_writers("g_ctr", "G_ctr"),
}
"""Variables of every step, counted from the jump."""


EVENT_OUTCOME = {
    "onset_step": Variable(
        definition="steps from the jump to the collapse or divergence, NaN: none", units="step"
    ),
    "onset_kind": OUTCOME["onset_kind"],
    "last_step": Variable(definition="last measured step, counted from the jump", units="step"),
    "initial_loss": Variable(definition="loss before training, median of the first steps"),
}


@dataclass(frozen=True, kw_only=True)
class EventStudy(Study):
    """A study whose runs hold a healthy learning rate, jump to another, and are followed from there.

    All runs have the schedule `jump`. The runs of a seed share their healthy part up to `HELD` steps before
    the jump; from there on each has its own fields, at first still at the healthy rate: these `HELD` steps
    are what its event is compared with.

    Attributes:
        forked: fields in which a run differs from the base only after the fork; others differ from the start.

    Raises:
        ValueError: a run without a jump, or one that jumps within the first `HELD` steps.
    """

    kind: ClassVar[str] = "event_study"

    forked: tuple[str, ...] = ("rate",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "forked", tuple(self.forked))  # JSON has a list instead
        super().__post_init__()
        for run in self.runs:
            if run.training.schedule != "jump" or run.training.first_steps <= HELD:
                raise ValueError(f"{self.name}: every run needs a jump, after more than {HELD} steps")

    def units(self) -> list[tuple[int, ...]]:
        """Indices of the runs that share a healthy run."""
        found: dict[str, list[int]] = {}
        for index, cell in enumerate(self.cells):
            found.setdefault(repr(healthy_run(cell.run, self.base, self.forked)), []).append(index)
        return [tuple(indices) for indices in found.values()]

    def configuration(self) -> dict[str, Any]:
        """Everything that determines the numbers, and the statement, JSON-serialisable."""
        return {**super().configuration(), "forked": list(self.forked)}

    @property
    def follow(self) -> int:
        """Largest number of steps after a jump."""
        return max(run.training.steps - run.training.first_steps for run in self.runs)

    def layout(self) -> Layout:
        """What the store holds; steps are counted from the jump."""
        depth = max(run.model.depth for run in self.runs)
        return Layout(
            sizes={
                "since_jump": range(1 - HELD, self.follow + 1),
                "since_onset": AROUND,
                "block": range(depth + 1),
                "writer": WRITERS,
            },
            variables={**EVENT_OUTCOME, **BY_STEP, **WINDOW},
            forecasts=self._forecasts(),
            witness="initial_loss",
        )

    def measure(self) -> Callable[[Sequence[tuple[int, StudyCell]]], Measured]:
        """A picklable function that trains the healthy run of a unit, and then its runs."""
        return partial(
            events,
            base=self.base,
            forked=self.forked,
            sizes={name: len(values) for name, values in self.layout().sizes.items()},
            device=self.device,
        )


def healthy_run(run: RunConfig, base: RunConfig, forked: Sequence[str]) -> RunConfig:
    """Return the healthy part of a run, up to the step at which it is forked.

    Args:
        run: a run of the study; its interventions that begin later are left out.
        base: the run that the cases vary.
        forked: fields in which a run differs from the base only after the fork.
    """
    fork = run.training.first_steps - HELD
    own = {name: base.field(name) for name in forked}
    acting = tuple(entry for entry in run.training.interventions if entry[0] <= fork)
    return run.with_fields({**own, "interventions": acting, "steps": fork})


def events(
    cells: Sequence[tuple[int, StudyCell]],
    *,
    base: RunConfig,
    forked: tuple[str, ...],
    sizes: Mapping[str, int],
    device: str,
) -> Measured:
    """Train the healthy run that the cells share, fork it, and measure every fork.

    A healthy run that collapses before the fork is the outcome of all its cells, with a negative onset.
    """
    from meanmode.dit.train.ensemble_runs import train_runs

    healthy = healthy_run(cells[0][1].run, base, forked)
    (shared,) = train_runs([healthy], keep_states=[healthy.training.steps], device=device)
    level = initial_level(shared.series)
    runs = [cell.run for _, cell in cells]
    followed = [shared] * len(runs)
    if shared.states:
        followed = _followed(runs, healthy, shared.states[healthy.training.steps], level, device)
    found: Measured = []
    for run, measured in zip(runs, followed, strict=True):
        jump, onset = run.training.first_steps, measured.onset.step
        values: dict[str, Any] = {
            "onset_step": np.array(np.nan if onset is None else onset - jump),
            "onset_kind": np.array(KINDS.index(measured.onset.kind)),
            "last_step": np.array(int(measured.series["step"][-1]) - jump),
            "initial_loss": np.array(level),
        }
        if measured is not shared:
            values |= _by_step(measured.series, sizes["since_jump"])
            values |= _around(measured.series, onset, sizes["block"])
        found.append((values, DONE))
    return found


def _followed(
    runs: Sequence[RunConfig], healthy: RunConfig, state: "State", level: float, device: str
) -> "list[MeasuredRun]":
    """Follow runs from a state of the healthy one; those that differ in their rate are stepped together."""
    import torch

    from meanmode.dit.train.ensemble_runs import fresh_network, train_runs
    from meanmode.sim.train.state_transfer import carried_over

    found: dict[int, MeasuredRun] = {}
    for alike in _alike(runs):
        first, begin = runs[alike[0]], state
        if first.model != healthy.model:
            networks = (fresh_network([run], torch.device(device)) for run in (healthy, first))
            begin = carried_over(state, *networks)
        measured = train_runs(
            [runs[number] for number in alike],
            observe=OBSERVED,
            begin=[begin] * len(alike),
            after=healthy.training.steps,
            tail=TAIL,
            initial_loss=level,
            device=device,
        )
        found |= dict(zip(alike, measured, strict=True))
    return [found[number] for number in range(len(runs))]


def _alike(runs: Sequence[RunConfig]) -> list[list[int]]:
    """Numbers of the runs that differ in their rate only, so that they can be stepped together."""
    found: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        found.setdefault(repr(run.with_fields({"rate": runs[0].training.rate})), []).append(number)
    return list(found.values())


def _by_step(series: xr.Dataset, steps: int) -> dict[str, NDArray[np.float64]]:
    """Reduce the observables of every block to the variables of `BY_STEP`, padded to `steps` rows."""
    blocks = np.arange(series.sizes["block"])
    deep, inner = blocks > blocks.max() / 2, blocks > 0
    rows = {name: series[name].values.astype(np.float64) for name in ("loss", "grad_norm")}
    for name, of in (("tcs_deep", "tcs_image"), ("rho_deep", "rho_image")):
        rows[name] = np.median(series[of].values[:, deep], axis=1)
    alike = np.pad(series["tcs_image"].values > FRONT_COSINE, ((0, 0), (0, 1)), constant_values=True)
    rows["front"] = alike.argmax(1).astype(np.float64)
    for name in READERS:
        rows[f"{name}_deep"] = np.median(series[name].values[:, deep], axis=1)
    for name in ("g_mean", "g_ctr"):
        values = series[name].values.astype(np.float64)
        rows[f"{name}_all"] = np.sqrt(np.square(values[:, inner]).sum(1))
        rows[f"{name}_deep"] = np.median(values[:, deep], axis=1)
    return {name: _padded(values, steps) for name, values in rows.items()}


def _padded(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    found = np.full((length, *values.shape[1:]), np.nan)
    found[: len(values)] = values[:length]
    return found


def _around(series: xr.Dataset, onset: int | None, blocks: int) -> dict[str, NDArray[np.float64]]:
    """Take the observables of every block at the steps `AROUND` the onset; NaN without one."""
    found = {}
    for name in WINDOW:
        values = series[name].transpose("step", "block", ...)
        kept = np.full((len(AROUND), blocks, *values.shape[2:]), np.nan)
        if onset is not None:
            here = values.reindex(step=[onset + offset for offset in AROUND]).values
            kept[:, : here.shape[1]] = here
        found[name] = kept
    return found
