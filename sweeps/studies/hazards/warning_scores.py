"""The early warning scored on runs that it was not fitted to: discrimination, skill, calibration, alarms."""

# N rows, R runs, K resamples, B bins

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meanmode.sim.onset.early_warning import FEATURES, HORIZONS, WARNING, EarlyWarning
from meanmode.sim.onset.training_onset import WINDOW
from meanmode.sweeps.statistics.scores import drawn_counts, with_interval
from meanmode.sweeps.studies.rows import Row, finite
from meanmode.sweeps.studies.stability_margin import DELTA_C

Array = NDArray[np.float64]

THIS, CONSTANT = "early warning", "constant hazard"
RIVALS: Mapping[str, tuple[str, ...]] = {
    "functional step alone": FEATURES[2:],
    "token cosine alone": FEATURES[:2],
    "rate, depth and step": ("ln_rate", "ln_depth", "ln_step"),
    CONSTANT: (),
}
"""Rival -> its columns; fitted to the same rows as the early warning."""

RANKS = 500
"""Classes of equal count into which probabilities are sorted for an AUROC of resampled runs."""

EDGES = (0.0, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
"""Edges of the bins of a calibration."""

THRESHOLDS = tuple(round(0.05 * number, 2) for number in range(4, 20))
"""Probabilities at which an alarm is tried on the fitted runs."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Rows whose outcome within a horizon is known, with the resamples of their runs.

    Attributes:
        outcomes: whether the collapse came within the horizon [N].
        run: number of the run of every row [N].
        counts: count of every run in every resample, row 0 being the original sample [1 + K, R].
    """

    outcomes: NDArray[np.bool_]
    run: NDArray[np.int64]
    counts: Array

    @classmethod
    def of(cls, rows: pd.DataFrame, horizon: int) -> "Judged":
        """Judge rows, all of which must be known for the horizon."""
        run, names = pd.factorize(rows["run"])
        outcomes = (rows["left"] <= horizon).to_numpy()
        return cls(outcomes=outcomes, run=run.astype(np.int64), counts=drawn_counts(len(names)))

    def sums(self, values: Array) -> Array:
        """Sum of a quantity of the rows in every resample [1 + K]."""
        return self.counts @ np.bincount(self.run, values, self.counts.shape[1])

    def auroc(self, chances: Array) -> Array:
        """P(a row before a collapse has a higher probability than another), per resample [1 + K]."""
        ranks = pd.Series(chances).rank(method="average").to_numpy()
        number = np.minimum((ranks - 1) * RANKS / len(ranks), RANKS - 1).astype(int)
        shape = (self.counts.shape[1], RANKS)
        cell = self.run * RANKS + number
        ones, zeros = (
            self.counts @ np.bincount(cell, weights=of, minlength=shape[0] * RANKS).reshape(shape)
            for of in (self.outcomes.astype(float), (~self.outcomes).astype(float))
        )
        below = np.cumsum(zeros, axis=1) - zeros / 2
        pairs = ones.sum(1) * zeros.sum(1)
        won = (ones * below).sum(1)
        return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    def skill(self, chances: Array) -> Array:
        """1 - Brier score / that of the constant share of these rows, per resample [1 + K]."""
        rows = self.sums(np.ones(len(chances)))
        share = self.sums(self.outcomes.astype(float)) / rows
        score = self.sums((chances - self.outcomes) ** 2) / rows
        constant = share * (1 - share)
        return 1 - np.divide(score, constant, out=np.full(len(score), np.nan), where=constant > 0)

    def share(self, members: NDArray[np.bool_]) -> Array:
        """Share of some rows whose run collapses within the horizon, per resample [1 + K]."""
        rows = self.sums(members.astype(float))
        hits = self.sums((members & self.outcomes).astype(float))
        return np.divide(hits, rows, out=np.full(len(rows), np.nan), where=rows > 0)


def fitted_rivals(rows: pd.DataFrame) -> dict[str, EarlyWarning]:
    """The rivals of the early warning, fitted to rows of `warning_rows`."""
    left, known = rows["left"].to_numpy(), rows["known"].to_numpy()
    return {
        name: EarlyWarning.fit(rows[list(columns)].to_numpy(float), left, known)
        for name, columns in RIVALS.items()
    }


def score_rows(groups: Mapping[str, pd.DataFrame], fitted: pd.DataFrame) -> list[Row]:
    """AUROC and Brier skill of the early warning and its rivals, one row per group, horizon and model.

    Intervals are 90 %, from a bootstrap over runs; the fit is kept.

    Args:
        groups: name -> rows of `warning_rows` that were not fitted.
        fitted: the fitted rows, to which the rivals are fitted here.
    """
    models = {THIS: (WARNING, FEATURES)}
    models |= {name: (model, RIVALS[name]) for name, model in fitted_rivals(fitted).items()}
    found = []
    for group, of in groups.items():
        for horizon in HORIZONS:
            rows = of[of["known"] >= horizon]
            judged = Judged.of(rows, horizon)
            for name, (model, columns) in models.items():
                chances = model.probability(rows[list(columns)].to_numpy(float), horizon)
                row = {"group": group, "horizon": horizon, "model": name, "runs": judged.counts.shape[1]}
                row |= {"auroc": with_interval(judged.auroc(chances))}
                found.append({**row, "skill": with_interval(judged.skill(chances))})
    return found


def calibration_rows(rows: pd.DataFrame, horizon: int) -> list[Row]:
    """Mean predicted probability and share that collapsed, one row per bin of `EDGES` that holds rows.

    Args:
        rows: of `warning_rows`.
        horizon: one of `HORIZONS`.
    """
    rows = rows[rows["known"] >= horizon]
    if rows.empty:
        return []
    judged = Judged.of(rows, horizon)
    chances = WARNING.probability(rows[list(FEATURES)].to_numpy(), horizon)
    number = np.minimum(np.digitize(chances, EDGES) - 1, len(EDGES) - 2)
    found = []
    for bin_, (low, high) in enumerate(pairwise(EDGES)):
        members = number == bin_
        if members.any():
            row = {"from": low, "to": high, "rows": int(members.sum())}
            row |= {"runs": len(np.unique(judged.run[members]))}
            row |= {"predicted": float(chances[members].mean())}
            found.append({**row, **with_interval(judged.share(members))})
    return found


def alarm_row(rows: pd.DataFrame, signal: Array, threshold: float) -> Row:
    """Precision, recall and lead of the first alarm of every run.

    An alarm is right if the collapse follows within `WINDOW` steps. `lead`: median steps from a right alarm
    to the onset.

    Args:
        rows: of `warning_rows`.
        signal: signal of every row [N].
        threshold: value of the signal at which the alarm is raised.
    """
    first = rows[signal >= threshold].groupby("run", sort=False)["left"].first()
    right = first[first <= WINDOW]
    collapsed = int(np.isfinite(rows.groupby("run")["onset"].first()).sum())
    numbers = {
        "threshold": threshold,
        "alarms": len(first),
        "right": len(right),
        "collapsed": collapsed,
        "precision": len(right) / len(first) if len(first) else np.nan,
        "recall": len(right) / collapsed if collapsed else np.nan,
        "lead": float(right.median()) if len(right) else np.nan,
    }
    return finite(numbers)


def alarm_rows(groups: Mapping[str, pd.DataFrame], fitted: pd.DataFrame) -> list[Row]:
    """Alarms by P(collapse within 50 steps) and by the functional step, one row per group and rule.

    The threshold of the probability, and one of the functional step, are those with the best F1 score (the
    harmonic mean of precision and recall) on the fitted runs; the other is that of the stability margin.

    Args:
        groups: name -> rows of `warning_rows` that were not fitted.
        fitted: the fitted rows.
    """
    chances, deltas = _signals(fitted)
    rules = (
        ("P(50 steps)", 0, _best(fitted, chances, THRESHOLDS)),
        ("functional step, margin", 1, DELTA_C),
        ("functional step, best on the fitted runs", 1, _best(fitted, deltas, np.arange(0.2, 1, 0.02))),
    )
    return [
        {"group": group, "rule": rule, **alarm_row(rows, _signals(rows)[signal], threshold)}
        for group, rows in groups.items()
        for rule, signal, threshold in rules
    ]


def _signals(rows: pd.DataFrame) -> tuple[Array, Array]:
    """P(collapse within the longest horizon) and the median functional step of every row [N]."""
    features = rows[list(FEATURES)].to_numpy()
    return WARNING.probability(features, HORIZONS[-1]), np.exp(features[:, 2])


def _best(rows: pd.DataFrame, signal: Array, thresholds: Sequence[float] | Array) -> float:
    def f1(threshold: float) -> float:
        found = alarm_row(rows, signal, threshold)
        return 2 * found["right"] / (found["alarms"] + found["collapsed"])

    return float(max(thresholds, key=f1))


def case_rows(rows: pd.DataFrame) -> list[Row]:
    """Mean predicted and observed share of rows before a collapse, one row per case of every study.

    Args:
        rows: of `warning_rows`.
    """
    horizon = HORIZONS[-1]
    rows = rows[rows["known"] >= horizon]
    rows = rows.assign(
        predicted=WARNING.probability(rows[list(FEATURES)].to_numpy(), horizon),
        observed=rows["left"] <= horizon,
        collapsed=np.isfinite(rows["onset"]),
    )
    found = []
    for (study, case), of in rows.groupby(["study", "case"], sort=False):
        runs = of.groupby("run")["collapsed"].first()
        row = {"study": study, "case": case, "runs": len(runs), "collapsed": int(runs.sum())}
        means = {name: float(of[name].mean()) for name in ("predicted", "observed")}
        found.append({**row, **means, "difference": means["predicted"] - means["observed"]})
    return found
