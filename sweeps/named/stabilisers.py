"""What prevents the collapse, at what cost? Every stabiliser under a ramp far beyond the baseline's onset."""

from collections.abc import Mapping
from typing import Any

from meanmode.dit.config.presets import MV_SPLIT
from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, SEEDS
from meanmode.sweeps.named.interventions import FROZEN_SPLIT


def _arms(depth: int, steps: int) -> tuple[Case, ...]:
    """Every stabiliser at a depth; writers start at zero unless the gains of the merge do."""
    arms: dict[str, Mapping[str, Any]] = {
        "plain": {},
        "MV-Split": {**MV_SPLIT, "beta": 1.0},
        "MV-Split, alpha frozen": FROZEN_SPLIT,
        "MV-Split, gains at a tenth of the rate": {**MV_SPLIT, "beta": 1.0, "gain_rate": 0.1},
        "MV-Split, beta 0.03": {**MV_SPLIT, "beta": 0.03},
        "LayerScale 0.01": {"merge": "layerscale", "residual_gain": 0.01, "writer_std": None},
        "ReZero, from 1e-8": {"merge": "rezero", "residual_gain": 1e-8, "writer_std": None},
        "DeepNorm (2 L)^(1/4)": {"merge": "deepnorm", "residual_gain": round((2 * depth) ** 0.25, 3)},
        "highway L": {"merge": "highway", "residual_gain": float(depth)},
        "clip 0.1": {"clip": 0.1},
        "no clip": {"clip": None},
        "Muon": {"optimiser": "muon"},
        "A - I": {"mixer": "a_minus_i"},
    }
    return tuple(
        Case(label=label, options={"depth": depth, **options, "steps": steps})
        for label, options in arms.items()
    )


STABILISERS = Study(
    name="stabilisers",
    claim="threshold and loss of every stabiliser at 16 blocks, to four times the baseline's critical rate",
    base=BASE,
    cases=_arms(16, 1500),
    seeds=SEEDS,
    first_seed=300,
    functional_every=10,
)


STABILISERS_DEEP = Study(
    name="stabilisers_deep",
    claim="threshold and loss of every stabiliser at 128 blocks",
    base=BASE,
    cases=_arms(128, 600),
    seeds=4,
    first_seed=300,
    ensemble=4,
    functional_every=10,
    expectation="as at 16 blocks, no run of MV-Split with a frozen alpha collapses into the mean mode, and "
    "the critical rates of highway, LayerScale and MV-Split exceed the plain merge's by more than half; "
    "clipping moves it by less than a quarter",
)
