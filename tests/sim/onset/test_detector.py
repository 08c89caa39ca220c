"""The detector raises an alarm where a run collapses and nowhere else, from the past alone."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from meanmode.sim.onset.detector import (
    BORN,
    COLLAPSE,
    DIVERGENCE,
    GRADIENTS_DEAD,
    LOGITS,
    NOT_A_NUMBER,
    Detector,
    alarms,
)
from meanmode.sim.onset.training_onset import training_onset
from meanmode.sim.onset.verdict import verdict
from meanmode.sim.onset.watched_signal import LASTING_ROWS
from meanmode.sim.store.run_reader import open_run

ROOT = Path(__file__).parents[3]
EXCERPT = ROOT.parent / "shared" / "data" / "published_400l_excerpt.json"
ONSET = 120
"""Sample at which the runs below collapse."""

AFTER = {"loss": 1.9 / 1.15, "tcs_image": 0.02, "rho": 300.0, "g_mean": 50.0, "grad_rms_q": 1e-3}
"""Factor by which a collapse changes a signal at once; for a TCS, the factor of 1 - TCS."""

DYING = ("g_ctr", "grad_rms_q")
"""Gradients that vanish in a collapse."""

Values = Mapping[str, float]


def healthy(count: int = 200, *, every: int = 1, seed: int = 0) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps and signals of a run that learns, as noisy as with batches of four, with occasional spikes."""
    rng = np.random.default_rng(seed)
    for step in range(every, (count + 1) * every, every):
        gradient = np.exp(0.5 * rng.standard_t(4)) * (1000 if rng.random() < 0.02 else 1)
        own = np.exp(0.3 * rng.standard_normal(5))
        yield (
            step,
            {
                "loss": (1.15 + 0.85 * np.exp(-step / 40)) * (1 + 0.1 * rng.standard_normal()),
                "grad_norm": gradient * own[0],
                "tcs_image": 0.1 + 0.05 * rng.standard_normal(),
                "rho": own[1],
                "g_mean": gradient * own[2],
                "g_ctr": gradient * own[3],
                "grad_rms_q": gradient * own[4],
            },
        )


def collapsing(count: int = 200, **options: int) -> Iterator[tuple[int, dict[str, float]]]:
    """The same run, collapsed from sample `ONSET` on."""
    for number, (step, values) in enumerate(healthy(count, **options), start=1):
        after = AFTER if number >= ONSET else {}
        changed = {name: min(value * after.get(name, 1), 10**6) for name, value in values.items()}
        yield step, changed | {"tcs_image": 1 - (1 - values["tcs_image"]) * after.get("tcs_image", 1)}


def only(*names: str) -> Callable[[Values], dict[str, float]]:
    """Keep only these signals."""
    return lambda values: {name: values[name] for name in names}


def renamed(values: Values) -> dict[str, float]:
    """Names as another trainer has them, one of them unknown to the detector."""
    return {"train/loss": values["loss"], "homogeneity": values["rho"], "tcs.384": values["tcs_image"]}


def published(values: Values) -> dict[str, float]:
    """Names as in the published telemetry."""
    return {"loss": values["loss"], "writer_G_mean": values["g_mean"], "deep_Q": values["grad_rms_q"]}


def some_missing(values: Values) -> dict[str, float]:
    """Only Q gradients and TCS, the gradients not measured at every step."""
    often = values["grad_norm"] > 0.5
    return {"tcs_image": values["tcs_image"], "grad_rms_q": values["grad_rms_q"] if often else np.nan}


def raised(run: Iterator[tuple[int, dict[str, float]]], choose: Callable[[Values], Values] = dict) -> list:
    """All alarms that a stream of steps raises."""
    detector = Detector()
    found = [detector.update(step, choose(values)) for step, values in run]
    return [alarm for alarm in found if alarm is not None]


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize(
    "choose", [dict, only("loss", "g_mean"), only("tcs_image", "rho", "loss"), published]
)
def test_a_collapse_is_seen_within_three_samples(every: int, choose) -> None:
    alarm, *_ = raised(collapsing(every=every), choose)
    assert ONSET <= alarm.step / every <= ONSET + 3
    assert all(ONSET - 2 <= of.first_step / every for of in alarm.moved)


