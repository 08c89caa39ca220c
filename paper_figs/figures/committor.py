"""The committor: which share of the forks of a state collapses, by its distance to the parent's onset."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies
from meanmode.paper_figs.shared.style import COLOURS
from meanmode.sweeps.studies.committor import SOON, rank_rows, share_rows, states_of
from meanmode.sweeps.studies.run_sizes import committor_sizes, rate_of, span

BETWEEN = 50
"""A horizon between `SOON` and that of the study, in steps."""


ERRORS = 1.645
"""Standard errors on either side of a mean between which 90 % of a normal distribution lies."""


STUDIES = ("committor",)


def draw(studies: Studies) -> Figure:
    """P(collapse | state) against the distance to the onset, and against the best-ranking observable.

    Args:
        studies: the committor's store, along `cell`.
    """
    data = studies["committor"]
    sizes, states = committor_sizes(data), states_of(data, SOON)
    ranks = {row["observable"]: row["measured"] for row in rank_rows(states, SOON)}
    best = max(ranks, key=lambda name: abs(ranks[name]))
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, within in zip(COLOURS, (SOON, BETWEEN, *sizes["horizon"]), strict=False):
        rows = share_rows(states_of(data, within), within)
        left.errorbar(
            [row["offset"] for row in rows],
            [row["measured"] for row in rows],
            yerr=[ERRORS * row["measured_sem"] for row in rows],
            marker="o",
            ls="none",
            capsize=3,
            color=colour,
            label=f"within {within} steps",
        )
    _finish(left, sorted(states["offset"].unique()))
    offset, soon = states["offset"], states["collapsed"]
    points = right.scatter(states[best], soon, c=offset, cmap="cividis_r", norm="symlog")
    figure.colorbar(points, ax=right, label="steps before the parent's onset")
    right.set(xlabel=f"{best} of the state", ylabel=f"share that collapses within {SOON} steps")
    right.set_title(
        f"of {len(ranks)} observables the best-ranking: rank correlation {ranks[best]:.2f}", fontsize=9
    )
    figure.suptitle("The committor: states forked with new data orders", fontsize=10)
    caption(
        figure,
        f"Points: measured, mean over {len(sizes['seed'])} parents and its 90 % interval; "
        f"{span(sizes['forks'])} forks of each of {len(states)} states; {span(sizes['depth'])} blocks of "
        f"width {span(sizes['width'])}, {span(sizes['image_tokens'])} image + {span(sizes['text_tokens'])} "
        f"text tokens, batch {span(sizes['batch'])}, {rate_of(sizes)}.",
        f"Right: one point per state. Rank correlations with the share within {SOON} steps: "
        + ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.items())
        + ". Nothing is fitted or predicted.",
    )
    return figure


def _finish(panel: Axes, offsets: list[int]) -> None:
    """Distances to the onset from far to near."""
    panel.set_xscale("symlog", linthresh=5)
    panel.set_xticks(offsets, [f"{offset:g}" for offset in offsets])
    panel.invert_xaxis()
    panel.set(
        xlabel="steps before the parent's onset",
        ylabel="share of the forks that collapse",
        ylim=(-0.03, 1.05),
    )
    panel.legend(loc="lower right")
