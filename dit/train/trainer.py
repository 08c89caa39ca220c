"""The trainer: runs optimiser steps, measures them, writes checkpoints and resumes bitwise."""

# P parameters

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import FUNCTIONAL_STEP
from meanmode.dit.data.batches import Batch, batch_of
from meanmode.dit.data.latents import check_encoders, encoders_of
from meanmode.dit.data.prefetch import Prefetch
from meanmode.dit.data.sources import Source, source_of
from meanmode.dit.train.alarm_answers import answer, order_seed
from meanmode.dit.train.autopsy import examine, not_finite
from meanmode.dit.train.checkpoint_files import WATCH, load_tensors, notes_of, step_of, watch_of
from meanmode.dit.train.checkpoints import delete_after, last_checkpoint, save, tidy
from meanmode.dit.train.measurements import Event, Row, TelemetryWatch, measured_blocks, measured_observables
from meanmode.dit.train.memory import check_fits
from meanmode.dit.train.optimiser import Optimiser
from meanmode.dit.train.outcome import Outcome
from meanmode.dit.train.processes import Processes
from meanmode.dit.train.run_folder import (
    BEGUN,
    RunFolder,
    clear_beginning,
    finish_beginning,
    read_configuration,
    refuse_taken,
    resumable,
    set_aside,
    write_configuration,
)
from meanmode.dit.train.scheduled_interventions import ScheduledInterventions
from meanmode.dit.train.starting_point import StartingPoint, forked, resumed
from meanmode.dit.train.telemetry import Telemetry, norms_by_block, norms_by_family
from meanmode.dit.train.training_pass import TrainingPass
from meanmode.dit.train.weights_ring import WeightsRing
from meanmode.sim.onset.deep_blocks import deep_median
from meanmode.sim.onset.detector import Alarm
from meanmode.sim.onset.training_onset import training_onset
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import TELEMETRY, open_run
from meanmode.sim.trunk.compiled import check_compiler
from meanmode.theory.meanfield.front import FRONT_COSINE


