"""What causes the collapse? How each intervention moves the critical rate."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from meanmode.dit.config.presets import MV_SPLIT
from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, SEEDS

INTERVENTIONS: Mapping[str, str] = {
    "mean part of writer gradients deleted": "delete:mean:writer-gradient",
    "control of it": "control:delete:mean:writer-gradient",
    "centered part of writer gradients deleted": "delete:centered:writer-gradient",
    "control of this": "control:delete:centered:writer-gradient",
    "mean part of reader gradients deleted": "delete:mean:reader-gradient",
    "control of that": "control:delete:mean:reader-gradient",
    "readers frozen": "freeze:readers",
    "queries and keys frozen": "freeze:queries-keys",
    "values frozen": "freeze:values",
    "writers frozen": "freeze:writers",
    "mean of branches deleted": "delete:mean:branch",
    "control of branches": "control:delete:mean:branch",
    "mean of branches halved": "scale=0.5:mean:branch",
}
"""Label of a case -> its intervention; a `control` is matched to the norm of what the other deletes."""


FROZEN_SPLIT: Mapping[str, Any] = {**MV_SPLIT, "beta": 1.0, "interventions": ((1, "freeze:alpha"),)}
"""No branch ever writes a mean in the forward pass."""


def _arms(options: Mapping[str, Any]) -> tuple[Case, ...]:
    acting = {label: {"interventions": ((1, text),)} for label, text in INTERVENTIONS.items()}
    arms: dict[str, Mapping[str, Any]] = {
        "nothing": {},
        **acting,
        "MV-Split, alpha frozen at 0": FROZEN_SPLIT,
    }
    return tuple(Case(label=label, options={**options, **arm}) for label, arm in arms.items())


INTERVENTION_TABLE = Study(
    name="interventions",
    claim="how every intervention moves the critical rate of 16 blocks, beside its norm-matched control",
    base=BASE,
    cases=_arms({"steps": 1000}),
    seeds=SEEDS,
    first_seed=400,
    functional_every=10,
)


RUNGS: Mapping[str, Mapping[str, Any]] = {
    "width 16, batch 4, 16 tokens": {},
    "batch 16": {"batch": 16},
    "64 tokens": {"side": 16},
    "width 64": {"width": 64, "heads": 4, "text_width": 64},
    "width 64, batch 16, 64 tokens": {
        "width": 64,
        "heads": 4,
        "text_width": 64,
        "batch": 16,
        "side": 16,
    },
}
"""Steps towards the paper's regime that two CPU cores can afford."""


LARGE_RUNGS: Mapping[str, Mapping[str, Any]] = {
    "width 256, batch 64, 256 tokens": {
        "width": 256,
        "heads": 16,
        "text_width": 256,
        "batch": 64,
        "side": 32,
    },
}
"""The top of the ladder, for a GPU."""


LADDER_ARMS: Mapping[str, Mapping[str, Any]] = {
    "nothing": {},
    "mean deleted": {"interventions": ((1, "delete:mean:writer-gradient"),)},
    "centered deleted": {"interventions": ((1, "delete:centered:writer-gradient"),)},
    "no mean write": FROZEN_SPLIT,
}
"""Cases of every rung."""


def _ladder(rungs: Mapping[str, Mapping[str, Any]]) -> tuple[Case, ...]:
    return tuple(
        Case(label=f"{rung}: {arm}", options={**sizes, **changes, "steps": 900})
        for rung, sizes in rungs.items()
        for arm, changes in LADDER_ARMS.items()
    )


LADDER = Study(
    name="ladder",
    claim="rung by rung towards the paper's regime: what an intervention does, and which signal moves first",
    base=BASE,
    cases=_ladder(RUNGS),
    seeds=4,
    first_seed=500,
    ensemble=4,
    functional_every=1,
    signals_every=1,
    expectation="on every rung deleting the mean part of the writer gradients moves the median critical rate "
    "by less than a quarter, and so does deleting the centered part; without a mean write no run of any rung "
    "collapses into the mean mode",
)


LADDER_TOP = dataclasses.replace(
    LADDER,
    name="ladder_top",
    claim="the top rung of the ladder, for a GPU",
    cases=_ladder(LARGE_RUNGS),
    device="cuda",
)
