"""Fronts of inputs with structure, measured against predicted: from all pairs of tokens, and their mean."""

import dataclasses
import json

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import COLOURS, COLUMN, MARKERS, base_setting, plain_ticks
from meanmode.theory.meanfield.coverage import why_not_one_cosine
from meanmode.theory.meanfield.predicted_front import deterministic_fronts
from meanmode.theory.meanfield.structured_inputs import input_cosines
from meanmode.theory.setting import INPUTS, Setting


def draw(data: xr.Dataset) -> Figure:
    """One point per setting: the mean measured front against the predicted one, by input.

    Args:
        data: a `structured_fronts` sweep, a list of cases along `cell`.

    Raises:
        ValueError: a sweep that does not vary its input.
    """
    if data.attrs.get("grid", True) or "input" not in data.coords:
        raise ValueError("this figure draws `structured_fronts`, a list of cases that differ in their input")
    figure = Figure(figsize=(COLUMN, 3.3), layout="constrained")
    panel = figure.subplots()
    ends = np.array([2.5, 120])
    panel.plot(ends, ends, color="0.2", lw=0.8, zorder=1)
    panel.fill_between(ends, 0.95 * ends, 1.05 * ends, color="0.85", lw=0, zorder=0)
    settings = _settings(data)
    for style, name in enumerate(INPUTS):
        cells = [index for index, setting in settings if setting.input == name]
        one = [(float(data["predicted_front"][index[0]]), data["front"].values[index]) for index in cells]
        predicted, fronts = zip(*one, strict=True)
        means = [np.nanmean(of) for of in fronts]
        errors = [np.nanstd(of, ddof=1) / np.isfinite(of).sum() ** 0.5 for of in fronts]
        mark = {"fmt": MARKERS[style], "color": COLOURS[style], "label": name, "zorder": 3}
        panel.errorbar(predicted, means, yerr=errors, **mark)
        if name != "gaussian":
            averaged = _averaged([setting for _, setting in settings if setting.input == name])
            hollow = {"mfc": "none", "mec": COLOURS[style], "ls": "none", "alpha": 0.6, "zorder": 2}
            panel.plot(averaged, means, MARKERS[style], **hollow)
    panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    plain_ticks(panel.xaxis)
    plain_ticks(panel.yaxis)
    panel.set(xlabel="predicted front (block)", ylabel="measured front (block)")
    panel.grid(alpha=0.25)
    panel.legend(loc="upper left", title="filled: all pairs of tokens\nhollow: their mean cosine")
    base = base_setting(data)
    caption(
        figure,
        f"Untrained stacks of {len(settings) // len(INPUTS)} settings, width 64 to 256, 16 to 64 tokens, "
        f"batch {base.batch}, {len(np.unique(data['seed'].values))} seeds. Band: 5 %.",
    )
    return figure


def _settings(data: xr.Dataset) -> list[tuple[np.ndarray, Setting]]:
    """The cells of every case and its setting."""
    axes = [axis for axis in json.loads(data.attrs["axes"]) if axis != "seed"]
    keys = list(zip(*(data[axis].values.tolist() for axis in axes), strict=True))
    found = []
    for key in dict.fromkeys(keys):
        cells = np.array([index for index, other in enumerate(keys) if other == key])
        found.append((cells, base_setting(data, **dict(zip(axes, key, strict=True)))))
    return found


def _averaged(settings: list[Setting]) -> list[float]:
    """Fronts of one cosine at the mean cosine of the input; NaN where there is none."""
    fronts = []
    for setting in settings:
        cosines = input_cosines(setting)
        tokens = len(cosines)
        mean = (cosines.sum() / tokens - 1) / (tokens - 1)
        same = dataclasses.replace(setting, input="gaussian", frames=1, input_cosine=max(float(mean), 0.0))
        front = deterministic_fronts([same])[0] if why_not_one_cosine(same) is None else None
        fronts.append(np.nan if front is None else front)
    return fronts