@pytest.mark.parametrize("choose", [renamed, some_missing])
def test_a_collapse_is_seen_soon_from_few_signals(choose) -> None:
    alarm, *_ = raised(collapsing(), choose)
    assert ONSET <= alarm.step <= ONSET + 8


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("choose", [dict, only("loss", "grad_norm")])
def test_a_healthy_run_raises_no_alarm(every: int, seed: int, choose) -> None:
    assert raised(healthy(300, every=every, seed=seed), choose) == []


def test_a_short_run_is_long_enough() -> None:
    """Twenty samples, ten steps apart; the last five are collapsed."""
    run = [(step, of | ({"loss": 2.0} if step > 150 else {})) for step, of in healthy(20, every=10, seed=3)]
    run = [
        (step, of | ({"tcs_image": 0.99, "grad_rms_q": 1e-4, "rho": 50.0} if step > 150 else {}))
        for step, of in run
    ]
    assert [alarm.step for alarm in raised(iter(run))] == [180]


def drifting(per_sample: float) -> Iterator[tuple[int, dict[str, float]]]:
    """Gradients and norm ratio grow steadily, as when the rate is ramped up, while the loss falls."""
    for number, (step, values) in enumerate(healthy(300, seed=1)):
        grown = np.exp(per_sample * number)
        factors = {name: grown for name in ("grad_norm", "g_mean", "g_ctr", "grad_rms_q", "rho")}
        yield step, {name: of * factors.get(name, 1) for name, of in values.items()}


@pytest.mark.parametrize("per_sample", [0.01, 0.05, 0.2])
def test_slow_changes_raise_no_alarm(per_sample: float) -> None:
    assert raised(drifting(per_sample)) == []


def restarted(at: int, gap: int) -> Iterator[tuple[int, dict[str, float]]]:
    """A run that starts or resumes with three samples that are off."""
    for number, (step, values) in enumerate(healthy(100, every=10, seed=2)):
        off = {0: 25.0, 1: 6.0, 2: 1.6}.get(number - at, 1.0)
        loss = values["loss"] * (1 + (off - 1) / 25)
        yield (
            step + (gap if number >= at else 0),
            {name: of * off for name, of in values.items()} | {"loss": loss},
        )


@pytest.mark.parametrize(("at", "gap"), [(0, 0), (50, 0), (50, 5000), (50, -300), (5, 0)])
def test_a_restart_raises_no_alarm(at: int, gap: int) -> None:
    assert raised(restarted(at, gap)) == []


def noted(run: Iterator[tuple[int, dict[str, float]]]) -> list[int]:
    """Steps of the notes of a run that raises no alarm."""
    detector = Detector()
    assert not any([detector.update(step, values) for step, values in run])
    return [step for step, _ in detector.notes]


@pytest.mark.parametrize("names", [("loss",), ("loss", "grad_norm")])
def test_a_loss_that_jumps_alone_is_a_note(names: tuple[str, ...]) -> None:
    """Lower than twice its initial level, with gradients as they were: other data, perhaps, and no alarm."""
    (step,) = noted((step, only(*names)(values)) for step, values in collapsing())
    assert ONSET <= step <= ONSET + 8


def test_a_loss_that_returns_slowly_is_a_note() -> None:
    back = {step: 1.15 + 0.85 * np.clip((step - 200) / 100, 0, 1) for step in range(1, 401)}
    run = ((step, of | ({"loss": of["loss"] * back[step] / 1.15})) for step, of in healthy(400, seed=4))
    (step,) = noted((step, only("loss", "grad_norm")(values)) for step, values in run)
    assert 200 < step <= 310


def test_an_alarm_lists_signals_in_the_order_in_which_they_moved() -> None:
    run = (
        (step, of | ({"tcs_image": 0.95} if step >= 116 else {}) | ({"loss": 2.0} if step >= ONSET else {}))
        for step, of in healthy()
    )
    (alarm,) = raised(run, only("loss", "tcs_image"))
    assert [(of.signal, of.first_step) for of in alarm.moved] == [("tcs_image", 116), ("loss", ONSET)]
    cosine, loss = alarm.moved
    assert cosine.value == 0.95 and cosine.reference == pytest.approx(0.1, abs=0.05)
    assert cosine.factor == pytest.approx(0.05 / (1 - cosine.reference))
    assert loss.factor == pytest.approx(2.0 / loss.reference)
    document = json.loads(json.dumps(alarm.document()))
    assert (document["step"], document["signal"], document["value"]) == (alarm.step, "tcs_image", 0.95)
    said = str(alarm)
    assert f"alarm at step {alarm.step}: collapse, tcs_image at 0.9" in said and "from step 116" in said


