"""The measured onset of a training run as a document: label, alarms and evidence."""

import json
import math
from pathlib import Path
from typing import Any

import xarray as xr

from meanmode.sim.onset.detector import alarms
from meanmode.sim.onset.training_onset import training_onset
from meanmode.sim.store.run_reader import find_run, open_logged, open_run
from meanmode.sweeps.studies.rows import finite

SIZES = ("depth", "width", "heads", "tokens", "side", "patch", "text_tokens", "merge", "batch", "seed")
"""Fields of a configuration that are shown with the result."""


LABELS = {"mean_mode": "collapse with the mean-mode signature", "plain_divergence": "plain divergence"}
"""Kind of onset -> its text."""


def onset_document(path: Path) -> dict[str, Any]:
    """Onset step and kind, alarms and evidence of a run; None where there is none.

    If the run stored no alarms, for example because no detector watched it, the detector is run now.

    Raises:
        StoreError: no readable run.
        ValueError: the run logged no loss or no TCS.
    """
    run = open_run(path)
    onset = training_onset(run)
    raised = _stored_alarms(run) or [alarm.document() for alarm in alarms(run)]
    return {
        "onset_step": onset.step,
        "onset_kind": onset.kind,
        "alarms": [
            finite({"step": of["step"], "signal": of["signal"], "value": of.get("value")}) for of in raised
        ],
        "evidence": onset.evidence,
    }


def _stored_alarms(run: xr.Dataset) -> list[dict[str, Any]]:
    """Alarms that were raised during the run, also at abandoned steps; autopsies do not count."""
    events = [event.get("alarm", event) for event in json.loads(run.attrs["events"])]
    return [event for event in events if "signal" in event and "largest" not in event]


def onset_lines(path: Path, document: dict[str, Any]) -> list[str]:
    """Text above the table: the run and its sizes, the label, then one line per alarm."""
    kind, step = document["onset_kind"], document["onset_step"]
    label = f"{LABELS[kind]}, onset at step {step}" if kind in LABELS else "no collapse and no divergence"
    lines = [f"{path}: {_sizes(path)}", label]
    for alarm in document["alarms"]:
        value = alarm["value"]
        shown = f"{value:.4g}" if isinstance(value, int | float) else "not finite" if value is None else value
        lines.append(f"alarm at step {alarm['step']}: {alarm['signal']} {shown}")
    return lines


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
