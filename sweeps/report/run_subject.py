"""A run as a subject of a report: opened, judged, and laid out in panels, maps and tables."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr

from meanmode.dit.train.autopsy_text import as_text
from meanmode.sim.onset.detector import MAX_LOGIT
from meanmode.sim.onset.training_onset import SIGNALS
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import find_run, open_run, planned_steps, run_sizes, run_variables
from meanmode.sweeps.report.block_maps import block_maps
from meanmode.sweeps.report.contents import LONGEST_TEXT, Subject, Table, rows_table, shown
from meanmode.sweeps.report.depth_front import DepthFront
from meanmode.sweeps.report.next_steps import after_run
from meanmode.sweeps.report.run_findings import (
    LEAST_BLOCKS,
    depth_table,
    has_learned,
    order_table,
    run_facts,
    sentence,
)
from meanmode.sweeps.report.timelines import chosen, timelines
from meanmode.sweeps.studies.hazards.run_warning import warning_of_run
from meanmode.sweeps.studies.run_onset import document_of_run

KNOWN = {*SIGNALS, MAX_LOGIT, "tcs_image"}
"""Observables of blocks that the verdict and the timelines need."""

MOST_REPORTS, MOST_FIELDS, MOST_ALARMS = 20, 300, 50
"""Event reports, fields of the configuration, and alarms that are marked and listed."""


def run_subject(
    path: Path, *, name: str, pixels: int, groups: int, kind: str = "a run", notes: tuple[str, ...] = ()
) -> Subject:
    """What a report says of a run.

    Args:
        path: the store, or the folder of the run.
        name: what the user calls it.
        pixels: number of pixels of its maps together.
        groups: number of groups of points of a curve.
        kind: what it is, in words.
        notes: what was noticed when it was read.

    Raises:
        StoreError: no readable run, or one without any row.
    """
    every = run_variables(path)
    read = chosen(every)
    sizes = run_sizes(path, read)
    signals = [of for of in read if tuple(sizes[of]) == ("step",) or of in KNOWN]
    run = open_run(path, signals if KNOWN.intersection(signals) else read)
    if not run.sizes["step"]:
        raise StoreError(f"{name} has no logged step yet: try again when it has")
    document = document_of_run(run)
    depth = DepthFront(run)
    warning = warning_of_run(run)
    chances = warning["rows"]
    panels, undrawn = timelines(run, chances, groups)
    step, imported = document["onset_step"], "import" in run.attrs
    last = int(run["step"].values[-1])
    planned = last if imported else planned_steps(find_run(path))
    unfinished = last < planned
    more = [*_more(warning, undrawn, len(read), len(every)), *_unmarked(len(document["alarms"]))]
    return Subject(
        name=shown(name, 200),
        kind=f"{kind} of {run.sizes['step']:,} logged steps"
        + (f", {last} of {planned}" if unfinished else ""),
        verdict=sentence(run, document, so_far=unfinished),
        tone="bad" if step is not None else "good" if has_learned(run) else "open",
        facts=tuple(run_facts(run, document, depth)),
        cannot_say=tuple(shown(text, 300) for text in _cannot_say(document)),
        notes=tuple(shown(text, 300) for text in (*notes, *document["notes"], *more)),
        panels=tuple(panels),
        onset=step,
        alarms=tuple(alarm["step"] for alarm in document["alarms"][:MOST_ALARMS]),
        maps=block_maps(path, sizes, depth, (int(run["step"].values[0]), last), pixels),
        tables=tuple(_tables(run, document, depth)),
        reports=tuple(_reports(run)),
        next_steps=tuple(
            after_run(
                name,
                document,
                imported=imported,
                ours="origin" in run.attrs,
                unfinished=unfinished,
            )
        ),
        unfinished=unfinished,
    )


def _more(warning: dict[str, Any], undrawn: str, read: int, every: int) -> Iterator[str]:
    """Notes on what is not drawn or read, and on the probability of a collapse."""
    if undrawn:
        yield undrawn
    if read < every:
        yield f"{read} of {every:,} logged quantities were read, those with known names first."
    if warning["rows"]:
        yield from (f"The probability of a collapse: {text}." for text in warning["notes"])


def _unmarked(alarms: int) -> Iterator[str]:
    """A note if there are more alarms than are marked and listed."""
    if alarms > MOST_ALARMS:
        yield f"The first {MOST_ALARMS} of {alarms:,} alarms are marked and listed."


def _cannot_say(document: dict[str, Any]) -> list[str]:
    """What the verdict leaves open; of a collapse also its cause."""
    cause = ["why: the label is a signature, not a cause"] if document["onset_kind"] == "mean_mode" else []
    return [*document["cannot_say"], *cause]


def _tables(run: xr.Dataset, document: dict[str, Any], depth: DepthFront) -> Iterator[Table]:
    if document["evidence"]:
        yield order_table(document)
    if document["onset_kind"] == "mean_mode" and len(depth.blocks) >= LEAST_BLOCKS:
        yield depth_table(depth, document["onset_step"])
    if document["alarms"]:
        alarms = [{**alarm, "signal": shown(alarm["signal"])} for alarm in document["alarms"]]
        yield rows_table("Alarms of the detector", alarms, most=MOST_ALARMS)
    yield configuration_table(run.attrs)


def configuration_table(attributes: dict[str, Any]) -> Table:
    """The configuration of a run or store, one row per field."""
    try:
        fields = list(_flat(json.loads(str(attributes.get("configuration", "{}")))))
    except (ValueError, RecursionError):
        fields = []
    about = [
        {"field": of, "value": shown(attributes[of], 100)} for of in ("version", "commit") if of in attributes
    ]
    rows = [{"field": shown(name), "value": shown(value, 200)} for name, value in fields]
    return rows_table("Configuration", rows + about, most=MOST_FIELDS, folded=True)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of a nested configuration, with dotted names."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif value not in (None, {}, []):
        yield name, value


def _reports(run: xr.Dataset) -> Iterator[tuple[str, str]]:
    """Title and text of the event reports of a run; one that is damaged is shown as it is stored."""
    found = [
        event for event in json.loads(run.attrs["events"]) if isinstance(event, dict) and "largest" in event
    ]
    for event in found[:MOST_REPORTS]:
        try:
            text = as_text(event)
        except (LookupError, TypeError, ValueError, AttributeError):
            text = json.dumps(event, indent=1)
        text = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
        title = f"step {event.get('step')}: {event.get('signal')}"
        yield shown(title), text[: 2 * LONGEST_TEXT]
    if len(found) > MOST_REPORTS:
        yield f"{len(found) - MOST_REPORTS} more", f"The first {MOST_REPORTS} of {len(found)} are shown."
