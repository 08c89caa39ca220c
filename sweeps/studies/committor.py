"""Rows of a committor study: how often forks of a state collapse, and which signal ranks the states."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import rankdata

from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.committor_study import OBSERVABLES, stored_committor
from meanmode.sweeps.studies.rows import finite

SOON = 20
"""A shorter horizon, in steps: within the long one nearly every state collapses if the rate is too high."""


BOOTSTRAPS = 500
"""Resamples of the parents, for the interval of a rank correlation."""


def committor_rows(data: xr.Dataset) -> list[dict[str, Any]]:
    """The committor by distance to the onset, and how each observable ranks the states by it.

    `committor`: P(collapse within `within` steps), mean over the states at a distance, one per parent; for
    the horizon and for `SOON`. `rank_correlation`: Spearman's, of an observable with that P over all states,
    with a 90 % bootstrap interval over parents.

    Args:
        data: a committor study, opened.
    """
    horizon = stored_committor(data.attrs).horizon
    done = data.isel(cell=np.flatnonzero(data["status"].values == DONE))
    rows = []
    for within in (min(SOON, horizon), horizon):
        states = states_of(done, within)
        rows += share_rows(states, within) + rank_rows(states, within)
    empty = dict.fromkeys(("predicted", "predicted_std", "z", "relative_error"))
    return [finite({**row, **empty}) for row in rows]


def states_of(data: xr.Dataset, within: int) -> pd.DataFrame:
    """One row per state: parent, offset, observables, and the share of its forks `collapsed` by then.

    Args:
        data: finished cells of a committor.
        within: steps from the state.
    """
    frame = data[["parent", "offset", "fork_onset", *OBSERVABLES]].to_dataframe()
    return (
        frame.assign(collapsed=(frame["fork_onset"] <= within).astype(float))
        .groupby(["parent", "offset"], as_index=False)
        .mean()
    )


def share_rows(states: pd.DataFrame, within: int) -> list[dict[str, Any]]:
    """P(collapse) by distance to the onset: mean over the states of a distance, one per parent."""
    rows: list[dict[str, Any]] = []
    for offset, of in states.groupby("offset"):
        shares = of["collapsed"].to_numpy()
        error = shares.std(ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else math.nan
        about = {"quantity": "committor", "within": within, "offset": int(str(offset))}
        rows.append(
            {**about, "measured": float(shares.mean()), "measured_sem": float(error), "n": len(shares)}
        )
    return rows


def rank_rows(states: pd.DataFrame, within: int) -> list[dict[str, Any]]:
    """How each observable ranks the states by P(collapse), with a 90 % bootstrap interval over parents."""
    rows: list[dict[str, Any]] = []
    own = states["parent"].to_numpy()
    parents = states["parent"].unique()
    indices = {parent: np.flatnonzero(own == parent) for parent in parents}
    random = np.random.default_rng(0)
    for name in OBSERVABLES:
        columns = states[name].to_numpy(), states["collapsed"].to_numpy()
        drawn = (random.choice(parents, len(parents)) for _ in range(BOOTSTRAPS))
        found = [_rank(*columns, [indices[parent] for parent in of]) for of in drawn]
        known = [rank for rank in found if not math.isnan(rank)]
        low, high = np.quantile(known, [0.05, 0.95]) if known else (math.nan, math.nan)
        about = {"quantity": "rank_correlation", "within": within, "observable": name, "n": len(states)}
        ends = {"measured_low": float(low), "measured_high": float(high)}
        rows.append({**about, "measured": _rank(*columns, list(indices.values())), **ends})
    return rows


def _rank(observed: NDArray[Any], collapsed: NDArray[Any], parents: Sequence[NDArray[np.int64]]) -> float:
    """Spearman's correlation of an observable with the committor over the states of the given parents."""
    indices = np.concatenate(parents)
    values, shares = observed[indices], collapsed[indices]
    if np.ptp(values) == 0 or np.ptp(shares) == 0:
        return math.nan  # all states are alike
    return float(np.corrcoef(rankdata(values), rankdata(shares))[0, 1])
