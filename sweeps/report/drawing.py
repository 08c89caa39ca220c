"""All figures of a report as one Bokeh document, and what the script of the page must know of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.document import Document
from bokeh.layouts import gridplot

from meanmode.sweeps.report.contents import Subject
from meanmode.sweeps.report.map_plot import map_plot, scatter_plot
from meanmode.sweeps.report.timeline_plot import MOST_ALIGNED, Shared, timelines_plot


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The figures of a report.

    Attributes:
        document: the Bokeh document as JSON.
        roots: identifier of a root of the document -> identifier of the element that holds it.
        script: names of the models and the meaning of the maps, for the script of the page.
    """

    document: dict[str, Any]
    roots: dict[str, str]
    script: dict[str, Any]


def draw(subjects: Sequence[Subject]) -> Drawn:
    """Draw the subjects into elements `lines-N`, `map-N` and `scatter-N`, N the number of the subject."""
    document, roots = Document(), {}
    script: dict[str, Any] = {"lines": {}, "maps": {}}
    shared = Shared.over(subjects)
    every = list(dict.fromkeys(panel.title for subject in subjects for panel in subject.panels))
    for number, subject in enumerate(subjects):
        found: dict[str, Any] = {}
        if subject.panels and shared is not None:
            own = [panel.title for panel in subject.panels]
            titles = every if len(every) <= MOST_ALIGNED else own
            found["lines"], script["lines"][number] = timelines_plot(subject, number, titles, shared)
        if subject.maps is not None:
            found["map"], script["maps"][number] = map_plot(subject.maps, number, subject, shared)
        if subject.scatters:
            plots = [scatter_plot(of) for of in subject.scatters]
            rows = [plots[at : at + 2] for at in range(0, len(plots), 2)]
            found["scatter"] = gridplot(rows, sizing_mode="stretch_width", toolbar_location=None)
        for part, root in found.items():
            document.add_root(root)
            roots[root.id] = f"{part}-{number}"
    return Drawn(document=document.to_json(deferred=False), roots=roots, script=script)
