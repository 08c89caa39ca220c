"""Generated tables of event studies: jumps of the learning rate from a healthy state."""

from pathlib import Path

import pandas as pd

from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.statistics.censoring import Estimate
from meanmode.sweeps.studies.events.event_rules import (
    EARLIER,
    EVENT_WITHIN,
    EXPLAINED,
    GROWN,
    KEPT,
    SLOPES,
    event_rows,
)
from meanmode.sweeps.studies.events.event_summaries import (
    DISTANCE,
    AtDistance,
    at_distance,
    collapsed,
    delays,
    event_table,
    growth_ratio,
    half_rate_groups,
    half_rate_ratio,
    summaries,
)
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.sizes import captioned, store, studies_caption

RULES = (
    f"Event: the largest G_mean over all blocks within {EVENT_WITHIN} steps of the onset; factors are over "
    "the median of the last 10 steps at the healthy rate. Selective: at the event or up to "
    f"{EARLIER} steps before it, G_mean of both writers at least x{GROWN:g} and G_ctr of both at most "
    f"x{KEPT:g}; deep medians: the same of the medians over the deeper half, at the event. Regression: "
    f"A - 1 on (T - 1) kappa_abs with slope {SLOPES[0]:g} to {SLOPES[1]:g} and R^2 of "
    f"at least {EXPLAINED:g} for both writers, at the event or one step after it. Medians over the runs that "
    "collapsed; shares with 90 % Clopper-Pearson intervals."
)


def _rows(data: Path, name: str) -> pd.DataFrame:
    return event_rows(open_cells(store(data, name)))


def events(data: Path, *names: str) -> str:
    """Every case of event studies: how many runs collapsed, were selective, had the regression."""
    rows = pd.concat([_rows(data, name) for name in names])
    return captioned(event_table(summaries(rows)), studies_caption(data, names), RULES)


def event_batches(data: Path, name: str) -> str:
    """Half rate of a jump by batch, and the event at a multiple of it."""
    rows = _rows(data, name)
    found = {int(batch): at_distance(of) for batch, of in rows.groupby("batch")}
    first = before = next(iter(found.values()))
    lines = []
    for batch, of in found.items():
        ratios = [estimate(growth_ratio(other, of), ".2g") for other in (before, first) if other is not of]
        lines.append([str(batch), *_at_distance(of), *(ratios or ["-"] * 2)])
        before = of
    heads = ("batch", "half rate", f"G_mean x at {DISTANCE:g} half rates", "steps to the onset there")
    statistics = (
        "90 % intervals over seeds. The half rate is that of a collapse within "
        f"{int(rows['last'].max())} steps of the jump; factor of G_mean at the event, geometric mean of both "
        "writers, median over seeds, interpolated between rates."
    )
    return captioned(
        pipe_table((*heads, "over that above", f"over batch {min(found)}"), lines),
        studies_caption(data, [name]),
        statistics,
    )


def event_distances(data: Path, name: str) -> str:
    """Steps to the onset and growth of G_mean by distance above the half rate."""
    rows = _rows(data, name)
    half, lowest = at_distance(rows).half.value, float(rows["rate"].min())
    known = half > lowest
    lines = []
    for rate, of in rows.groupby("rate"):
        (row,) = summaries(of.assign(case="all"))
        shown = ["-"] * 3
        if row["collapsed"].count:
            shown = [
                f"{row['onset']:.0f}",
                f"{row['g_mean_attn']:.3g}; {row['g_mean_ffn']:.3g}",
                f"{row['g_ctr_attn']:.2g}; {row['g_ctr_ffn']:.2g}",
            ]
        counts = [f"{row[of_].count} of {row[of_].of}" for of_ in ("collapsed", "selective", "regular")]
        lines.append(
            [f"{rate:g}", f"{rate / (half if known else lowest):.2f}", counts[0], *shown, *counts[1:]]
        )
    over = "over the half rate" if known else "over the lowest, at or above the half rate"
    heads = ("rate", over, "collapsed", "steps to the onset", "G_mean x, W_O; W_2")
    table = pipe_table((*heads, "G_ctr x, W_O; W_2", "selective", "regression"), lines)
    return captioned(table, studies_caption(data, [name]), RULES)


def event_causes(data: Path, name: str, baseline: str = "nothing") -> str:
    """How every change moves the steps from the jump to the onset."""
    rows = _rows(data, name)
    lines = []
    for case, (share, steps, ratio) in delays(rows, baseline).items():
        loss = rows.loc[rows["case"] == case, "loss_before"].median()
        diverged = ((rows["case"] == case) & (rows["kind"] == "plain_divergence")).sum()
        shown = [f"{loss:.2f}", estimate(steps, ".0f"), estimate(ratio, ".2f")]
        lines.append([case, str(share), str(diverged), *shown])
    heads = ("change from the jump on", "collapsed", "diverged plainly", "loss before", "steps to the onset")
    statistics = (
        "Medians over seeds, ratios paired by seed, 90 % bootstrap intervals. A run without a collapse "
        f"within {int(rows['last'].max())} steps counts as later; merges other than the plain one have "
        "healthy runs of their own."
    )
    return captioned(
        pipe_table((*heads, f"over `{baseline}`"), lines), studies_caption(data, [name]), statistics
    )


def event_half_rates(data: Path, name: str, unchanged: str) -> str:
    """Half rate of a jump with parts of the writer gradients deleted, over that without a change.

    Args:
        data: folder of the stores.
        name: study of the changes; the rate is the last word of a case's label.
        unchanged: study with the same seeds and states without a change; its runs at the same batch count.
    """
    groups = half_rate_groups(_rows(data, name), _rows(data, unchanged))
    found = {label: at_distance(of) for label, of in groups.items()}
    lines = [
        [
            label,
            f"{int(collapsed(groups[label]).sum())} of {len(groups[label])}",
            *_at_distance(of),
            estimate(half_rate_ratio(found["nothing"], of), ".2f"),
        ]
        for label, of in found.items()
    ]
    heads = (
        "change",
        "collapsed",
        "half rate",
        f"G_mean x at {DISTANCE:g} half rates",
        "steps to the onset there",
    )
    return captioned(
        pipe_table((*heads, "half rate over `nothing`"), lines),
        studies_caption(data, [name, unchanged]),
        "90 % intervals over seeds, resampled together.",
    )


def _at_distance(found: AtDistance) -> list[str]:
    return [estimate(found.half, ".3g"), estimate(found.factor, ".3g"), estimate(found.steps, ".0f")]


def estimate(found: Estimate, form: str) -> str:
    """An estimate with its interval; `...` for an end that the runs leave open."""
    value = f"> {found.at_least:{form}}" if found.value != found.value else f"{found.value:{form}}"
    if found.at_least != found.at_least:
        return "-"
    low, high = ("..." if not abs(end) < float("inf") else f"{end:{form}}" for end in (found.low, found.high))
    return f"{value} ({low} to {high})"
