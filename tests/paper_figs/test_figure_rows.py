"""Rows that figures draw: shares, half rates, exponents and errors, against numbers by hand."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from meanmode.dit.config.run_config import RunConfig
from meanmode.sweeps.statistics.power_law import PowerLaw
from meanmode.sweeps.studies.critical_rates import exponent_over_runs, forecast_errors
from meanmode.sweeps.studies.half_rates import (
    fitted_shares,
    forecasts_outside,
    half_rate_points,
    half_rates,
    share_rows,
)
from meanmode.sweeps.studies.profiles import seed_statistics
from meanmode.sweeps.studies.run_sizes import rate_of, schedule_of


def runs(hits: tuple[int, ...]) -> pd.DataFrame:
    """Ten runs at each of the rates 0.01, 0.02, ..., of which the given number collapse."""
    rows = [(8, 0.01 * (1 + index), run < hit) for index, hit in enumerate(hits) for run in range(10)]
    return pd.DataFrame(rows, columns=["depth", "rate", "collapsed"])


def test_shares_have_their_wilson_interval() -> None:
    """5 of 10 at 90 %, by the closed form of the Wilson interval."""
    row = share_rows(runs((0, 5)))[1]
    z2 = 1.6448536269514722**2
    half = np.sqrt(z2 * (10 * 0.25 + z2 / 4)) / (10 + z2)
    assert (row["depth"], row["rate"], row["runs"], row["collapsed"]) == (8, 0.02, 10, 5)
    assert (row["low"], row["share"], row["high"]) == pytest.approx((0.5 - half, 0.5, 0.5 + half))


@pytest.mark.parametrize(
    ("hits", "bounds"),
    [((0, 5, 10), (None, None)), ((0, 0, 1), (0.03, None)), ((9, 10, 10), (None, 0.01))],
)
def test_half_rates_outside_the_rates_tried_have_a_bound(
    hits: tuple[int, ...], bounds: tuple[float | None, float | None]
) -> None:
    (point,), (row,) = half_rate_points(runs(hits), {}), half_rates(runs(hits), {})
    assert (point["at_least"], point["at_most"]) == bounds
    assert {name: point[name] for name in row} == row
    if point["value"] is not None:
        assert fitted_shares(point, point["value"]) == pytest.approx(0.5)


def test_forecasts_outside_their_interval_are_counted() -> None:
    cases = [{"low": 0.2, "predicted": share, "high": 0.6} for share in (0.1, 0.2, 0.6, 0.7)]
    assert forecasts_outside(cases) == 2


def test_the_exponent_is_that_of_collapsed_runs() -> None:
    """Rates near 0.1 L^(-1/2), and a run that did not collapse."""
    depths = np.array([4.0, 16.0, 64.0, 256.0])
    rates = 0.1 * depths**-0.5 * np.array([1.01, 0.99, 1.0, np.nan])
    data = xr.Dataset({"critical_rate": ("cell", rates)}, {"depth": ("cell", depths)})
    found = exponent_over_runs(data, "depth")
    assert found == PowerLaw.fit(depths[:3], rates[:3]) and found.exponent == pytest.approx(-0.5, abs=0.01)
    assert exponent_over_runs(data.isel(cell=[0, 0, 0]), "depth") is None


def test_errors_are_of_cases_with_a_measured_median() -> None:
    rows = [
        {"predicted": 1.0, "relative_error": error, "predicted_power_law": 1.0, "error_power_law": 0.4}
        for error in (0.1, -0.3, 0.2, None)
    ]
    found = forecast_errors(rows, 0.2)
    assert found["predicted"] == {"median": pytest.approx(0.2), "within": 2, "n": 3}
    assert found["predicted_power_law"] == {"median": pytest.approx(0.4), "within": 0, "n": 4}


def test_statistics_over_seeds() -> None:
    found = seed_statistics(xr.DataArray([1.0, 2.0, 6.0], dims="seed"))
    assert float(found["mean"]) == 3.0
    assert float(found["spread"]) == pytest.approx(np.std([1, 2, 6]))
    assert float(found["error"]) == pytest.approx(np.std([1, 2, 6], ddof=1) / 3**0.5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schedule": "warmup", "rate": 0.01, "warmup": 30}, "rate 0.01 after a warm-up of 30 steps"),
        ({"schedule": "ramp", "rate": None, "slope": 2e-5}, "rate 2e-05 times the step"),
        (
            {"schedule": "depth_ramp", "rate": None, "slope": 2e-5},
            "rate 2e-05 sqrt(16 / blocks) times the step",
        ),
    ],
)
def test_schedules_in_words(fields: dict[str, object], words: str) -> None:
    assert schedule_of(RunConfig().with_fields(fields)) == words


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("warmup", "rate 0.01 to 0.02 after step 30"),
        ("cosine", "rate 0.01 to 0.02 after step 30, then a cosine decay"),
        ("jump", "rate 0.005 for 40 steps, then 0.01 to 0.02"),
        ("ramp", "rate 2e-05 times the step"),
        ("depth_ramp", "rate 2e-05 sqrt(16 / blocks) times the step"),
    ],
)
def test_schedules_of_studies_in_words(schedule: str, words: str) -> None:
    values = {
        "rate": [0.01, 0.02],
        "warmup": [30],
        "first_rate": [0.005],
        "first_steps": [40],
        "slope": [2e-5],
    }
    assert rate_of({**values, "schedule": [schedule]}) == words
