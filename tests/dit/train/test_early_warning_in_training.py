"""The early warning during training: what is stored, what silences it, and alarms at a probability."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.warning_premises import broken_premises
from meanmode.dit.train.checkpoint_files import folder_of, watch_of
from meanmode.dit.train.measurements import TelemetryWatch
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.onset.early_warning import RecentSignals
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.cli.detect import forecast

OPTIONS = {
    **{"depth": 2, "steps": 40, "ema": 0, "telemetry_every": 1, "watch_every": 0, "checkpoint_every": 35},
    **{"observables": "functional_step", "batch": 4, "accumulation": 1, "interval": 10},
}


@pytest.fixture(scope="module")
def run(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps, all of them measured, that was stopped at step 35 and resumed."""
    out = tmp_path_factory.mktemp("warned") / "run"
    runs.trained(out, runs.tiny(**OPTIONS | {"steps": 35}))
    runs.trained(out, runs.tiny(**OPTIONS), resume=True)
    return out


def alarms_of(out: Path) -> list[dict]:
    return [event for event in json.loads(open_run(out).attrs["events"]) if "moved" in event]


def test_the_stored_probability_is_that_of_the_command(run: Path) -> None:
    """Also of steps after a resume, whose windows reach back to before it."""
    stored = open_run(run)["collapse_chance"]
    result = CliRunner().invoke(forecast, [str(run), "--json"])
    document = json.loads(result.output)
    rows = document["rows"]
    assert [row["step"] for row in rows] == list(range(30, 41)) and document["step"] == 40
    np.testing.assert_allclose([row["50"] for row in rows], stored.sel(step=slice(30, 40)), rtol=1e-5)
    assert stored.sel(step=slice(1, 29)).isnull().all()
    assert document["probability"] == {name: rows[-1][name] for name in ("25", "50")}
    assert document["peak"] == max(rows, key=lambda row: row["50"]) and document["critical_rate"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"interventions": '[[1, "delete:mean:branch"]]'}, "no branch writes a mean"),
        ({"interventions": '[[1, "scale=0:mean:branch"]]'}, "no branch writes a mean"),
        ({"merge": "mv_split", "interventions": '[[1, "freeze:alpha"]]'}, "no branch writes a mean"),
        ({"merge": "mv_split", "gain_rate": "0"}, "no branch writes a mean"),
        ({"merge": "hard_centering"}, "no branch writes a mean"),
        ({"batch": "2"}, "batch of 2"),
        ({"betas": "[0, 0.999]"}, "beta1 = 0"),
        ({"data_steps": "1"}, "data_steps = 1"),
        ({"interventions": '[[1, "control:delete:mean:branch"]]'}, None),
        ({"interventions": '[[1, "delete:mean:branch@blocks=1"]]'}, None),
        ({"interventions": '[[9, "delete:mean:branch"]]'}, None),
        ({"merge": "mv_split"}, None),
        ({"merge": "mv_split_attn", "gain_rate": "0"}, None),
        ({"data_steps": "2"}, None),
    ],
)
def test_a_configuration_breaks_a_premise_or_not(options: dict[str, str], said: str | None) -> None:
    found = broken_premises(RunConfig().with_options(options), step=5)
    assert (len(found), said is not None and said in found[0]) == ((1, True) if said else (0, False))


def test_the_command_says_why_it_is_silent(runs, tmp_path: Path) -> None:
    runs.trained(tmp_path / "run", runs.tiny(**OPTIONS | {"steps": 6, "data_steps": 1}))
    result = CliRunner().invoke(forecast, [str(tmp_path / "run")])
    said = result.output.splitlines()
    assert result.exit_code == 0 and len(said) == 3
    assert "not valid here: one batch is repeated for ever" in said[0]
    assert "not valid here: the run has 6 of the 30 steps that it needs" in said[1]
    assert said[2].startswith("note: 2 blocks are outside of the 8 to 32 that were fitted")
    assert open_run(tmp_path / "run")["collapse_chance"].isnull().all()


def test_a_run_stops_at_a_probability(
    runs, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chance is crafted: it rises by 0.02 per measured step."""
    monkeypatch.setattr(RecentSignals, "chance", lambda self, _: 0.02 * max(self._rows))
    options = OPTIONS | {"on_alarm": "stop", "alarm_chance": 0.5}
    outcome = Trainer(runs.tiny(**options), tmp_path / "run").train()
    assert (outcome.step, outcome.stopped) == (25, "alarm")
    (alarm,) = alarms_of(tmp_path / "run")
    assert (alarm["step"], alarm["kind"], alarm["signal"]) == (25, "early warning", "collapse_chance")
    assert alarm["value"] == pytest.approx(0.5) and alarms_of(run) == []


def test_the_next_alarm_waits_for_a_window(runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecentSignals, "chance", lambda self, _: 0.9)
    options = {"on_alarm": "lower_all", "alarm_chance": 0.5, "event_window": 4, "steps": 10}
    runs.trained(tmp_path / "run", runs.tiny(**OPTIONS | options))
    data = open_run(tmp_path / "run")
    assert [alarm["step"] for alarm in alarms_of(tmp_path / "run")] == [1, 5, 9]
    np.testing.assert_allclose(data["lr"].values[5:9] / data["lr"].values[1:5] / 0.25, [3, 7 / 3, 2, 9 / 5])


def test_checkpoints_of_earlier_versions_have_no_signals_and_are_restored(run: Path) -> None:
    state = watch_of(folder_of(run, 40))
    old = {name: value for name, value in state.items() if name != "warned" and "recent." not in name}
    watch = TelemetryWatch(RunConfig())
    watch.restore(old)
    assert np.isnan(watch.recent.chance(50))
    watch.restore(state)
    assert watch.recent.chance(50) == pytest.approx(
        float(open_run(run)["collapse_chance"].sel(step=40)), rel=1e-6
    )


@pytest.mark.parametrize("options", [{"telemetry_every": "6"}, {"observables": "tcs"}])
def test_an_alarm_needs_what_it_reads(options: dict[str, str]) -> None:
    options = {"telemetry_every": "5", **options}
    with pytest.raises(ValueError, match="set telemetry_every to 1 to 5 and measure functional_step"):
        RunConfig().with_options({"alarm_chance": "0.5", **options})
