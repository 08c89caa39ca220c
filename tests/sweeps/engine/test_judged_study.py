"""Judged studies: held-out loss, FID and KID of the networks that a study trains on a latent store."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from meanmode.dit.data.encoding import EncodingConfig, encode
from meanmode.dit.evaluate import features
from meanmode.dit.evaluate.features import Extractor
from meanmode.dit.evaluate.held_out_loss import HeldOut
from meanmode.dit.evaluate.subject import subject_of
from meanmode.dit.train.ensemble_runs import network_at, train_runs
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import TODO, open_cells
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.judged.judged_study import JudgedStudy
from meanmode.sweeps.engine.store_kinds import stored_plan
from meanmode.sweeps.engine.study import Case
from meanmode.sweeps.named.training.depth_pays import DEPTH_PAYS
from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.training.judgements import judged_rows


def _read(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = images.mean(1).flatten(1)
    return rows[:, ::7].float(), rows[:, :5].float().softmax(1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[JudgedStudy, Path]:
    folder = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            features,
            "extractor",
            lambda spec: Extractor(spec=spec, name="Rows", digest="0", reads="", read=_read),
        )
        encode(EncodingConfig(images="digits", codec="pixels", limit=120), folder / "d.zarr")
        sizes = {"depth": 2, "width": 16, "heads": 1, "side": 8, "patch": 4}
        base = DEPTH_PAYS.base.with_fields(
            {**sizes, "data": f"latents:{folder}/d.zarr", "steps": 6, "batch": 4, "warmup": 2}
        )
        made = dataclasses.replace(
            DEPTH_PAYS,
            base=base,
            cases=(Case(label="deeper", options={"depth": 3}), Case(label="gone", options={"rate": 1e4})),
            seeds=2,
            ensemble=2,
            judged_every=3,
            images=16,
            reference=40,
            sampling_steps=2,
        )
        assert run_sweep(made, folder / "s.zarr") == []
    return made, folder / "s.zarr"


def test_networks_are_judged_on_held_out_images(study: tuple[JudgedStudy, Path]) -> None:
    made, path = study
    data = open_cells(path)
    assert data["measurement"].values.tolist() == [3, 6]
    run = made.cells[1].run
    (alone,) = train_runs([run], keep_states=[6])
    network = network_at(run, alone.states[6])
    subject = subject_of(network, run, name="", document={})
    loss = HeldOut.of(subject, run, 16).loss(network)
    assert data["held_out_loss"].values[1, 1] == pytest.approx(loss, rel=1e-4)
    assert np.isfinite(data["fid"].values[:2]).all() and len(np.unique(data["fid_floor"].values[:2])) == 1
    with pytest.raises(ValueError, match="needs 1000 held-out images"):
        HeldOut.of(subject, run, 1000)


def test_a_network_that_fails_is_worse_than_any_other(study: tuple[JudgedStudy, Path]) -> None:
    made, path = study
    deeper, gone = judged_rows(open_cells(path))
    assert deeper["failed"] == 0 and deeper["held_out_loss_low"] <= deeper["held_out_loss"] < 10
    assert (
        gone["held_out_loss"] > deeper["held_out_loss_high"] and gone["weights"] * 3 == deeper["weights"] * 2
    )
    assert {row["quantity"] for row in compare([path])["rows"]} == {"judgement"}
    stored = stored_plan(open_cells(path).attrs)
    assert isinstance(stored, JudgedStudy) and stored.configuration() == made.configuration()


def test_a_study_is_compared_before_it_is_finished(study: tuple[JudgedStudy, Path], tmp_path: Path) -> None:
    _, path = study
    whole = judged_rows(open_cells(path))
    store = Path(shutil.copytree(path, tmp_path / "s.zarr"))
    status = zarr.open_group(store, mode="r+")["status"]
    status[1] = TODO
    rows = judged_rows(open_cells(store))
    assert [row["runs"] for row in rows] == [1, 2] and rows[1] == whole[1]
    status[0] = TODO
    assert judged_rows(open_cells(store)) == whole[1:]
    assert [row["quantity"] for row in compare([store])["rows"]] == ["judgement"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"judged_every": 4}, "judged_every must divide the steps"),
        ({"base": "digits"}, "data must be latents:PATH"),
    ],
)
def test_what_cannot_be_judged_is_refused(study: tuple[JudgedStudy, Path], fields: dict, said: str) -> None:
    made, _ = study
    if fields.get("base"):
        fields = {"base": made.base.with_fields({"data": "digits"})}
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(made, **fields)


def test_a_missing_latent_store_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"fashion\.zarr"):
        run_sweep(DEPTH_PAYS, tmp_path / "s.zarr")
    assert not list(tmp_path.iterdir())
