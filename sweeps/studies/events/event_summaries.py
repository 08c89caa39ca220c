"""What the runs of event studies say together: shares, half rates, growth at a distance, effects."""

# N rates, K resamples

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import binomtest

from meanmode.sweeps.statistics.censoring import (
    INTERVAL,
    Estimate,
    Samples,
    estimated,
    estimated_ratio,
    resamples,
)
from meanmode.sweeps.statistics.half_rate import most_likely
from meanmode.sweeps.studies.events.event_rules import event_rows
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.rows import Row, finite

DISTANCE = 1.3
"""Multiple of the half rate at which events are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """How many runs of a case have a property.

    Attributes:
        count, of: number of runs with the property, and of all.
        low, high: Clopper-Pearson interval of the share.
    """

    count: int
    of: int
    low: float
    high: float

    @classmethod
    def counted(cls, count: int, of: int) -> "Share":
        """The share of `count` runs out of `of`."""
        interval = binomtest(count, of).proportion_ci(INTERVAL)
        return cls(count=count, of=of, low=float(interval.low), high=float(interval.high))

    def __str__(self) -> str:
        return f"{self.count} of {self.of} ({self.low:.0%} to {self.high:.0%})"


def growth(rows: pd.DataFrame, mode: str = "g_mean") -> pd.Series:
    """Factor of a mode of every run at its event, geometric mean over both writers; NaN without an event."""
    columns = [f"{mode}_attn", f"{mode}_ffn"]
    return np.exp(np.log(rows.reindex(columns=columns).astype(float)).mean(axis=1, skipna=False))


def collapsed(rows: pd.DataFrame) -> pd.Series:
    """Whether every run collapsed after its jump."""
    return (rows["kind"] == "mean_mode") & (rows["onset"] > 0)


def compared_events(data: xr.Dataset) -> list[Row]:
    """The summaries of an event study as rows of a comparison; nothing in them was forecast."""
    shares = ("collapsed", "selective", "selective_deep", "regular")
    return [
        finite(
            {
                **{name: value for name, value in row.items() if name not in shares},
                **{f"{name}_runs": row[name].count for name in shares},
                "runs": row["collapsed"].of,
                "quantity": "event",
                "relative_error": None,
            }
        )
        for row in summaries(event_rows(data))
    ]


def summaries(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per case: how many runs collapsed, were selective and regular, and medians of the events.

    Args:
        rows: as `meanmode.sweeps.studies.events.event_rules.event_rows`.
    """
    found = []
    for case, of in rows.groupby("case", sort=False):
        fallen = of[collapsed(of)]
        medians = {
            name: float(fallen[name].median()) if name in fallen and len(fallen) else np.nan
            for name in (
                *("onset", "loss_event", "g_mean_attn", "g_mean_ffn", "g_ctr_attn", "g_ctr_ffn"),
                *("slope_attn", "r_squared_attn", "slope_ffn", "r_squared_ffn"),
            )
        }
        found.append(
            {
                "case": case,
                "loss_before": float(of["loss_before"].median()),
                "collapsed": Share.counted(len(fallen), len(of)),
                "diverged": int((of["kind"] == "plain_divergence").sum()),
                "selective": Share.counted(int(of["selective"].sum()), len(of)),
                "selective_deep": Share.counted(int(of["selective_deep"].sum()), len(of)),
                "regular": Share.counted(int(of["regular"].sum()), len(of)),
                **medians,
            }
        )
    return found


@dataclass(frozen=True, kw_only=True)
class AtDistance:
    """Events of a group of runs at a multiple of the group's own half rate.

    Attributes:
        half: half rate of the group, with its bootstrap interval over seeds.
        factor: median factor of G_mean there (`growth`), log-linear between the neighbouring rates.
        steps: median steps from the jump to the onset there.
        factors, halves: the resampled factors and half rates [K], to compare groups with the same seeds.
    """

    half: Estimate
    factor: Estimate
    steps: Estimate
    factors: NDArray[np.float64]
    halves: NDArray[np.float64]


def at_distance(rows: pd.DataFrame, distance: float = DISTANCE) -> AtDistance:
    """Interpolate growth and steps at `distance` times the half rate; seeds are resampled together.

    Args:
        rows: runs of one group at several rates, the same seeds at each.
        distance: multiple of the half rate.
    """
    rates, seeds = np.sort(rows["rate"].unique()), np.sort(rows["seed"].unique())
    table = rows.assign(log_growth=np.log(growth(rows)), fallen=collapsed(rows)).set_index(["rate", "seed"])
    shape = (len(rates), len(seeds))
    order = pd.MultiIndex.from_product([rates, seeds])
    fallen, logs, onsets = (
        table[name].reindex(order).to_numpy(float).reshape(shape)
        for name in ("fallen", "log_growth", "onset")
    )
    draws = np.concatenate([np.arange(len(seeds))[None], resamples(len(seeds))])
    hits = (fallen[:, draws] == 1).sum(2)
    halves, _ = most_likely(rates, np.full_like(hits, len(seeds)), hits)
    read = {
        name: _read(rates, np.where(fallen == 1, values, np.nan)[:, draws], distance * halves)
        for name, values in (("factor", logs), ("steps", onsets))
    }
    factors = np.exp(read["factor"])
    return AtDistance(
        half=_estimate(halves),
        factor=_estimate(factors),
        steps=_estimate(read["steps"]),
        factors=factors[1:],
        halves=halves[1:],
    )


