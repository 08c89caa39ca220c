"""The gallery: what every picture shows in one sentence, its figure in the paper, and the page it is on."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An entry of the gallery.

    Attributes:
        shows: one sentence.
        page: the page that discusses it, in `docs`.
        paper: number of the figure of arXiv:2605.06169 that it redraws from stores of this project, if any.
    """

    shows: str
    page: str
    paper: str = ""


FRONT, AMPLIFICATION, MIXERS = (f"results/{name}.md" for name in ("front", "amplification", "mixers"))
RAMPS, CRITICAL, WHEN = (f"results/{name}.md" for name in ("training_ramps", "critical_rate", "when"))
HALF, CAUSES, EVENT = (f"results/{name}.md" for name in ("half_rate", "interventions", "event"))
TRAINABILITY = "results/trainability.md"
STABILISERS, WARNING, REAL = (f"results/{name}.md" for name in ("stabilisers", "warning", "real_data"))
STRUCTURE, LONG = "results/structure.md", "results/long_contexts.md"


PICTURES: dict[str, Picture] = {
    "loss_and_rho": Picture(
        shows="Loss and energy ratio of every block over training: a 400-block run that collapses, and its "
        "twin with MV-Split.",
        page=RAMPS,
        paper="2",
    ),
    "event": Picture(
        shows="The steps around a collapse from a healthy state: loss, modes of the writer gradients, "
        "query and key gradients, TCS and rho, with the paper's numbers.",
        page=EVENT,
        paper="3",
    ),
    "event_regression": Picture(
        shows="Amplification of the writer gradients against the coherence of tokens, block by block, at "
        "the event.",
        page=EVENT,
        paper="4",
    ),
    "merge_losses": Picture(
        shows="Loss and clipped gradient norm of plain, LayerScale and MV-Split networks under one ramp.",
        page=STABILISERS,
        paper="5",
    ),
    "merge_modes": Picture(
        shows="Mean and centered part of the writer gradients over training, by merge.",
        page=EVENT,
        paper="6",
    ),
    "standard_writers": Picture(
        shows="With writers of standard size deep blocks are homogeneous from the first step, where the "
        "front was predicted, and the mean part of their gradients is the larger one.",
        page=FRONT,
        paper="7",
    ),
    "event_report": Picture(
        shows="The report on a gradient spike: loss and gradient norm around it, and the 15 parameters "
        "with the largest gradients.",
        page=RAMPS,
        paper="9, 10",
    ),
    "timestep_probe": Picture(
        shows="Linear probes find the time in the mean of the image tokens of a network without a time "
        "embedding.",
        page=REAL,
        paper="11",
    ),
    "collapse_front": Picture(
        shows="The block at which untrained stacks collapse against the number of tokens, predicted and "
        "measured.",
        page=FRONT,
    ),
    "phase_diagram": Picture(
        shows="For which weights and FFN ratios untrained stacks collapse from every input, from some, or "
        "from none, with the stacks that were measured.",
        page=FRONT,
    ),
    "trainability": Picture(
        shows="Where the collapsed state attracts and how fast adjoints grow, over weights, FFN ratio and "
        "residual gain, with measured exponents; and where attention rows would freeze.",
        page=TRAINABILITY,
    ),
    "dynamic_front": Picture(
        shows="The front along training, measured, and predicted from what the current weights share.",
        page=FRONT,
    ),
    "depth_profiles": Picture(
        shows="Six observables of untrained stacks over depth, predicted and measured.",
        page=AMPLIFICATION,
    ),
    "token_law": Picture(
        shows="Amplification of the attention writer's gradient against tokens and depth, predicted and "
        "measured.",
        page=AMPLIFICATION,
    ),
    "long_contexts": Picture(
        shows="Front and amplification from 64 to 16,384 tokens, predicted to a million: the front settles, "
        "the amplification grows with T or, near the loss of unrelated tokens, does not.",
        page=LONG,
    ),
    "frame_means": Picture(
        shows="Token cosines of a video under MV-Split with one global mean or with a mean for every frame.",
        page=LONG,
    ),
    "structured_fronts": Picture(
        shows="Fronts of photographs, clusters and video, predicted from the cosines of all pairs of tokens "
        "and from their mean, against measured ones.",
        page=STRUCTURE,
    ),
    "structured_gradients": Picture(
        shows="TCS and amplification of both writers block by block for inputs with structure.",
        page=STRUCTURE,
    ),
    "token_regimes": Picture(
        shows="How the amplification grows with the number of tokens, block by block: near the loss in "
        "proportion to T or not at all, as adjoints have a common part or none.",
        page=AMPLIFICATION,
    ),
    "mixers": Picture(
        shows="Fronts of untrained stacks with other mixers and merges, predicted and measured.",
        page=MIXERS,
    ),
    "long_runs": Picture(
        shows="MV-Split at 400 and 1000 blocks for ten times as long as the plain twin lasts.",
        page=RAMPS,
    ),
    "critical_rate": Picture(
        shows="The learning rate at which a ramp collapses against depth and slope, with laws O1 and O2.",
        page=CRITICAL,
    ),
    "hazard_depth": Picture(
        shows="The same rate against depth, with the interval of single runs by the hazard (law O3).",
        page=WHEN,
    ),
    "survival": Picture(
        shows="Share of runs that have not collapsed, step by step, under schedules and ramps: forecast "
        "and measured.",
        page=WHEN,
    ),
    "schedule_risk": Picture(
        shows="Probability of a collapse by the end of three schedules against their peak rate.",
        page=WHEN,
    ),
    "half_rate": Picture(
        shows="Share of runs that collapse at a constant rate, and the rate at which half of them do, by "
        "depth.",
        page=HALF,
    ),
    "waiting_time": Picture(
        shows="Waiting times to a collapse at constant rates, and how well single predictors tell who "
        "collapses.",
        page=HALF,
    ),
    "interventions": Picture(
        shows="What moves the critical rate: interventions beside their controls, and stabilisers.",
        page=CAUSES,
    ),
    "mixers_training": Picture(
        shows="How seven mixers fail in training with each of four merges, under ramps and after a jump.",
        page="results/mixers_training.md",
    ),
    "event_causes": Picture(
        shows="What moves the collapse after a jump from a healthy state: interventions, controls and "
        "merges.",
        page=EVENT,
    ),
    "event_factor": Picture(
        shows="What decides how far G_mean grows at the event: batch, and distance above the half rate.",
        page=EVENT,
    ),
    "event_depth": Picture(
        shows="The event from 16 to 400 blocks, plain beside MV-Split from the same healthy state.",
        page=EVENT,
    ),
    "event_run": Picture(
        shows="One collapse at 16 blocks under a ramp, step by step, and which signal moved first.",
        page=EVENT,
    ),
    "event_400": Picture(
        shows="One collapse at 400 blocks after a jump, step by step.",
        page=EVENT,
    ),
    "margin": Picture(
        shows="The functional step before a collapse in 33 configurations, and critical rates predicted "
        "from pilots.",
        page=WARNING,
    ),
    "calibration": Picture(
        shows="The early warning: predicted probability of a collapse against the share that collapsed.",
        page=WARNING,
    ),
    "committor": Picture(
        shows="Share of the forks of a state that collapse, by its distance to the parent's onset.",
        page=WARNING,
    ),
    "fashion_samples": Picture(shows="Samples of a network trained on Fashion-MNIST.", page=REAL),
    "digits_samples": Picture(shows="Samples of a network trained on digits.", page=REAL),
}
"""Name of a picture, which is a file of `paper_figs` and, but for samples, a figure -> its entry."""


MISSING = (
    "Figs. 1, 8 and 12 are not redrawn. The spread of the loss over processes in Figs. 9 and 10 has no "
    "counterpart in a run on one process."
)
"""What the gallery says of the paper's other figures."""


def gallery(_: Path) -> str:
    """The gallery as Markdown, for a generated block of a page in `docs`."""
    paper = {name: of for name, of in PICTURES.items() if of.paper}
    own = {name: of for name, of in PICTURES.items() if not of.paper}
    lines = ["## Figures of the paper, from stores of this project", "", MISSING]
    lines += [line for entry in paper.items() for line in _entry(*entry)]
    lines += ["", "## Other figures"]
    return "\n".join(lines + [line for entry in own.items() for line in _entry(*entry)])


def _entry(name: str, of: Picture) -> list[str]:
    number = f"**Fig{'s' * (',' in of.paper)}. {of.paper}.** " if of.paper else ""
    link = f"[{of.page.removeprefix('results/').removesuffix('.md').replace('_', ' ')}]({of.page})"
    return ["", f"{number}{of.shows} See {link}.", "", f"![{name}](../paper_figs/{name}.png)"]
