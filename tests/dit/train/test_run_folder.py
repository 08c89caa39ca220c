"""The folder of a run: locked by one trainer, let go by all ways, and set aside without loss."""

import gc
import os
import shutil
from pathlib import Path

import pytest

from meanmode.dit.train import checkpoints, run_folder
from meanmode.dit.train.checkpoint_files import checkpoint_folders, folder_of
from meanmode.dit.train.run_folder import RunFolder, nobody_trains
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.store.files import StoreError


def contents(folder: Path) -> set[bytes]:
    """Contents of all files below a folder, whatever they are called."""
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_folder_is_locked_until_it_is_released(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    held = RunFolder(out)
    with pytest.raises(StoreError, match=rf"run is in use: process {os.getpid()} on .* since 20\d\d-"):
        RunFolder(out)
    held.release()
    held.release()
    assert list(tmp_path.iterdir()) == [], "no run began, so that the folder is removed again"


def test_a_folder_with_other_files_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_holder_without_a_note_is_refused_all_the_same(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_folder, "NAMED_WITHIN", 0.1)
    held = RunFolder(tmp_path / "run")
    (tmp_path / "run" / run_folder.OWNER).unlink()
    with pytest.raises(StoreError, match="run is in use: another process trains in it: wait for it"):
        RunFolder(tmp_path / "run")
    held.release()


def test_a_trainer_that_is_dropped_lets_go_of_its_folder(runs, tmp_path: Path) -> None:
    trainer = Trainer(runs.tiny(), tmp_path / "run")
    with pytest.raises(StoreError, match="is in use"):
        Trainer(runs.tiny(), tmp_path / "run", resume=True)
    del trainer
    gc.collect()
    runs.trained(tmp_path / "run", runs.tiny(), resume=True)


def test_a_trainer_that_is_closed_lets_go_of_its_folder(runs, tmp_path: Path) -> None:
    trainer = Trainer(runs.tiny(), tmp_path / "run")
    trainer.close()
    trainer.close()
    assert not (tmp_path / "run" / ".owner.json").exists()
    runs.trained(tmp_path / "run", runs.tiny(), resume=True)
    assert not (tmp_path / "run" / ".owner.json").exists()


def test_a_trainer_that_fails_lets_go_of_its_folder(runs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data"):
        Trainer(runs.tiny(data="none"), tmp_path / "run")
    with pytest.raises(StoreError, match="holds no run"):
        Trainer(runs.tiny(), tmp_path / "run", resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "telemetry.zarr"])
def test_a_run_in_training_is_known_by_its_folder_and_its_store(runs, tmp_path: Path, name: str) -> None:
    trainer = Trainer(runs.tiny(), tmp_path / "run")
    with pytest.raises(StoreError, match="is in use"), nobody_trains(tmp_path / "run" / name):
        pass
    trainer.close()
    with nobody_trains(tmp_path / "run" / name), pytest.raises(StoreError, match="is in use"):
        Trainer(runs.tiny(), tmp_path / "run", resume=True)
    with nobody_trains(tmp_path / "run" / "checkpoints"), nobody_trains(tmp_path):
        pass


def test_what_a_run_wrote_is_not_read_again(runs, tmp_path: Path, monkeypatch) -> None:
    """Digests of large checkpoints are expensive."""

    def damage(checkpoint: Path) -> str:
        raise AssertionError(f"{checkpoint} is read again")

    monkeypatch.setattr(checkpoints, "damage", damage)
    runs.trained(tmp_path / "run", runs.tiny(checkpoint_every=2, keep=2))
    assert len(checkpoint_folders(tmp_path / "run")) == 2


@pytest.mark.parametrize("killed_at", range(4))
def test_beginning_anew_loses_nothing_wherever_it_is_killed(
    runs, tmp_path: Path, monkeypatch, killed_at: int
) -> None:
    out, run = tmp_path / "run", runs.tiny(weights_ring=1)
    runs.trained(out, run)
    for checkpoint in checkpoint_folders(out):
        os.truncate(next(checkpoint.glob("*.distcp")), 10)
    before, renamed, rename = contents(out), [], Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        renamed.append(path)
        if len(renamed) > killed_at:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupted)
        runs.trained(out, run, resume=True, begin_anew=True)
    assert before <= contents(out)
    try:
        runs.trained(out, run, resume=True)
    except StoreError as error:
        assert "no intact checkpoint" in str(error) or "checkpoints are gone" in str(error)
        runs.trained(out, run, resume=True, begin_anew=True)
    assert before <= contents(out)


@pytest.fixture(scope="module")
def shorter(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, of eight steps."""
    out = tmp_path_factory.mktemp("shorter") / "run"
    runs.trained(out, runs.tiny(steps=8))
    return out


@pytest.mark.parametrize("suffix", [checkpoints.PARTIAL, checkpoints.DELETED, checkpoints.REPLACED])
def test_what_a_killed_process_left_is_tidied_up(runs, shorter: Path, tmp_path: Path, suffix: str) -> None:
    out = Path(shutil.copytree(shorter, tmp_path / "run"))
    last = folder_of(out, 8)
    last.rename(last.with_name(f".{last.name}.{suffix}"))
    Trainer(runs.tiny(steps=8), out, resume=True).close()
    left = {path.name for path in (out / run_folder.CHECKPOINTS).iterdir()}
    assert left == {"step-00000004"} | ({last.name} if suffix == checkpoints.REPLACED else set())
