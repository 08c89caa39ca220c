"""Laws of the critical rate recover the constants of synthetic ramps; margins and detection scores."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from meanmode.sweeps.statistics.power_law import PowerLaw
from meanmode.sweeps.studies.detection import VIEWS, Labelled, poisson_upper, score, seen
from meanmode.sweeps.studies.stability_margin import STEPS, crossing, margins
from meanmode.theory.laws.rivals import sub_layer_sum
from meanmode.theory.onset.functional_law import FunctionalLaw, Ramp, forecast

COHERENCE, GAIN, THRESHOLD, SLOPE = 0.01, 5.0, 0.5, 5e-5


def made(depth: int, seed: int, *, factor: float = 1.0, onset: int | None = None) -> Ramp:
    """A run whose Delta obeys the law up to 20 % noise and which collapses at the threshold."""
    random = np.random.default_rng([depth, seed])
    steps = np.arange(5, 801, 5)
    slope = SLOPE * (16 / depth) ** 0.5
    gain = factor * GAIN * sub_layer_sum(2 * depth, COHERENCE) ** 0.5
    reached = THRESHOLD / gain / slope
    last = int(reached * np.exp(0.03 * random.standard_normal())) if onset is None else onset
    kept = steps[steps <= last]
    noise = np.exp(0.2 * random.standard_normal(len(kept)))
    return Ramp(
        depth=depth, onset=last, steps=kept, rates=slope * kept, functional_steps=slope * kept * gain * noise
    )


RUNS = [made(depth, seed) for depth in (8, 16, 32) for seed in range(12)]


def test_the_law_recovers_its_constants() -> None:
    law = FunctionalLaw.fit(RUNS)
    assert law.coherence == pytest.approx(COHERENCE, rel=0.35)
    assert law.threshold == pytest.approx(THRESHOLD, rel=0.05)
    assert law.scatter == pytest.approx(0.03, rel=0.4)
    slope = SLOPE * (16 / 400) ** 0.5
    truth = THRESHOLD / GAIN / sub_layer_sum(800, COHERENCE) ** 0.5
    assert law.critical_rate(400, slope) == pytest.approx(truth, rel=0.2)
    assert law.constant_rate(400) == pytest.approx(truth, rel=0.2)
    middle, low, high = forecast(RUNS, 400, slope, seeds=8, interval=0.9, samples=40)
    assert low < middle < high and low < truth < high


def test_a_pilot_scales_the_law() -> None:
    law = FunctionalLaw.fit(RUNS)
    pilots = [made(16, 50 + seed, factor=2.0, onset=60) for seed in range(4)]
    assert law.scaled(pilots).critical_rate(16, SLOPE) == pytest.approx(
        law.critical_rate(16, SLOPE) / 2, rel=0.1
    )
    with pytest.raises(ValueError, match="a pilot needs measurements of Delta from step 10 on"):
        law.scaled([made(16, 0, onset=5)])


def test_one_depth_is_no_law_of_the_depth() -> None:
    with pytest.raises(ValueError, match=r"needs runs of two depths .* got depths \[16\]"):
        FunctionalLaw.fit([run for run in RUNS if run.depth == 16])
    with pytest.raises(ValueError, match="needs runs of at least two depths"):
        PowerLaw.fit(np.full(5, 16.0), np.ones(5))


def test_the_power_law_covers_a_power_law() -> None:
    """The 90 % interval contains the median of 8 runs about 90 % of the time."""
    random = np.random.default_rng(1)
    depths = np.repeat([8.0, 16.0, 32.0], 8)
    held = 0
    for _ in range(300):
        rates = 0.07 * depths**-0.5 * np.exp(0.06 * random.standard_normal(len(depths)))
        law = PowerLaw.fit(depths, rates)
        _, low, high = law.predict(400, 8)
        median = np.median(0.07 * 400**-0.5 * np.exp(0.06 * random.standard_normal(8)))
        held += low < median < high
    assert 0.84 < held / 300 < 0.95
    assert law.exponent == pytest.approx(-0.5, abs=4 * law.exponent_error)


def test_margins_are_medians_of_the_last_steps() -> None:
    sizes = np.full(60, np.nan)
    sizes[4::5] = [0.2, 0.2, 0.2, 0.2, 9.0, 0.2, 0.2, 0.2, 0.6, 0.6, 0.6, 0.6]
    found = margins(sizes, 0.5)
    assert np.isnan(found[:4]).all() and found[4] == pytest.approx(0.4)
    assert found[STEPS - 1] == pytest.approx(0.4), "a single large step does not count"
    assert crossing(sizes, 0.5) == 55
    assert crossing(sizes, 10.0) is None


def labelled(onset: int | None, *, steps: int = 300) -> Labelled:
    step = np.arange(1, steps + 1)
    series = xr.Dataset(
        {"loss": ("step", np.ones(steps)), "grad_norm": ("step", np.ones(steps))}, {"step": step}
    )
    return Labelled(series=series, onset=onset, healthy=onset is None)


@pytest.mark.parametrize(
    ("steps", "onset", "found", "false"),
    [
        ([203], 200, 1, 0),
        ([204], 200, 0, 0),
        ([100], 200, 1, 0),
        ([99], 200, 0, 1),
        ([50, 190], 200, 1, 1),
        ([], 200, 0, 0),
        ([10, 20], None, 0, 2),
    ],
)
def test_alarms_are_scored_by_their_step(steps: list[int], onset: int | None, found: int, false: int) -> None:
    def raised(_: xr.Dataset) -> list[SimpleNamespace]:
        return [SimpleNamespace(step=step) for step in steps]

    scored = score([labelled(onset)], VIEWS["all signals, every step"], raised=raised)
    assert (scored.found, scored.false) == (found, false)
    assert scored.logged == (300 if onset is None else 99)


def test_views_show_less() -> None:
    run = labelled(None)
    sparse = seen(run, VIEWS["loss and gradient norm, every 10 steps"])
    assert sparse["step"].values.tolist() == list(range(10, 301, 10))
    assert set(seen(run, VIEWS["unknown names"]).data_vars) == {"signal_0", "signal_1"}


def test_a_count_of_none_bounds_its_mean() -> None:
    assert poisson_upper(0) == pytest.approx(3.0, abs=0.01)
