"""The trainer: resuming, forking, equal results however a step is split, and refused runs."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from meanmode.dit.config.presets import PRESETS
from meanmode.dit.data.sources import Digits
from meanmode.dit.model.network import DiT
from meanmode.dit.train import checkpoint_files, memory, run_folder
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.store.files import StoreError, StoreExistsError
from meanmode.sim.store.run_reader import open_run
from meanmode.theory.setting import MERGES


class Stopped(Exception):
    """Raised by the source of a test to stop a run."""


class Tampered(Digits):
    """Digits whose latents are changed at one step; each step requests latents once."""

    def __init__(self, run, step, change) -> None:
        super().__init__(run.model)
        self.step, self.change, self.asked = step, change, 0

    def latents(self, indices):
        self.asked += 1
        found = super().latents(indices)
        return self.change(found) if self.asked == self.step else found


def stop(latents):
    raise Stopped


@pytest.fixture(scope="module")
def stopped_once(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, stopped during step 10; its checkpoints are of steps 8 and 4."""
    run, out = runs.tiny(), tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stopped):
        runs.trained(out, run, source=Tampered(run, 10, stop))
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(runs, whole: Path, stopped: Path) -> None:
    runs.trained(stopped, runs.tiny(), resume=True)
    runs.assert_same_weights(whole, stopped)
    runs.assert_same_store(whole, stopped)


