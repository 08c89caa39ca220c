"""How functional steps and half rates scale with depth: exponents between depths, measured and predicted."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.studies.critical_rate_forecast import ramps_of
from meanmode.sweeps.studies.rows import Row
from meanmode.theory.onset.depth_scaling import first_step_coherence, size_exponent
from meanmode.theory.onset.functional_law import Ramp

STEPS = (5, 10, 20, 50)
"""Steps at which the functional steps of ramps are compared."""

SPANS = ((8, 32), (32, 128), (128, 400))
"""Depths between which exponents of half rates are taken."""


def size_exponents(source: OpenedStudy, coherence: float) -> list[Row]:
    """Exponent in depth of the functional step per rate, between neighbouring depths of a study of ramps.

    `measured` has one exponent per step of `STEPS`, from the geometric mean over all runs of a depth;
    `first_step` is the theory of zero writers, and `fitted` law O2.

    Args:
        source: a study of ramps over several depths, with functional steps.
        coherence: r of law O2.
    """
    runs: dict[int, list[Ramp]] = {}
    for group in ramps_of(source).values():
        for ramp in group:
            runs.setdefault(ramp.depth, []).append(ramp)
    model = source.study.base.model
    at_first = first_step_coherence(model.setting())
    return [
        {
            "study": source.study.name,
            "from_depth": first,
            "to_depth": second,
            "first_step": size_exponent(first, second, at_first),
            "measured": [
                (_log_size(runs[second], step) - _log_size(runs[first], step)) / math.log(second / first)
                for step in STEPS
            ],
            "fitted": size_exponent(first, second, coherence),
        }
        for first, second in pairwise(sorted(runs))
    ]


def _log_size(runs: Sequence[Ramp], step: int) -> float:
    """Mean over runs of ln(Delta / rate) at a step."""
    found = [np.log(run.functional_steps / run.rates)[run.steps == step] for run in runs]
    return float(np.concatenate(found).mean())


def rate_exponents(rates: Sequence[Mapping[str, Any]], first_step: float, coherence: float) -> list[Row]:
    """Exponent in depth of the half rate over `SPANS`, and minus that of the functional step.

    `low` and `high` combine the ends of both intervals, and are None where one is open.

    Args:
        rates: rows of `half_rates`.
        first_step: r of law O2 at the first step.
        coherence: the fitted r.
    """
    by_depth, rows = {row["depth"]: row for row in rates}, []
    for first, second in SPANS:
        one, other = by_depth[first], by_depth[second]
        length = math.log(second / first)
        rows.append(
            {
                "from_depth": first,
                "to_depth": second,
                "measured": math.log(other["value"] / one["value"]) / length,
                "low": _exponent(one["high"], other["low"], length),
                "high": _exponent(one["low"], other["high"], length),
                "fitted": -size_exponent(first, second, coherence),
                "first_step": -size_exponent(first, second, first_step),
            }
        )
    return rows


def _exponent(one: float | None, other: float | None, length: float) -> float | None:
    return None if one is None or other is None else math.log(other / one) / length
