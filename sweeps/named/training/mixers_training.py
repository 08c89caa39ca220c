"""Does the collapse of training need softmax attention, and does MV-Split help without it?

Seven mixers, each with four merges. What the laws say beforehand:

* N8: softmax, uniform, linear and blended attention keep the mean of homogeneous tokens; A - I, a gate and
  the state space do not. By the front at initialisation the first three should collapse alike, the blend
  later, the others not at all.
* O2: a ramp collapses where the functional step reaches a threshold, and the mean is written by the FFN too,
  so that no attention is needed. `stabilisers` has A - I collapse at 1.14 of softmax's critical rate.

They disagree about A - I, the gate and the state space. The expectations below follow O2. (A first version of
the third study, with seeds from 2200 and more rates, was stopped unseen as too costly.)
"""

from collections.abc import Mapping
from typing import Any

from meanmode.dit.config.presets import MV_SPLIT
from meanmode.sweeps.engine.event_study import EventStudy
from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE
from meanmode.sweeps.named.event_jumps import FOLLOW, NARROW
from meanmode.sweeps.named.interventions import FROZEN_SPLIT

MIXERS = ("softmax", "uniform", "linear", "lazy", "a_minus_i", "gated", "state_space")
"""The mixers; `lazy` is half the identity and half attention."""

MERGES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "MV-Split": {**MV_SPLIT, "beta": 1.0},
    "MV-Split, alpha frozen": FROZEN_SPLIT,
    "LayerScale 0.01": {"merge": "layerscale", "residual_gain": 0.01, "writer_std": None},
}
"""Label of a merge -> fields of its network."""

SEEDS = 6
"""Seeds per case."""


def _each(fields: Mapping[str, Any]) -> tuple[Case, ...]:
    """Every mixer with every merge; the label names both."""
    return tuple(
        Case(label=f"{mixer}, {merge}", options={**fields, "mixer": mixer, **options})
        for mixer in MIXERS
        for merge, options in MERGES.items()
    )


MIXERS_TRAINING = Study(
    name="mixers_training",
    claim="critical rate, kind of failure and loss of seven mixers with four merges, noisy ramps",
    base=BASE,
    cases=_each({"steps": 1200}),
    seeds=SEEDS,
    first_seed=2000,
    ensemble=SEEDS,
    functional_every=0,
    signals_every=5,
    expectation="with the plain merge at least 5 of 6 runs of every mixer collapse into the mean mode, at "
    "0.8 to 1.25 times softmax's critical rate for uniform and linear attention, 0.9 to 1.6 "
    "for the others; with alpha frozen no run of any mixer does; MV-Split with a learned "
    "alpha and LayerScale raise the critical rate of every mixer by more than 1.3",
)


MIXERS_HALF_RATES = Study(
    name="mixers_half_rates",
    claim="half rate of seven mixers with four merges at constant rates, noisy regime",
    base=BASE.with_fields({"schedule": "warmup", "warmup": 20, "rate": 0.008}),
    cases=tuple(
        Case(label=f"{case.label}, rate {rate:g}", options={**case.options, "rate": rate})
        for case in _each({"steps": 400})
        for rate in (0.008, 0.0128, 0.0205, 0.0328)
    ),
    seeds=SEEDS,
    first_seed=2100,
    ensemble=SEEDS,
    functional_every=0,
    expectation="with the plain merge the half rate within 400 steps is 0.011 to 0.015 for softmax, 0.8 "
    "to 1.25 times that for uniform and linear attention and 0.8 to 1.6 for the others; with "
    "alpha frozen no run collapses into the mean mode",
)


QUIET = {**NARROW, "first_steps": 150, "steps": 150 + FOLLOW}
"""Width 32, batch 64: a healthy rate for 150 steps, then a jump."""

JUMPS, HIGH_JUMPS = (0.016, 0.0224, 0.0314, 0.044), (0.0314, 0.0616)
"""Rates after the jump, of plain merges and of the others; softmax's half rate is 0.022 (`event_batches`)."""

MIXERS_EVENTS = EventStudy(
    name="mixers_events",
    claim="half rate, kind of failure and signature of seven mixers with four merges from a healthy state",
    base=BASE.with_fields(QUIET),
    cases=tuple(
        Case(label=f"{case.label}, rate {rate:g}", options={**case.options, "rate": rate})
        for case in _each({})
        for rate in (JUMPS if case.label.endswith("plain") else HIGH_JUMPS)
    ),
    seeds=SEEDS,
    first_seed=2300,
    functional_every=0,
    expectation="with the plain merge at least half of the runs of every mixer collapse into the mean "
    "mode at 0.0314 and 0.044; in softmax, uniform, linear and blended attention at least a "
    "third of these events is selective, in A - I, the gate and the state space fewer; with "
    "alpha frozen no run collapses into the mean mode, and some diverge plainly; with the "
    "other two merges at most half of the runs collapse at 0.0314",
)


SURVIVORS = "MV-Split, alpha frozen"
"""The merge with which no run of any mixer collapses into the mean mode in `mixers_training`."""

MIXERS_SURVIVORS = Study(
    name="mixers_survivors",
    claim="whether mixers whose merge never writes a mean hold at 64 blocks as they do at 16",
    base=BASE.with_fields({"depth": 64}),
    cases=(
        Case(label="softmax, plain", options={"mixer": "softmax", "steps": 1000}),
        *(
            Case(label=f"{mixer}, {SURVIVORS}", options={"mixer": mixer, **MERGES[SURVIVORS], "steps": 1000})
            for mixer in MIXERS
        ),
    ),
    seeds=SEEDS,
    first_seed=2400,
    ensemble=SEEDS,
    functional_every=0,
    expectation="all runs of plain softmax collapse, and no run with alpha frozen does, of any mixer, up to "
    "three times its critical rate; at least a third of them diverge plainly",
)
