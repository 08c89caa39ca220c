"""What the figures of studies share: cases, critical rates, the step before a collapse, and captions."""

# R runs, N steps

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from meanmode.sweeps.statistics.censoring import Estimate, Samples, estimated

FAR, NEAR = 40, 5
"""Steps before the onset between which the functional step is taken; nearer, the collapse has begun."""


DOT = {"marker": "o", "ms": 2.5, "alpha": 0.35, "ls": "none", "mew": 0}
"""A run."""


Studies = Mapping[str, xr.Dataset]
"""Name -> the finished cells of a study, with the text of its forecast as the attribute `forecast`."""


@dataclass(frozen=True, kw_only=True)
class CasePoints:
    """The runs of a case.

    Attributes:
        label: of the case.
        runs: its cells.
    """

    label: str
    runs: xr.Dataset

    @property
    def rates(self) -> Samples:
        """Critical rates; of a run without a collapse it is above the last rate."""
        rates, steps = self.runs["critical_rate"].values, self.runs["onset_step"].values
        last_rates, last_steps = self.runs["last_rate"].values, self.runs["last_step"].values
        # the store has no last rate of a run that ended by itself; the runs of a case share a ramp
        slopes = np.concatenate([rates / steps, last_rates / last_steps])
        slope = np.median(slopes[np.isfinite(slopes)]) if np.isfinite(slopes).any() else np.nan
        return Samples.of(rates, np.where(np.isnan(last_rates), slope * (last_steps - 1), last_rates))

    def field(self, name: str) -> Any:
        """A field of its runs, or a forecast of it."""
        return self.runs[name].values[0]

    def steps_before(self) -> NDArray[np.float64]:
        """Median functional step between `FAR` and `NEAR` steps before every collapse; of no other runs."""
        collapsed = self.runs["critical_rate"].notnull().values
        sizes = self.runs["functional_step"].values[collapsed].astype(float)
        onsets = self.runs["onset_step"].values[collapsed]
        steps = self.runs["step"].values
        near = [
            size[(steps >= onset - FAR) & (steps <= onset - NEAR) & (size > 0)]
            for size, onset in zip(sizes, onsets, strict=True)
        ]
        return np.array([np.median(size) for size in near if size.size])


def cases(data: xr.Dataset) -> list[CasePoints]:
    """The cases of a study, in its order."""
    labels = data["case"].values
    return [
        CasePoints(label=str(label), runs=data.isel(cell=np.flatnonzero(labels == label)))
        for label in dict.fromkeys(labels.tolist())
    ]


def forecasts_of(studies: Studies) -> list[dict[str, Any]]:
    """The forecasts of studies, of those that have one."""
    return [json.loads(data.attrs["forecast"]) for data in studies.values() if "forecast" in data.attrs]


def forecast_of(studies: Studies) -> dict[str, Any]:
    """The first forecast that holds a law of the functional step; empty where none does."""
    return next((document for document in forecasts_of(studies) if document.get("law")), {})


def draw_rates(panel: Axes, x: float, case: CasePoints, colour: str, marker: str, **named: Any) -> None:
    """Every critical rate of a case and their median with its interval, or an arrow up from its bound."""
    rates = case.rates
    known = rates.low[np.isfinite(rates.high)]
    panel.plot(x * np.geomspace(0.95, 1.05, len(known)), known, color=colour, **DOT)
    found = estimated(rates)
    if np.isfinite(found.value):
        panel.errorbar(
            x, found.value, yerr=bars(found), fmt=marker, color=colour, ms=6, capsize=3, zorder=4, **named
        )
    elif found.at_least > 0:
        panel.plot(x, found.at_least, color=colour, marker=r"$\uparrow$", ms=11, ls="none", **named)


def bars(found: Estimate) -> NDArray[np.float64]:
    """Lengths of the bars of an interval [2, 1], none where its end is open."""
    ends = np.array([[found.value - found.low], [found.high - found.value]])
    return np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0)


def sizes_of(data: xr.Dataset) -> str:
    """Width, heads, depth, tokens, batch, steps, seeds and schedule of a study; ranges where cases differ."""
    base = json.loads(data.attrs["configuration"])["base"]
    model, training = base["model"], base["training"]

    def values(name: str) -> Sequence[Any]:
        stated = model.get(name, training.get(name))
        return sorted(set(data[name].values.tolist())) if name in data.coords else [stated]

    seeds = np.unique(data["run_seed"].values)
    heads, depths, steps, batches = (_range(values(name)) for name in ("heads", "depth", "steps", "batch"))
    tokens = _range(sorted(set(_tokens(data, model))))
    slope = _range(values("slope"))
    scale = " sqrt(16 / blocks)" if training["schedule"] == "depth_ramp" else ""
    rate = f"{slope}{scale} times the step"
    if training["schedule"] == "warmup":
        rate = f"{_range(values('rate'))} behind step {training['warmup']}"
    return (
        f"width {_range(values('width'))}, heads {heads}, {depths} blocks, {tokens} image + "
        f"{model['text_tokens']} text tokens, batch {batches}, rate {rate}, at most "
        f"{steps} steps, {len(seeds)} seeds a case ({seeds[0]} to {seeds[-1]})"
    )


def _tokens(data: xr.Dataset, model: dict[str, Any]) -> Iterator[int]:
    """Image tokens of every run."""
    columns = [
        data[name].values if name in data.coords else np.full(data.sizes["cell"], model[name])
        for name in ("side", "patch", "copies")
    ]
    for side, patch, copies in zip(*columns, strict=True):
        yield int(copies * (side // patch) ** 2)


def _range(values: Sequence[Any]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