def test_one_kind_of_signal_alone_raises_no_alarm_if_others_are_logged() -> None:
    """Gradients grow a hundredfold for good while loss and tokens stay as they were."""
    run = (
        (
            step,
            {
                name: value * (100 if name.startswith("g") and step >= ONSET else 1)
                for name, value in of.items()
            },
        )
        for step, of in healthy()
    )
    assert raised(run) == []


def test_a_collapse_that_lasts_is_one_alarm() -> None:
    assert len(raised(collapsing(300))) == 1


def test_a_loss_that_stays_at_its_initial_level_is_one_note() -> None:
    """As in a run that fails without homogeneous tokens, however long it continues."""
    rng = np.random.default_rng(3)
    run = (
        (
            step,
            {"loss": (1.9 if step >= ONSET else 1.1) * (1 + 0.1 * rng.standard_normal()), "grad_norm": 1.0},
        )
        for step in range(1, 601)
    )
    assert len(noted(run)) == 1


def loss_and_norm(loss: dict[int, float], norm: dict[int, float]) -> Iterator[tuple[int, dict[str, float]]]:
    """A quiet run of 200 rows with other values from these steps on."""
    rng = np.random.default_rng(5)
    for step in range(1, 201):
        values = {"loss": 2 - min(step, 80) / 100, "grad_norm": 1.0}
        values = {name: value * (1 + 0.02 * rng.standard_normal()) for name, value in values.items()}
        for name, given in (("loss", loss), ("grad_norm", norm)):
            begun = [value for first, value in given.items() if step >= first]
            values[name] = (begun or [values[name]])[-1]
        yield step, values


@pytest.mark.parametrize(
    ("loss", "norm", "steps", "kind"),
    [
        ({ONSET: np.nan}, {ONSET: np.nan}, range(ONSET + 2, ONSET + 3), NOT_A_NUMBER),
        ({ONSET: np.inf}, {}, range(ONSET + 2, ONSET + 3), NOT_A_NUMBER),
        ({ONSET: 0.0}, {ONSET: np.nan}, range(ONSET + 2, ONSET + 3), NOT_A_NUMBER),
        ({}, {ONSET: np.nan}, range(ONSET + 19, ONSET + 20), NOT_A_NUMBER),
        ({ONSET: 9.0}, {ONSET: 9.0}, range(ONSET + 2, ONSET + 4), DIVERGENCE),
        ({ONSET: 9.0}, {}, range(ONSET + 3, ONSET + 4), DIVERGENCE),
        ({ONSET: 1.7}, {ONSET: 9.0}, range(ONSET + 3, ONSET + 4), DIVERGENCE),
        ({ONSET: np.nan, ONSET + 2: 1.2}, {ONSET: np.nan, ONSET + 2: 1.0}, (), ""),
        ({ONSET: 0.0}, {}, (), ""),
        ({ONSET: 9.0, ONSET + 2: 1.2}, {ONSET: 30.0, ONSET + 2: 1.0}, (), ""),
    ],
    ids=["nan", "inf", "zero", "norm", "high", "loss high", "both", "two nan", "memorised", "spike"],
)
def test_alarms_without_a_token_signal_are_of_kinds(loss, norm, steps, kind: str) -> None:
    found = raised(loss_and_norm(loss, norm))
    assert [alarm.kind for alarm in found] == [kind] * len(steps[:1])
    assert all(alarm.step in steps for alarm in found)


def test_dead_gradients_are_a_kind_of_their_own() -> None:
    """Centered writer gradients and those of queries vanish while the loss stays where it was."""
    run = (
        (step, values | {name: 1e-9 if step >= ONSET else values["grad_norm"] for name in DYING})
        for step, values in loss_and_norm({}, {})
    )
    (alarm,) = raised(run)
    assert alarm.kind == GRADIENTS_DEAD and ONSET <= alarm.step <= ONSET + 3
    assert {of.signal for of in alarm.moved} == set(DYING)


