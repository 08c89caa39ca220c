"""Paths of training runs from a healthy state on: followed to a level of the mean mode, or to a collapse."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.onset.training_onset import Onset, initial_level, training_onset
from meanmode.sim.store.files import Variable
from meanmode.sweeps.engine.event_study import BY_STEP, HELD, TAIL
from meanmode.sweeps.engine.study_variables import SERIES
from meanmode.theory.meanfield.front import FRONT_COSINE

if TYPE_CHECKING:
    from meanmode.dit.data.sources import Source
    from meanmode.dit.train.ensemble_measurements import State

SMOOTHED = 3
"""Steps over whose median the level signal is taken: in a healthy state G_mean of single steps varies by a
fifth."""


CHUNK = 5
"""Steps between checks of whether a trajectory has crossed its level."""


SERIES_OF_PATHS = {
    "loss": BY_STEP["loss"],
    "tcs_image": Variable(dims=("since_jump",), definition=SERIES["tcs_image"].definition),
    "g_mean": Variable(
        dims=("since_jump",), definition="G_mean, root of the sum of squares over all blocks and writers"
    ),
}
"""Series of the whole path of a trajectory from the held steps on, including what it has inherited."""


@dataclass(frozen=True, kw_only=True)
class Path:
    """What was measured up to a step.

    Attributes:
        rows: the series of `SERIES_OF_PATHS` from `HELD` steps before the jump on.
        state: weights and moments after the last step; None if its loss or weights are not finite.
    """

    rows: Mapping[str, NDArray[np.float64]]
    state: "State | None"

    @property
    def step(self) -> int:
        """The last step, counted from the jump."""
        return len(self.rows["loss"]) - HELD

    def cut(self, step: int, state: "State | None") -> "Path":
        """The path up to an earlier step, with its state there."""
        return Path(rows={name: values[: HELD + step] for name, values in self.rows.items()}, state=state)

    def signal(self) -> NDArray[np.float64]:
        """The level signal at the steps after the jump."""
        values = self.rows["g_mean"] / np.median(self.rows["g_mean"][:HELD])
        recent = np.lib.stride_tricks.sliding_window_view(values, SMOOTHED)
        return np.median(recent, axis=1)[HELD - SMOOTHED + 1 :]

    def crossing(self, level: float, first: int) -> int | None:
        """First step from `first` on at which the level is reached, or the deep TCS exceeds 0.9."""
        above = (self.signal() >= level) | (self.rows["tcs_image"][HELD:] > FRONT_COSINE)
        above[: max(first - 1, 0)] = False
        return int(above.argmax()) + 1 if above.any() else None


class Parent:
    """A healthy state and the trajectories that start from it.

    Args:
        base: the run, with its jump.
        seed: seed of its weights and data up to the jump.
        horizon: steps after the jump within which a collapse counts.
        device: torch name of the device to compute on.

    Raises:
        ValueError: the run ends before its jump.
    """

    def __init__(self, base: RunConfig, seed: int, horizon: int, device: str) -> None:
        from meanmode.dit.data.sources import source_of
        from meanmode.dit.train.ensemble_runs import train_runs

        self.run = base.with_fields({"seed": seed, "data_seed": seed})
        self.jump, self.horizon, self.device = base.training.first_steps, horizon, device
        self.source: Source = source_of(base)
        fork = self.jump - HELD
        (healthy,) = train_runs(
            [self.run.with_fields({"steps": fork})], keep_states=[fork], device=device, source=self.source
        )
        if fork not in healthy.states:
            raise ValueError(f"the run of seed {seed} ends before its jump: choose a lower first_rate")
        self.initial_loss = initial_level(healthy.series)
        begin = Path(rows={name: np.empty(0) for name in SERIES_OF_PATHS}, state=healthy.states[fork])
        self.held, _ = self.extended(begin, seed, 0)
        if self.held.state is None:
            raise ValueError(f"the run of seed {seed} ends before its jump: choose a lower first_rate")

    def extended(self, path: Path, data_seed: int, last: int) -> tuple[Path, Mapping[int, "State"]]:
        """Train a path on to the step `last`; also returns its finite states after the new steps."""
        from meanmode.dit.train.ensemble_runs import train_runs

        assert path.state is not None
        after, end = self.jump + path.step, self.jump + last
        (measured,) = train_runs(
            [self.run.with_fields({"data_seed": data_seed, "steps": end})],
            observe=("g_mean",),
            begin=[path.state],
            after=after,
            keep_states=range(after + 1, end + 1),
            initial_loss=self.initial_loss,
            device=self.device,
            source=self.source,
        )
        rows = {name: measured.series[name].values.astype(np.float64) for name in SERIES_OF_PATHS}
        rows["g_mean"] = np.sqrt(np.square(rows["g_mean"][:, 1:]).sum((1, 2)))
        joined = {name: np.concatenate([path.rows[name], rows[name]]) for name in SERIES_OF_PATHS}
        states = {
            step - self.jump: state
            for step, state in measured.states.items()
            if bool(state["values"].isfinite().all())
        }
        return Path(rows=joined, state=states.get(last)), states

    def to_level(self, path: Path, data_seed: int, level: float) -> tuple[Path, int | None]:
        """Follow a path until it crosses a level, at most to the horizon.

        Returns:
            The path up to the crossing and its step, or the whole path and None. A path that has crossed the
            level already is returned as it is.
        """
        crossing = path.crossing(level, path.step)
        while crossing is None and path.step < self.horizon and path.state is not None:
            first = path.step + 1
            path, states = self.extended(path, data_seed, min(path.step + CHUNK, self.horizon))
            crossing = path.crossing(level, first)
            if crossing is not None:
                path = path.cut(crossing, states.get(crossing))
        return path, crossing

    def to_collapse(self, path: Path, data_seed: int) -> tuple[Path, Onset]:
        """Follow a path to the horizon, and a collapse that begins by then until its label is certain."""
        onset, last = self.onset(path), self.horizon + TAIL
        while path.state is not None and path.step < last:
            if onset.step is not None and onset.kind == "mean_mode":
                if path.step >= onset.step + TAIL:
                    break
            elif path.step >= self.horizon and not path.rows["tcs_image"][-1] > FRONT_COSINE:
                break  # a later collapse would begin after the horizon
            path, _ = self.extended(path, data_seed, min(path.step + CHUNK, last))
            onset = self.onset(path)
        return path, onset

    def onset(self, path: Path) -> Onset:
        """Label of a path, its step counted from the jump."""
        rows = {name: ("step", path.rows[name]) for name in ("loss", "tcs_image")}
        steps = np.arange(1 - HELD, path.step + 1)
        return training_onset(
            xr.Dataset(rows, coords={"step": steps}, attrs={"initial_loss": self.initial_loss})
        )
