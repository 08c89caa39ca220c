"""The registry of the forms a log may have: how each is recognised, read, and explained."""

from collections.abc import Callable
from dataclasses import dataclass

from meanmode.sim.imported import boxed_tables, csv_tables, json_documents, json_lines, text_lines, viewer
from meanmode.sim.imported.log_text import LogText
from meanmode.sim.imported.logged_table import LoggedTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A form of text logs.

    Attributes:
        name: its name in messages and stores.
        explained: what such a log looks like.
        recognise: whether a text has this form.
        parse: adds the rows of a text to a table.
    """

    name: str
    explained: str
    recognise: Callable[[LogText], bool]
    parse: Callable[[LogText, LoggedTable], None]


FORMS = (
    Form(
        name="viewer",
        explained="the published viewer's page or its JSON",
        recognise=viewer.recognise,
        parse=viewer.parse,
    ),
    Form(
        name="JSON lines",
        explained='one object per line: {"step": 1, "loss": 0.5}',
        recognise=json_lines.recognise,
        parse=json_lines.parse,
    ),
    Form(
        name="JSON document",
        explained="trainer_state.json, a list of rows, or lists by name",
        recognise=json_documents.recognise,
        parse=json_documents.parse,
    ),
    Form(
        name="boxed tables",
        explained="| loss | 0.5 | between dashed lines",
        recognise=boxed_tables.recognise,
        parse=boxed_tables.parse,
    ),
    Form(
        name="CSV",
        explained="a line of names, then rows of numbers",
        recognise=csv_tables.recognise,
        parse=csv_tables.parse,
    ),
    Form(
        name="text lines",
        explained="(step=0000100) Train Loss: 0.5, or any line with a step and values",
        recognise=text_lines.recognise,
        parse=text_lines.parse,
    ),
)
"""In the order in which they are tried."""


def form_of(text: LogText) -> Form | None:
    """The form of a text; None if it is no log."""
    return next((form for form in FORMS if form.recognise(text)), None)
