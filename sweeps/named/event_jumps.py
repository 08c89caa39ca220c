"""The event from a healthy state: jumps of the learning rate at low noise, beside their noisy twins.

How a run is read is fixed in `meanmode.sweeps.studies.events.event_rules`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from meanmode.dit.config.presets import MV_SPLIT
from meanmode.sweeps.engine.event_study import EventStudy
from meanmode.sweeps.engine.study import Case
from meanmode.sweeps.named.critical_rate import BASE
from meanmode.sweeps.named.interventions import FROZEN_SPLIT


def _jump(first_rate: float, first_steps: int, rate: float, follow: int) -> dict[str, Any]:
    """Fields of a run that holds a healthy rate and then jumps to another."""
    return {
        "schedule": "jump",
        "first_rate": first_rate,
        "first_steps": first_steps,
        "rate": rate,
        "steps": first_steps + follow,
        "stop_on": "never",
    }


def _width(width: int) -> dict[str, int]:
    """Fields that go with a width, with heads of width 16."""
    return {"width": width, "heads": width // 16, "text_width": width}


FOLLOW = 60
"""Steps for which a run is followed after its jump, unless a study says otherwise."""

WIDE = {**_width(64), "batch": 64, **_jump(0.005, 150, 0.018, FOLLOW)}
"""Width 64, batch 64, 16 image tokens."""

LONG = {**_width(32), "batch": 32, "side": 16, **_jump(0.010, 200, 0.033, FOLLOW)}
"""Width 32, batch 32, 64 image tokens."""

NARROW = {**_width(32), "batch": 64, **_jump(0.006, 200, 0.03, FOLLOW)}
"""Width 32, batch 64, 16 image tokens."""


EVENT_REPLICATES = EventStudy(
    name="event_replicates",
    claim="whether a jump from a healthy state shows the published signature and regression, by batch",
    base=BASE.with_fields(WIDE),
    cases=(
        Case(label="width 64, batch 64, 16 tokens", options=WIDE),
        Case(label="width 32, batch 32, 64 tokens", options=LONG),
        Case(label="width 64, batch 4, 16 tokens", options={**WIDE, "batch": 4}),
        Case(label="width 32, batch 4, 64 tokens", options={**LONG, "batch": 4}),
    ),
    seeds=12,
    first_seed=1000,
    forked=("rate",),
    expectation="of 12 seeds at batch 64 and of 12 at batch 32, at least 8 have a selective event and at "
    "least 7 the published regression; of their twins at batch 4, none has either",
)


def _geometric(first: float, ratio: float, count: int) -> tuple[float, ...]:
    return tuple(round(first * ratio**number, 5) for number in range(count))


BATCH_RATES: Mapping[int, tuple[float, ...]] = {
    4: _geometric(0.006, 1.25, 5),
    16: _geometric(0.010, 1.25, 5),
    64: _geometric(0.016, 1.25, 5),
    256: _geometric(0.018, 1.25, 5),
}
"""Batch -> rates around its half rate."""

EVENT_BATCHES = EventStudy(
    name="event_batches",
    claim="growth of G_mean against the training batch, from one healthy state and at equal distance",
    base=BASE.with_fields(NARROW),
    cases=tuple(
        Case(label=f"batch {batch}, rate {rate:g}", options={"batch": batch, "rate": rate})
        for batch, rates in BATCH_RATES.items()
        for rate in rates
    ),
    seeds=5,
    first_seed=1100,
    forked=("rate", "batch"),
    expectation="the factor of G_mean over all blocks, interpolated at 1.3 times the half rate of its batch, "
    "rises at least fivefold from batch 4 to 64 and less than twofold from 64 to 256",
)


EVENT_DISTANCES = EventStudy(
    name="event_distances",
    claim="steps to the onset and growth of G_mean against the distance above the half rate, 64 tokens",
    base=BASE.with_fields({**LONG, **_jump(0.010, 200, 0.033, 80)}),
    cases=tuple(Case(label=f"rate {rate:g}", options={"rate": rate}) for rate in _geometric(0.018, 1.2, 6)),
    seeds=6,
    first_seed=1200,
    forked=("rate",),
    expectation="from 1.0 to 1.8 times the half rate the steps from the jump to the onset fall, and the "
    "factor of G_mean over all blocks rises from below 10 to above 50",
)


def _acting(step: int) -> dict[str, dict[str, Any]]:
    """Cases that share the healthy run and change something from a step on."""
    texts = {
        "nothing": (),
        "mean part of writer gradients deleted": ("delete:mean:writer-gradient",),
        "control of it": ("control:delete:mean:writer-gradient",),
        "centered part of writer gradients deleted": ("delete:centered:writer-gradient",),
        "no mean write": ("delete:mean:branch",),
        "readers frozen": ("freeze:readers",),
    }
    return {label: {"interventions": tuple((step, text) for text in found)} for label, found in texts.items()}


EVENT_CAUSES = EventStudy(
    name="event_causes",
    claim="how interventions from the jump on, and other merges, move the steps from the jump to the onset",
    base=BASE.with_fields(WIDE),
    cases=(
        *(Case(label=label, options=options) for label, options in _acting(151).items()),
        Case(label="MV-Split, alpha frozen at 0", options=FROZEN_SPLIT),
        Case(label="MV-Split", options={**MV_SPLIT, "beta": 1.0}),
        Case(
            label="LayerScale 0.01",
            options={"merge": "layerscale", "residual_gain": 0.01, "writer_std": None},
        ),
    ),
    seeds=8,
    first_seed=1300,
    forked=("rate",),
    expectation="paired ratios of the steps to the onset over those without a change: 1.6 to 2.6 with the "
    "mean part of the writer gradients deleted, 0.9 to 1.1 under its control, 0.8 to 1.1 with the centered "
    "part deleted; no onset without a mean write",
)


EVENT_CAUSES_RATES = EventStudy(
    name="event_causes_rates",
    claim="whether deleting a part of the writer gradients moves the half rate of a jump",
    base=BASE.with_fields(NARROW),
    cases=tuple(
        Case(label=f"{label}, rate {rate:g}", options={**options, "rate": rate})
        for label, options in _acting(201).items()
        if "writer" in label or "control" in label
        for rate in BATCH_RATES[64]
    ),
    seeds=5,
    first_seed=1100,
    forked=("rate",),
    expectation="with the mean part of the writer gradients deleted the half rate within 60 steps rises by "
    "more than 10 %; under its control and with the centered part deleted it moves by less (compared with "
    "batch 64 of event_batches, the same seeds and states)",
)


def _same_state(label: str, fields: Mapping[str, Any]) -> tuple[Case, ...]:
    """A depth with the plain merge, and with MV-Split merges put around the same healthy weights."""
    return (
        Case(label=label, options=fields),
        Case(label=f"{label}, MV-Split", options={**fields, **MV_SPLIT, "beta": 1.0}),
    )


MERGE = ("rate", "merge", "alpha", "beta")
"""Fields that differ only after the fork where a merge is exchanged."""

EVENT_DEPTH = EventStudy(
    name="event_depth",
    claim="the event at 16, 64 and 128 blocks, and MV-Split from the same healthy state",
    base=BASE.with_fields(NARROW),
    cases=(
        *_same_state("16 blocks", {"depth": 16}),
        *_same_state("64 blocks", {"depth": 64, **_jump(0.003, 100, 0.018, 45)}),
        *_same_state("128 blocks", {"depth": 128, **_jump(0.002, 100, 0.014, 45)}),
    ),
    seeds=4,
    first_seed=1400,
    forked=MERGE,
    expectation="all runs with the plain merge collapse, none with MV-Split; the factor of G_mean does not "
    "fall with depth",
)


EVENT_DEPTH_400 = EventStudy(
    name="event_depth_400",
    claim="the event at 400 blocks of width 64, and MV-Split from the same healthy state",
    base=BASE.with_fields({"depth": 400, **_width(64), "batch": 32, **_jump(0.001, 150, 0.006, 40)}),
    cases=_same_state("400 blocks", {}),
    seeds=1,
    first_seed=1400,
    forked=MERGE,
    expectation="the plain merge collapses, MV-Split does not; G_mean grows at least 30-fold",
)


EVENT_DEPTH_400_SLOWER = dataclasses.replace(
    EVENT_DEPTH_400,
    name="event_depth_400_slower",
    claim="the event at 400 blocks from a healthy rate of a third: that of event_depth_400 was none",
    base=EVENT_DEPTH_400.base.with_fields(_jump(0.0003, 150, 0.003, 40)),
    first_seed=1401,
)
