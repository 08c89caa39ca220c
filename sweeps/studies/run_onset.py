"""The measured onset of a training run as a document: label, alarms and evidence."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from meanmode.sim.onset.detector import watched
from meanmode.sim.onset.verdict import verdict
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import find_run, is_run, open_logged, open_run
from meanmode.sweeps.studies.rows import finite

SIZES = ("depth", "width", "heads", "tokens", "side", "patch", "text_tokens", "merge", "batch", "seed")
"""Fields of a configuration that are shown with the result."""


def onset_document(path: Path) -> dict[str, Any]:
    """Onset step and kind, alarms and evidence of a run (None where there is none), and what they rest on.

    `verdict` is the label in words; `grade` names the signals that were logged, `cannot_say` what these leave
    open, and `notes` what was noticed in a run without a failure. If the run stored no alarms, for example
    because no detector watched it, the detector is run now.

    Raises:
        StoreError: no readable run.
    """
    return document_of_run(open_run(path))


def document_of_run(run: xr.Dataset) -> dict[str, Any]:
    """The document of `onset_document`, of an opened run.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`.
    """
    found = verdict(run)
    seen, noticed = watched(run)
    raised = _stored_alarms(run) or [alarm.document() for alarm in seen]
    failed = found.onset.step is not None or bool(raised)
    shown = ({name: of.get(name) for name in ("step", "signal", "value", "kind")} for of in raised)
    return {
        "onset_step": found.onset.step,
        "onset_kind": found.onset.kind,
        "alarms": [finite(of) for of in shown],
        "evidence": found.onset.evidence,
        "verdict": found.words,
        "grade": found.grade,
        "cannot_say": list(found.cannot_say),
        "notes": [*found.remarks, *([] if failed else (f"step {step}: {text}" for step, text in noticed))],
    }


def refuse_runs(paths: Sequence[Path], command: str, takes: str) -> None:
    """Refuse single runs where a command takes stores of many.

    Raises:
        StoreError: one of the paths is a run.
    """
    for path in paths:
        if is_run(path):
            raise StoreError(f"{path} is a single run: mms {command} takes {takes}; for a run, use mms onset")


def _stored_alarms(run: xr.Dataset) -> list[dict[str, Any]]:
    """Alarms that were raised during the run, also at abandoned steps; autopsies do not count."""
    events = [event.get("alarm", event) for event in json.loads(run.attrs["events"])]
    return [event for event in events if "signal" in event and "largest" not in event]


def onset_lines(path: Path, document: dict[str, Any]) -> list[str]:
    """Text above the table: the run and its sizes, the label, alarms, notes, and what cannot be said."""
    lines = [f"{path}: {_sizes(path)}", document["verdict"]]
    for alarm in document["alarms"]:
        value = alarm["value"]
        shown = f"{value:.4g}" if isinstance(value, int | float) else "not finite" if value is None else value
        kind = f"{alarm['kind']}, " if alarm["kind"] else ""
        lines.append(f"alarm at step {alarm['step']}: {kind}{alarm['signal']} {shown}")
    lines += [f"note: {text}" for text in document["notes"]]
    if document["cannot_say"]:
        lines.append(f"judged by {document['grade']}")
    return lines + [f"cannot say {text}" for text in document["cannot_say"]]


def _sizes(path: Path) -> str:
    """The logged steps of a run, and the sizes found at any level of its configuration."""
    group, steps = open_logged(find_run(path), "r")
    stated: dict[str, Any] = {}
    parts = [json.loads(str(group.attrs.get("configuration", "{}")))]
    while parts:
        fields = parts.pop(0)
        parts += [value for value in fields.values() if isinstance(value, dict)]
        stated = {**{name: fields[name] for name in SIZES if name in fields}, **stated}
    shown = (f"{name} {stated[name]}" for name in SIZES if name in stated)
    return ", ".join([f"steps {steps.start} to {steps.stop - 1}", *shown])


def evidence_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The evidence as rows of a table, in the order in which the signals moved; unmoved ones last."""
    moved = document["evidence"].items()
    in_order = sorted(
        moved, key=lambda item: math.inf if item[1]["first_step"] is None else item[1]["first_step"]
    )
    return [
        {"signal": signal, "first_step": "-" if found["first_step"] is None else str(found["first_step"])}
        | {"ratio": found["ratio"]}
        for signal, found in in_order
    ]
