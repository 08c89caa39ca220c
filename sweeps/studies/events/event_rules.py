"""The rules by which a jump of the learning rate is read: event, factors, selectivity, regression.

They were fixed before the runs of `meanmode.sweeps.named.event_jumps`:

* the *event* is the step of the largest G_mean, as the root of the sum of squares over all blocks and both
  writers, within `EVENT_WITHIN` steps of the onset;
* *before* is the median over the last `HELD` steps at the healthy rate;
* a *factor* is the value at a step over that before it;
* an event is *selective* if, at the event or up to `EARLIER` steps before it, G_mean of both writers has
  grown at least `GROWN`-fold and G_ctr of both at most `KEPT`-fold, over all blocks;
* it has the published *regression* if, at the event or one step after it, A - 1 on (T - 1) kappa_abs over the
  blocks with A - 1 > 0.5 has a slope within `SLOPES` and an R^2 of at least `EXPLAINED` for both writers.

A second statistic was chosen after `event_replicates`, whose front had often passed half of the blocks at
the event: an event is *selective in deep blocks* by the same two factors of the medians over the deeper half,
at the event alone. It is judged on the unchanged runs of `event_causes`, which had not been looked at with it
(at least 5 of 8 expected).
"""

# N steps, L blocks, W writers

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.event_study import AROUND, HELD, EventStudy
from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.studies.around_onset import ACTIVE, EVENT_WITHIN, Regression, regression

EARLIER = 2
"""Steps before the event at which it may be selective already."""

GROWN, KEPT = 30.0, 5.0
"""Smallest factor of G_mean and largest factor of G_ctr of a selective event."""

SLOPES, EXPLAINED = (0.8, 1.25), 0.7
"""Slopes and smallest R^2 of the published regression."""

WRITERS = ("attn", "ffn")


def event_rows(data: xr.Dataset) -> pd.DataFrame:
    """One row per run of an event study: its outcome, and its event if it collapsed.

    `case`, `seed`, `kind`, `onset` and `last` step (after the jump), `loss_before`, `loss_event`; the factors
    `g_mean_attn`, `g_mean_ffn`, `g_ctr_attn`, `g_ctr_ffn` at the event; `selective`, `selective_deep`;
    `regular`, whether it has the published regression, with `slope_*` and `r_squared_*` at the step that has
    it, or at the event; and the fields in which cases differ.

    Args:
        data: a store of `meanmode.sweeps.engine.event_study`, opened.

    Raises:
        StoreError: an unfinished study.
    """
    unfinished = int((data["status"] != DONE).sum())
    if unfinished:
        raise StoreError(
            f"{data.attrs['name']} has {unfinished} cells to do or failed: continue it with --resume"
        )
    study = stored_study(data.attrs, of=EventStudy)
    rows = []
    for cell, planned in enumerate(study.cells):
        of = data.isel(cell=cell)
        case = study.cases[cell // study.seeds]
        tokens = planned.run.model.copies * planned.run.model.image_tokens + planned.run.model.text_tokens
        row: dict[str, Any] = {
            "case": case.label,
            "seed": planned.seed,
            **{name: planned.run.field(name) for name in ("batch", "depth", "width", "rate", "first_rate")},
            "tokens": tokens,
            "kind": KINDS[int(of["onset_kind"])],
            "onset": float(of["onset_step"]),
            "last": float(of["last_step"]),
            "loss_before": float(before(of, "loss")),
            "initial_loss": float(of["initial_loss"]),
        }
        if row["kind"] == "mean_mode" and row["onset"] > 0:
            row |= _event(of, tokens)
        rows.append(row)
    found = pd.DataFrame(rows)
    for name in ("selective", "selective_deep", "regular"):
        if name not in found:
            found[name] = False
        found[name] = found[name].fillna(False).astype(bool)
    return found


def before(run: xr.Dataset, name: str) -> xr.DataArray:
    """Median of a variable over the last `HELD` steps at the healthy rate."""
    return run[name].sel(since_jump=slice(1 - HELD, 0)).median("since_jump")


def event_step(run: xr.Dataset) -> int:
    """The event of a run that collapsed, in steps after the jump."""
    onset = int(run["onset_step"])
    near = run["g_mean_all"].sel(since_jump=slice(onset - EVENT_WITHIN, onset + EVENT_WITHIN))
    return int(np.square(near).sum("writer").idxmax("since_jump"))


def factors(run: xr.Dataset, step: int, over: str = "all") -> dict[str, float]:
    """Factors of G_mean and G_ctr of both writers at a step, by `g_mean_attn` and so on.

    Args:
        run: a run of an event study.
        step: the step after the jump.
        over: `all` blocks (root of the sum of squares) or the median of `deep` ones.
    """
    grown = {
        mode: run[f"{mode}_{over}"].sel(since_jump=step) / before(run, f"{mode}_{over}")
        for mode in ("g_mean", "g_ctr")
    }
    return {
        f"{mode}_{writer}": float(of.sel(writer=writer)) for mode, of in grown.items() for writer in WRITERS
    }


def is_selective(found: dict[str, float]) -> bool:
    """Whether factors are those of a selective event."""
    grown = all(found[f"g_mean_{writer}"] >= GROWN for writer in WRITERS)
    return grown and all(found[f"g_ctr_{writer}"] <= KEPT for writer in WRITERS)


def regressions_at(run: xr.Dataset, step: int, tokens: int) -> dict[str, Regression | None]:
    """A - 1 on (T - 1) kappa_abs over the active blocks of each writer at a step after the jump.

    Args:
        run: a run of an event study that collapsed.
        step: the step; None for both writers if its blocks were not stored.
        tokens: tokens of a sample, T.
    """
    offset = step - int(run["onset_step"])
    if offset not in AROUND:
        return dict.fromkeys(WRITERS)
    here = run.sel(since_onset=offset)
    found = {}
    for writer in WRITERS:
        excess = here["amplification"].sel(writer=writer).values - 1
        active = excess > ACTIVE
        x = (tokens - 1) * here["kappa_abs"].sel(writer=writer).values
        found[writer] = regression(x[active], excess[active])
    return found


def is_regular(lines: Iterable[Regression | None]) -> bool:
    """Whether regressions of both writers are the published one."""
    return all(
        line is not None and SLOPES[0] <= line.slope <= SLOPES[1] and line.r_squared >= EXPLAINED
        for line in lines
    )


def _event(run: xr.Dataset, tokens: int) -> dict[str, Any]:
    step = event_step(run)
    tried = [factors(run, at) for at in range(step - EARLIER, step + 1) if at > 0]
    lines = [regressions_at(run, at, tokens) for at in (step, step + 1)]
    regular = [found for found in lines if is_regular(found.values())]
    shown = (regular or lines)[0]
    return {
        "event": step,
        "loss_event": float(run["loss"].sel(since_jump=step)),
        **tried[-1],
        "selective": any(map(is_selective, tried)),
        "selective_deep": is_selective(factors(run, step, "deep")),
        "regular": bool(regular),
        **{f"slope_{writer}": line.slope for writer, line in shown.items() if line is not None},
        **{f"r_squared_{writer}": line.r_squared for writer, line in shown.items() if line is not None},
    }
