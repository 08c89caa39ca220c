"""Labels and alarms of made-up logs from elsewhere: kinds of runs, spacing of rows, missing signals."""

import time

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from meanmode.sim.onset.detector import DIVERGENCE, NOT_A_NUMBER, alarms, watched
from meanmode.sim.onset.log_onset import log_onset, loss_rows, remarks
from meanmode.sim.onset.verdict import verdict

ROWS, EVENT = 240, 150
"""Rows of a log, and the row at which something happens."""

Array = NDArray[np.float64]
Columns = dict[str, Array]


def learning(seed: int, noise: float = 0.02, rows: int = ROWS) -> Columns:
    """A run that learns: loss from 2.2 to 0.7, gradient norm near 0.6, tokens unlike."""
    rng = np.random.default_rng(seed)
    row = np.arange(1, rows + 1)
    return {
        "loss": (0.7 + 1.5 * np.exp(-row / 30)) * np.exp(noise * rng.standard_normal(rows)),
        "grad_norm": 0.6 * np.exp(0.1 * rng.standard_normal(rows)),
        "tcs": 0.2 + 0.02 * rng.standard_normal(rows),
    }


def restart_bump(columns: Columns) -> None:
    columns["loss"][EVENT : EVENT + 2] *= 1.18
    columns["grad_norm"][EVENT : EVENT + 3] *= 3.2


def spike(columns: Columns) -> None:
    columns["loss"][EVENT] *= 3
    columns["grad_norm"][EVENT : EVENT + 2] *= 30


def other_data(columns: Columns) -> None:
    """A lasting jump of the loss alone."""
    columns["loss"][EVENT:] *= 1.4


def skipped_step(columns: Columns) -> None:
    columns["grad_norm"][EVENT] = np.nan
    columns["loss"][EVENT + 20] = np.nan


def noisy_plateau(columns: Columns) -> None:
    """Losses of small batches of a diffusion model, whose times are drawn anew."""
    rng = np.random.default_rng(9)
    columns["loss"] *= rng.gamma(12, 1 / 12, ROWS)
    columns["grad_norm"] *= np.exp(0.4 * rng.standard_normal(ROWS))


def collapse(columns: Columns) -> None:
    columns["loss"][EVENT:] += 1.5
    columns["tcs"][EVENT:] = 0.99
    columns["grad_norm"][EVENT - 1] *= 20
    columns["grad_norm"][EVENT:] *= 0.03


def divergence(columns: Columns) -> None:
    columns["loss"][EVENT:] *= 9
    columns["grad_norm"][EVENT:] *= 14


def stuck_above(columns: Columns) -> None:
    """Below its initial level, as of a language model that loses most of what it had learned."""
    columns["loss"][EVENT:] *= 2.4
    columns["grad_norm"][EVENT:] *= 6


def nan_to_the_end(columns: Columns) -> None:
    columns["loss"][EVENT:] = columns["grad_norm"][EVENT:] = np.nan


def zero_to_the_end(columns: Columns) -> None:
    columns["loss"][EVENT:] = 0.0
    columns["grad_norm"][EVENT:] = np.nan


def inf_to_the_end(columns: Columns) -> None:
    columns["loss"][EVENT:] = np.inf


HEALTHY = (restart_bump, spike, other_data, skipped_step, noisy_plateau, lambda columns: None)
FAILING = (divergence, stuck_above, nan_to_the_end, zero_to_the_end, inf_to_the_end)


def log_of(
    columns: Columns, *, every: int = 1, first: int | None = None, drop: tuple[str, ...] = ()
) -> xr.Dataset:
    """The log as `open_run` returns it: evenly spaced rows, in which the NaN of a scalar was logged."""
    count = len(columns["loss"])
    steps = (every if first is None else first) + every * np.arange(count)
    values = {name: ("step", of) for name, of in columns.items() if name not in ("tcs", *drop)}
    run = xr.Dataset(values, {"step": steps}, {"import": "{}"})
    for name in run:
        nan = steps[np.isnan(run[name].values)]
        run[name].attrs["logged_nan"] = str([[int(step), int(step)] for step in nan])
    if "tcs" not in drop:
        run = run.assign_coords(block=[0, 1]).assign(
            tcs=(("step", "block"), columns["tcs"][:, None] + [0, 0])
        )
    return run


