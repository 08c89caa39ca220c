"""Alarms during training: the reactions to them, also across a resume; learning rates by group."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.data.prefetch import AHEAD
from meanmode.dit.data.sources import Digits
from meanmode.dit.model.network import DiT
from meanmode.dit.train import checkpoint_files, checkpoints
from meanmode.dit.train.alarm_answers import ROLL_BACKS, answer, order_seed
from meanmode.dit.train.measurements import TelemetryWatch
from meanmode.dit.train.optimiser import Optimiser
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.onset.detector import Alarm
from meanmode.sim.onset.watched_signal import Moved
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.studies.run_onset import onset_document

BEGIN, END = 10, 12
"""First and last step at which the data are far too large; the alarm is raised at the last one."""

OPTIONS = {"steps": 16, "checkpoint_every": 2, "keep": 20, "event_window": 3, "ema": 0}


class Stopped(Exception):
    """Raised by the source of a test to stop a run."""


class Disturbed(Digits):
    """Digits that are three times as large at the 10th to 12th request."""

    def __init__(self, run: RunConfig, stop: int = 0) -> None:
        super().__init__(run.model)
        self.asked, self.stop = 0, stop

    def latents(self, indices: np.ndarray) -> Tensor:
        self.asked += 1
        if self.asked == self.stop:
            raise Stopped
        return super().latents(indices) * (3 if BEGIN <= self.asked <= END else 1)


def disturbed(runs, out: Path, **options: object) -> Trainer:
    """Train a disturbed run and return its trainer."""
    run = runs.tiny(**OPTIONS | options)
    return runs.trained(out, run, source=Disturbed(run))


@pytest.fixture(scope="session")
def logged(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that only logs its alarm, with a checkpoint of every step."""
    out = tmp_path_factory.mktemp("logged") / "run"
    disturbed(runs, out, checkpoint_every=1)
    return out


def alarms_of(out: Path) -> list[dict]:
    """The alarms in a run's store, including those of abandoned steps."""
    events = [event.get("alarm", event) for event in json.loads(open_run(out).attrs["events"])]
    return [event for event in events if "moved" in event]


def weights(out: Path, step: int) -> dict[str, Tensor]:
    """Weights of a checkpoint by name."""
    network = checkpoints.load_network(checkpoint_files.folder_of(out, step), ema=False)[1]
    return {name: weight.detach() for name, weight in network.named_parameters()}


def test_an_alarm_is_recorded_and_examined(logged: Path) -> None:
    (alarm,) = alarms_of(logged)
    assert (alarm["step"], alarm["action"]) == (END, "log")
    assert {"loss", "grad_norm"} <= {of["signal"] for of in alarm["moved"]}
    assert all(of["first_step"] == BEGIN for of in alarm["moved"][:2])
    shown = onset_document(logged)["alarms"]
    assert shown == [{name: alarm[name] for name in ("step", "signal", "value", "kind")}]
    assert alarm["kind"] == "divergence"
    assert (logged / f"autopsy-{END:08d}.txt").exists()


def test_the_user_is_told_of_an_alarm(runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disturbed(runs, tmp_path / "run", steps=END, on_alarm="lower_all")
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "alarm at step" in line]
    assert f"mms: alarm at step {END}: " in said and said.endswith("all learning rates are lowered")


