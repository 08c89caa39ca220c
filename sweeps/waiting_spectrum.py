"""The first steps of the waiting times' runs once more, for the spectral score of their networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sim.store import DONE, Variable
from sweeps.plan import Layout, Measured
from sweeps.study import SERIES, Study, StudyCell
from sweeps.waiting_time import WAITING_TIME, WAITING_TIME_LOW

STEPS = 50
"""Behind which a run is scored; those of the predictors that are read off its first steps."""

SHARE = "mean share of |eigenvalues| of a block in [0.90, 1.05]"
SCORES = {
    f"koopman_share_{when}{suffix}": Variable(definition=f"{SHARE}, {at}{', ' + kept if kept else ''}")
    for when, at in (("start", "at standard initialisation"), ("trained", "behind the last step"))
    for suffix, kept in (("", "residuals up to 0.1"), ("_unfiltered", "whatever the residual"))
}


@dataclass(frozen=True, kw_only=True)
class SpectrumStudy(Study):
    """A study whose runs are scored by `dit.spectrum` behind their last step, and not labelled."""

    def layout(self) -> Layout:
        """The losses, by which the runs are known again, and the scores."""
        return replace(super().layout(), variables={"loss": SERIES["loss"], **SCORES})

    def measure(self) -> Callable[[Sequence[tuple[int, StudyCell]]], Measured]:
        """What trains and scores the cells of a unit."""
        return partial(scored, device=self.device)


def scored(cells: Sequence[tuple[int, StudyCell]], *, device: str) -> Measured:
    """Losses and scores of runs that are one ensemble."""
    from dit.spectrum import spectral_scores

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


def spectrum_of(study: Study) -> SpectrumStudy:
    """The first `STEPS` steps of a study's runs, in the same ensembles."""
    return SpectrumStudy(
        name=f"{study.name}_spectrum",
        claim=f"spectral score of {study.name}, at standard initialisation and behind {STEPS} steps",
        base=study.base.with_fields({"steps": STEPS}),
        cases=study.cases,
        seeds=study.seeds,
        first_seed=study.first_seed,
        ensemble=study.ensemble,
        functional_every=0,
    )


WAITING_TIME_SPECTRUM = spectrum_of(WAITING_TIME)
WAITING_TIME_LOW_SPECTRUM = spectrum_of(WAITING_TIME_LOW)