EVERY = pytest.mark.parametrize("every", [1, 10, 1000])
MISSING = pytest.mark.parametrize("drop", [(), ("tcs",), ("tcs", "grad_norm"), ("grad_norm",)])


@EVERY
@MISSING
@pytest.mark.parametrize("change", HEALTHY)
def test_a_healthy_log_is_healthy_and_raises_no_alarm(change, every: int, drop: tuple[str, ...]) -> None:
    columns = learning(1)
    change(columns)
    run = log_of(columns, every=every, drop=drop)
    assert log_onset(run).kind == "none"
    assert alarms(run) == []


@EVERY
@MISSING
@pytest.mark.parametrize("change", FAILING)
def test_a_failing_log_is_labelled_at_a_logged_row_and_raises_an_alarm(
    change, every: int, drop: tuple[str, ...]
) -> None:
    """A loss of 0 without a gradient norm beside it may be that of a network that has memorised its data."""
    columns = learning(2)
    change(columns)
    run = log_of(columns, every=every, drop=drop)
    if change is zero_to_the_end and "grad_norm" in drop:
        assert log_onset(run).kind == "none" and alarms(run) == []
        return
    onset = log_onset(run)
    assert (onset.kind, onset.step) == ("plain_divergence", (EVENT + 1) * every)
    kinds = [alarm.kind for alarm in alarms(run)]
    assert kinds[:1] == [DIVERGENCE if change in (divergence, stuck_above) else NOT_A_NUMBER]
    assert alarms(run)[0].step <= (EVENT + 9) * every


@EVERY
def test_a_collapse_needs_a_token_signal_for_its_name(every: int) -> None:
    columns = learning(3)
    collapse(columns)
    run = log_of(columns, every=every)
    assert (log_onset(run).kind, log_onset(run).step) == ("mean_mode", (EVENT + 1) * every)
    (alarm,) = alarms(run)
    assert alarm.kind == "collapse" and EVENT + 1 <= alarm.step / every <= EVENT + 4
    blind = verdict(log_of(columns, every=every, drop=("tcs",)))
    assert blind.onset.kind == "plain_divergence"
    assert any("no token cosine was logged" in text for text in blind.cannot_say)


@pytest.mark.parametrize(
    ("drop", "grade", "open_questions"),
    [
        ((), "loss, gradient norm and token signals", 1),
        (("tcs",), "loss and gradient norm", 1),
        (("tcs", "grad_norm"), "loss", 1),
        (("loss", "grad_norm"), "token signals", 1),
        (("loss", "tcs"), "gradient norm", 2),
    ],
)
def test_the_verdict_says_what_it_rests_on(drop: tuple[str, ...], grade: str, open_questions: int) -> None:
    found = verdict(log_of(learning(4), drop=drop))
    assert (found.grade, len(found.cannot_say)) == (grade, open_questions)
    assert found.words == (
        "no verdict: no loss was logged" if "loss" in drop else "no collapse and no divergence"
    )


def test_a_log_that_starts_late_takes_no_level_from_its_first_rows() -> None:
    """Tokens alike and a loss that stays where it was: no return to a level that nobody knows."""
    columns = {name: values[100:] for name, values in learning(5).items()}
    columns["tcs"][40:] = 0.99
    late = log_of(columns, first=5000)
    assert log_onset(late).kind == "none" and alarms(late) == []
    assert any("--initial-loss" in text for text in verdict(late).cannot_say)
    assert log_onset(late.assign_attrs(initial_loss=0.72)).kind == "mean_mode"


