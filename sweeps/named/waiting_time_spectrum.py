"""The first steps of the runs of waiting times again, for the spectral scores of their networks."""

from meanmode.sweeps.engine.spectrum_study import SpectrumStudy
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.named.waiting_time import WAITING_TIME, WAITING_TIME_LOW

STEPS = 50
"""Step after which a run is scored: the last one that other predictors use."""


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
