"""The committor: which share of the forks of a state collapses, by its distance to the parent's onset."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies
from meanmode.paper_figs.shared.style import ABOVE, COLOURS, MARKERS, PAGE
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
    figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, marker, within in zip(COLOURS, MARKERS, (SOON, BETWEEN, *sizes["horizon"]), strict=False):
        rows = share_rows(states_of(data, within), within)
        left.errorbar(
            [row["offset"] for row in rows],
            [row["measured"] for row in rows],
            yerr=[ERRORS * row["measured_sem"] for row in rows],
            marker=marker,
            ls="none",
            capsize=1.8,
            color=colour,
            label=f"within {within} steps",
        )
    _finish(left, sorted(states["offset"].unique()))
    offset, soon = states["offset"], states["collapsed"]
    points = right.scatter(states[best], soon, c=offset, cmap="cividis_r", norm="symlog", s=10)
    figure.colorbar(points, ax=right, label="steps before the parent's onset")
    right.set(xlabel=f"{best} of the state", ylabel=f"share that collapses within {SOON} steps")
    right.set_title(f"the best-ranking of {len(ranks)} observables")
    tokens = f"{span(sizes['image_tokens'])} + {span(sizes['text_tokens'])}"
    caption(
        figure,
        f"Measured. Left: mean over {len(sizes['seed'])} parents with its 90 % interval; right: one "
        f"point per state. {span(sizes['forks'])} forks of each of {len(states)} states; width "
        f"{span(sizes['width'])}, {span(sizes['depth'])} blocks, {tokens} tokens, batch "
        f"{span(sizes['batch'])}, {rate_of(sizes)}.",
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
    panel.legend(ncols=3, **ABOVE)
