"""Forecasts of critical rates: law O2 and a power law fitted on measured ramps, and the rivals of law O1."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.provenance import provenance
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.statistics.power_law import PowerLaw
from meanmode.sweeps.studies.forecast_files import store_hash
from meanmode.sweeps.studies.rows import finite
from meanmode.theory.laws.rivals import RIVALS
from meanmode.theory.onset.functional_law import FunctionalLaw, Ramp, forecast


def slope_of(run: RunConfig) -> float:
    """Learning rate gained per step at the start of a run."""
    return run.training.learning_rate(run.model.depth).slope


def ramps_of(source: OpenedStudy) -> dict[str, list[Ramp]]:
    """The runs of a study of ramps, by case; the onset of a run that did not collapse is 0."""
    data = source.data
    found: dict[str, list[Ramp]] = {}
    for index, cell in enumerate(source.study.cells):
        collapsed = math.isfinite(data["critical_rate"].values[index])
        sizes = data["functional_step"].values[index].astype(float)
        steps = 1 + np.flatnonzero(sizes > 0)
        ramp = Ramp(
            depth=cell.run.model.depth,
            onset=int(data["onset_step"].values[index]) if collapsed else 0,
            steps=steps,
            rates=slope_of(cell.run) * steps,
            functional_steps=sizes[steps - 1],
        )
        found.setdefault(str(data["case"].values[index]), []).append(ramp)
    return found


def measured_ramps(sources: Sequence[OpenedStudy]) -> list[Ramp]:
    """The collapsed runs of studies of ramps.

    Raises:
        ValueError: no run collapsed.
    """
    runs = [run for source in sources for group in ramps_of(source).values() for run in group if run.onset]
    if not runs:
        paths = ", ".join(str(source.path) for source in sources)
        raise ValueError(f"no run of {paths} collapsed: there is nothing to fit")
    return runs


def anchor(ramps: Sequence[Ramp]) -> tuple[float, float, float]:
    """Median critical rate, slope and depth of the largest group of runs; the middle one of equally large."""
    groups: dict[tuple[float, float], list[float]] = {}
    for ramp in ramps:
        groups.setdefault((ramp.depth, round(ramp.slope, 12)), []).append(ramp.slope * ramp.onset)
    most = max(map(len, groups.values()))
    largest = sorted(group for group, rates in groups.items() if len(rates) == most)
    depth, slope = largest[len(largest) // 2]
    return float(np.median(groups[depth, slope])), slope, depth


def forecast_document(
    study: Study, sources: Sequence[OpenedStudy], *, written: str, pilots: OpenedStudy | None = None
) -> dict[str, Any]:
    """The forecast of the critical rate of every case of a study.

    If the measured runs have several depths, `predicted` is by the law of the functional step (O2) and
    `predicted_power_law` by a straight line through the logarithms. Every rival of law O1 is anchored at the
    largest measured group of runs.

    Args:
        study: a study of ramps.
        sources: measured studies.
        written: date of the forecast, and what was known then.
        pilots: a study with the same case labels whose runs are only the first steps; the law then takes its
            gains from them.

    Raises:
        ValueError: no measured ramps, or a case without a pilot.
    """
    ramps = measured_ramps(sources)
    first_steps = {} if pilots is None else ramps_of(pilots)
    missing = [case.label for case in study.cases if first_steps and case.label not in first_steps]
    if pilots is not None and missing:
        raise ValueError(f"{pilots.path} has no pilot of {', '.join(missing)}")
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
        "made_from": {str(of.path): store_hash(of.data) for of in (*sources, *([pilots] if pilots else []))},
        "anchor": {"critical_rate": rate, "slope": slope, "depth": depth},
        "law": None if law is None else law.document(),
        "power_law": None if power is None else vars(power),
        "interval": INTERVAL,
        "rows": rows,
        **provenance(),
    }
