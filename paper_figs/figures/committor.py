"""The committor: which share of the forks of a state collapses, by its distance to the parent's onset."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import COLOURS

HORIZONS = (20, 50, 150)
"""Steps within which a fork collapses."""


SOON = 20
"""The horizon of the panel on the right."""


STUDIES = ("committor",)


OBSERVABLES = ("loss", "tcs_image", "grad_norm", "functional_step", "g_mean", "g_ctr", "grad_rms_q")


def draw(studies: Mapping[str, xr.Dataset]) -> Figure:
    """P(collapse | state) against the distance to the onset, and against the best-ranking observable.

    Args:
        studies: the committor's store, along `cell`.
    """
    data = studies["committor"]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    frame = data[["parent", "offset", "fork_onset", *OBSERVABLES]].to_dataframe().reset_index(drop=True)
    offsets = sorted(frame["offset"].unique())
    for colour, horizon in zip(COLOURS, HORIZONS, strict=False):
        share = (frame["fork_onset"] <= horizon).groupby([frame["parent"], frame["offset"]]).mean().unstack()
        error = share.std(ddof=1) / len(share) ** 0.5
        left.errorbar(
            offsets,
            share.mean()[offsets],
            yerr=1.645 * error[offsets],
            marker="o",
            ls="none",
            capsize=3,
            color=colour,
            label=f"within {horizon} steps",
        )
    left.set_xscale("symlog", linthresh=5)
    left.set_xticks(offsets, [f"{offset:g}" for offset in offsets])
    left.invert_xaxis()
    left.set(
        xlabel="steps before the parent's onset",
        ylabel="share of the forks that collapse",
        ylim=(-0.03, 1.05),
    )
    left.legend(loc="lower right")
    states = (
        frame.assign(soon=(frame["fork_onset"] <= SOON).astype(float)).groupby(["parent", "offset"]).mean()
    )
    ranks = {name: spearmanr(states[name], states["soon"]).statistic for name in OBSERVABLES}
    best = max(ranks, key=lambda name: abs(ranks[name]))
    points = right.scatter(
        states[best],
        states["soon"],
        c=states.index.get_level_values("offset"),
        cmap="cividis_r",
        norm="symlog",
    )
    figure.colorbar(points, ax=right, label="steps before the parent's onset")
    right.set(xlabel=f"{best} of the state", ylabel=f"share that collapses within {SOON} steps")
    right.set_title(
        f"of {len(OBSERVABLES)} observables the best-ranking: rank correlation {ranks[best]:.2f}", fontsize=9
    )
    parents, forks = frame["parent"].nunique(), int(data["fork"].max()) + 1
    figure.suptitle("The committor: states forked with new data orders", fontsize=10)
    caption(
        figure,
        f"Points: measured, mean over {parents} parents and its 90 % interval; {forks} forks of each of "
        f"{len(states)} states; 16 blocks of width 16, 16 image + 4 text tokens, batch 4, rate 0.0165.",
        f"Right: one point a state. Rank correlations with the share within {SOON} steps: "
        + ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.items())
        + ". Nothing is fitted or predicted.",
    )
    return figure
