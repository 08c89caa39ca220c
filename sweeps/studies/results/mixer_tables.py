"""Generated tables of mixers and merges in training: how each fails, at which rate, and what it learns."""

from pathlib import Path
from typing import Any

from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.store_kinds import open_study
from meanmode.sweeps.statistics.censoring import Estimate
from meanmode.sweeps.studies.events.event_rules import GROWN, KEPT, event_rows
from meanmode.sweeps.studies.markdown import pipe_table, with_ends
from meanmode.sweeps.studies.results.event_tables import estimate
from meanmode.sweeps.studies.results.sizes import captioned, store, studies_caption
from meanmode.sweeps.studies.training.failures import (
    RateFailures,
    constant_rate_runs,
    ramp_failures,
    rate_failures,
    selective_events,
)

BASELINE = "softmax, plain"
"""The case that all others are compared with."""


def mixer_ramps(data: Path, name: str, rates: str = "") -> str:
    """Every mixer and merge under a ramp and at constant rates: failures, critical and half rate, loss.

    Args:
        data: folder of the stores.
        name: the study of ramps.
        rates: the study of the same cases at constant rates; empty for none.
    """
    ramps = ramp_failures(open_study(store(data, name)), BASELINE)
    constant = rate_failures(constant_rate_runs(open_study(store(data, rates))), BASELINE) if rates else {}
    steps = {row["loss"]["at_step"] for row in ramps.values() if "loss" in row}
    lines = []
    for case, row in ramps.items():
        mixer, _, merge = case.partition(", ")
        halves = [_half(constant[case]), _ratio(constant[case].ratio)] if rates else []
        lines.append([mixer, merge, str(row["failures"]), *_effects(row), *halves])
    heads = ("mixer", "merge", "mean-mode collapses under the ramp", "critical rate over softmax's (90 %)")
    added = ("half rate", "over softmax's (90 %)") if rates else ()
    table = pipe_table((*heads, "loss less softmax's (90 %)", *added), lines)
    statistics = (
        "Ramps: statistics over seeds paired with plain softmax, 90 % intervals; loss: median of 15 "
        f"steps before step {', '.join(map(str, sorted(steps)))}. `diverge`: plain divergences, no mean mode."
    )
    if rates:
        statistics += (
            " Half rate: a logistic in ln rate, seeds resampled together; neighbouring rates differ by a "
            "factor of 1.6, and an interval of one point says that the outcomes jump between two of them."
        )
    return captioned(table, studies_caption(data, [name, *([rates] if rates else [])]), statistics)


def mixer_events(data: Path, name: str) -> str:
    """Every mixer and merge after a jump from a healthy state: failures, half rate, selective events."""
    rows = event_rows(open_cells(store(data, name)))
    found = rate_failures(rows, BASELINE)
    rates = sorted({rate for of in found.values() for rate in of.at})
    lines = []
    for case, of in found.items():
        mixer, _, merge = case.partition(", ")
        own = rows[rows["case"].str.rsplit(",", n=1).str[0] == case]
        at = [str(of.at[rate]) if rate in of.at else "" for rate in rates]
        loss = f"{own['loss_before'].median():.2f}"
        lines.append([mixer, merge, loss, *at, _half(of), _ratio(of.ratio), selective_events(own)])
    heads = ("mixer", "merge", "loss before", *(f"collapses at {rate:g}" for rate in rates))
    table = pipe_table((*heads, "half rate", "over softmax's (90 %)", "selective"), lines)
    statistics = (
        "Mean-mode collapses within the steps after the jump; `diverge`: plain divergences. Half rate: a "
        "logistic in ln rate, 90 % intervals, seeds resampled together. Selective: events in which G_mean of "
        f"both writers grows at least x{GROWN:g} and G_ctr of both at most x{KEPT:g}, of those collapses."
    )
    return captioned(table, studies_caption(data, [name]), statistics)


def _effects(row: dict[str, Any]) -> list[str]:
    """Cells of the critical rate and the loss over the baseline's."""
    if "critical_rate_ratio" not in row:
        return ["1", "0"]
    ratio, loss = row["critical_rate_ratio"], row.get("loss", {})
    shown = with_ends(ratio["measured"], ratio["measured_low"], ratio["measured_high"])
    if ratio["measured"] is None and ratio["measured_at_least"] is not None:
        shown = f"above {ratio['measured_at_least']:.2f}"
    ends = ("difference", "difference_low", "difference_high")
    return [shown, with_ends(*(loss.get(end) for end in ends), form="+.2f")]


def _half(of: RateFailures) -> str:
    """The half rate, or on which side of the rates tried it lies."""
    rates = list(of.at)
    if of.half.value == of.half.value:
        return estimate(of.half, ".3g")
    first = of.at[rates[0]]
    return f"below {rates[0]:g}" if 2 * first.collapsed >= first.of else f"above {rates[-1]:g}"


def _ratio(ratio: Estimate) -> str:
    return "-" if ratio.value != ratio.value else estimate(ratio, ".2f")
