"""Generated tables of schedules and optimisers: half rates of groups, and averages of the weights."""

from pathlib import Path

from meanmode.sweeps.engine.store_kinds import open_study
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.event_tables import estimate
from meanmode.sweeps.studies.results.sizes import captioned, store, studies_caption
from meanmode.sweeps.studies.training.averages import average_rows
from meanmode.sweeps.studies.training.failures import constant_rate_runs, rate_failures


def rate_groups(data: Path, name: str, baseline: str) -> str:
    """Collapses by rate and half rates of the groups of a study at constant rates, over those of one group.

    Args:
        data: folder of the stores.
        name: the study; a group is the cases whose labels agree up to the last comma.
        baseline: the group that the others are compared with, with `_` for spaces.
    """
    found = rate_failures(constant_rate_runs(open_study(store(data, name))), baseline.replace("_", " "))
    rates = sorted({rate for of in found.values() for rate in of.at})
    lines = [
        [group, *(str(of.at[rate]) for rate in rates), estimate(of.half, ".3g"), estimate(of.ratio, ".2f")]
        for group, of in found.items()
    ]
    heads = ("runs", *(f"collapses at {rate:g}" for rate in rates), "half rate", "over the first (90 %)")
    statistics = "Half rate: a logistic in ln rate, 90 % bootstrap intervals, seeds resampled together."
    return captioned(pipe_table(heads, lines), studies_caption(data, [name]), statistics)


def weight_averages(data: Path, name: str) -> str:
    """Moving averages of the weights across a collapse: whether they become homogeneous, and their loss."""
    rows = average_rows(open_study(store(data, name)))
    lines = [
        [
            f"{row['decay']:g}",
            f"{row['collapsed']} of {row['runs']}",
            f"{row['homogeneous']} of {row['collapsed']}",
            "-" if row["delay"] != row["delay"] else f"{row['delay']:.0f}",
            *(f"{row[of]:.2f}" for of in ("weights_onset", "average_onset", "weights_end", "average_end")),
        ]
        for row in rows
    ]
    heads = (
        *("decay", "weights collapse", "averages with TCS above .9", "steps after the onset"),
        *("loss of weights at the onset", "of the average", "loss of weights at the end", "of the average"),
    )
    statistics = (
        f"Medians over the runs that collapse, followed {rows[0]['followed']:.0f} steps after the onset; "
        "losses over the median of the last 10 steps before the jump. Averages are measured on the batch of "
        "the step, after its update."
    )
    return captioned(pipe_table(heads, lines), studies_caption(data, [name]), statistics)
