"""Rules and summaries of event studies, on crafted stores and rows."""

import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from meanmode.dit.config.presets import PRESETS
from meanmode.sim.observe.observable_names import WRITERS
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import DONE, TODO
from meanmode.sweeps.engine.event_study import AROUND, HELD, EventStudy
from meanmode.sweeps.engine.study import Case
from meanmode.sweeps.studies.around_onset import Regression
from meanmode.sweeps.studies.events.event_rules import event_rows, is_regular, is_selective
from meanmode.sweeps.studies.events.event_summaries import (
    Share,
    at_distance,
    delays,
    growth,
    growth_ratio,
    half_rate_ratio,
    summaries,
)

STUDY = EventStudy(
    name="crafted_event",
    claim="crafted",
    base=PRESETS["digits-16l"].with_fields(
        {"schedule": "jump", "first_rate": 1e-3, "first_steps": 20, "rate": 0.1, "steps": 60}
    ),
    cases=(Case(label="one"),),
    seeds=1,
)
ONSET, BLOCKS = 12, 17
TOKENS = STUDY.base.model.image_tokens + STUDY.base.model.text_tokens


def crafted(*, g_mean: float = 60.0, g_ctr: float = 2.0, at: int = ONSET, slope: float = 1.0) -> xr.Dataset:
    """A run that collapses at `ONSET`, with factors at one step and a regression one step after it."""
    after = max(at + 1 - ONSET, AROUND[0])
    steps = np.arange(1 - HELD, 41)
    modes = {"g_mean": np.full((len(steps), 2), 0.5), "g_ctr": np.full((len(steps), 2), 0.25)}
    modes["g_mean"][steps == at] *= g_mean
    modes["g_ctr"][steps == at] *= g_ctr
    coherence = np.linspace(0.1, 0.9, BLOCKS)
    blocks = {name: np.zeros((len(AROUND), BLOCKS, 2)) for name in ("amplification", "kappa_abs")}
    here = AROUND.index(after)
    blocks["kappa_abs"][here] = coherence[:, None]
    blocks["amplification"][here] = 1 + slope * (TOKENS - 1) * coherence[:, None]
    series = {"loss": (("cell", "since_jump"), np.where(steps < at, 0.7, 2.5)[None])}
    series |= {
        f"{name}_{over}": (("cell", "since_jump", "writer"), of[None])
        for name, of in modes.items()
        for over in ("all", "deep")
    }
    window = {name: (("cell", "since_onset", "block", "writer"), of[None]) for name, of in blocks.items()}
    outcome = {"onset_step": float(ONSET), "onset_kind": 1.0, "last_step": 40.0, "initial_loss": 2.0}
    return xr.Dataset(
        {
            **series,
            **window,
            **{name: ("cell", [value]) for name, value in outcome.items()},
            "status": ("cell", [DONE]),
        },
        coords={"since_jump": steps, "since_onset": list(AROUND), "writer": list(WRITERS)},
        attrs={"configuration": _json(STUDY), "claim": "crafted", "laws": "[]", "name": STUDY.name},
    )


def _json(study: EventStudy) -> str:
    import json

    return json.dumps(study.configuration())


@pytest.mark.parametrize(
    ("options", "selective", "regular"),
    [
        ({}, True, True),
        ({"g_mean": 29.0}, False, True),
        ({"g_ctr": 5.5}, False, True),
        ({"slope": 1.4}, True, False),
        ({"slope": -1.0}, True, False),
        ({"at": ONSET - 5}, True, True),
    ],
)
def test_the_rules_read_factors_and_regression(
    options: dict[str, float], selective: bool, regular: bool
) -> None:
    row = event_rows(crafted(**options)).iloc[0]  # type: ignore[arg-type]
    assert (row["selective"], row["regular"]) == (selective, regular)
    assert row["event"] == options.get("at", ONSET) and row["selective_deep"] == selective
    assert row["loss_before"] == pytest.approx(0.7) and row["loss_event"] == pytest.approx(2.5)
    for writer in WRITERS:
        assert row[f"g_mean_{writer}"] == pytest.approx(options.get("g_mean", 60.0))
        assert row[f"g_ctr_{writer}"] == pytest.approx(options.get("g_ctr", 2.0))


def test_an_event_further_from_the_onset_is_none() -> None:
    row = event_rows(crafted(at=ONSET - 8)).iloc[0]
    assert row["event"] == ONSET - 5 and row["g_mean_attn"] == 1 and not row["selective"]


def test_a_selective_step_may_come_before_the_largest_gradient() -> None:
    run = crafted(at=ONSET)
    later = {"since_jump": ONSET + 2}
    for mode, factor in (("g_mean", 300.0), ("g_ctr", 90.0)):
        run[f"{mode}_all"].loc[later] = factor
    row = event_rows(run).iloc[0]
    assert row["event"] == ONSET + 2 and row["selective"] and row["g_ctr_attn"] == pytest.approx(360.0)


