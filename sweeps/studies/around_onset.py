"""What a training run shows around its onset: the event, medians before and after it, and coherence."""

# N steps, L blocks, W writers

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from meanmode.sim.onset.excerpt import labelled
from meanmode.sim.onset.training_onset import MOVED, MOVED_LOSS, deep_medians
from meanmode.sweeps.studies.rows import Row
from meanmode.sweeps.studies.run_sizes import run_config

EVENT_WITHIN = 5
"""Steps on either side of the onset within which the event is looked for."""


NEAR, FAR = 10, 30
"""The event is compared with the steps from `NEAR` to `FAR` before it, and with those after it."""


ACTIVE = 0.5
"""A - 1 above which a block counts as active (Fig. 4)."""


WRITERS = ("attn", "ffn")


def onset_of(run: xr.Dataset) -> dict[str, Any]:
    """The onset stored with an excerpt of `meanmode.sim.onset.excerpt`: step, kind and evidence.

    Raises:
        ValueError: a run without an onset, or a store that is no excerpt.
    """
    found = json.loads(run.attrs.get("onset", "{}"))
    if found.get("step") is None:
        raise ValueError("this figure shows the steps around an onset; the run has none")
    return found


def near_onset(run: xr.Dataset, within: int) -> xr.Dataset:
    """The steps of a run at most `within` from its onset, with the label of an excerpt as attributes.

    Args:
        run: an excerpt, or a whole run, which is labelled by `meanmode.sim.onset.training_onset`.
        within: steps on either side of the onset.

    Raises:
        ValueError: a run without an onset, or one that cannot be labelled.
    """
    run = labelled(run)
    onset = onset_of(run)["step"]
    return run.sel(step=slice(onset - within, onset + within))


def event_step(run: xr.Dataset) -> int:
    """The event: the step of the largest gradient norm at most `EVENT_WITHIN` steps from the onset."""
    onset = onset_of(run)["step"]
    near = run["grad_norm"].sel(step=slice(onset - EVENT_WITHIN, onset + EVENT_WITHIN))
    return int(near.idxmax("step"))


def step_before(run: xr.Dataset) -> int:
    """The step of median gradient norm among the steps `NEAR` to `FAR` before the event.

    Raises:
        ValueError: a run that begins later.
    """
    norms = stretch(run, before=True)["grad_norm"]
    return int(norms["step"][int(np.argsort(norms.values, kind="stable")[len(norms) // 2])])


def moments(run: xr.Dataset) -> dict[str, int]:
    """The two steps that are compared: `before` (`step_before`) and `event` (`event_step`)."""
    return {"before": step_before(run), "event": event_step(run)}


def stretch(run: xr.Dataset, *, before: bool) -> xr.Dataset:
    """The steps `NEAR` to `FAR` before or after the event.

    Raises:
        ValueError: a run that begins later, or ends earlier.
    """
    event = event_step(run)
    near, far = (event - NEAR, event - FAR) if before else (event + NEAR, event + FAR)
    found = run.sel(step=slice(min(near, far), max(near, far)))
    if found.sizes["step"] < FAR - NEAR + 1:
        held = f"{int(run['step'][0])} to {int(run['step'][-1])}"
        raise ValueError(f"this figure needs steps {min(near, far)} to {max(near, far)}; the run has {held}")
    return found


def deep_series(run: xr.Dataset, name: str, writer: str | None = None) -> xr.DataArray:
    """Median of an observable over the blocks of the deeper half, at every step at which it was measured."""
    steps, values = deep_medians(run[[name]] if writer is None else run[[name]].sel(writer=writer), name)
    return xr.DataArray(values, {"step": steps}, dims="step")


def deep_quartiles(run: xr.Dataset, name: str) -> xr.DataArray:
    """Quartiles [3, N] of an observable over the same blocks as `deep_series`."""
    blocks = run["block"].values
    return run[name].isel(block=blocks > blocks.max() / 2).quantile([0.25, 0.5, 0.75], "block")


def lasting_moves(run: xr.Dataset) -> list[Row]:
    """One row per signal of the evidence: its `delay` after the onset, None where it made no lasting move.

    `threshold` is the factor that counts as a move. Rows are in the order of the moves.
    """
    onset = onset_of(run)
    rows = [
        {
            "signal": signal,
            "delay": None if found["first_step"] is None else found["first_step"] - onset["step"],
            "threshold": MOVED_LOSS if signal == "loss" else MOVED,
        }
        for signal, found in onset["evidence"].items()
    ]
    return sorted(rows, key=lambda row: (row["delay"] is None, row["delay"] or 0))


def factors(run: xr.Dataset) -> list[Row]:
    """Deep medians at the event and `NEAR` to `FAR` steps after it, over the median of those before it.

    One row per signal (and writer): `at_event` and `after`. Signals are the modes of both writers' gradients
    and the gradients of queries and keys.
    """
    event = event_step(run)
    before, after = (stretch(run, before=side)["step"] for side in (True, False))
    signals = [(name, writer) for name in ("g_mean", "g_ctr") for writer in WRITERS]
    rows = []
    for name, writer in (*signals, ("grad_rms_q", None), ("grad_rms_k", None)):
        values = deep_series(run, name, writer)
        usual = float(values.sel(step=before).median())
        rows.append(
            {
                "signal": name,
                "writer": writer,
                "at_event": float(values.sel(step=event)) / usual,
                "after": float(values.sel(step=after).median()) / usual,
            }
        )
    return rows


def coherence(run: xr.Dataset, step: int, writer: str) -> xr.Dataset:
    """Amplification and coherence of a writer's measured blocks at a step.

    `excess` is A - 1, `signed` (T - 1) kappa, `absolute` (T - 1) kappa_abs, `mode_ratio` G_mean / G_ctr.
    """
    here = run.sel(step=step, writer=writer)
    model = run_config(run).model
    others = model.image_tokens + model.text_tokens - 1
    return xr.Dataset(
        {
            "excess": here["amplification"] - 1,
            "signed": others * here["kappa"],
            "absolute": others * here["kappa_abs"],
            "mode_ratio": here["g_mean"] / here["g_ctr"],
        }
    ).dropna("block", subset=["excess"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Regression:
    """An ordinary least-squares line with intercept.

    Attributes:
        slope: change of y per unit of x.
        intercept: y at x = 0.
        r_squared: share of the variance of y that the line explains.
        points: number of points it was fitted to.
    """

    slope: float
    intercept: float
    r_squared: float
    points: int

    def __str__(self) -> str:
        return f"slope {self.slope:.3f}, R^2 {self.r_squared:.3f}, n {self.points}"


def regression(x: ArrayLike, y: ArrayLike) -> Regression | None:
    """The least-squares line of y on x; None for fewer than three points, or all at one x."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.square(y - slope * x - intercept).sum()
    total = np.square(y - y.mean()).sum()
    return Regression(
        slope=float(slope),
        intercept=float(intercept),
        r_squared=float(1 - rest / total) if total else 1.0,
        points=len(x),
    )


def regressions(run: xr.Dataset) -> dict[tuple[str, str], Regression | None]:
    """A - 1 on (T - 1) kappa_abs over the blocks active at that step, by moment and writer."""
    found = {}
    for moment, step in moments(run).items():
        for writer in WRITERS:
            here = coherence(run, step, writer)
            active = here["excess"] > ACTIVE
            found[moment, writer] = regression(here["absolute"][active], here["excess"][active])
    return found
