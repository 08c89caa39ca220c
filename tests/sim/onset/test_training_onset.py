"""The label of a training run: what is a collapse, what is not, and when, however rarely it is measured."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from meanmode.sim.onset.training_onset import DIVERGED, MOVED, WINDOW, training_onset

STEPS, ONSET, DEPTH = 400, 300, 8
Array = NDArray[np.float64]


def learns(step: Array) -> Array:
    """A loss that falls from 2 to 1.1, as noisy as that of a batch of four."""
    noise = np.random.default_rng(0).normal(scale=0.12, size=len(step))
    return (1.1 + 0.9 * np.exp(-step / 60)) * (1 + noise)


def collapses(step: Array, onset: int = ONSET) -> Array:
    """The same loss, thrown back to 2 within three steps of the onset."""
    returned = np.clip((step - onset) / 3, 0, 1)
    return learns(step) * (1 - returned) + returned * learns(np.zeros_like(step))


def jumps(step: Array) -> Array:
    """A loss without noise that is back at its initial level at once."""
    return np.where(step < ONSET, 2 - 0.9 * np.minimum(step / 100, 1), 2.0)


def run_of(
    loss: Callable[[Array], Array] = collapses,
    onset: int = ONSET,
    *,
    every: int = 1,
    steps: int = STEPS,
    first: int = 1,
    attributes: Mapping[str, float] | None = None,
) -> xr.Dataset:
    """A run whose deep blocks are homogeneous from the onset on, measured every `every` steps."""
    step = np.arange(first, first + steps)
    block = np.arange(DEPTH + 1)
    after = step[:, None] >= onset
    rng = np.random.default_rng(1)

    def measured(before: float, afterwards: float) -> Array:
        values = np.where(after, afterwards, before) * np.exp(rng.normal(scale=0.1, size=(steps, DEPTH + 1)))
        values[:, 0] = np.nan
        values[step % every != 0] = np.nan
        return values

    tcs = np.where(after & (block > 5), 0.97 + 0.002 * block, 0.07 * block)
    tcs[step % every != 0] = np.nan
    g_mean, g_ctr = measured(0.8, 400.0), measured(1.0, 0.01)
    values = {
        "tcs": (("step", "block"), tcs),
        "rho": (("step", "block"), measured(0.5, 1e5)),
        "g_mean": (("step", "block", "writer"), np.stack([g_mean, g_mean], -1)),
        "g_ctr": (("step", "block", "writer"), np.stack([g_ctr, g_ctr], -1)),
        "grad_rms_q": (("step", "block"), measured(1e-3, 1e-7)),
        "grad_rms_k": (("step", "block"), measured(1e-3, 2e-3)),
        "loss": (("step",), loss(step.astype(float))),
        "grad_norm": (("step",), np.where(after[:, 0], 30.0, 0.5)),
    }
    return xr.Dataset(
        values, {"step": step, "block": block, "writer": ["attn", "ffn"]}, dict(attributes or {})
    )


def label(run: xr.Dataset) -> tuple[str, int | None]:
    onset = training_onset(run)
    return onset.kind, onset.step


def test_a_collapse_is_labelled_at_its_first_step() -> None:
    assert label(run_of()) == ("mean_mode", ONSET)


@pytest.mark.parametrize("every", [1, 3, 10, 20, 33])
def test_it_is_seen_however_rarely_tcs_is_measured(every: int) -> None:
    """The onset is then the first measured step of the stretch."""
    assert label(run_of(every=every)) == ("mean_mode", -(-ONSET // every) * every)


@pytest.mark.parametrize("onset", [40, 120, 375])
def test_it_is_seen_early_and_late(onset: int) -> None:
    assert label(run_of(lambda step: collapses(step, onset), onset)) == ("mean_mode", onset)


@pytest.mark.parametrize(("lasting", "kind"), [(19, "none"), (20, "mean_mode"), (60, "mean_mode")])
def test_a_stretch_counts_from_twenty_steps_on(lasting: int, kind: str) -> None:
    """A transient stretch, and one cut short by the end of the run."""
    transient, cut = run_of(jumps), run_of(jumps, steps=ONSET + lasting - 1)
    transient["tcs"].loc[{"step": slice(ONSET + lasting, None)}] = 0.1
    transient["loss"].loc[{"step": slice(ONSET + lasting + 10, None)}] = 1.1
    assert training_onset(transient).kind == training_onset(cut).kind == kind


@pytest.mark.parametrize(("steps", "kind"), [(339, "none"), (345, "mean_mode"), (361, "mean_mode")])
def test_two_rows_count_only_at_the_end_of_the_run(steps: int, kind: str) -> None:
    """Rows every 20 steps: 300, 320, ...; at the first the loss is not back at its initial level yet."""
    assert training_onset(run_of(every=20, steps=steps)).kind == kind
    followed = run_of(every=20, steps=361)
    followed["tcs"].loc[{"step": slice(340, None)}] = np.where(
        followed["step"].sel(step=slice(340, None)) % 20, np.nan, 0.1
    )[:, None]
    assert training_onset(followed).kind != "mean_mode"


def returns_without_tcs(run: xr.Dataset) -> xr.Dataset:
    return run.assign(tcs=run["tcs"] * 0.1)


def keeps_learning(run: xr.Dataset) -> xr.Dataset:
    return run.assign(loss=("step", learns(run["step"].values.astype(float))))


def only_shallow(run: xr.Dataset) -> xr.Dataset:
    return run.assign(tcs=(("step", "block"), run["tcs"].values[:, ::-1]))


def half_the_deep(run: xr.Dataset) -> xr.Dataset:
    return run.assign(tcs=run["tcs"].where(run["block"] < DEPTH - 1, 0.2))


def only_deep_measured(run: xr.Dataset) -> xr.Dataset:
    return run.assign(tcs=run["tcs"].where(run["block"] == DEPTH - 1))


def text_alone(run: xr.Dataset) -> xr.Dataset:
    return run.assign(tcs_image=run["tcs"] * 0.1)


def image_alone(run: xr.Dataset) -> xr.Dataset:
    return run.assign(tcs_image=run["tcs"], tcs=run["tcs"] * 0.1)


def image_unmeasured(run: xr.Dataset) -> xr.Dataset:
    return run.assign(tcs_image=run["tcs"] * np.nan)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (returns_without_tcs, "plain_divergence"),
        (keeps_learning, "none"),
        (only_shallow, "plain_divergence"),
        (half_the_deep, "plain_divergence"),
        (only_deep_measured, "mean_mode"),
        (text_alone, "plain_divergence"),
        (image_alone, "mean_mode"),
        (image_unmeasured, "mean_mode"),
    ],
)
def test_both_conditions_and_the_deep_blocks_decide(
    change: Callable[[xr.Dataset], xr.Dataset], kind: str
) -> None:
    assert training_onset(change(run_of())).kind == kind


def test_homogeneous_blocks_that_learn_have_their_onset_where_the_loss_is_back() -> None:
    """Deep blocks homogeneous from step 50: the onset is where the loss returns, 250 steps later."""
    kind, step = label(run_of(onset=50))
    assert kind == "mean_mode" and step is not None and abs(step - ONSET) <= 10


def test_the_onset_is_where_tcs_rises_although_the_loss_returns_later() -> None:
    assert label(run_of(lambda step: collapses(step, ONSET + 30))) == ("mean_mode", ONSET)


def test_a_run_that_stays_at_the_initial_level_is_not_a_collapse() -> None:
    """When nothing was learned and tokens differ."""
    assert label(run_of(lambda step: learns(0 * step), onset=10**6)) == ("none", None)


def test_a_continued_run_takes_its_initial_level_from_an_attribute() -> None:
    """A loss of 1.1 is not a return to a level of 2, but it is one if that level is unknown."""
    homogeneous = {"first": 1000, "onset": 1200, "steps": 300}
    assert training_onset(run_of(learns, **homogeneous)).kind == "mean_mode"
    assert training_onset(run_of(learns, **homogeneous, attributes={"initial_loss": 2.0})).kind == "none"


@pytest.mark.parametrize(
    ("loss", "step"),
    [
        (lambda step: np.where(step >= 250, np.inf, learns(step)), 250),
        (lambda step: np.where(step == 250, np.inf, learns(step)), 250),
        (lambda step: np.where(step >= 250, np.nan, learns(step)), 250),
        (lambda step: np.where(step >= STEPS, np.nan, learns(step)), STEPS),
        (lambda step: np.where(step >= 250, 7.0, learns(step)), 250),
        (lambda step: np.where((step >= 250) & (step < 290), 7.0, learns(step)), 250),
        (lambda step: np.full(len(step), np.inf), 1),
    ],
    ids=["inf", "one inf", "nan", "nan at the end", "high", "high for long", "inf from the first"],
)
def test_a_loss_that_diverges_without_the_signature_is_plain(
    loss: Callable[[Array], Array], step: int
) -> None:
    assert label(returns_without_tcs(run_of(loss))) == ("plain_divergence", step)


@pytest.mark.parametrize(
    "loss",
    [
        lambda step: np.where((step >= 250) & (step < 257), 7.0, learns(step)),
        lambda step: np.where(step % 10 == 5, learns(step), np.nan),
        lambda step: np.where((step > 250) & (step < 270), np.nan, learns(step)),
        lambda step: np.where((step >= 250) & (step < 300), 2.0, learns(step)),
        lambda step: np.where(step > 300, 0.95 * DIVERGED * 2.0, 2.0),
    ],
    ids=["spike", "rarely measured", "unmeasured for a while", "back for a while", "below the multiple"],
)
def test_a_loss_that_does_not_diverge(loss: Callable[[Array], Array]) -> None:
    assert label(returns_without_tcs(run_of(loss))) == ("none", None)


@pytest.mark.parametrize(("gap", "kind"), [(60, "mean_mode"), (WINDOW + 1, "plain_divergence")])
def test_what_came_first_is_the_label(gap: int, kind: str) -> None:
    """A loss at three times its initial level before the tokens become homogeneous."""
    lost = ONSET - gap
    assert training_onset(run_of(lambda step: np.where(step >= lost, 6.0, learns(step)))).kind == kind


def test_a_collapse_that_ends_in_nan_is_a_collapse() -> None:
    assert label(run_of(lambda step: np.where(step > 350, np.nan, collapses(step)))) == ("mean_mode", ONSET)


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(1e-3, 1e3), shift=st.integers(0, 10**5))
def test_the_label_depends_on_neither_the_unit_of_the_loss_nor_the_first_step(
    scale: float, shift: int
) -> None:
    run = run_of()
    moved = run.assign(loss=run["loss"] * scale).assign_coords(step=run["step"] + shift)
    assert label(moved) == ("mean_mode", ONSET + shift)


def test_evidence_says_what_moved_when_and_how_far() -> None:
    evidence = training_onset(run_of()).evidence
    moved = {name for name, found in evidence.items() if found["first_step"] == ONSET}
    assert moved == {"g_mean", "g_ctr", "mode_ratio", "grad_rms_q", "tcs", "rho", "grad_norm"}
    assert evidence["grad_rms_k"]["first_step"] is None  # moved by a factor of 2
    assert abs(evidence["loss"]["first_step"] - ONSET) <= 3
    for name, ratio in {"g_mean": 500, "g_ctr": 0.01, "mode_ratio": 5e4, "rho": 2e5, "loss": 1.8}.items():
        assert evidence[name]["ratio"] == pytest.approx(ratio, rel=0.1), name
    assert evidence["grad_norm"]["ratio"] == 60 and "amplification" not in evidence


@pytest.mark.parametrize(
    ("begin", "end", "first_step"),
    [
        (ONSET - 12, STEPS, ONSET - 12),
        (ONSET + 5, STEPS, ONSET + 5),
        (ONSET - 12, ONSET + 1, ONSET - 12),
        (ONSET - 30, ONSET - 20, None),
        (ONSET + 5, ONSET + 7, None),
        (ONSET - WINDOW - 50, ONSET - WINDOW - 5, None),
    ],
    ids=["before", "after", "a spike", "over before", "too short", "outside"],
)
def test_a_signal_counts_from_where_it_stays_away(begin: int, end: int, first_step: int | None) -> None:
    run = run_of()
    away = (run["step"] >= begin) & (run["step"] < end)
    run["grad_norm"] = xr.where(away, 1.1 * MOVED, 1.0)
    assert training_onset(run).evidence["grad_norm"]["first_step"] == first_step


def test_evidence_from_rare_rows() -> None:
    evidence = training_onset(run_of(every=20)).evidence
    assert evidence["g_mean"]["first_step"] == ONSET and evidence["grad_norm"]["first_step"] == ONSET
    assert evidence["g_mean"]["ratio"] == pytest.approx(500, rel=0.2)


def test_evidence_that_cannot_be_determined_is_none() -> None:
    """When nothing was measured before the onset, or the median is zero."""
    early = training_onset(run_of(lambda step: learns(0 * step), onset=1))
    assert early.step == 1 and early.evidence["g_mean"] == {"first_step": None, "ratio": None}
    run = run_of()
    run["grad_norm"] = xr.where(run["step"] < ONSET, 0.0, 1.0)
    run["rho"] = run["rho"].where(run["step"] < ONSET, np.inf)
    evidence = training_onset(run).evidence
    assert evidence["grad_norm"] == {"first_step": ONSET, "ratio": None}
    assert evidence["rho"] == {"first_step": ONSET, "ratio": None}


@pytest.mark.parametrize(
    ("drop", "message"),
    [("tcs", "the run has no TCS"), ("loss", "the run has no loss"), (None, "the run has no loss")],
)
def test_a_run_that_cannot_be_labelled_is_refused(drop: str | None, message: str) -> None:
    run = run_of().isel(step=slice(0)) if drop is None else run_of().drop_vars(drop)
    with pytest.raises(ValueError, match=message):
        training_onset(run)
