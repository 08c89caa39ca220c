"""Alarms of watched models of other libraries, by today's rules, against what became of the runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from meanmode.sim.onset.detector import BORN, COLLAPSE, MAX_LOGIT, NOT_A_NUMBER, Alarm, Detector
from meanmode.sim.onset.training_onset import LEARNED, SIGNALS, WINDOW
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.stock.stock_run import StockRun
from meanmode.sweeps.engine.stock.stock_study import stored_stock
from meanmode.sweeps.statistics.scores import share_interval
from meanmode.sweeps.studies.detection import poisson_upper
from meanmode.sweeps.studies.rows import Row

MEASUREMENTS = 2
"""Measurements after the first above the front, or after the NaN, within which a failure counts as found."""


@dataclass(kw_only=True)
class StockScore:
    """Runs of one or several cases, and the alarms in them.

    Attributes:
        runs: number of finished runs.
        learned: number whose final loss is below 0.75 of the initial one.
        final_losses: their final losses, all runs.
        failed: number that collapsed, or whose loss was made NaN.
        found: number of these with an alarm of their kind in time.
        delays: steps from the failure to the alarm, for those found.
        false: number of other alarms: those in runs that did not fail, and those more than `WINDOW` steps
            before a failure.
        steps: number of steps in which an alarm would have been false.
    """

    runs: int = 0
    learned: int = 0
    final_losses: list[float] = field(default_factory=list)
    failed: int = 0
    found: int = 0
    delays: list[float] = field(default_factory=list)
    false: int = 0
    steps: int = 0

    def add(self, run: StockRun, cell: xr.Dataset, alarms: Sequence[Alarm]) -> None:
        """Count a finished run.

        Args:
            run: what was run.
            cell: its outcome.
            alarms: alarms in it.
        """
        final, initial = float(cell["final_loss"]), float(cell["initial_loss"])
        self.runs += 1
        self.learned += final < LEARNED * initial
        self.final_losses.append(final)
        collapse, nan = float(cell["collapse_step"]), run.disturbance == "nan"
        failure = float(run.disturbed_step) if nan else collapse
        kinds = {NOT_A_NUMBER} if nan else {COLLAPSE, BORN}
        if np.isnan(failure):
            self.false += len(alarms)
            self.steps += run.steps
            return
        # up to a NaN every alarm is false; a collapse may be seen coming
        early = failure if nan else failure - WINDOW
        self.failed += 1
        self.false += sum(alarm.step < early for alarm in alarms)
        self.steps += max(int(early), 0)
        last = failure + MEASUREMENTS * run.every
        hits = [alarm.step for alarm in alarms if alarm.kind in kinds and early <= alarm.step <= last]
        if hits:
            self.found += 1
            self.delays.append(hits[0] - failure)

    def row(self, label: str) -> Row:
        """The counts as a row, with the 90 % interval of the recall and the 95 % bound of false alarms."""
        found: dict[str, Any] = {
            "quantity": label,
            "runs": self.runs,
            "learned": self.learned,
            "median_final_loss": float(np.median(self.final_losses)) if self.final_losses else None,
            "failed": self.failed,
            "found": self.found,
            "median_delay": float(np.median(self.delays)) if self.delays else None,
            "false_alarms": self.false,
            "steps": self.steps,
            "false_per_10000": 1e4 * self.false / self.steps if self.steps else None,
            "false_per_10000_high": 1e4 * poisson_upper(self.false) / self.steps if self.steps else None,
        }
        if self.failed:
            low, high = share_interval(self.found, self.failed)
            found |= {"recall": self.found / self.failed, "recall_low": low, "recall_high": high}
        return found


def replayed(data: xr.Dataset, index: int, *, without: str = "") -> list[Alarm]:
    """The alarms that today's detector raises on the series of a run, as the watch shows them to it.

    Args:
        data: a study of watched models.
        index: position of the run along `cell`.
        without: series that is withheld, as if the script had not logged it; empty for none.
    """
    detector, measured = Detector(), data["measurement"].values.tolist()
    names = [name for name in (*SIGNALS, MAX_LOGIT) if name in data and "measurement" in data[name].dims]
    series = {name: data[name].values[index].astype(float) for name in ("loss", "grad_norm", *names)}
    found = []
    for step in data["step"].values.tolist():
        values = {name: float(series[name][step - 1]) for name in ("loss", "grad_norm")}
        if step in measured:
            values |= {name: float(series[name][measured.index(step)]) for name in names}
        values.pop(without, None)
        found.append(detector.update(step, values))
    return [alarm for alarm in found if alarm is not None]


def stock_rows(data: xr.Dataset, *, without: str = "") -> list[Row]:
    """One row per case, and one over all of them; `without` as for `replayed`."""
    study = stored_stock(data.attrs)
    scores = {label: StockScore() for label in (*(case.label for case in study.cases), "all cases")}
    labels = [case.label for case in study.cases for _ in range(study.seeds)]
    for index, (label, cell) in enumerate(zip(labels, study.cells, strict=True)):
        if int(data["status"].values[index]) == DONE:
            alarms = replayed(data, index, without=without)
            for name in (label, "all cases"):
                scores[name].add(cell.run, data.isel(cell=index), alarms)
    return [score.row(label) for label, score in scores.items()]
