"""Generated table of a splitting study: the exits of every parent, and how many of them are silent."""

from pathlib import Path

import numpy as np

from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.splitting.splitting_study import stored_splitting
from meanmode.sweeps.studies.events.silence import BAND, EARLIER, LEVELS, RECENT, SOON, Interval, Silence
from meanmode.sweeps.studies.events.silence import silence as silence_of
from meanmode.sweeps.studies.markdown import pipe_table, with_ends
from meanmode.sweeps.studies.results.sizes import captioned, store
from meanmode.sweeps.studies.run_sizes import rate_of, span, splitting_sizes


def silence(data: Path, name: str) -> str:
    """Exits near the threshold by parent, and the share of silent exits by either level of the loss."""
    cells = open_cells(store(data, name))
    found, study, sizes = silence_of(cells), stored_splitting(cells.attrs), splitting_sizes(cells)
    by_parent = pipe_table(
        (
            *("seed", "share of each stage that crossed", "P(collapse)", "exits (independent)"),
            *("steps to the onset", f"loss {EARLIER} steps before over that before the jump"),
            "steps from the band to the onset",
        ),
        [_parent_line(found, parent) for parent in found.chances],
    )
    by_level = pipe_table(
        ("loss compared with that", "silent exits (90 %)", "independent exits", "steps that would pass"),
        [_level_line(found, level) for level in LEVELS],
    )
    levels = ", ".join(f"{level:g}" for level in study.levels)
    caption = (
        f"`{name}`: {span(sizes['depth'])} blocks, width {span(sizes['width'])}, "
        f"{span(sizes['image_tokens'])} image + {span(sizes['text_tokens'])} text tokens, batch "
        f"{span(sizes['batch'])}, {rate_of(sizes)}; {len(study.parents)} seeds, {study.trajectories} "
        f"trajectories per stage, split where G_mean reaches {levels} times its healthy level; collapse "
        f"within {study.horizon} steps: P {_shown(found.probability)}."
    )
    statistics = (
        f"Silent: the loss (median of three steps) is within {BAND:.0%} of its level {EARLIER} steps before "
        f"the onset, and leaves the band at most {SOON} steps before it. Level before the exit: median of "
        f"the steps {RECENT[-1]} to {RECENT[0]} before the onset, for exits that have them. Shares are "
        "weighted by the probability of the exits, with 90 % bootstrap intervals over seeds; independent "
        "exits descend from different trajectories of the first stage. The last column is the share of the "
        "steps before the first level at which an exit would count as silent."
    )
    return captioned(by_parent, by_level, caption, statistics)


def _parent_line(found: Silence, parent: int) -> list[str]:
    chances = found.chances[parent]
    exits = found.exits[found.exits["parent"] == parent]
    line = [
        str(parent),
        ", ".join(f"{chance:.2g}" for chance in chances),
        f"{np.prod(chances):.2g}",
        f"{len(exits)} ({exits['root'].nunique()})",
    ]
    medians = (("onset", ".0f"), (f"earlier {LEVELS[0]}", ".2f"), (f"outside {LEVELS[0]}", ".0f"))
    return line + [format(exits[name].median(), form) if len(exits) else "-" for name, form in medians]


def _level_line(found: Silence, level: str) -> list[str]:
    judged = found.judged(level)
    silent, independent = found.counts(level)
    count = f"{int(judged[f'silent {level}'].sum())} of {len(judged)}"
    return [
        level,
        f"{count}; share {_shown(found.silent[level])}",
        f"{silent} of {independent}",
        f"{found.passing[level]:.0%}",
    ]


def _shown(of: Interval) -> str:
    ends = [None if np.isnan(value) else value for value in (of.value, of.low, of.high)]
    return with_ends(*ends, ".2g")
