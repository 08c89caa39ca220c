"""A choice of observables: the same values, no others, and everything that reads a run works with fewer."""

import json
from pathlib import Path

import numpy as np
import pytest

from meanmode.dit.data.sources import Digits
from meanmode.dit.train.run_folder import CONFIGURATION
from meanmode.dit.train.telemetry import SCALARS
from meanmode.sim.observe.observable_names import OBSERVABLES, without_suffix
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.studies.run_onset import onset_document

SHORT = {"depth": 2, "steps": 4, "ema": 0}
NORMS = {"grad_norm_family", "grad_norm_block"}
BARE = {*SCALARS, *NORMS} - {"functional_step", "collapse_chance"}
TCS = {"tcs", "tcs_image", "tcs_text"}


class Spiked(Digits):
    """Digits whose latents are huge at step 12; each step requests latents once."""

    def __init__(self, run) -> None:
        super().__init__(run.model)
        self.asked = 0

    def latents(self, indices):
        self.asked += 1
        return super().latents(indices) * (300 if self.asked == 12 else 1)


@pytest.fixture(scope="module")
def every(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that measures every observable."""
    out = tmp_path_factory.mktemp("every") / "run"
    runs.trained(out, runs.tiny(**SHORT))
    return out


@pytest.mark.parametrize(
    ("chosen", "stored", "laws"),
    [
        ("tcs", TCS, ["R1"]),
        (
            "rho, kappa_abs,g_mean",
            {*TCS, "rho", "rho_image", "rho_text", "g_mean", "kappa_abs"},
            ["G1", "R1"],
        ),
        (
            "functional_step,mu_eff,grad_rms_q",
            {*TCS, "functional_step", "mu_eff", "grad_rms_q"},
            ["P2", "S1", "R1"],
        ),
    ],
)
def test_a_run_stores_the_chosen_observables_only(
    runs, every: Path, tmp_path: Path, chosen: str, stored: set[str], laws: list[str]
) -> None:
    runs.trained(tmp_path / "run", runs.tiny(**SHORT, observables=chosen))
    found, expected = open_run(tmp_path / "run"), open_run(every)
    beside = {"collapse_chance"} if "functional_step" in stored else set()
    assert set(found.data_vars) == BARE | stored | beside
    assert json.loads(found.attrs["laws"]) == laws
    for name in stored:
        assert np.isfinite(found[name].values[1::2]).any(), name
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    runs.assert_same_weights(every, tmp_path / "run")


def test_an_empty_choice_is_all(every: Path) -> None:
    data = open_run(every)
    assert {without_suffix(name) for name in data.data_vars} == {*SCALARS, *NORMS, *OBSERVABLES}
    assert json.loads(data.attrs["laws"]) == ["P1", "P2", "G1", "A2", "S1", "R1"]


@pytest.mark.parametrize("chosen", ["tcs", "tcs,kappa"])
def test_an_event_is_examined_by_what_is_measured(runs, tmp_path: Path, chosen: str) -> None:
    options = {"depth": 2, "steps": 14, "interval": 6, "ema": 0, "stop_on": "collapse"}
    run = runs.tiny(**options, observables=chosen, telemetry_every=10, watch_every=3, event_window=12)
    runs.trained(tmp_path / "run", run, source=Spiked(run))
    data, document = open_run(tmp_path / "run"), onset_document(tmp_path / "run")
    event = next(of for of in json.loads(data.attrs["events"]) if "largest" in of)
    names = {name.removesuffix("_attn").removesuffix("_ffn") for name in event["observables"]}
    assert (event["step"], event["compared_with_step"]) == (12, 10) and names == set(chosen.split(","))
    np.testing.assert_array_equal(
        np.flatnonzero(np.isfinite(data["tcs"].values[:, 2])) + 1, [1, 3, 6, 9, 10, 12, 13, 14]
    )
    assert "functional_step" not in data
    assert set(document["evidence"]) <= {"loss", "grad_norm", "tcs"}
    assert any("G_mean and G_ctr were not logged" in said for said in document["cannot_say"])


def test_a_run_of_a_version_without_the_choice_is_resumed(runs, every: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    runs.trained(out, runs.tiny(**SHORT | {"steps": 2}))
    document = json.loads((out / CONFIGURATION).read_text())
    assert document["training"].pop("observables") == []
    (out / CONFIGURATION).write_text(json.dumps(document))
    runs.trained(out, runs.tiny(**SHORT), resume=True)
    runs.assert_same_store(every, out)