def test_a_healthy_run_has_no_event() -> None:
    run = crafted()
    run["onset_kind"][0], run["onset_step"][0] = 0.0, np.nan
    row = event_rows(run).iloc[0]
    assert row["kind"] == "none" and not row["selective"] and not row["regular"]
    (found,) = summaries(event_rows(run))
    assert found["collapsed"].count == 0 and math.isnan(found["g_mean_attn"])


def test_an_unfinished_study_is_refused() -> None:
    run = crafted()
    run["status"][0] = TODO
    with pytest.raises(StoreError, match="crafted_event has 1 cells to do"):
        event_rows(run)


def test_thresholds_are_inclusive_and_hold_for_both_writers() -> None:
    edge = {"g_mean_attn": 30.0, "g_mean_ffn": 30.0, "g_ctr_attn": 5.0, "g_ctr_ffn": 5.0}
    assert is_selective(edge)
    for name in edge:
        assert not is_selective({**edge, name: 29.9 if "mean" in name else 5.1})
    line = Regression(slope=0.8, intercept=0.0, r_squared=0.7, points=9)
    assert is_regular([line, line]) and not is_regular([line, None])


def test_shares_say_how_sure_they_are() -> None:
    assert str(Share.counted(0, 12)) == "0 of 12 (0% to 22%)"
    assert Share.counted(12, 12).low > 0.75


def logistic_rows(half: float, exponent: float, seeds: int = 40) -> pd.DataFrame:
    """Runs at rates around a half rate; G_mean grows like (rate / half)^exponent, by 10 at the half rate."""
    random = np.random.default_rng(0)
    rates = half * 1.15 ** np.arange(-3, 5)
    rows = []
    for seed in range(seeds):
        own = half * np.exp(0.08 * random.standard_normal())
        for rate in rates:
            fallen = rate > own
            size = 10 * (rate / half) ** exponent if fallen else np.nan
            rows.append(
                {
                    "rate": rate,
                    "seed": seed,
                    "kind": "mean_mode" if fallen else "none",
                    "onset": 20 * half / rate if fallen else np.nan,
                    "last": 60.0,
                    "g_mean_attn": size * 2,
                    "g_mean_ffn": size / 2,
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("half", "exponent"), [(0.01, 0.0), (0.03, 4.0), (0.002, -2.0)])
def test_growth_is_read_at_a_distance_above_the_half_rate(half: float, exponent: float) -> None:
    found = at_distance(logistic_rows(half, exponent, seeds=12))
    assert found.half.low <= found.half.value <= found.half.high
    assert found.half.value == pytest.approx(half, rel=0.08)
    expected = 10 * (1.3 * found.half.value / half) ** exponent
    assert found.factor.value == pytest.approx(expected, rel=0.02)
    assert found.factor.low <= found.factor.value <= found.factor.high
    assert found.steps.value == pytest.approx(20 / 1.3, rel=0.15)


def test_growth_is_not_extrapolated() -> None:
    rows = logistic_rows(0.02, 1.0)
    below = rows[rows["rate"] < 0.02 * 1.2]
    assert math.isnan(at_distance(below).factor.value)


def test_groups_are_compared_with_the_same_resampled_seeds() -> None:
    one, other = at_distance(logistic_rows(0.01, 1.0)), at_distance(logistic_rows(0.02, 1.0))
    ratio = half_rate_ratio(one, other)
    assert ratio.value == pytest.approx(2, rel=0.03) and ratio.high - ratio.low < 0.1
    assert growth_ratio(one, one).value == 1 == growth_ratio(one, one).high


def test_delays_count_what_never_collapsed_as_later() -> None:
    rows = pd.DataFrame(
        [
            {"case": case, "seed": seed, "kind": kind, "onset": onset, "last": 60.0}
            for seed in range(6)
            for case, kind, onset in (
                ("nothing", "mean_mode", 10.0 + seed),
                ("twice", "mean_mode", 20.0 + 2 * seed),
                ("never", "none", np.nan),
            )
        ]
    )
    found = delays(rows, "nothing")
    assert found["twice"][2].value == pytest.approx(2) and found["nothing"][2].value == 1
    share, steps, ratio = found["never"]
    assert share.count == 0 and math.isnan(steps.value) and steps.at_least == 60 and math.isinf(ratio.high)


def test_growth_is_the_geometric_mean_of_the_writers() -> None:
    rows = pd.DataFrame([{"g_mean_attn": 4.0, "g_mean_ffn": 9.0}, {"g_mean_attn": np.nan, "g_mean_ffn": 9.0}])
    assert growth(rows).tolist()[0] == pytest.approx(6) and math.isnan(growth(rows)[1])
