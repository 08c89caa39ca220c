"""How far the modes of the writer gradients differ between merges: arms of runs, bands, and their ratios."""

# S seeds, N steps, L blocks, W writers

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.studies.run_sizes import run_config

PLAIN, LAYERSCALE, LAYERSCALE_ZERO, MV_SPLIT = "plain", "LayerScale", "LayerScale, zero writers", "MV-Split"


MERGES = (PLAIN, LAYERSCALE, LAYERSCALE_ZERO, MV_SPLIT)
"""Arms, in the order in which they are shown."""


CONFIDENCE, RESAMPLES = 0.9, 10_000


LOSS_WINDOW = 15
"""Steps of the running median of the loss."""


Arm = Mapping[int, xr.Dataset]
"""Seed -> run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """A ratio of geometric means over seeds, with a bootstrap interval.

    Attributes:
        value: the ratio over all seeds.
        low: lower end of the interval of probability `CONFIDENCE`.
        high: its upper end.
        seeds: number of pairs of runs.
    """

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def arm(run: xr.Dataset) -> str:
    """The arm in `MERGES` that a run belongs to.

    Raises:
        ValueError: another merge.
    """
    model = run_config(run).model
    names = {"plain": PLAIN, "layerscale": LAYERSCALE, "mv_split": MV_SPLIT}
    if model.merge not in names:
        raise ValueError(f"this figure compares {', '.join(MERGES)}; got a run of merge {model.merge!r}")
    return LAYERSCALE_ZERO if model.merge == "layerscale" and model.writer_std == 0 else names[model.merge]


def arms(runs: Sequence[xr.Dataset]) -> dict[str, dict[int, xr.Dataset]]:
    """Runs by arm and seed.

    Raises:
        ValueError: an arm is missing, or arms differ in seeds or steps.
    """
    found: dict[str, dict[int, xr.Dataset]] = {name: {} for name in MERGES}
    for run in runs:
        found[arm(run)][run_config(run).training.seed] = run
    if len({(frozenset(of), *sorted(run.sizes["step"] for run in of.values())) for of in found.values()}) > 1:
        seeds = "; ".join(f"{name} {sorted(of)}" for name, of in found.items())
        raise ValueError(f"this figure compares arms of the same seeds and steps, got seeds {seeds}")
    return found


def band_ratio(over: Arm, under: Arm, name: str, writer: str) -> Ratio:
    """How many times larger a mode is in one arm than in another; this statistic was fixed before the runs.

    The level of a run is the median over blocks and over the regular rows of the second half of its steps.
    The ratio is that of geometric means over seeds; its interval resamples pairs of runs of the same seed.
    """
    logs = np.log(
        [_level(over[seed], name, writer) / _level(under[seed], name, writer) for seed in sorted(over)]
    )
    rng = np.random.default_rng(np.random.SeedSequence(0))
    means = logs[rng.integers(len(logs), size=(RESAMPLES, len(logs)))].mean(1)
    low, high = np.exp(np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    return Ratio(value=float(np.exp(logs.mean())), low=float(low), high=float(high), seeds=len(logs))


def mode_band(runs: Arm, name: str, writer: str) -> xr.DataArray:
    """Quartiles over blocks of a mode [3, N], median over seeds, at the regular rows."""
    values = xr.concat([_regular(run, name, writer) for run in runs.values()], "seed")
    return values.quantile([0.25, 0.5, 0.75], "block").median("seed")


def smoothed_loss(runs: Arm) -> xr.DataArray:
    """Running median of the loss over `LOSS_WINDOW` steps, median over seeds; NaN at both ends."""
    return running_median(xr.concat([run["loss"] for run in runs.values()], "seed")).median("seed")


def running_median(values: xr.DataArray) -> xr.DataArray:
    """Median over the `LOSS_WINDOW` steps around each step; NaN at both ends and beside a NaN."""
    values = values.transpose(..., "step")
    windows = np.lib.stride_tricks.sliding_window_view(values.values, LOSS_WINDOW, axis=-1)
    found = xr.full_like(values, np.nan)
    half = LOSS_WINDOW // 2
    found[..., half : half + windows.shape[-2]] = np.median(windows, axis=-1)
    return found


def case_series(data: xr.Dataset, case: str) -> xr.Dataset:
    """Loss and clipped gradient norm of the runs of one case of a study, along `seed` and `step`.

    Args:
        data: a study of training runs, along `cell`.
        case: label of the case.

    Raises:
        ValueError: the study has no such case.
    """
    cells = np.flatnonzero(data["case"].values == case)
    if not len(cells):
        raise ValueError(f"the study has no case {case!r}: choose from {', '.join(np.unique(data['case']))}")
    of = data[["loss", "grad_norm"]].isel(cell=cells).drop_vars("case").rename(cell="seed")
    clip = stored_study(data.attrs).cells[int(cells[0])].run.training.clip
    clipped = of["grad_norm"] if clip is None else of["grad_norm"].clip(max=clip)
    return xr.Dataset({"loss": of["loss"], "grad_norm_clipped": clipped})


def _level(run: xr.Dataset, name: str, writer: str) -> float:
    half = run.isel(step=slice(run.sizes["step"] // 2, None))
    return float(_regular(half, name, writer).median())


def _regular(run: xr.Dataset, name: str, writer: str) -> xr.DataArray:
    """A mode at the steps that every run measures; around a gradient spike a run measures extra ones."""
    regular = run["step"] % run_config(run).training.telemetry_every == 0
    return run[name].sel(step=regular, writer=writer, block=slice(1, None))