def test_a_run_whose_tokens_are_alike_from_the_start_is_said_to_be() -> None:
    """By the label and by the detector, in the same words; not if the tokens become unlike soon."""
    rng = np.random.default_rng(0)
    run = xr.Dataset(
        {
            "loss": ("step", 2 + 0.02 * rng.standard_normal(100)),
            "tcs": (("step", "block"), np.full((100, 2), 0.99)),
        },
        {"step": np.arange(1, 101), "block": [0, 1]},
    )
    (alarm,) = alarms(run)
    assert (alarm.step, alarm.kind) == (20, BORN) and verdict(run).words.startswith(BORN)
    run["tcs"][8:] = 0.1
    assert alarms(run) == [] and verdict(run).onset.kind == "none"


def test_a_sudden_collapse_of_a_quiet_run_is_seen_in_its_second_row() -> None:
    """As in the published run: rows every ten steps, from step 25010 on, resumed from a checkpoint."""
    rng = np.random.default_rng(1)
    steps = np.arange(25010, 26700, 10)
    after = steps >= 26430
    noise = 1 + 0.01 * rng.standard_normal((3, len(steps)))
    run = xr.Dataset(
        {
            "loss": ("step", np.where(after, 1.94, 0.79) * noise[0]),
            "writer_g_mean": ("step", np.where(after, 30.0, 0.2) * noise[1]),
            "tcs": (("step", "block"), (np.where(after, 0.99, 0.5) * noise[2].clip(max=1.005))[:, None]),
        },
        {"step": steps, "block": [1]},
        {"import": "{}"},
    )
    (alarm,) = alarms(run)
    assert (alarm.step, alarm.kind) == (26440, COLLAPSE)
    assert (verdict(run).onset.step, verdict(run).onset.kind) == (26430, "mean_mode")


def test_cosines_of_unknown_names_are_found_by_their_values() -> None:
    """A collapse is found within three samples from meaningless names; what exceeds 1 is not a cosine."""

    def anonymous(values: Values) -> dict[str, float]:
        return {"a": values["loss"], "b": values["tcs_image"]}

    found = [alarm.step for alarm in raised(collapsing(), anonymous)]
    assert len(found) == 1 and ONSET <= found[0] <= ONSET + 3
    assert raised(collapsing(), lambda values: anonymous(values) | {"b": 10 * anonymous(values)["b"]}) == []
    assert raised(collapsing(), lambda values: anonymous(values) | {"tcs": values["g_mean"] / 1e9}) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_non_finite_and_negative_values_are_tolerated(value: float) -> None:
    run = (
        (step, of | ({"g_mean": value, "loss": value} if step in (50, 90) else {})) for step, of in healthy()
    )
    assert raised(run) == []


@pytest.mark.parametrize("at", [3, 60, ONSET, ONSET + 1])
@pytest.mark.parametrize("known", [True, False])
def test_a_restored_detector_continues_bitwise(at: int, known: bool) -> None:
    whole, first, second = Detector(), Detector(), Detector()
    run = [
        (step, of if known else {"x" * number: value / 2 for number, value in enumerate(of.values())})
        for step, of in collapsing()
    ]
    expected = [whole.update(*of) for of in run]
    found = [first.update(*of) for of in run[:at]]
    second.restore(first.state())
    assert found + [second.update(*of) for of in run[at:]] == expected
    assert all(isinstance(values, np.ndarray) for values in second.state().values())


COLLAPSED = ("digits_16l", "digits_400l", "digits_1000l")


@pytest.mark.parametrize("name", COLLAPSED)
def test_collapses_of_real_runs_are_seen(name: str) -> None:
    run = open_run(ROOT / "paper_figs" / "data" / f"{name}.zarr")
    alarm, *_ = alarms(run)
    assert training_onset(run).step - 50 <= alarm.step <= training_onset(run).step + 3 * 5  # every five steps
    assert {"tcs_image"} < {of.signal for of in alarm.moved}


@pytest.mark.parametrize(
    ("name", "steps"),
    [("digits_16l_mvsplit", []), ("digits_400l_mvsplit", []), ("digits_1000l_mvsplit", [48])],
)
def test_runs_that_did_not_collapse_raise_no_alarm(name: str, steps: list[int]) -> None:
    """Except for a near miss: deep blocks are homogeneous from step 41 to 50 and then recover."""
    run = open_run(ROOT / "paper_figs" / "data" / f"{name}.zarr")
    assert [alarm.step for alarm in alarms(run)] == steps
    if steps:
        near = run["tcs_image"].sel(step=slice(41, 50)).isel(block=slice(501, None)).median("block")
        assert (near > 0.85).all() and float(near.median()) > 0.9


