"""The published viewer: a page, or its JSON, with every quantity as steps and values."""

import json
import re
from typing import Any

import numpy as np

from meanmode.sim.imported.log_text import LogText
from meanmode.sim.imported.logged_table import LoggedTable

MARKER = re.compile(r"window\.TRAINING_DATA\s*=\s*")
"""What precedes the document in the page."""


def recognise(text: LogText) -> bool:
    """Whether the text is the page, or a document with scalars."""
    start = text.head.lstrip()
    return bool(MARKER.search(text.head)) or (start.startswith("{") and '"scalars"' in text.head)


def parse(text: LogText, table: LoggedTable) -> None:
    """Add the values of a document; null is NaN.

    It is {"config", "scalars": {name: {"s": steps, "v": values}}, "layerwise": {name: {layer: the same}}}.

    Raises:
        ValueError: the document is truncated, or lacks its parts.
    """
    document = _document(text)
    table.config = document["config"]
    given = dict(document["scalars"])
    for name, layers in document["layerwise"].items():
        if not isinstance(layers, dict) or not all(layer.isdecimal() for layer in layers):
            table.notes.append(f"{name} is by layer but its keys are no layer numbers: it was left out")
            continue
        table.layerwise.add(name)
        given |= {f"{name}/{layer}": values for layer, values in layers.items()}
    for name, values in given.items():
        _put(table, name, values)


def _document(text: LogText) -> dict[str, Any]:
    """Parse the JSON object at the start of the text, or after the marker, and ignore what follows it."""
    content = text.whole()
    marker = MARKER.search(content)
    try:
        document, _ = json.JSONDecoder().raw_decode(content[marker.end() if marker else 0 :].lstrip())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{text.path} is truncated or damaged: {error.msg} at character {error.pos} of its JSON; get it "
            "again"
        ) from error
    except RecursionError:
        raise ValueError(f"{text.path} is JSON nested too deep to be read") from None
    if not isinstance(document, dict) or not isinstance(document.get("scalars"), dict):
        raise ValueError(f"{text.path} is not a viewer document: it has no scalars")
    for name in ("config", "layerwise"):
        if not isinstance(document.setdefault(name, {}), dict):
            raise ValueError(f"{text.path} is not a viewer document: its {name} is not an object")
    return document


def _put(table: LoggedTable, name: str, given: Any) -> None:
    """Add one quantity; one that is no pair of equally many numbers is left out with a note."""
    try:
        steps, values = (np.asarray(given[key], np.float64) for key in ("s", "v"))
    except (KeyError, TypeError, ValueError):
        table.notes.append(f'{name} is not {{"s": steps, "v": values}} of numbers and was left out')
        return
    if steps.ndim != 1 or steps.shape != values.shape:
        table.notes.append(f"{name} has {steps.size} steps and {values.size} values and was left out")
        return
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        table.row(1, (("step", step), (name, value)))