class Trainer:
    """Trains one run, on a single process or on all processes of an `accelerate launch`.

    Everything random depends only on the seeds, the step and the position in the batch. Resuming therefore
    changes nothing, and the number of processes or micro-batches changes results by rounding only.

    Args:
        run: configuration of the run.
        out: folder of the run.
        resume: whether to resume the run in `out`.
        fork: checkpoint of another run to start from, with its step and optimiser moments.
        begin_anew: whether to resume a run that has lost its checkpoints from its beginning, and to move what
            there is into a folder beside it.
        source: source of latents and texts; None for the one in the configuration.

    Raises:
        ValueError: the run does not fit the memory, the processes or its data.
        StoreError: `out` is already taken or in use; or, to resume, it does not exist or holds another run.
    """

    def __init__(
        self,
        run: RunConfig,
        out: Path,
        *,
        resume: bool = False,
        fork: Path | None = None,
        begin_anew: bool = False,
        source: Source | None = None,
    ) -> None:
        self.out = out
        self.processes = Processes(run)
        self._closing = contextlib.ExitStack()
        self._verified: set[Path] = set()
        try:
            self.processes.first(lambda: self._take_folder(resume))
            self.run = self.processes.first(lambda: resumable(run, out)) if resume else run
            self._open(source)
            start = self.processes.first(lambda: self._starting_point(resume, fork, begin_anew))
            self._begin(start)
            self.telemetry = self._open_telemetry(start, new=not resume or start.anew)
            self.ring = WeightsRing(self.run, out, self.processes, self._verified)
            self.ring.begin(self.step, start.notes if start.resumed else {})
        except BaseException:
            self.close(failed=True)
            raise

    def _take_folder(self, resume: bool) -> None:
        """Lock the folder before anything is read of a run to resume, or written of a new one."""
        check = read_configuration if resume else refuse_taken
        check(self.out)
        folder = RunFolder(self.out)
        self._closing.callback(folder.release)
        check(self.out)  # another process may have been faster
        if resume:
            finish_beginning(self.out)
            tidy(self.out)

    def _open(self, source: Source | None) -> None:
        """Open the data and build the network and all that trains and measures it."""
        self.processes.together(lambda: check_fits(self.run, self.processes.count, self.processes.device))
        if self.run.training.compile:
            self.processes.together(lambda: check_compiler(self.processes.device))
        self.source = source or self.processes.together(lambda: source_of(self.run))
        self.network = self.processes.network(self.run)
        self.interventions = ScheduledInterventions(self.network, self.run.training.interventions)
        self.optimiser = Optimiser(self.network, self.run.training)
        self.schedule = self.run.training.learning_rate(self.run.model.depth)
        self.watch = TelemetryWatch(self.run)
        self.blocks = measured_blocks(self.run)
        self.step = self._roll_backs = 0
        self._alarm: Alarm | None = None
        last = self.run.training.steps
        self._batches = Prefetch(self._batches_of, lambda of: None if of[0] == last else (of[0] + 1, of[1]))
        self._closing.callback(self._batches.close)
        self._closing.callback(self.interventions.close)

    def close(self, *, failed: bool = False) -> None:
        """Let go of the folder, and of the other processes; the second call does nothing.

        Args:
            failed: whether an error ended the training.
        """
        self._closing.close()
        self.processes.leave(failed=failed)

    def _starting_point(self, resume: bool, fork: Path | None, begin_anew: bool) -> StartingPoint:
        """Find the checkpoint to start from, if any."""
        tell = self.processes.tell
        if resume:
            return resumed(self.run, self.out, tell, begin_anew=begin_anew, verified=self._verified)
        return StartingPoint() if fork is None else forked(self.run, fork, tell)

    def _begin(self, start: StartingPoint) -> None:
        """Load the state to start from, then make the network ready for training."""
        if start.checkpoint is not None:
            if start.origin:
                check_encoders(self.source, start.notes.get("encoders", {}), start.checkpoint)
            self._load(start.checkpoint, start.notes["step"])
        if start.checkpoint is not None and start.resumed:
            self._restore_watch(start.checkpoint)
            lowered, factors = start.notes.get("factors", {}), self.optimiser.factors
            factors |= {name: lowered[name] for name in factors.keys() & lowered}
            self._roll_backs = start.notes.get("roll_backs", 0)
        if self.run.training.compile:
            for block in self.network.blocks:
                block.compile()
        names = tuple(measured_observables(self.run))
        self.training_pass = TrainingPass(self.network, self.processes, self.blocks, names)

    def _load(self, checkpoint: Path, step: int) -> None:
        """Load the weights and moments of the checkpoint of a step."""
        load_tensors(checkpoint, self.optimiser.state())
        self.step = step

    def _restore_watch(self, checkpoint: Path) -> None:
        """Load the state of the measurements."""
        try:
            self.watch.restore(watch_of(checkpoint))
        except StoreError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise StoreError(f"{checkpoint / WATCH} is damaged: {error}") from error

    def _open_telemetry(self, start: StartingPoint, *, new: bool) -> Telemetry | None:
        """Open the store on the first process; a new one, with the configuration, makes the folder a run."""
        path, begun = self.out / TELEMETRY, self.out / BEGUN

        def lay_out() -> None:
            if new:
                clear_beginning(self.out)
                Telemetry.lay_out(begun, self.run, self.optimiser.names, start.origin)
                if start.anew:
                    self.processes.tell(f"what {self.out} held is now in {set_aside(self.out)}")
                write_configuration(self.out, self.run)
                begun.rename(path)
            spent = start.notes.get("wall_s", 0.0) if start.resumed else 0.0
            found.append(Telemetry(path, after=self.step, run=self.run, spent=spent))
            if not new:
                write_configuration(self.out, self.run)

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
            if self.step >= training.steps:
                loss = self.processes.first(self._last_loss)
            while stopped == "steps" and self.step < training.steps:
                step = self.step + 1
                loss = self._step(step)
                event = self._alarm is not None or self.watch.crossed
                self.ring.turn(step, self.optimiser.parameters, event=event)
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
            self._closing.close()
        return Outcome(step=self.step, loss=loss, stopped=stopped)

    def _last_loss(self) -> float:
        """Return the loss of the last step of an earlier session."""
        assert self.telemetry is not None
        return self.telemetry.last_loss()

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
        if training.observes(FUNCTIONAL_STEP) and (event is not None or watch.regular(step)):
            row["functional_step"] = self.training_pass.functional_step(micro_batches, trunks)
        early = watch.forecast(step, row) if row and stored else None
        self._alarm = self._alarm or early
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
                lambda: last_checkpoint(
                    self.out, self.processes.tell, before=older, own=self.run, verified=self._verified
                )
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
        self._load(checkpoint, step_of(checkpoint))
        self._roll_backs += 1
        self.watch = TelemetryWatch(self.run)
        self._restore_watch(checkpoint)
        self.ring.begin(self.step, notes_of(checkpoint))
        if self.telemetry is not None:
            self.telemetry = Telemetry(
                self.out / TELEMETRY, after=self.step, run=self.run, spent=self.telemetry.wall
            )
            text = f"steps {self.step + 1} to {left} were abandoned on an alarm"
            self.telemetry.annotate({"step": self.step, "text": text, "alarm": alarm})
        self._save()
        self.processes.first(lambda: delete_after(self.out, self.step, self.run))

    def _save(self) -> None:
        """Write the telemetry to disk, then a checkpoint of the last step."""
        if self.telemetry is not None:
            self.telemetry.flush()
        wall = self.processes.first(lambda: 0.0 if self.telemetry is None else self.telemetry.wall)
        save(
            self.out,
            self.step,
            self.optimiser.state(),
            notes={
                "configuration": self.run.document(),
                "wall_s": wall,
                "factors": self.optimiser.factors,
                "roll_backs": self._roll_backs,
                "encoders": encoders_of(self.source),
                **self.ring.notes(),
            },
            watch=self.watch.state(),
            keep=self.run.training.keep,
            verified=self._verified,
        )