def _read(
    rates: NDArray[np.float64], values: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Medians over seeds at wanted rates [K], log-linear between rates at which runs collapsed; NaN outside.

    Args:
        rates: the rates tried, increasing [N].
        values: value of every run, NaN where it did not collapse [N, K, seeds].
        wanted: rate at which each resample is read [K].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rates at which no run collapsed
        medians = np.nanmedian(values, axis=2)
    found = np.full(len(wanted), np.nan)
    for number, (at, rate) in enumerate(zip(medians.T, wanted, strict=True)):
        known = ~np.isnan(at)
        if known.any() and rates[known][0] <= rate <= rates[known][-1]:
            found[number] = np.interp(np.log(rate), np.log(rates[known]), at[known])
    return found


def _estimate(values: NDArray[np.float64]) -> Estimate:
    """An estimate from its value and resamples; one outside of the rates tried, 0 or infinite, is open."""
    value, found = float(values[0]), values[1:]
    kept = found[~np.isnan(found)]
    if not 0 < value < np.inf or not len(kept):
        return Estimate(value=np.nan, at_least=np.nan, low=np.nan, high=np.nan, error=np.nan)
    low, high = np.quantile(kept, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], method="inverted_cdf")
    return Estimate(
        value=value, at_least=value, low=float(low), high=float(high), error=float(np.nanstd(kept))
    )


def growth_ratio(first: AtDistance, second: AtDistance) -> Estimate:
    """Factor of the second group over that of the first, both with the same seeds."""
    return _ratio(first.factor.value, second.factor.value, first.factors, second.factors)


def half_rate_ratio(first: AtDistance, second: AtDistance) -> Estimate:
    """Half rate of the second group over that of the first, both with the same seeds."""
    return _ratio(first.half.value, second.half.value, first.halves, second.halves)


def _ratio(below: float, above: float, resampled: NDArray[np.float64], over: NDArray[np.float64]) -> Estimate:
    with np.errstate(divide="ignore", invalid="ignore"):
        return _estimate(np.concatenate([[above / below], over / resampled]))


def half_rate_groups(changed: pd.DataFrame, unchanged: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Change -> runs at several rates, with `nothing` for those without one at the same batch and rates.

    Args:
        changed: rows of a study of changes; the rate is the last word of a case's label.
        unchanged: rows of a study without a change, with the same seeds and states.
    """
    alike = unchanged["batch"].isin(changed["batch"]) & unchanged["rate"].isin(changed["rate"])
    labels = changed["case"].str.rsplit(",", n=1).str[0]
    return {"nothing": unchanged[alike]} | {
        str(label): of for label, of in changed.groupby(labels, sort=False)
    }


def delays(rows: pd.DataFrame, baseline: str) -> Mapping[str, tuple[Share, Estimate, Estimate]]:
    """Case -> how many collapsed, median steps to the onset, and its ratio to the baseline, paired by seed.

    Runs without a collapse count as collapsing after their last step.

    Args:
        rows: runs of several cases, the same seeds in each, with the last step after the jump (`last`).
        baseline: label of the case that the others are compared with.
    """
    samples = {}
    for case, of in rows.sort_values("seed", kind="stable").groupby("case", sort=False):
        onset = of["onset"].where(collapsed(of))
        samples[str(case)] = Samples.of(onset, of["last"])
    shares = {
        str(case): Share.counted(int(collapsed(of).sum()), len(of))
        for case, of in rows.groupby("case", sort=False)
    }
    return {
        case: (shares[case], estimated(found), estimated_ratio(found, samples[baseline]))
        for case, found in samples.items()
    }


EVENT_COLUMNS = (
    *("case", "loss before", "collapsed", "diverged plainly", "steps to the onset", "loss at the event"),
    *("G_mean x, W_O; W_2", "G_ctr x, W_O; W_2", "selective", "deep medians", "regression"),
)


def event_table(found: list[dict[str, Any]]) -> str:
    """The rows of `summaries` as a Markdown table: shares with their interval, and medians over seeds."""
    lines = [
        [
            row["case"],
            f"{row['loss_before']:.2f}",
            str(row["collapsed"]),
            str(row["diverged"]),
            _shown(row["onset"], ".0f"),
            _shown(row["loss_event"], ".2f"),
            f"{_shown(row['g_mean_attn'], '.3g')}; {_shown(row['g_mean_ffn'], '.3g')}",
            f"{_shown(row['g_ctr_attn'], '.2g')}; {_shown(row['g_ctr_ffn'], '.2g')}",
            str(row["selective"]),
            str(row["selective_deep"]),
            str(row["regular"]),
        ]
        for row in found
    ]
    return pipe_table(EVENT_COLUMNS, lines)


def _shown(value: float, form: str) -> str:
    return "-" if np.isnan(value) else format(value, form)
