"""How cases fail: counts, half rates over a baseline's with the same seeds, and effects on a chosen case."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from meanmode.sweeps.engine.store_kinds import open_study
from meanmode.sweeps.studies.critical_rates import effects, effects_on
from meanmode.sweeps.studies.training.failures import Failures, ramp_failures, rate_failures

STORES = Path(__file__).parents[3] / "paper_figs" / "data"

RATES, SEEDS = (1.0, 2.0, 4.0, 8.0), range(6)


def _runs(group: str, threshold: float, kind: str = "mean_mode") -> list[dict[str, object]]:
    return [
        {
            "case": f"{group}, rate {rate:g}",
            "rate": rate,
            "seed": seed,
            "kind": kind if rate > threshold else "none",
            "onset": 5.0 if rate > threshold else np.nan,
        }
        for rate in RATES
        for seed in SEEDS
    ]


def test_half_rates_of_groups_over_the_baseline() -> None:
    runs = [*_runs("a, plain", 1.5), *_runs("b, plain", 3.0), *_runs("c, split", 9.0), *_runs("d", 0.5)]
    runs += _runs("e", 3.0, "plain_divergence")
    found = rate_failures(pd.DataFrame(runs), "a, plain")
    assert list(found) == ["a, plain", "b, plain", "c, split", "d", "e"]
    assert found["a, plain"].at[2.0] == Failures(collapsed=6, diverged=0, of=6)
    assert found["a, plain"].half.value == pytest.approx(2**0.5, rel=0.02)
    assert found["a, plain"].ratio.value == 1
    assert found["b, plain"].ratio.value == pytest.approx(2, rel=0.01)
    assert np.isnan(found["c, split"].ratio.value) and np.isnan(found["d"].ratio.value)
    # a plain divergence is a failure, and no collapse
    assert str(found["e"].at[8.0]) == "0 of 6, 6 diverge" and np.isnan(found["e"].half.value)


def test_effects_on_a_chosen_case() -> None:
    data = open_study(STORES / "stabilisers.zarr")
    assert effects_on(data, "plain") == effects(data)
    muon = effects_on(data, "Muon")
    (back,) = [r for r in muon if r["case"] == "plain" and r["quantity"] == "critical_rate_ratio"]
    (there,) = [r for r in effects(data) if r["case"] == "Muon" and r["quantity"] == "critical_rate_ratio"]
    assert back["measured"] == pytest.approx(1 / there["measured"])
    with pytest.raises(ValueError, match="has no case 'nothing'"):
        effects_on(data, "nothing")


def test_failures_under_a_ramp_count_both_kinds() -> None:
    found = ramp_failures(open_study(STORES / "stabilisers.zarr"), "plain")
    assert str(found["plain"]["failures"]) == "8 of 8" and "loss" not in found["plain"]
    assert str(found["MV-Split, alpha frozen"]["failures"]) == "0 of 8, 8 diverge"
    assert found["MV-Split"]["critical_rate_ratio"]["measured"] > 1.5