def test_the_level_of_a_short_log_is_that_of_its_first_rows() -> None:
    loss = np.array([1.62, 1.44, 3.2, 6.3, 5.6, 4.8, 4.9, 4.7, 4.55, 4.5, 4.6, 4.5])
    run = log_of({"loss": loss}, every=25, drop=("tcs",))
    rows = loss_rows(run)
    assert rows is not None and rows.level == 1.62
    assert log_onset(run).kind == "plain_divergence" and log_onset(run).step in (75, 100)


@pytest.mark.parametrize("factor", [3.0, np.nan])
def test_two_rows_at_the_end_are_a_remark_and_no_verdict(factor: float) -> None:
    columns = learning(6)
    columns["loss"][-2:] *= factor
    run = log_of(columns, every=10)
    assert log_onset(run).kind == "none" and alarms(run) == []
    (remark,) = remarks(run)
    assert f"from step {10 * (ROWS - 1)} on" in remark and "too few" in remark


def test_what_was_not_logged_is_not_what_was_logged_as_nan() -> None:
    """The last rows are evaluations only."""
    columns = learning(7)
    columns["loss"][EVENT:] = np.nan
    run = log_of(columns)
    assert log_onset(run).kind == "plain_divergence"
    del run["loss"].attrs["logged_nan"]
    assert log_onset(run).kind == "none" and alarms(run) == []


@pytest.mark.parametrize("change", [*HEALTHY[:1], *HEALTHY[2:5], collapse, *FAILING])
@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_dropping_a_harmless_row_changes_no_verdict(change, data: st.DataObject) -> None:
    """Of a row that is neither the one of the event nor among the four after it."""
    columns = learning(8)
    change(columns)
    every = data.draw(st.sampled_from([1, 7, 100]))
    row = data.draw(st.integers(0, ROWS - 1).filter(lambda row: not EVENT - 1 <= row <= EVENT + 4))
    whole = log_of(columns, every=every)
    part = whole.isel(step=np.arange(ROWS) != row)
    assert (log_onset(part).kind, log_onset(part).step) == (log_onset(whole).kind, log_onset(whole).step)
    assert [alarm.kind for alarm in alarms(part)] == [alarm.kind for alarm in alarms(whole)]


@pytest.mark.parametrize("every", [1, 100])
def test_healthy_logs_with_bumps_raise_no_alarm(every: int) -> None:
    """In 8,000 rows, seen twice: restarts, spikes, other data and noise one after the other."""
    for seed in range(8):
        columns = learning(seed, noise=0.02 + 0.02 * seed, rows=1000)
        rng = np.random.default_rng(seed)
        for at in rng.integers(100, 990, 4):
            columns["loss"][at : at + 2] *= rng.uniform(1.1, 1.4)
            columns["grad_norm"][at : at + 3] *= rng.uniform(2, 30)
        columns["loss"][500:] *= rng.uniform(0.8, 1.3)
        assert alarms(log_of(columns, every=every)) == []
        assert alarms(log_of(columns, every=every, drop=("tcs",))) == []


def test_a_negative_loss_is_judged_by_no_ratio() -> None:
    """As a log likelihood per pixel, which falls below zero and comes back a little."""
    columns = learning(9)
    columns["loss"] = 1.5 - columns["loss"] * np.where(np.arange(ROWS) < EVENT, -1, -0.9) - 3
    run = log_of(columns)
    assert log_onset(run).kind == "none" and alarms(run) == []
    assert any("negative" in text for text in verdict(run).cannot_say)
    columns["loss"][EVENT:] = np.nan
    assert log_onset(log_of(columns)).step == EVENT + 1


def test_a_loss_that_was_never_a_number_is_an_alarm() -> None:
    columns = learning(10)
    columns["loss"][:] = np.nan
    (alarm,) = alarms(log_of(columns))
    assert (alarm.step, alarm.kind, alarm.document()["signal"]) == (3, NOT_A_NUMBER, "loss")


def test_the_cost_goes_by_rows() -> None:
    """200 rows over two million steps."""
    columns = {name: values[:200] for name, values in learning(9).items()}
    begun = time.process_time()
    run = log_of(columns, every=10_000)
    verdict(run)
    watched(run)
    assert time.process_time() - begun < 2
