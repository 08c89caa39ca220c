"""The page as one HTML file: template, style and script are files of the package, and nothing is loaded."""

import base64
import json
import math
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from bokeh.resources import Resources

from meanmode.sim.store.destination import check_writable
from meanmode.sim.store.files import StoreError, StoreExistsError, partial_path, reason, write_whole
from meanmode.sweeps.report.contents import Subject
from meanmode.sweeps.report.drawing import draw
from meanmode.sweeps.report.reduction import SAID_OF_LINES
from meanmode.sweeps.report.still_picture import still_picture

GENERATOR = "mms report"
"""What a page says of its origin; only such a file is overwritten."""

TEMPLATE = "template"
"""Folder of the package with the parts of the page."""

HEAD = 4096
"""Bytes at the beginning of a file in which its origin is looked for."""


def check_destination(out: Path) -> None:
    """Refuse a path at which no report can be written, or where something else would be overwritten.

    Raises:
        StoreExistsError: something that is no report is there.
        StoreError: nothing can be written there.
    """
    if out.is_dir():
        raise StoreExistsError(f"{out} is a folder: choose another --out, such as {out / 'report.html'}")
    if out.exists():
        with out.open("rb") as file:
            head = file.read(HEAD)
        if f'name="generator" content="{GENERATOR}"'.encode() not in head:
            raise StoreExistsError(f"{out} already exists and is no report: choose another --out")
    elif not out.absolute().parent.is_dir():
        raise StoreError(f"{out} cannot be written ({out.parent} is no folder): choose another --out")
    check_writable(out)


def write_report(subjects: Sequence[Subject], out: Path, *, reload: int = 0) -> None:
    """Write the page of some subjects; it replaces an older one whole or not at all.

    Args:
        subjects: what it shows.
        out: the file.
        reload: seconds after which the page loads itself anew; 0 for never.

    Raises:
        StoreError: the disk is full, or another error of the file system; an older page is then unchanged.
    """
    content = page(subjects, reload=reload).encode("utf-8", "replace")
    try:
        write_whole(out, content, partial_path(out))
    except OSError as error:
        raise StoreError(f"{out} could not be written ({reason(error)}): nothing was changed") from error


def page(subjects: Sequence[Subject], *, reload: int = 0) -> str:
    """The page as text. Everything from a file is escaped, and a rule of the page forbids all requests."""
    drawn = draw(subjects)
    folder = files("meanmode.sweeps.report") / TEMPLATE
    texts = {name: (folder / f"report.{name}").read_text("utf-8") for name in ("html.j2", "css", "js")}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["cell"] = _cell
    stills = [still_picture(subject) for subject in subjects]
    names = ", ".join(subject.name for subject in subjects[:3])
    return environment.from_string(texts["html.j2"]).render(
        title=f"{names}{' and others' if len(subjects) > 3 else ''}: Mean Mode report",
        generator=GENERATOR,
        css=texts["css"],
        js=texts["js"],
        bokeh="\n".join(Resources(mode="inline", components=["bokeh"]).js_raw),
        document=_embedded(drawn.document),
        script=_embedded({**drawn.script, "roots": drawn.roots}),
        subjects=subjects,
        stills=["" if still is None else base64.b64encode(still).decode() for still in stills],
        lines_said=SAID_OF_LINES,
        made=time.strftime("%Y-%m-%d %H:%M:%S"),
        version=version("mean-mode-screaming"),
        reload=reload,
    )


def _embedded(document: Any) -> str:
    """JSON that neither ends a script element nor begins a comment in one."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _cell(value: Any) -> str:
    """A cell of a table as text; empty where nothing is known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
