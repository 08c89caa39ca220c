"""Generated tables of watched models of other libraries: alarms, residual merges, half rates of failure."""

from pathlib import Path

from meanmode.sim.onset.training_onset import BACK, LEARNED, WINDOW
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.stock.stock_study import StockStudy, stored_stock
from meanmode.sweeps.studies.markdown import pipe_table, with_ends
from meanmode.sweeps.studies.results.sizes import captioned, store
from meanmode.sweeps.studies.rows import Row
from meanmode.sweeps.studies.run_sizes import span
from meanmode.sweeps.studies.stock.alarm_scores import MEASUREMENTS, stock_rows
from meanmode.sweeps.studies.stock.backbone_rows import backbone_rows, backbone_runs


def watched_alarms(data: Path, name: str, without: str = "") -> str:
    """Failures found in time and false alarms, by case and over all; `without` withholds a series."""
    cells = open_cells(store(data, name))
    rows = stock_rows(cells, without=without)
    body = [
        [
            row["quantity"],
            f"{row['learned']} of {row['runs']}",
            _found(row),
            "-" if row["median_delay"] is None else f"{row['median_delay']:.0f}",
            str(row["false_alarms"]),
            f"{row['steps']:,}",
            "-" if row["false_per_10000"] is None else f"{row['false_per_10000']:.2f}",
        ]
        for row in (rows if len(rows) > 2 else rows[:1])  # the last is the sum over all cases
    ]
    heads = ("case", "learned", "found in time", "delay (steps)", "false alarms", "steps", "per 10,000")
    return captioned(
        pipe_table(heads, body),
        _caption(name, stored_stock(cells.attrs)),
        f"Learned: median loss of the last 50 steps below {LEARNED} of the initial one. Failed: the deep TCS "
        f"is above .9 to the end and that loss above {BACK} of the initial one, or a loss was made NaN. "
        f"Found: an alarm of its kind at most {MEASUREMENTS} measurements after that, and at most {WINDOW} "
        "steps before a collapse; delay: median. False: every alarm in a run that has not failed, and every "
        "earlier one. 90 % intervals (Wilson).",
    )


def watched_merges(data: Path, name: str) -> str:
    """Runs that learned and runs that collapsed, by residual merge."""
    cells = open_cells(store(data, name))
    body = [
        [
            row["quantity"],
            f"{row['learned']} of {row['runs']}",
            f"{row['failed']} of {row['runs']}",
            "-" if row["median_final_loss"] is None else f"{row['median_final_loss']:.3g}",
        ]
        for row in stock_rows(cells)[:-1]
    ]
    return captioned(
        pipe_table(("merge", "learned", "collapsed", "final loss, median over seeds"), body),
        _caption(name, stored_stock(cells.attrs)),
    )


def backbones(data: Path, name: str) -> str:
    """Runs that did not learn by depth, merge and rate, their half rates, and the kinds of failure."""
    cells = open_cells(store(data, name))
    rows = backbone_rows(cells)
    rates = sorted({at["rate"] for row in rows for at in row["counts"]})
    body = []
    for row in rows:
        at = {of["rate"]: of for of in row["counts"]}
        kinds = [f"{kind} {number}" for kind, number in row["kinds"].items() if number]
        if row["after_learning"]:
            kinds.append(f"{row['after_learning']} of the mean mode after learning")
        body.append(
            [
                row["case"],
                *(f"{at[rate]['failed']} of {at[rate]['runs']}" if rate in at else "-" for rate in rates),
                _outside(row["failure"]),
                _outside(row["mean_mode"]),
                ", ".join(kinds),
                " / ".join(f"{at[rate]['final_loss']:.2f}" if rate in at else "-" for rate in rates),
            ]
        )
    heads = ("case", *(f"not learned at {rate:g}" for rate in rates))
    more = ("half rate (90 %)", "of the mean mode (90 %)", "kinds", "final loss, medians by rate")
    statistics = (
        f"Not learned: median loss of the last 50 steps not below {LEARNED} of the initial one. Mean mode: "
        f"the deep TCS is above .9 to the end and that loss above {BACK} of the initial one. Half rates: a "
        "logistic in ln rate, maximum likelihood, bootstrap over runs; an end outside of the rates tried is "
        "shown as `...`. Cases that were not run at two rates are left out."
    )
    return captioned(pipe_table((*heads, *more), body), _caption(name, stored_stock(cells.attrs)), statistics)


def backbone_ramps(data: Path, name: str) -> str:
    """Ramps that end in the mean mode, and the rates at which they do."""
    cells = open_cells(store(data, name))
    body = []
    for case, of in backbone_runs(cells).groupby("case", sort=False):
        at = of["collapse_rate"].dropna()
        span_of = f"{at.median():.3g} ({at.min():.3g} to {at.max():.3g})" if len(at) else "-"
        learned = int((of["mean_mode"] & of["had_learned"]).sum())
        body.append([case, f"{len(at)} of {len(of)}", span_of, f"{learned} of {len(at)}"])
    heads = ("ramp", "mean mode", "rate of it, median (range)", "after learning")
    return captioned(pipe_table(heads, body), _caption(name, stored_stock(cells.attrs)))


def _outside(half: Row) -> str:
    """A half rate, or on which side of the rates tried it lies."""
    if half["at_least"] is not None:
        return f"above {half['at_least']:g}"
    if half["at_most"] is not None:
        return f"below {half['at_most']:g}"
    return with_ends(half["value"], half["low"], half["high"])


def _found(row: Row) -> str:
    if not row["failed"]:
        return "-"
    return f"{row['found']} of {row['failed']} ({row['recall_low']:.2f} to {row['recall_high']:.2f})"


def _caption(name: str, study: StockStudy) -> str:
    last = study.first_seed + study.seeds - 1

    def values(of: str) -> str:
        return span(sorted({getattr(run, of) for run in study.runs}))

    ramps = "a linear ramp over all steps" if study.runs[0].warmup == study.runs[0].steps else ""
    warmup = ramps or f"{values('warmup')} steps of warm-up"
    return (
        f"`{name}`: width {values('width')}, batch {values('batch')}, 16 tokens (GPT-2: 32, ViT: 17), no "
        f"dropout, AdamW, gradients clipped to 1, {warmup} to {values('rate')}, "
        f"{values('steps')} steps, measured every {values('every')}; {study.seeds} seeds per case "
        f"({study.first_seed} to {last})."
    )
