"""The ring of weights on disk: which states it holds, after kills, resumes, roll-backs and full disks too."""

import errno
import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from meanmode.dit.data.sources import Digits
from meanmode.dit.evaluate.subject import open_subject
from meanmode.dit.train import checkpoints
from meanmode.dit.train.checkpoint_files import (
    checkpoint_folders,
    damage,
    folder_of,
    load_tensors,
    notes_of,
    step_of,
)
from meanmode.dit.train.checkpoint_reader import read_table
from meanmode.dit.train.run_folder import WEIGHTS
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import open_run

BEGIN, ALARM = 10, 12
"""First step at which the data are far too large, and the last one, at which the alarm is raised."""

OPTIONS = {
    "depth": 2,
    "steps": 16,
    "checkpoint_every": 5,
    "telemetry_every": 0,
    "event_window": 3,
    "weights_ring": 4,
}
AROUND = [11, 12, 13, 14]
"""Steps whose weights a ring of four keeps around the alarm."""


class Disturbed(Digits):
    """Digits that are three times as large at some steps; the first request is for the step after `step`."""

    def __init__(self, run, step: int = 0) -> None:
        super().__init__(run.model)
        self.step = step

    def latents(self, indices) -> Tensor:
        self.step += 1
        return super().latents(indices) * (3 if BEGIN <= self.step <= ALARM else 1)


def train(runs, out: Path, *, after: int | None = None, **options: object) -> Trainer:
    """Train a disturbed run, or resume it after a step."""
    run = runs.tiny(**OPTIONS | options)
    return runs.trained(out, run, resume=after is not None, source=Disturbed(run, after or 0))


def kept(out: Path) -> list[int]:
    """Steps of the states in the ring; all of them are whole."""
    found = checkpoint_folders(out, WEIGHTS)
    assert [damage(state) for state in found] == [""] * len(found)
    return [step_of(state) for state in found]


def weights(state: Path) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, with or without moments."""
    stored = read_table(state).state_dict_metadata
    found = {name: torch.empty(of.size) for name, of in stored.items() if name.startswith("weight.")}
    load_tensors(state, found)
    return found


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def ringed(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run, with a checkpoint of every step; it reads nothing again that it wrote."""

    def read_again(checkpoint: Path) -> str:
        raise AssertionError(f"{checkpoint} is read again")

    out = tmp_path_factory.mktemp("ringed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "damage", read_again)
        train(runs, out, checkpoint_every=1, keep=20)
    return out


def test_the_ring_surrounds_the_first_alarm(ringed: Path) -> None:
    assert kept(ringed) == AROUND
    for step in AROUND:
        assert_same(folder_of(ringed, step, WEIGHTS), folder_of(ringed, step))


def test_the_ring_surrounds_a_rise_of_the_token_cosine(runs, tmp_path: Path) -> None:
    """From step 6 on nothing is left of the trunk but its mean; no alarm is as early as that."""
    homogeneous = '[[6, "delete:centered:trunk"]]'
    options = {"telemetry_every": 1, "weights_ring": 3, "interventions": homogeneous, "steps": 8}
    runs.trained(tmp_path, runs.tiny(**OPTIONS | options))
    assert kept(tmp_path) == [5, 6, 7]
    events = json.loads(open_run(tmp_path).attrs["events"])
    assert {event["step"] for event in events if "moved" not in event} == {6}
    assert all(event["step"] > 6 for event in events if "moved" in event)


def test_the_ring_is_as_long_as_asked(runs, whole: Path, tmp_path: Path) -> None:
    """A ring of one holds the weights at the alarm itself; without a ring nothing is written or noted."""
    train(runs, tmp_path, weights_ring=1)
    assert kept(tmp_path) == [ALARM] and notes_of(folder_of(tmp_path, 16))["weights_until"] == ALARM
    assert not (whole / WEIGHTS).exists() and "weights_until" not in notes_of(folder_of(whole, 10))


# renames in the folder: one per step until the ring is full, then one to delete and one to put in place
@pytest.mark.parametrize(("rename", "last"), [(3, 0), (21, 10)])
def test_a_killed_ring_is_continued_bitwise(
    runs, ringed: Path, tmp_path: Path, monkeypatch, rename: int, last: int
) -> None:
    real, seen, most = Path.rename, [], []

    def killed(path: Path, target: Path) -> Path:
        if path.parent.name == WEIGHTS:
            most.append(len(list(path.parent.iterdir())))
            seen.append(path)
            if len(seen) == rename:
                raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        train(runs, tmp_path)
    assert max(most) <= OPTIONS["weights_ring"]
    kept(tmp_path)
    run = runs.tiny(**OPTIONS)
    trainer = Trainer(run, tmp_path, resume=True, source=Disturbed(run, last))
    assert trainer.step == last and max(kept(tmp_path), default=0) <= last
    trainer.train()
    assert kept(tmp_path) == AROUND and not list((tmp_path / WEIGHTS).glob(".*"))
    for step in AROUND:
        assert_same(folder_of(tmp_path, step, WEIGHTS), folder_of(ringed, step))


def test_a_ring_that_has_stopped_is_not_turned_again(runs, tmp_path: Path) -> None:
    train(runs, tmp_path, steps=15)
    train(runs, tmp_path, steps=18, after=15)
    assert kept(tmp_path) == AROUND


def test_the_ring_goes_back_with_a_run_that_is_rolled_back(runs, tmp_path: Path) -> None:
    trainer = train(runs, tmp_path, on_alarm="roll_back", checkpoint_every=2, keep=20)
    assert trainer._roll_backs == 1 and kept(tmp_path) == [13, 14, 15, 16]
    assert_same(folder_of(tmp_path, 14, WEIGHTS), folder_of(tmp_path, 14))


def test_a_full_disk_loses_nothing(runs, ringed: Path, tmp_path: Path, monkeypatch) -> None:
    write = dcp.FileSystemWriter.write_data

    def full(self, *arguments):
        if ".step-00000008" in str(self.path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(dcp.FileSystemWriter, "write_data", full)
        with pytest.raises(StoreError, match=r"the weights of step 8 .*No space left on device.*--resume"):
            train(runs, tmp_path)
    assert kept(tmp_path) == [5, 6, 7] and not list((tmp_path / WEIGHTS).glob(".*"))
    train(runs, tmp_path, after=5)
    assert kept(tmp_path) == AROUND
    assert_same(folder_of(tmp_path, 13, WEIGHTS), folder_of(ringed, 13))


def test_kept_weights_are_read_like_a_checkpoint_and_not_forked(runs, ringed: Path, tmp_path: Path) -> None:
    """The run keeps an average, which the ring does not."""
    state = folder_of(ringed, 12, WEIGHTS)
    assert {path.name for path in state.iterdir()} == {path.name for path in folder_of(ringed, 12).iterdir()}
    subject = open_subject(state)
    assert subject.name == f"{state}, step 12" and subject.document["ema"] is False
    assert torch.equal(subject.network.final_proj.weight, weights(state)["weight.final_proj.weight"])
    assert open_subject(folder_of(ringed, 12)).document["ema"] is True
    with pytest.raises(StoreError, match=r"holds weights without the moments .*: fork from one of the check"):
        Trainer(runs.tiny(**OPTIONS), tmp_path / "fork", fork=state)
    assert not (tmp_path / "fork").exists()