def test_a_run_stops_on_an_alarm_and_can_be_resumed(runs, logged: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = runs.tiny(**OPTIONS, on_alarm="stop")
    outcome = Trainer(run, out, source=Disturbed(run)).train()
    assert (outcome.step, outcome.stopped) == (END, "alarm")
    assert str(outcome).startswith(f"stopped on an alarm at step {END}")
    runs.trained(out, runs.tiny(**OPTIONS), resume=True)
    runs.assert_same_weights(logged, out)


@pytest.mark.parametrize(
    ("action", "lowered"), [("lower_readers", ("q_proj", "k_proj", "v_proj", "w13")), ("lower_all", ("",))]
)
def test_rates_are_lowered_from_the_next_step_on(
    runs, logged: Path, tmp_path: Path, action: str, lowered: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    disturbed(runs, out, checkpoint_every=1, steps=END + 1, on_alarm=action, alarm_factor=0.5)
    before, ours, theirs = weights(logged, END), weights(out, END + 1), weights(logged, END + 1)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(out, END).items())
    for name, weight in ours.items():
        factor = 0.5 if any(part in name for part in lowered) else 1.0
        moved, reference = weight - before[name], factor * (theirs[name] - before[name])
        torch.testing.assert_close(moved, reference, rtol=1e-3, atol=1e-7)
    rates = [open_run(of)["lr"].sel(step=END + 1).item() for of in (out, logged)]
    assert rates[0] == rates[1] * (0.5 if action == "lower_all" else 1)


@pytest.fixture(scope="session")
def rolled_back(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that rolls back on its alarm."""
    out = tmp_path_factory.mktemp("rolled_back") / "run"
    disturbed(runs, out, on_alarm="roll_back")
    return out


def test_a_run_is_rolled_back(logged: Path, rolled_back: Path) -> None:
    origin = 6  # checkpoints are of even steps; this is the last one more than a window before BEGIN
    ours, theirs = open_run(rolled_back), open_run(logged)
    (event,) = [event for event in json.loads(ours.attrs["events"]) if "alarm" in event]
    assert event["step"] == origin and event["text"] == "steps 7 to 12 were abandoned on an alarm"
    assert (event["alarm"]["step"], event["alarm"]["action"]) == (END, "roll_back")
    assert ours.sizes["step"] == OPTIONS["steps"]
    same = ours["loss"].values == theirs["loss"].values
    assert same[:origin].all() and not same[origin:].any()
    np.testing.assert_allclose(ours["lr"][origin:], 0.25 * theirs["lr"][origin:], rtol=1e-12)
    assert ours["loss"].values[BEGIN - 1 : END].max() < 4
    notes = checkpoint_files.notes_of(checkpoint_files.checkpoint_folders(rolled_back)[-1])
    assert notes["roll_backs"] == 1 and set(notes["factors"].values()) == {0.25}


@pytest.mark.parametrize("stop", [END + AHEAD + 2, END + AHEAD + 7])
def test_a_rolled_back_run_is_resumed_bitwise(runs, rolled_back: Path, tmp_path: Path, stop: int) -> None:
    run = runs.tiny(**OPTIONS, on_alarm="roll_back")
    with pytest.raises(Stopped):
        runs.trained(tmp_path / "run", run, source=Disturbed(run, stop))
    runs.trained(tmp_path / "run", run, resume=True)
    runs.assert_same_weights(rolled_back, tmp_path / "run")
    runs.assert_same_store(rolled_back, tmp_path / "run")


def test_lowered_rates_survive_a_resume(runs, tmp_path: Path) -> None:
    run = runs.tiny(**OPTIONS, on_alarm="lower_readers")
    disturbed(runs, tmp_path / "whole", on_alarm="lower_readers")
    with pytest.raises(Stopped):
        runs.trained(tmp_path / "run", run, source=Disturbed(run, END + 3))
    runs.trained(tmp_path / "run", run, resume=True)
    runs.assert_same_weights(tmp_path / "whole", tmp_path / "run")
    runs.assert_same_store(tmp_path / "whole", tmp_path / "run")


def test_without_an_old_checkpoint_rates_are_only_lowered(
    runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = disturbed(runs, tmp_path / "run", on_alarm="roll_back", checkpoint_every=100)
    (alarm,) = alarms_of(tmp_path / "run")
    assert alarm["action"] == "lower_all" and set(trainer.optimiser.factors.values()) == {0.25}
    assert "no checkpoint is older than step 7: all learning rates are lowered" in capsys.readouterr().err


ALARM = Alarm(step=9, moved=(Moved(signal="loss", first_step=7, value=2.0, reference=1.0, factor=2.0),))


def test_a_run_is_rolled_back_three_times_at_most() -> None:
    training = TrainingConfig(on_alarm="roll_back", event_window=5)
    assert answer(training, ALARM, ROLL_BACKS - 1).before == 2
    last = answer(training, ALARM, ROLL_BACKS)
    assert (last.action, last.before) == ("lower_all", None) and "already rolled back 3 times" in last.said


def test_every_roll_back_has_its_own_data() -> None:
    assert order_seed(7, 0) == 7
    assert len({order_seed(seed, count) for seed in (7, 8) for count in range(4)}) == 8


def test_a_quiet_signal_hides_no_other(runs) -> None:
    watch = TelemetryWatch(runs.tiny(event_window=20))
    rows = {step: {"tcs": np.array([0.0, 0.0, 0.1, 0.1])} for step in range(1, 15)} | {
        15: {"tcs": np.array([0.0, 0.0, 0.99, 0.99])}
    }
    events = [watch.notice(step, 1.0, 9.0 if step > 12 else 1.0, row)[0] for step, row in rows.items()]
    assert [(of.step, of.signal) for of in events if of] == [(13, "grad_norm"), (15, "tcs")]


@pytest.mark.parametrize(
    ("field", "parts"),
    [("reader_rate", ("q_proj", "k_proj", "v_proj", "w13")), ("gain_rate", ("alpha", "beta"))],
)
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_group_has_its_own_learning_rate(runs, field: str, parts: tuple[str, ...], optimiser: str) -> None:
    """The first update of the group scales with its rate, decay included; all other updates are unchanged."""
    found = []
    for factor in (1.0, 0.125):
        run = runs.tiny(optimiser=optimiser, **{field: factor})
        network = DiT(run.model)
        network.load_state_dict({name: torch.ones_like(of) for name, of in network.state_dict().items()})
        ours = Optimiser(network, run.training)
        generator = torch.Generator().manual_seed(0)
        for weight in network.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        assert ours.step(0.5) == 0.5
        found.append({name: weight.detach() - 1 for name, weight in network.named_parameters()})
    for name, moved in found[1].items():
        own = name.split(".")[-1] in parts or any(f".{part}." in name for part in parts)
        torch.testing.assert_close(moved, found[0][name] * (0.125 if own else 1), rtol=1e-5, atol=2e-7)


def test_muon_updates_the_matrices_of_the_blocks_and_adamw_the_rest(runs) -> None:
    run = runs.tiny(optimiser="muon", weight_decay=0.3)
    network, other = DiT(run.model), DiT(run.model)
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    other.load_state_dict(network.state_dict())
    ours = Optimiser(network, run.training)
    inside = {name for name, of in other.named_parameters() if name.startswith("blocks") and of.ndim == 2}
    named = dict(other.named_parameters())
    muon = torch.optim.Muon(
        [named[name] for name in sorted(inside)], lr=0.01, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"
    )
    rest = [name for name in named if name not in inside]
    adamw = torch.optim.AdamW(
        [{"params": [named[name]], "weight_decay": 0.3 * (named[name].ndim > 1)} for name in rest], lr=0.01
    )
    for _ in range(3):
        for ours_, theirs in zip(network.parameters(), other.parameters(), strict=True):
            ours_.grad = torch.randn(ours_.shape, generator=generator)
            theirs.grad = ours_.grad.clone()
        ours.step(0.01)
        muon.step()
        adamw.step()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight, named[name], rtol=1e-5, atol=1e-6)


def test_a_run_with_muon_is_resumed_bitwise(runs, tmp_path: Path) -> None:
    run = runs.tiny(optimiser="muon", reader_rate=0.5)
    runs.trained(tmp_path / "whole", run)
    with pytest.raises(Stopped):
        runs.trained(tmp_path / "run", run, source=Disturbed(run, 10))
    runs.trained(tmp_path / "run", run, resume=True)
    runs.assert_same_weights(tmp_path / "whole", tmp_path / "run")
    runs.assert_same_store(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"on_alarm": "shout"},
            "unknown on_alarm 'shout': choose one of log, stop, lower_readers, lower_all",
        ),
        ({"alarm_factor": 1.0}, r"alarm_factor must be in \[0, 1\), got 1.0"),
        ({"optimiser": "muon", "sharding": "full"}, "set sharding=replicated or optimiser=adamw"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TrainingConfig(), **options)
