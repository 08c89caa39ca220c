"""The trainer: runs optimiser steps, measures them, writes checkpoints and resumes bitwise."""

# P parameters

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.batches import Batch, batch_of
from meanmode.dit.data.latents import check_encoders, encoders_of
from meanmode.dit.data.prefetch import Prefetch
from meanmode.dit.data.sources import Source, source_of
from meanmode.dit.train import checkpoints
from meanmode.dit.train.alarm_answers import answer, order_seed
from meanmode.dit.train.autopsy import examine, not_finite
from meanmode.dit.train.measurements import Event, Row, Watch, measured_blocks
from meanmode.dit.train.memory import check_fits
from meanmode.dit.train.optimiser import Optimiser
from meanmode.dit.train.processes import Processes
from meanmode.dit.train.scheduled_interventions import ScheduledInterventions
from meanmode.dit.train.telemetry import Telemetry, norms_by_block, norms_by_family
from meanmode.dit.train.training_pass import TrainingPass
from meanmode.sim.onset.detector import Alarm
from meanmode.sim.onset.training_onset import deep_median, training_onset
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import open_run
from meanmode.theory.meanfield.predicted_front import FRONT_COSINE


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a session of training ended.

    Attributes:
        step: last step of the session.
        loss: loss at the last step that was computed.
        stopped: `steps` if the run is complete, else what ended it: `divergence`, `collapse` or `alarm`.
    """

    step: int
    loss: float
    stopped: str

    def __str__(self) -> str:
        ends = {"steps": "complete", "divergence": "the loss is not finite", "collapse": "collapsed"}
        ends["alarm"] = "stopped on an alarm"
        loss = f", loss {self.loss:.4g}" if math.isfinite(self.loss) else ""
        return f"{ends[self.stopped]} at step {self.step}{loss}"


class Trainer:
    """Trains one run, on a single process or on all processes of an `accelerate launch`.

    Everything random depends only on the seeds, the step and the position in the batch. Resuming therefore
    changes nothing, and the number of processes or micro-batches changes results by rounding only.

    Args:
        run: configuration of the run.
        out: folder of the run.
        resume: whether to resume the run in `out`.
        fork: checkpoint of another run to start from, with its step and optimiser moments.
        source: source of latents and texts; None for the one in the configuration.

    Raises:
        ValueError: the run does not fit the memory, the processes or its data.
        StoreError: `out` is already taken; or, to resume, it does not exist or holds another run.
    """

    def __init__(
        self,
        run: RunConfig,
        out: Path,
        *,
        resume: bool = False,
        fork: Path | None = None,
        source: Source | None = None,
    ) -> None:
        self.out = out
        self.processes = Processes(run)
        self.run = self.processes.first(lambda: checkpoints.resumable(run, out)) if resume else run
        self.source = source or source_of(self.run)
        self.processes.together(lambda: check_fits(self.run, self.processes.count, self.processes.device))
        self.network = self.processes.network(self.run)
        self.interventions = ScheduledInterventions(self.network, self.run.training.interventions)
        self.optimiser = Optimiser(self.network, self.run.training)
        self.schedule = self.run.training.learning_rate(self.run.model.depth)
        self.watch = Watch(self.run)
        self.blocks = measured_blocks(self.run)
        self.step = self._roll_backs = 0
        self._alarm: Alarm | None = None
        origin = self._begin(resume, fork)
        if self.run.training.compile:
            for block in self.network.blocks:
                block.compile()
        self.training_pass = TrainingPass(self.network, self.processes, self.blocks)
        self.telemetry = self._open_telemetry(resume, origin)
        last = self.run.training.steps
        self._batches = Prefetch(self._batches_of, lambda of: None if of[0] == last else (of[0] + 1, of[1]))

    def _begin(self, resume: bool, fork: Path | None) -> dict[str, Any]:
        """Load the checkpoint that the run starts from, if any; return facts about it for the telemetry."""
        if resume:
            checkpoint = self.processes.first(
                lambda: checkpoints.last_checkpoint(self.out, self.processes.tell)
            )
        elif fork is not None:
            checkpoint = self.processes.first(lambda: checkpoints.find_checkpoint(fork, self.processes.tell))
        else:
            self.processes.first(lambda: checkpoints.refuse_taken(self.out))
            return {}
        if checkpoint is None:
            self.processes.tell(f"{self.out} holds no intact checkpoint: starting from step 0")
            return {}
        notes = checkpoints.notes_of(checkpoint)
        before = RunConfig.of_document(notes["configuration"])
        if before.model != self.run.model:
            raise StoreError(f"{checkpoint} holds a different network than the configuration: {before.model}")
        self._load(checkpoint)
        if resume:
            self.watch.restore(checkpoints.watch_of(checkpoint))
            self.optimiser.factors |= notes.get("factors", {})
            self._roll_backs = notes.get("roll_backs", 0)
            return {"spent": notes["wall_s"]}
        if self.step >= self.run.training.steps:
            raise ValueError(f"{checkpoint} is already at step {self.step}: set steps to more than that")
        check_encoders(self.source, notes.get("encoders", {}), checkpoint)
        return {"checkpoint": str(checkpoint), "step": self.step, "configuration": notes["configuration"]}

    def _load(self, checkpoint: Path) -> None:
        """Load the weights, moments and step of a checkpoint."""
        checkpoints.load_tensors(checkpoint, self.optimiser.state())
        self.step = checkpoints.notes_of(checkpoint)["step"]

    def _open_telemetry(self, resume: bool, origin: dict[str, Any]) -> Telemetry | None:
        """Open the store on the first process; then write the configuration, which makes the folder a run."""

        def lay_out() -> None:
            path = self.out / checkpoints.TELEMETRY
            if not resume:
                self.out.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(path, ignore_errors=True)
                Telemetry.lay_out(path, self.run, self.optimiser.names, origin)
            found.append(Telemetry(path, after=self.step, run=self.run, spent=origin.get("spent", 0.0)))
            checkpoints.write_configuration(self.out, self.run)

        found: list[Telemetry] = []
        self.processes.first(lay_out)
        return found[0] if found else None

    def train(self) -> Outcome:
        """Train until the last step, or until the configuration ends the run early.

        Raises:
            ValueError: a sample contains NaN or infinities.
            StoreError: telemetry or a checkpoint could not be written; the run can be resumed.
        """
        training = self.run.training
        loss, stopped = float("nan"), "steps"
        bar = self.processes.progress(self.step, training.steps, self.out.name)
        try:
            while stopped == "steps" and self.step < training.steps:
                step = self.step + 1
                loss = self._step(step)
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                stopped = self._stopped(step, loss)
                if self._alarm is not None and stopped == "steps":
                    stopped = self._answer(self._alarm)
                if self.step == step and (
                    stopped != "steps" or step == training.steps or step % training.checkpoint_every == 0
                ):
                    self._save()
                bar.update(self.step - bar.n)
        finally:
            bar.close()
            self._batches.close()
            self.interventions.close()
        return Outcome(step=self.step, loss=loss, stopped=stopped)

    def _step(self, step: int) -> float:
        """Make one step and return the mean loss of the whole batch."""
        training, watch = self.run.training, self.watch
        self.interventions.begin_step(step)
        micro_batches = self._micro_batches(step)
        measured = watch.stored(step) or watch.kept(step)
        losses, row, trunks = self.training_pass.backward(micro_batches, measured=measured)
        found, total = self.optimiser.gradient_norms()
        norms = found.cpu().numpy()
        loss = self.processes.mean(losses.mean())
        scalars: Row = {"loss": loss, "grad_norm": total, "data_wait_s": self._batches.waited}
        scalars["tokens_seen"] = step * training.batch * sum(self.run.model.setting().segments)
        scalars["grad_norm_family"] = norms_by_family(self.optimiser.names, norms)
        event, self._alarm = watch.notice(step, loss, total, row)
        if event is not None and not row:
            row, trunks = self.training_pass.measure_again(micro_batches, self.optimiser)
        if event is not None:
            self._report(event, norms, losses, row)
        if row:
            row["grad_norm_block"] = norms_by_block(
                self.optimiser.names, norms, self.run.model.depth, self.blocks
            )
        scalars["grad_norm_clipped"] = self.optimiser.clip(total)
        stored = event is not None or watch.stored(step)
        scalars["lr"] = self.optimiser.step(self.schedule.rate(step))
        self.optimiser.update_average()
        self.optimiser.zero_grad()
        if event is not None or watch.regular(step):
            row["functional_step"] = self.training_pass.functional_step(micro_batches, trunks)
        self.step = step
        watch.measured(step, row, stored=stored)
        earlier = watch.released(step) if event is not None else []
        if self.telemetry is not None:
            self.telemetry.log(step, {**scalars, **(row if stored else {})}, earlier)
        return loss

    def _micro_batches(self, step: int) -> list[Batch]:
        """Return this process's share of the batch of a step, as micro-batches on its device."""
        seed = order_seed(self.run.training.data_seed, self._roll_backs)
        batches = self._batches.take((step, seed))
        return [tuple(part.to(self.processes.device) for part in batch) for batch in batches]

    def _batches_of(self, key: tuple[int, int]) -> list[Batch]:
        """Make the micro-batches of a step and a data seed on the CPU, ahead of the step."""
        training, (step, seed) = self.run.training, key
        shares = np.arange(training.batch).reshape(self.processes.count, training.accumulation, -1)
        return [
            batch_of(self.source, self.run, step, positions=of, seed=seed)
            for of in shares[self.processes.rank]
        ]

    def _report(self, event: Event, norms: NDArray[np.float64], losses: Tensor, row: Row) -> None:
        """Examine a suspicious step, and write the findings to the store and to a text file beside it."""
        model, share = self.run.model, len(losses)
        numbers = model.channels * model.side**2 * share
        # |dL/dv| follows from the losses: dL/dv = 2 (v - target) / numbers
        own = losses.double().mean().item(), 2 * (losses.double().sum() / numbers / share).sqrt().item()
        shares = self.processes.gathered(own)
        everywhere = self.processes.gathered(not_finite(self.optimiser))
        bad = {kind: sorted({name for of in everywhere for name in of[kind]}) for kind in everywhere[0]}
        if self.telemetry is None:
            return
        document = examine(
            event,
            names=self.optimiser.names,
            norms=norms,
            losses=[loss for loss, _ in shares],
            output_gradients=[gradient for _, gradient in shares],
            bad=bad,
            now=row,
            before=self.watch.before,
        )
        text = self.telemetry.report(document)
        self.processes.tell(
            f"step {event.step}: {event.signal} {event.value:.4g} against {event.reference:.4g}, see {text}"
        )

    def _stopped(self, step: int, loss: float) -> str:
        """Return why the run ends at this step, or `steps` if it does not."""
        training = self.run.training
        if training.stop_on != "never" and not np.isfinite(loss):
            return "divergence"
        before = self.watch.before
        if training.stop_on != "collapse" or step % training.interval or before is None:
            return "steps"
        row = before[1]
        if deep_median(row.get("tcs_image", row["tcs"])) < FRONT_COSINE:
            return "steps"
        onset = self.processes.first(lambda: training_onset(open_run(self.out)))
        collapsed = onset.kind == "mean_mode" and step >= onset.step + training.event_window
        return "collapse" if collapsed else "steps"

    def _answer(self, alarm: Alarm) -> str:
        """React to an alarm as configured; return `alarm` if it ends the run, else `steps`."""
        training = self.run.training
        asked = answer(training, alarm, self._roll_backs)
        document, said = {**alarm.document(), "action": asked.action}, asked.said
        checkpoint = None
        if asked.before is not None:
            older = asked.before
            checkpoint = self.processes.first(
                lambda: checkpoints.last_checkpoint(self.out, self.processes.tell, before=older)
            )
            if checkpoint is None:
                document["action"] = "lower_all"
                said += f"; no checkpoint is older than step {older}: all learning rates are lowered"
        self.optimiser.lower(asked.lowered, training.alarm_factor)
        if checkpoint is not None:
            said += f"; returning to {checkpoint.name} with all learning rates lowered"
            self._roll_back(checkpoint, document)
        elif self.telemetry is not None:
            self.telemetry.annotate(document)
        self.processes.tell(said)
        return "alarm" if asked.action == "stop" else "steps"

    def _roll_back(self, checkpoint: Path, alarm: Mapping[str, Any]) -> None:
        """Return to a checkpoint, with the current learning rates and a new order of the data."""
        left = self.step
        self._load(checkpoint)
        self._roll_backs += 1
        self.watch = Watch(self.run)
        self.watch.restore(checkpoints.watch_of(checkpoint))
        if self.telemetry is not None:
            self.telemetry = Telemetry(
                self.out / checkpoints.TELEMETRY, after=self.step, run=self.run, spent=self.telemetry.wall
            )
            text = f"steps {self.step + 1} to {left} were abandoned on an alarm"
            self.telemetry.annotate({"step": self.step, "text": text, "alarm": alarm})
        self._save()
        self.processes.first(lambda: checkpoints.delete_after(self.out, self.step))

    def _save(self) -> None:
        """Write the telemetry to disk, then a checkpoint of the last step."""
        if self.telemetry is not None:
            self.telemetry.flush()
        wall = self.processes.first(lambda: 0.0 if self.telemetry is None else self.telemetry.wall)
        checkpoints.save(
            self.out,
            self.step,
            self.optimiser.state(),
            notes={
                "configuration": self.run.document(),
                "wall_s": wall,
                "factors": self.optimiser.factors,
                "roll_backs": self._roll_backs,
                "encoders": encoders_of(self.source),
            },
            watch=self.watch.state(),
            keep=self.run.training.keep,
        )
