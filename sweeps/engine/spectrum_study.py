"""`SpectrumStudy`: spectral scores of the networks of a study, at initialisation and after some steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from meanmode.sim.store.files import Variable
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.plan import Layout, Measured
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.engine.study_variables import SERIES
from meanmode.sweeps.engine.trained import StudyCell

SHARE = "mean share of |eigenvalues| of a block in [0.90, 1.05]"


SCORES = {
    f"koopman_share_{when}{suffix}": Variable(definition=f"{SHARE}, {at}{', ' + kept if kept else ''}")
    for when, at in (("start", "at standard initialisation"), ("trained", "behind the last step"))
    for suffix, kept in (("", "residuals up to 0.1"), ("_unfiltered", "whatever the residual"))
}


@dataclass(frozen=True, kw_only=True)
class SpectrumStudy(Study):
    """A study whose runs are not labelled but scored by `meanmode.dit.evaluate.koopman_scores`."""

    kind: ClassVar[str] = "spectrum_study"

    def layout(self) -> Layout:
        """The scores, and the losses by which the runs can be matched to those of another study."""
        return replace(super().layout(), variables={"loss": SERIES["loss"], **SCORES})

    def measure(self) -> Callable[[Sequence[tuple[int, StudyCell]]], Measured]:
        """A picklable function that trains and scores the cells of a unit."""
        return partial(scored, device=self.device)


def scored(cells: Sequence[tuple[int, StudyCell]], *, device: str) -> Measured:
    """Losses and scores of the runs of one ensemble."""
    from meanmode.dit.evaluate.koopman_scores import spectral_scores

    measured, scores = spectral_scores([cell.run for _, cell in cells], device=device)
    return [
        (
            {
                "loss": run.series["loss"].values,
                **{name: np.array(values[number]) for name, values in scores.items()},
            },
            DONE,
        )
        for number, run in enumerate(measured)
    ]
