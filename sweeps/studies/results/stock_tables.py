"""Generated tables of watched models of other libraries: alarms, and which residual merges let them learn."""

from pathlib import Path

from meanmode.sim.onset.training_onset import BACK, LEARNED, WINDOW
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.stock.stock_study import StockStudy, stored_stock
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.sizes import captioned, store
from meanmode.sweeps.studies.rows import Row
from meanmode.sweeps.studies.run_sizes import span
from meanmode.sweeps.studies.stock.alarm_scores import MEASUREMENTS, stock_rows


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


def _found(row: Row) -> str:
    if not row["failed"]:
        return "-"
    return f"{row['found']} of {row['failed']} ({row['recall_low']:.2f} to {row['recall_high']:.2f})"


def _caption(name: str, study: StockStudy) -> str:
    last = study.first_seed + study.seeds - 1

    def values(of: str) -> str:
        return span(sorted({getattr(run, of) for run in study.runs}))

    return (
        f"`{name}`: width {values('width')}, batch {values('batch')}, 16 tokens (GPT-2: 32, ViT: 17), no "
        f"dropout, AdamW, gradients clipped to 1, {values('warmup')} steps of warm-up to {values('rate')}, "
        f"{values('steps')} steps, measured every {values('every')}; {study.seeds} seeds per case "
        f"({study.first_seed} to {last})."
    )