def test_a_killed_run_resumes_bitwise(runs, launch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = launch(out, steps=2000, checkpoint_every=4)
    deadline = time.monotonic() + 120
    while (
        len(checkpoint_files.checkpoint_folders(out)) < 2 and process.running and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert process.kill() == [-signal.SIGKILL] and checkpoint_files.checkpoint_folders(out)
    reached = checkpoint_files.notes_of(checkpoint_files.checkpoint_folders(out)[-1])["step"]
    steps = reached + 6
    runs.trained(out, runs.tiny(steps=steps), resume=True)
    runs.trained(tmp_path / "other", runs.tiny(steps=steps))
    runs.assert_same_weights(tmp_path / "other", out)
    runs.assert_same_store(tmp_path / "other", out)


def _truncate(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.distcp"))
    os.truncate(file, file.stat().st_size // 2)


def _flip(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def _half_written(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.partial"))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_truncate, ".distcp is damaged"),
        (_flip, ".distcp is damaged"),
        (lambda checkpoint: (checkpoint / checkpoint_files.MANIFEST).unlink(), "manifest.json"),
        (lambda checkpoint: (checkpoint / ".metadata").unlink(), ".metadata"),
        (_half_written, ""),
    ],
    ids=["truncated", "flipped bit", "no manifest", "no metadata", "half written"],
)
def test_a_damaged_checkpoint_is_skipped(runs, whole, stopped, capsys, harm, said: str) -> None:
    harm(checkpoint_files.folder_of(stopped, 8))
    trainer = Trainer(runs.tiny(), stopped, resume=True)
    assert trainer.step == 4
    assert ("skipping checkpoint" in capsys.readouterr().err) == bool(said)
    trainer.train()
    runs.assert_same_weights(whole, stopped)
    runs.assert_same_store(whole, stopped)


def test_a_full_disk_while_saving_loses_nothing(runs, whole, tmp_path: Path, monkeypatch) -> None:
    def full(self, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "run"
    write = dcp.FileSystemWriter.write_data
    saves = []

    def sometimes_full(self, *arguments):
        saves.append(1)
        return (full if len(saves) == 2 else write)(self, *arguments)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", sometimes_full)
    with pytest.raises(StoreError, match=r"checkpoint of step 8 .*No space left on device.*--resume"):
        runs.trained(out, runs.tiny())
    assert [path.name for path in checkpoint_files.checkpoint_folders(out)] == ["step-00000004"]
    assert not list((out / run_folder.CHECKPOINTS).glob(".*"))
    runs.trained(out, runs.tiny(), resume=True)
    runs.assert_same_weights(whole, out)
    runs.assert_same_store(whole, out)


def test_the_last_checkpoints_are_kept(runs, tmp_path: Path) -> None:
    runs.trained(tmp_path, runs.tiny(checkpoint_every=2, keep=3))
    assert [path.name for path in checkpoint_files.checkpoint_folders(tmp_path)] == [
        f"step-{step:08d}" for step in (6, 8, 10)
    ]


@pytest.mark.parametrize(
    "options",
    [{"accumulation": 2}, {"accumulation": 4, "recompute": 1}, {"recompute": 1, "recompute_of": 2}],
    ids=["accumulation", "accumulation and recomputation", "every second block recomputed"],
)
def test_telemetry_is_the_same_however_a_step_is_computed(runs, whole, tmp_path, options) -> None:
    runs.trained(tmp_path / "run", runs.tiny(**options))
    runs.assert_same_store(whole, tmp_path / "run", rtol=2e-5)
    runs.assert_same_weights(whole, tmp_path / "run", rtol=2e-4)


def test_recomputed_activations_change_no_bit(runs, whole, tmp_path: Path) -> None:
    runs.trained(tmp_path / "run", runs.tiny(recompute=1))
    runs.assert_same_weights(whole, tmp_path / "run")
    runs.assert_same_store(whole, tmp_path / "run")


WITHOUT_A_COMPILER = """
import functools
import meanmode.dit.train.trainer
from meanmode.sim.trunk.stack import Block
Block.compile = functools.partialmethod(Block.compile, backend="aot_eager")
meanmode.dit.train.trainer.check_compiler = lambda device: None
"""


def test_telemetry_of_compiled_blocks_is_the_same(runs, whole: Path, launch, tmp_path: Path) -> None:
    """In a separate process, because dynamo cannot trace what beartype decorates in this one."""
    process = launch(tmp_path / "run", before=WITHOUT_A_COMPILER, compile="true")
    assert process.codes(300) == [0], process.said
    runs.assert_same_store(whole, tmp_path / "run", rtol=2e-5)


def test_measuring_changes_no_bit_of_the_training(runs, whole, tmp_path: Path) -> None:
    runs.trained(tmp_path / "run", runs.tiny(telemetry_every=0))
    runs.assert_same_weights(whole, tmp_path / "run")
    assert np.isnan(open_run(tmp_path / "run")["tcs"]).all()
    np.testing.assert_array_equal(open_run(tmp_path / "run")["loss"], open_run(whole)["loss"])


def test_a_step_is_that_of_plain_adamw(runs, tmp_path: Path) -> None:
    run = runs.tiny(steps=4, ema=0, clip=0.5, weight_decay=0.3)
    trainer = Trainer(run, tmp_path / "run")
    network = DiT(run.model)
    network.load_state_dict(trainer.network.state_dict())
    matrices, vectors = ([w for w in network.parameters() if (w.ndim > 1) is of] for of in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    for step in range(1, 5):
        ((noisy, texts, clean, noise),) = trainer._micro_batches(step)
        (network(noisy, texts) - (clean - noise)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        for group in plain.param_groups:
            group["lr"] = trainer.schedule.rate(step)
        plain.step()
        plain.zero_grad()
        trainer._step(step)
    for ours, theirs in zip(trainer.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_average_follows_the_weights(runs, tmp_path: Path) -> None:
    trainer = Trainer(runs.tiny(ema=0.75), tmp_path / "run")
    name = "blocks.0.ffn.w13.weight"
    expected = trainer.optimiser.parameters[name].detach().clone()
    for step in range(1, 4):
        trainer._step(step)
        expected = 0.75 * expected + 0.25 * trainer.optimiser.parameters[name].detach()
    torch.testing.assert_close(trainer.optimiser.average[name], expected)


def test_training_lowers_the_loss(runs, tmp_path: Path) -> None:
    options = {"schedule": "warmup", "rate": 1e-2, "warmup": 10, "steps": 80, "batch": 16}
    unmeasured = {"telemetry_every": 0, "watch_every": 0, "checkpoint_every": 1000}
    runs.trained(tmp_path / "run", runs.tiny(**options, **unmeasured))
    loss = open_run(tmp_path / "run")["loss"].values
    assert np.median(loss[-20:]) < 0.75 * np.median(loss[:5])


def test_a_fork_continues_like_the_run(runs, whole: Path, tmp_path: Path) -> None:
    fork = checkpoint_files.folder_of(whole, 8)
    runs.trained(tmp_path / "same", runs.tiny(), fork=fork)
    runs.assert_same_weights(whole, tmp_path / "same")
    ours, theirs = (open_run(of).sel(step=slice(9, None)) for of in (tmp_path / "same", whole))
    np.testing.assert_array_equal(ours["loss"], theirs["loss"])
    assert len(ours["step"]) == 2
    assert json.loads(ours.attrs["origin"])["step"] == 8
    runs.trained(tmp_path / "other", runs.tiny(data_seed=7), fork=fork)
    assert not np.isin(open_run(tmp_path / "other")["loss"].values, theirs["loss"].values).any()


def test_an_intervention_acts_from_its_first_step(runs, whole: Path, tmp_path: Path) -> None:
    run = runs.tiny(interventions='[[9, "freeze:readers"], [10, "delete:mean:writer-gradient"]]')
    runs.trained(tmp_path / "run", run)
    ours, theirs = runs.state(tmp_path / "run"), runs.state(whole)
    name = "blocks.1.ffn.w13.weight"
    assert ours["steps"].min() == 8 and ours["steps"].max() == 10
    assert not torch.equal(ours[f"weight.{name}"], theirs[f"weight.{name}"])
    losses, others = (open_run(of)["loss"].values for of in (tmp_path / "run", whole))
    np.testing.assert_array_equal(losses[:9], others[:9])
    assert losses[9] != others[9]


def test_an_event_releases_the_ring_buffer_and_is_examined(runs, tmp_path: Path) -> None:
    options = {"telemetry_every": 10, "watch_every": 1, "steps": 20, "event_window": 12, "interval": 6}
    run = runs.tiny(**options)
    runs.trained(tmp_path / "run", run, source=Tampered(run, 15, lambda latents: 300 * latents))
    data = open_run(tmp_path / "run")
    (event, *_) = json.loads(data.attrs["events"])
    assert (event["step"], event["signal"]) == (15, "grad_norm")
    assert event["value"] > 5 * event["reference"] and len(event["largest"]) == 15
    assert event["factors"]["g_ctr_ffn"] > 5 and event["compared_with_step"] == 14
    assert sum(event["families"].values()) == pytest.approx(1)
    measured = np.isfinite(data["g_mean"].values[:, 1, 0])
    np.testing.assert_array_equal(np.flatnonzero(measured) + 1, [1, *range(4, 21)])
    text = (tmp_path / "run" / "autopsy-00000015.txt").read_text()
    assert "step 15: grad_norm" in text and "NaN or infinite: none" in text


def test_the_ring_buffer_survives_a_resume(runs, tmp_path: Path) -> None:
    run = runs.tiny(telemetry_every=10, watch_every=1, steps=20, event_window=12, checkpoint_every=13)
    spike = lambda latents: 300 * latents  # noqa: E731
    runs.trained(tmp_path / "whole", run, source=Tampered(run, 15, spike))
    with pytest.raises(Stopped):
        runs.trained(tmp_path / "run", run, source=Tampered(run, 14, stop))
    runs.trained(tmp_path / "run", run, resume=True, source=Tampered(run, 2, spike))
    runs.assert_same_store(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("stop_on", "steps"), [("divergence", 5), ("never", 10)])
def test_a_loss_that_is_not_finite_is_recorded(runs, tmp_path: Path, stop_on: str, steps: int) -> None:
    run = runs.tiny(stop_on=stop_on)
    trainer = Trainer(run, tmp_path / "run", source=Tampered(run, 5, lambda latents: 1e25 * latents))
    outcome = trainer.train()
    data = open_run(tmp_path / "run")
    assert outcome.step == data.sizes["step"] == steps
    assert not np.isfinite(data["loss"].values[4])
    event = next(found for found in json.loads(data.attrs["events"]) if found["signal"] == "loss")
    assert event["step"] == 5 and event["not_finite"]["gradient"]


def test_a_sample_that_is_not_finite_is_refused(runs, tmp_path: Path) -> None:
    run = runs.tiny()
    with pytest.raises(ValueError, match=r"latent of sample \d+ contains non-finite values"):
        runs.trained(tmp_path / "run", run, source=Tampered(run, 3, lambda latents: latents * torch.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 5, "accumulation": 5, "side": 16, "channels": 3}, "digits have 1 channel"),
        ({"batch": 2000}, "a batch of 2000 is larger than the data, 1797 samples"),
        ({"sharding": "full"}, "several processes"),
        ({"data": "none"}, "this preset has no data"),
        ({"interventions": '[[2, "freeze:alpha@blocks=9"]]'}, "the model has blocks 1 to 3"),
    ],
)
def test_impossible_runs_are_refused_and_leave_nothing_behind(runs, tmp_path, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(runs.tiny(**options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_fit_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    run = PRESETS["dit-1000l-mvsplit"].with_options({"sharding": "replicated", "channels": "1"})
    source = Digits(run.model)
    with pytest.raises(ValueError, match=r"does not fit: it needs 13,6\d\d,\d\d\d,\d\d\d parameters; .* GB"):
        Trainer(run, tmp_path / "run", source=source)
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_is_refused(runs, whole: Path) -> None:
    with pytest.raises(StoreExistsError, match="already holds a run: pass --resume"):
        Trainer(runs.tiny(), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 32, "text_width": 32}, "its width is 16, not 32"), ({"slope": 1e-4}, "its slope is 5e-05")],
)
def test_a_run_is_resumed_only_as_it_began(runs, whole: Path, options, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Trainer(runs.tiny(**options), whole, resume=True)


def test_resuming_without_a_run_is_refused(runs, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no run: it has no config\.json"):
        Trainer(runs.tiny(), tmp_path / "none", resume=True)


def test_a_run_can_be_extended(runs, whole: Path, tmp_path: Path) -> None:
    runs.trained(tmp_path / "long", runs.tiny(steps=14))
    shutil.copytree(whole, tmp_path / "run")
    runs.trained(tmp_path / "run", runs.tiny(steps=14), resume=True)
    runs.assert_same_weights(tmp_path / "long", tmp_path / "run")
    runs.assert_same_store(tmp_path / "long", tmp_path / "run")


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_memory_estimate_is_near_the_measured_memory(runs, merge: str, precision: str) -> None:
    run = runs.tiny(depth=8, width=64, text_width=64, batch=16, merge=merge, ema=0, precision=precision)
    network = DiT(run.model)
    held = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held
        own = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
        address = tensor.untyped_storage().data_ptr()
        if address not in own and address not in seen:
            seen.add(address)
            held += tensor.untyped_storage().nbytes()
        return tensor

    seen: set[int] = set()
    kept = []
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with half, torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or count(x), lambda x: x):
        network(torch.randn(16, 1, 8, 8), torch.randn(16, 4, 64))
    assert memory.estimate(run).activations == pytest.approx(held, rel=0.1)
