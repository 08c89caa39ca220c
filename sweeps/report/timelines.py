"""The timelines of a run: its scalars, and observables of blocks as the median of the deeper half."""

from collections.abc import Collection

import numpy as np
import xarray as xr

from meanmode.sim.onset.detector import UNWATCHED
from meanmode.sim.onset.log_onset import loss_rows
from meanmode.sim.onset.training_onset import SIGNALS, deep_medians, initial_level, token_cosine
from meanmode.sim.onset.watched_signal import watched_kind
from meanmode.sweeps.report.contents import Line, Panel, shown
from meanmode.sweeps.report.reduction import reduced_line
from meanmode.theory.meanfield.front import FRONT_COSINE

DRAWN: dict[str, tuple[str, ...]] = {
    "gradient norm": ("grad_norm", "grad_norm_clipped"),
    "writer gradients, deep median": ("g_mean", "g_ctr"),
    "amplification A, deep median": ("amplification",),
    "query and key gradients, deep median": ("grad_rms_q", "grad_rms_k"),
    "functional step": ("functional_step",),
    "largest attention logit, deep median": ("max_logit",),
    "learning rate": ("lr",),
}
"""Panel -> the variables that it draws."""

LABELS = {
    "g_mean": "G_mean (mean mode)",
    "g_ctr": "G_ctr (centered)",
    "grad_norm": "before clipping",
    "grad_norm_clipped": "after clipping",
    "grad_rms_q": "queries",
    "grad_rms_k": "keys",
}
"""Variable -> its name in a legend."""

OTHERS = 12
"""Other logged scalars that are drawn, each in a panel of its own."""

MOST_READ = 300
"""Variables of a run that are read."""

LOG_FROM = 20.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


def chosen(names: Collection[str]) -> list[str]:
    """Of the names of a run's variables, those that a report reads: known ones first, at most `MOST_READ`."""
    kinds = ("loss", "tokens", "gradients", "logits", "other")
    wanted = [*SIGNALS, "tcs_image", *(name for of in DRAWN.values() for name in of)]
    first = [name for name in wanted if name in names]
    others = sorted(
        (name for name in names if name not in first), key=lambda name: kinds.index(watched_kind(name))
    )
    return [*first, *others][:MOST_READ]


def timelines(run: xr.Dataset, chances: list[dict[str, float]], groups: int) -> tuple[list[Panel], str]:
    """The panels of a run, and a sentence about quantities that are not drawn; empty if all are.

    Args:
        run: the run; known observables that it lacks get no panel.
        chances: step and probability of a collapse by horizon (`mms forecast`), of each measured step.
        groups: number of groups of points of a curve.
    """
    panels = [*_loss(run, groups), *_cosine(run, groups)]
    for title, names in DRAWN.items():
        lines = [line for name in names if name in run for line in _line(run, name, groups)]
        if lines:
            panels.append(_panel(title, lines))
    if chances:
        steps = np.array([row["step"] for row in chances], np.float64)
        within = [horizon for horizon in chances[0] if horizon != "step"]
        lines = [
            Line(name=f"within {of} steps", x=x, y=y)
            for of in within
            for x, y in [reduced_line(steps, np.array([row[of] for row in chances], np.float64), groups)]
        ]
        at = next(number for number, panel in enumerate([*panels, None]) if panel is None or number == 2)
        panels.insert(at, Panel(title="probability of a collapse", lines=tuple(lines)))
    others, said = _others(run, groups)
    return panels + others, said


def _line(run: xr.Dataset, name: str, groups: int, label: str = "") -> list[Line]:
    """A variable as a curve; none if it has no finite value."""
    if run[name].dims == ("step",):
        steps, values = run["step"].values, run[name].values.astype(np.float64)
    else:
        steps, values = deep_medians(run, name)
    x, y = reduced_line(steps.astype(np.float64), values, groups)
    return [Line(name=label or LABELS.get(name, shown(name)), x=x, y=y)] if len(x) else []


def _panel(title: str, lines: list[Line], level: float | None = None, level_name: str = "") -> Panel:
    """A panel, with a logarithmic axis if its curves need one; zeros are then drawn at the smallest value."""
    low = min(float(line.y.min()) for line in lines)
    high = max(float(line.y.max()) for line in lines)
    smallest = min(float(line.y[line.y > 0].min(initial=np.inf)) for line in lines)
    log = low >= 0 and high > LOG_FROM * smallest
    if log:
        lines = [Line(name=of.name, x=of.x, y=np.maximum(of.y, smallest)) for of in lines]
    return Panel(title=title, lines=tuple(lines), log=log, level=level, level_name=level_name)


def _loss(run: xr.Dataset, groups: int) -> list[Panel]:
    if "loss" not in run or run["loss"].dims != ("step",):
        return []
    lines = _line(run, "loss", groups, "loss")
    if not lines:
        return []
    rows = loss_rows(run)
    level, name = initial_level(run), "the initial loss"
    if rows is not None and "import" in run.attrs:
        level, name = rows.level, name if rows.known else "the loss when the log begins"
    if not np.isfinite(level) or level <= 0:
        return [_panel("loss", lines)]
    return [_panel("loss", lines, float(level), name)]


def _cosine(run: xr.Dataset, groups: int) -> list[Panel]:
    if "tcs" not in run and "tcs_image" not in run:
        return []
    lines = _line(run, token_cosine(run), groups, "TCS")
    return [
        Panel(
            title="token cosine (TCS), deep median",
            lines=tuple(lines),
            level=FRONT_COSINE,
            level_name=f"TCS of {FRONT_COSINE:g}",
        )
        for _ in lines[:1]
    ]


def _others(run: xr.Dataset, groups: int) -> tuple[list[Panel], str]:
    """Panels of other scalars, gradients and tokens first, and how many of how many are drawn."""
    drawn = {"loss", "tcs", "tcs_image", "collapse_chance", *(name for of in DRAWN.values() for name in of)}
    names = [
        str(name)
        for name in run.data_vars
        if run[name].dims == ("step",) and name not in drawn and name not in UNWATCHED
    ]
    panels = []
    for name in names:
        lines = _line(run, name, groups) if len(panels) < OTHERS else []
        if lines:
            panels.append(_panel(shown(name), lines))
    if len(names) <= OTHERS:
        return panels, ""
    return panels, f"{len(panels)} of {len(names):,} other logged quantities are drawn."
