"""The rule by which an exit near the threshold is silent, and what a splitting study says about exits.

It was fixed before the runs of `meanmode.sweeps.named.event_silence`. An *exit* is a collapse whose onset
lies within the horizon, counted from the jump. The loss of a step is the median of `SMOOTHED` steps up to
it. It is *in the band* if it differs from a level by at most `BAND` of that level. An exit is *silent* if the
loss is in the band `EARLIER` steps before the onset, and the onset is at most `SOON` steps after the first
step outside of the band since the loss was last inside.

There are two levels, each with its own count:

* `before the jump`: the median loss of the last held steps;
* `before the exit`: the median loss of the steps `RECENT` before the onset. A jump moves the loss by itself,
  so that the first level may rule silence out whatever the exit is like; this one does not. It needs that
  many steps after the jump: earlier exits are not judged by it.

To show that silence could be found, the rule is also applied to every step of the trajectories of stage 0 up
to their first level, as if an exit had its onset there: the share that passes is `passing`.
"""

# N steps, P parents, K resamples

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.event_study import HELD
from meanmode.sweeps.engine.splitting.splitting_study import SplittingStudy, stored_splitting
from meanmode.sweeps.statistics.censoring import INTERVAL, resamples
from meanmode.sweeps.studies.rows import Row, finite

BAND = 0.05
"""Largest difference from a level, as a share of it, at which the loss has not drifted."""

SMOOTHED = 3
"""Steps over whose median the loss is taken."""

EARLIER, SOON = 6, 4
"""Steps before the onset at which a silent loss has not drifted; most steps from its drift to the onset."""

RECENT = range(11, 21)
"""Steps before the onset whose median loss is the level before the exit."""

LEVELS = ("before the jump", "before the exit")
"""Levels that the loss is compared with."""


def drift(loss: NDArray[np.float64], onset: int, level: float) -> tuple[float, float]:
    """How far and for how long the loss had drifted at an onset.

    Args:
        loss: loss at every step from `HELD` steps before the jump on [N].
        onset: step of the onset, counted from the jump.
        level: level that the loss is compared with.

    Returns:
        The loss `EARLIER` steps before the onset over the level, and the number of steps from the first
        outside of the band to the onset: -1 if the loss is still inside then, infinite if it never was.
    """
    smoothed = pd.Series(loss[: HELD + onset]).rolling(SMOOTHED).median().to_numpy() / level
    inside = np.flatnonzero(np.abs(smoothed - 1) <= BAND)
    outside = len(smoothed) - 2 - inside[-1] if len(inside) else np.inf
    return float(smoothed[-1 - EARLIER]), float(outside)


def is_silent(earlier: float, outside: float) -> bool:
    """Whether an exit with this `drift` is silent."""
    return abs(earlier - 1) <= BAND and outside <= SOON


def level_of(loss: NDArray[np.float64], onset: int, level: str) -> float:
    """One of the `LEVELS`; NaN where too few steps lie between the jump and the onset.

    Args:
        loss: loss at every step from `HELD` steps before the jump on [N].
        onset: step of the onset, counted from the jump.
        level: name of the level.
    """
    if level == "before the jump":
        return float(np.median(loss[:HELD]))
    if onset <= RECENT[-1]:
        return np.nan
    here = HELD - 1 + onset
    return float(np.median(loss[here - RECENT[-1] : here - RECENT[0] + 1]))


def exit_rows(data: xr.Dataset) -> pd.DataFrame:
    """One row per exit: `parent`, `number`, `root`, `onset`, `weight`, and its drift from each level.

    `weight` is the contribution of an exit to the probability of a collapse of its parent. `earlier`,
    `outside` and `silent` are in a pair of columns (level, name) each; `silent` is NaN where not judged.

    Args:
        data: a store of `meanmode.sweeps.engine.splitting.splitting_study`, opened.

    Raises:
        StoreError: an unfinished study.
    """
    study = _finished(data)
    rows = []
    for parent, of in data.groupby("parent"):
        chances = _stage_chances(of, study)
        last = of.isel(cell=of["stage"].values == study.stages - 1)
        for cell in np.flatnonzero(np.isfinite(last["crossing_step"].values)):
            run = last.isel(cell=cell)
            loss, onset = run["loss"].values.astype(float), int(run["crossing_step"])
            row = {
                "parent": int(parent),
                "number": int(run["number"]),
                "root": int(run["root"]),
                "onset": onset,
                "weight": float(np.prod(chances[:-1])) / study.trajectories,
            }
            rows.append(row | _judged(loss, onset))
    columns = ["parent", "number", "root", "onset", "weight", *_judged(np.ones(HELD + 30), 30)]
    return pd.DataFrame(rows, columns=columns)


def _judged(loss: NDArray[np.float64], onset: int) -> dict[str, float]:
    found = {}
    for name in LEVELS:
        level = level_of(loss, onset, name)
        earlier, outside = drift(loss, onset, level)
        silent = np.nan if np.isnan(level) else float(is_silent(earlier, outside))
        found |= {f"earlier {name}": earlier, f"outside {name}": outside, f"silent {name}": silent}
    return found


