"""Forecasts of critical rates: fitted on measured ramps, anchored rivals beside them, written once."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dit.config import RunConfig
from sim.provenance import provenance
from sim.store import open_cells
from sim.zarr_files import StoreExistsError
from sweeps.functional_law import FunctionalLaw, Ramp, forecast
from sweeps.rows import finite
from sweeps.study import Study, stored_study
from sweeps.sweep import Sweep
from theory.censoring import INTERVAL
from theory.onset import RIVALS

Array = NDArray[np.float64]


def slope_of(run: RunConfig) -> float:
    """Learning rate gained a step at the start of a run."""
    return run.training.learning_rate(run.model.depth).slope


def ramps_of(path: Path) -> dict[str, list[Ramp]]:
    """The runs of a study of ramps, by case; the onset of one that did not collapse is 0.

    Raises:
        StoreError: no readable study.
    """
    data = open_cells(path)
    found: dict[str, list[Ramp]] = {}
    for place, cell in enumerate(stored_study(data.attrs).cells):
        collapsed = math.isfinite(data["critical_rate"].values[place])
        sizes = data["functional_step"].values[place].astype(float)
        steps = 1 + np.flatnonzero(sizes > 0)
        ramp = Ramp(
            depth=cell.run.model.depth,
            onset=int(data["onset_step"].values[place]) if collapsed else 0,
            steps=steps,
            rates=slope_of(cell.run) * steps,
            functional_steps=sizes[steps - 1],
        )
        found.setdefault(str(data["case"].values[place]), []).append(ramp)
    return found


def measured_ramps(paths: Sequence[Path]) -> list[Ramp]:
    """The collapsed runs of studies.

    Raises:
        StoreError: no readable study.
        ValueError: not a single collapse.
    """
    runs = [run for path in paths for group in ramps_of(path).values() for run in group if run.onset]
    if not runs:
        raise ValueError(f"no run of {', '.join(map(str, paths))} collapsed: there is nothing to fit")
    return runs


def anchor(ramps: Sequence[Ramp]) -> tuple[float, float, float]:
    """Median critical rate, slope and depth of the group of most runs, the middle one of equals."""
    groups: dict[tuple[float, float], list[float]] = {}
    for ramp in ramps:
        groups.setdefault((ramp.depth, round(ramp.slope, 12)), []).append(ramp.slope * ramp.onset)
    most = max(map(len, groups.values()))
    largest = sorted(group for group, rates in groups.items() if len(rates) == most)
    depth, slope = largest[len(largest) // 2]
    return float(np.median(groups[depth, slope])), slope, depth


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """ln eta_c = a + b ln L by ordinary least squares over runs.

    Attributes:
        intercept: a.
        exponent: b.
        exponent_error: standard error of b.
        scatter: residual standard deviation of a run.
        freedom: runs less two.
        mean_log: mean of ln L.
        spread: sum of squared deviations of ln L.
        runs: how many.
    """

    intercept: float
    exponent: float
    exponent_error: float
    scatter: float
    freedom: int
    mean_log: float
    spread: float
    runs: int

    @classmethod
    def fit(cls, depths: Array, rates: Array) -> "PowerLaw":
        """Fit it.

        Raises:
            ValueError: fewer than two depths, or three runs.
        """
        x, y = np.log(depths), np.log(rates)
        if len(set(depths.tolist())) < 2 or len(x) < 3:
            raise ValueError("a law of the depth needs runs of at least two depths, three in all")
        found = stats.linregress(x, y)
        residuals = y - (found.intercept + found.slope * x)
        freedom = len(x) - 2
        return cls(
            intercept=float(found.intercept),
            exponent=float(found.slope),
            exponent_error=float(found.stderr),
            scatter=float(np.sqrt((residuals**2).sum() / freedom)),
            freedom=freedom,
            mean_log=float(x.mean()),
            spread=float(((x - x.mean()) ** 2).sum()),
            runs=len(x),
        )

    def predict(self, depth: float, seeds: int) -> tuple[float, float, float]:
        """Median critical rate of some runs at a depth, and its `INTERVAL`.

        The error is that of the fit there and of a median of that many runs, sqrt(pi / 2) scatter / sqrt(n);
        that the law bends outside of the fitted depths is not in it.
        """
        x = math.log(depth)
        line = self.intercept + self.exponent * x
        variance = self.scatter**2 * (
            1 / self.runs + (x - self.mean_log) ** 2 / self.spread + math.pi / 2 / seeds
        )
        half = float(stats.t.ppf((1 + INTERVAL) / 2, self.freedom)) * math.sqrt(variance)
        return math.exp(line), math.exp(line - half), math.exp(line + half)


def forecast_document(
    study: Study, sources: Sequence[Path], *, written: str, pilots: Path | None = None
) -> dict[str, Any]:
    """What is predicted for every case of a study.

    `predicted`: the law of the functional step (O2), and `predicted_power_law`: a straight line through the
    logarithms, where the measured runs have several depths; and each rival of law O1, anchored at the
    measured group of most runs.

    Args:
        study: of ramps.
        sources: measured studies.
        written: date, and what was known.
        pilots: a study with cases of the same labels, of which only the first steps were run: the law then
            takes its gains from them.

    Raises:
        StoreError, ValueError: no measured ramps, or a case without a pilot.
    """
    ramps = measured_ramps(sources)
    first_steps = {} if pilots is None else ramps_of(pilots)
    missing = [case.label for case in study.cases if first_steps and case.label not in first_steps]
    if missing:
        raise ValueError(f"{pilots} has no pilot of {', '.join(missing)}")
    rate, slope, depth = anchor(ramps)
    depths = np.array([ramp.depth for ramp in ramps], float)
    several = len(set(depths)) > 1
    rates = np.array([ramp.slope * ramp.onset for ramp in ramps])
    power = PowerLaw.fit(depths, rates) if several else None
    law = FunctionalLaw.fit(ramps) if several else None
    rows = []
    for case, run in zip(study.cases, study.runs, strict=True):
        here, blocks = slope_of(run), run.model.depth
        row: dict[str, Any] = {"case": case.label}
        if power is not None:
            names = ("predicted", "predicted_low", "predicted_high")
            own = first_steps.get(case.label, ())
            middle = forecast(ramps, blocks, here, seeds=study.seeds, interval=INTERVAL, pilots=own)
            row |= zip(names, middle, strict=True)
            names = ("predicted_power_law", "predicted_power_law_low", "predicted_power_law_high")
            row |= zip(names, power.predict(blocks, study.seeds), strict=True)
        row |= {
            f"predicted_{name}": rival.critical_rate(here, blocks, rate=rate, at_slope=slope, at_depth=depth)
            for name, rival in RIVALS.items()
        }
        rows.append(finite(row))
    return {
        "study": study.name,
        "quantity": "critical_rate",
        "written": written,
        "made_from": {str(path): store_hash(path) for path in (*sources, *([pilots] if pilots else []))},
        "anchor": {"critical_rate": rate, "slope": slope, "depth": depth},
        "law": None if law is None else law.document(),
        "power_law": None if power is None else vars(power),
        "interval": INTERVAL,
        "rows": rows,
        **provenance(),
    }


def store_hash(path: Path) -> str:
    """Hash of all measured numbers of a study, whatever files hold them."""
    data = open_cells(path)
    hashed = hashlib.sha256()
    for name in ("onset_step", "onset_kind", "critical_rate", "loss"):
        hashed.update(np.ascontiguousarray(data[name].values).tobytes())
    return hashed.hexdigest()


def write_forecast(document: Mapping[str, Any], path: Path) -> None:
    """Write a forecast down, once.

    Raises:
        StoreExistsError: there is one already.
    """
    if path.exists():
        raise StoreExistsError(
            f"{path} already exists: a forecast is never overwritten, choose another --out"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def with_forecast(study: Sweep | Study, path: Path) -> Study:
    """The study with the forecast of a file.

    Raises:
        ValueError: a file that is none, of another study or of waiting times, or without a case; or no study.
    """
    if not isinstance(study, Study):
        raise ValueError(f"{study.name} has a forecast of its own: a file is for studies of training runs")
    try:
        document = json.loads(path.read_text())
        rows = {row["case"]: row for row in document["rows"]}
        name = document["study"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no forecast of a study ({error})") from error
    if "half_rates" in document:
        raise ValueError(f"{path} is of waiting times: it is read by mms waiting, no run takes it along")
    if name != study.name:
        raise ValueError(f"{path} is a forecast of {name}, not of {study.name}")
    missing = [case.label for case in study.cases if case.label not in rows]
    if missing:
        raise ValueError(f"{path} says nothing about {', '.join(missing)}")
    return dataclasses.replace(study, forecast=tuple(rows[case.label] for case in study.cases))