def test_later_steps_change_no_alarm() -> None:
    run = open_run(ROOT / "paper_figs" / "data" / "digits_16l.zarr")
    (alarm,) = alarms(run)
    assert alarms(run.sel(step=slice(None, alarm.step))) == [alarm]
    assert alarms(run.sel(step=slice(None, alarm.step - 1))) == []


@pytest.mark.skipif(not EXCERPT.exists(), reason="the published excerpt is not here")
def test_the_published_run_raises_no_alarm_before_its_collapse() -> None:
    rows: dict[int, dict[str, float]] = {}
    for name, series in json.loads(EXCERPT.read_text())["scalars"].items():
        for step, value in zip(series["s"], series["v"], strict=True):
            rows.setdefault(step, {})[name] = value
    assert raised(iter(sorted(rows.items()))) == []


def not_learning(
    count: int = 40, *, seed: int = 0, alive: float = 1.0
) -> Iterator[tuple[int, dict[str, float]]]:
    """A run whose tokens are alike from sample 6 to 16 before it has learned anything, then learns or not.

    Args:
        count: number of samples, ten steps apart.
        seed: seed of the noise.
        alive: factor of the centered and query gradients while the tokens are alike.
    """
    rng = np.random.default_rng(seed)
    for number in range(1, count + 1):
        alike = number > 6 and (alive < 1e-3 or number <= 16)
        own = np.exp(0.1 * rng.standard_normal(3))
        yield (
            10 * number,
            {
                "loss": 2.77
                * (1 + 0.002 * rng.standard_normal())
                * (1.0 if alive < 1e-3 or number < 17 else 0.3),
                "grad_norm": own[0],
                "tcs": 0.98 if alike else 0.5,
                "g_ctr": own[1] * (alive if alike else 1.0),
                "grad_rms_q": 1e-4 * own[2] * (alive if alike else 1.0),
            },
        )


def test_alike_tokens_before_learning_are_a_collapse_only_if_gradients_vanish() -> None:
    assert raised(not_learning(alive=0.02)) == []
    (alarm,) = raised(not_learning(alive=1e-5))
    assert (alarm.kind, alarm.step) == (COLLAPSE, 90)


@pytest.mark.parametrize("logged", [("loss", "grad_norm", "tcs"), ("loss", "tcs", "g_ctr", "grad_rms_q")])
def test_gradients_of_unknown_share_live_until_the_front_has_lasted(logged: tuple[str, ...]) -> None:
    assert raised(not_learning(alive=0.02), only(*logged)) == []
    (alarm,) = raised(not_learning(alive=1e-5), only(*logged))
    assert (alarm.kind, alarm.step) == (COLLAPSE, 10 * (6 + LASTING_ROWS))


@pytest.mark.parametrize(("fall", "kinds"), [(0.9, []), (1.0, [DIVERGENCE])])
def test_a_loss_that_jumps_and_falls_while_tokens_stay_is_that_of_other_data(fall: float, kinds) -> None:
    rng = np.random.default_rng(4)
    rows = [
        (
            step,
            {
                "loss": (0.02 if step < 100 else 12.0 * fall ** (step - 100))
                * (1 + 0.05 * rng.standard_normal()),
                "grad_norm": 1.0 if step < 100 else 10.0,
                "tcs": 0.3 + 0.02 * rng.standard_normal(),
            }
            | ({"loss": 2.8} if step < 20 else {}),
        )
        for step in range(1, 200)
    ]
    assert [alarm.kind for alarm in raised(iter(rows))][:1] == kinds


@pytest.mark.parametrize(("peak", "kinds"), [(90.0, []), (130.0, [LOGITS])])
def test_attention_logits_beyond_what_a_softmax_resolves(peak: float, kinds: list[str]) -> None:
    grown = ((step, of | {"max_logit": peak if step > 100 else 2.0}) for step, of in healthy(150))
    assert [alarm.kind for alarm in raised(grown)] == kinds