def _finished(data: xr.Dataset) -> SplittingStudy:
    unfinished = int((data["status"] != DONE).sum())
    if unfinished:
        raise StoreError(
            f"{data.attrs['name']} has {unfinished} cells to do or failed: continue it with --resume"
        )
    return stored_splitting(data.attrs)


def _stage_chances(parent: xr.Dataset, study: SplittingStudy) -> NDArray[np.float64]:
    """Share of the trajectories of each stage that crossed; 0 for stages that nothing reached."""
    chances = parent["stage_probability"].values.reshape(study.stages, study.trajectories)[:, 0]
    return np.nan_to_num(chances.astype(float))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic with its bootstrap `INTERVAL` over parents; NaN without exits, or for one parent."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Silence:
    """What a splitting study says about exits.

    Attributes:
        chances: parent -> share of the trajectories of each stage that crossed.
        probability: of a collapse within the horizon of the jump; unbiased for every parent, mean over them.
        exits: rows of `exit_rows`.
        silent: level -> share of the exits that are silent, weighted by their probability, of those judged.
        passing: level -> share of the steps of stage 0 at which an exit would be silent.
    """

    chances: dict[int, NDArray[np.float64]]
    probability: Interval
    exits: pd.DataFrame
    silent: dict[str, Interval]
    passing: dict[str, float]

    def judged(self, level: str) -> pd.DataFrame:
        """The exits that are judged by a level."""
        return self.exits[self.exits[f"silent {level}"].notna()]

    def counts(self, level: str) -> tuple[int, int]:
        """Number of trajectories of stage 0 with a silent exit, and with any that is judged.

        Exits that descend from one trajectory share a part of their path: only these are independent.
        """
        judged = self.judged(level)
        silent = judged[judged[f"silent {level}"] == 1]
        return tuple(len(of.drop_duplicates(["parent", "root"])) for of in (silent, judged))


def silence(data: xr.Dataset) -> Silence:
    """Probability of an exit, share of silent exits, and how often the rule would be passed without one.

    Args:
        data: a store of `meanmode.sweeps.engine.splitting.splitting_study`, opened.

    Raises:
        StoreError: an unfinished study.
    """
    study, exits = _finished(data), exit_rows(data)
    chances = {int(parent): _stage_chances(of, study) for parent, of in data.groupby("parent")}
    parents = sorted(chances)
    found = np.array([np.prod(chances[parent]) for parent in parents])
    silent = {}
    for level in LEVELS:
        judged = exits[exits[f"silent {level}"].notna()]
        weights = judged["weight"].to_numpy(float)
        parts = [
            pd.Series(values).groupby(judged["parent"].to_numpy()).sum().reindex(parents, fill_value=0.0)
            for values in (weights * judged[f"silent {level}"].to_numpy(float), weights)
        ]
        above, below = (part.to_numpy(float) for part in parts)
        silent[level] = _over_parents(
            len(parents), lambda draw, above=above, below=below: _ratio(above[draw].sum(), below[draw].sum())
        )
    return Silence(
        chances=chances,
        probability=_over_parents(len(parents), lambda draw: float(found[draw].mean())),
        exits=exits,
        silent=silent,
        passing=_passing(data),
    )


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else np.nan


def _over_parents(count: int, statistic: Callable[[NDArray[np.int64]], float]) -> Interval:
    """A statistic of parents, given by their positions, with its bootstrap interval."""
    value = statistic(np.arange(count))
    drawn = np.array([statistic(draw) for draw in resamples(count)])
    drawn = drawn[~np.isnan(drawn)]
    if count < 2 or np.isnan(value) or not len(drawn):
        return Interval(value=value, low=np.nan, high=np.nan)
    low, high = np.quantile(drawn, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return Interval(value=value, low=float(low), high=float(high))


def _passing(data: xr.Dataset) -> dict[str, float]:
    """Level -> share of the steps of stage 0 up to the first level at which an exit would be silent."""
    first = data.isel(cell=data["stage"].values == 0)
    verdicts = [
        _judged(run["loss"].values.astype(float), step)
        for run in (first.isel(cell=cell) for cell in range(first.sizes["cell"]))
        for step in range(1, int(run["last_step"]) + 1)
    ]
    judged = pd.DataFrame(verdicts)
    return {level: float(judged[f"silent {level}"].mean()) for level in LEVELS}


def compared_silence(data: xr.Dataset) -> list[Row]:
    """The estimates of a splitting study as rows of a comparison; nothing in them was forecast."""
    found = silence(data)
    rows: list[Row] = [
        {"quantity": "collapse_probability", **_measured(found.probability), "n": len(found.chances)}
    ]
    for level in LEVELS:
        silent, independent = found.counts(level)
        about = {"quantity": "silent_share", "level": level, **_measured(found.silent[level])}
        counts = {"n": len(found.judged(level)), "independent": independent, "independent_silent": silent}
        rows.append({**about, **counts, "passing": found.passing[level]})
    return [finite({**row, "relative_error": None}) for row in rows]


def _measured(of: Interval) -> Row:
    return {"measured": of.value, "measured_low": of.low, "measured_high": of.high}
