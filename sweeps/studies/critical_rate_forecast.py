"""Forecasts of critical rates: fitted on measured ramps, anchored rivals beside them, written once."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.study import Study, stored_study
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.statistics.power_law import PowerLaw
from meanmode.sweeps.studies.forecast_files import store_hash
from meanmode.sweeps.studies.rows import finite
from meanmode.theory.laws.rivals import RIVALS
from meanmode.theory.onset.functional_law import FunctionalLaw, Ramp, forecast

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
