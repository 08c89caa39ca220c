"""The trainer: one optimiser step after the other, measured, checkpointed and resumable to the bit."""

# B batch of a step, C channels, H height, W width of a latent, P parameters

import math
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.batches import Batch, batch_of
from meanmode.dit.data.latents import check_encoders, encoders_of
from meanmode.dit.data.prefetch import Prefetch
from meanmode.dit.data.sources import Source, source_of
from meanmode.dit.model.flow import flow_losses
from meanmode.dit.train import checkpoints as states
from meanmode.dit.train.alarm_answers import answer, order_seed
from meanmode.dit.train.autopsy import examine, not_finite
from meanmode.dit.train.measurements import Event, Row, Watch, measured_blocks
from meanmode.dit.train.memory import check_fits
from meanmode.dit.train.optimiser import Optimiser
from meanmode.dit.train.processes import Processes
from meanmode.dit.train.telemetry import Telemetry, norms_by_block, norms_by_family
from meanmode.sim.intervene.grammar import Intervention
from meanmode.sim.intervene.interventions import Interventions
from meanmode.sim.observe.functional_step import displacement
from meanmode.sim.observe.layer_hooks import recomputing
from meanmode.sim.observe.probe import Probe
from meanmode.sim.onset.detector import Alarm
from meanmode.sim.onset.training_onset import deep_median, training_onset
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import open_run
from meanmode.theory.meanfield.predicted_front import FRONT_COSINE


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a session of training ended.

    Attributes:
        step: last step made.
        loss: of it.
        stopped: `steps` where the run is complete, else `divergence`, `collapse` or `alarm`.
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
    """A run from its configuration, on one process or on all of an `accelerate launch`.

    Everything random is a function of seed, step and place in the batch, so that neither resuming nor the
    number of processes and micro-batches changes what is computed, but for rounding.

    Args:
        run: the configuration.
        out: folder of the run.
        resume: go on with the run that is there.
        fork: begin with a checkpoint of another run, at its step, with its moments.
        source: of latents and texts; None for the one the configuration names.

    Raises:
        ValueError: a run that does not fit the memory, the processes, or its data.
        StoreError: a folder that is taken, or not there, or holds another run.
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
        self.run = self.processes.first(lambda: states.agreed(run, out)) if resume else run
        self.source = source or source_of(self.run)
        self.processes.together(lambda: check_fits(self.run, self.processes.count, self.processes.device))
        self.network = self.processes.network(self.run)
        # those it does not have are refused before anything is written
        Interventions(self.network, [Intervention.parse(text) for _, text in self.run.training.interventions])
        self.optimiser = Optimiser(self.network, self.run.training)
        self.schedule = self.run.training.learning_rate(self.run.model.depth)
        self.watch = Watch(self.run)
        self.blocks = measured_blocks(self.run)
        self.step = self._roll_backs = 0
        self._alarm: Alarm | None = None
        self._interventions, self._acting = ExitStack(), ()
        origin = self._begin(resume, fork)
        if self.run.training.compile:
            for block in self.network.blocks:
                block.compile()
        self.model = self.processes.wrapped(self.network)
        self.telemetry = self._open_telemetry(resume, origin)
        last = self.run.training.steps
        self._batches = Prefetch(self._batches_of, lambda of: None if of[0] == last else (of[0] + 1, of[1]))

    def _begin(self, resume: bool, fork: Path | None) -> dict[str, Any]:
        """Load what the run goes on from; for a fork, what it was."""
        origin: dict[str, Any] = {}
        if resume:
            checkpoint = self.processes.first(lambda: states.last_checkpoint(self.out, self.processes.tell))
        elif fork is not None:
            checkpoint = self.processes.first(lambda: states.find_checkpoint(fork, self.processes.tell))
        else:
            self.processes.first(lambda: states.refuse_taken(self.out))
            return origin
        if checkpoint is None:
            self.processes.tell(f"{self.out} holds no whole checkpoint: it begins anew")
            return origin
        notes = states.notes_of(checkpoint)
        before = RunConfig.of_document(notes["configuration"])
        if before.model != self.run.model:
            raise StoreError(f"{checkpoint} is of another network than the one asked for: {before.model}")
        self._load(checkpoint)
        if resume:
            self.watch.restore(states.watch_of(checkpoint))
            self.optimiser.factors |= notes.get("factors", {})
            self._roll_backs = notes.get("roll_backs", 0)
            return {**origin, "spent": notes["wall_s"]}
        if self.step >= self.run.training.steps:
            raise ValueError(f"{checkpoint} is of step {self.step} already: set steps to more than that")
        check_encoders(self.source, notes.get("encoders", {}), checkpoint)
        return {"checkpoint": str(checkpoint), "step": self.step, "configuration": notes["configuration"]}

    def _load(self, checkpoint: Path) -> None:
        """Have weights, moments and the step of a checkpoint."""
        states.load_tensors(checkpoint, self.optimiser.state())
        self.step = states.notes_of(checkpoint)["step"]

    def _open_telemetry(self, resume: bool, origin: dict[str, Any]) -> Telemetry | None:
        """The store, of the first process, and the configuration last: a folder without it holds no run."""

        def lay_out() -> None:
            path = self.out / states.TELEMETRY
            if not resume:
                self.out.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(path, ignore_errors=True)
                Telemetry.lay_out(path, self.run, self.optimiser.names, origin)
            found.append(Telemetry(path, after=self.step, run=self.run, spent=origin.get("spent", 0.0)))
            states.write_configuration(self.out, self.run)

        found: list[Telemetry] = []
        self.processes.first(lay_out)
        return found[0] if found else None

    def train(self) -> Outcome:
        """Train to the end, or to where the configuration stops it.

        Raises:
            ValueError: a sample that is not finite.
            StoreError: telemetry or checkpoint could not be written; the run goes on with `resume`.
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
            self._interventions.close()
        return Outcome(step=self.step, loss=loss, stopped=stopped)

    def _step(self, step: int) -> float:
        """Make a step; its loss, of the whole batch."""
        training, watch = self.run.training, self.watch
        self._intervene(step)
        micro_batches = self._micro_batches(step)
        measured = watch.stored(step) or watch.kept(step)
        losses, row, trunks = self._backward(micro_batches, measured=measured)
        found, total = self.optimiser.gradient_norms()
        norms = found.cpu().numpy()
        loss = self.processes.mean(losses.mean())
        scalars: Row = {"loss": loss, "grad_norm": total, "data_wait_s": self._batches.waited}
        scalars["tokens_seen"] = step * training.batch * sum(self.run.model.setting().segments)
        scalars["grad_norm_family"] = norms_by_family(self.optimiser.names, norms)
        event, self._alarm = watch.notice(step, loss, total, row)
        if event is not None and not row:
            row, trunks = self._measured_again(micro_batches)
        if event is not None:
            self._report(event, norms, losses, row)
        if row:
            row["grad_norm_block"] = norms_by_block(
                self.optimiser.names, norms, self.run.model.depth, self.blocks
            )
        scalars["grad_norm_clipped"] = self.optimiser.clip(total)
        stored = event is not None or watch.stored(step)
        scalars["lr"] = self.optimiser.step(self.schedule.rate(step))
        self.optimiser.follow()
        self.optimiser.zero_grad()
        if event is not None or watch.regular(step):
            row["functional_step"] = self._functional_step(micro_batches, trunks)
        self.step = step
        watch.measured(step, row, stored=stored)
        earlier = watch.released(step) if event is not None else []
        if self.telemetry is not None:
            self.telemetry.log(step, {**scalars, **(row if stored else {})}, earlier)
        return loss

    def _intervene(self, step: int) -> None:
        """Have those interventions act that begin at this step or began before it."""
        wanted = tuple(text for first, text in self.run.training.interventions if first <= step)
        if wanted != self._acting:
            self._interventions.close()
            self._interventions, self._acting = ExitStack(), wanted
            asked = [Intervention.parse(text) for text in wanted]
            self._interventions.enter_context(Interventions(self.network, asked))

    def _micro_batches(self, step: int) -> list[Batch]:
        """This process's share of the batch of a step, in its micro-batches."""
        seed = order_seed(self.run.training.data_seed, self._roll_backs)
        batches = self._batches.take((step, seed))
        return [tuple(part.to(self.processes.device) for part in batch) for batch in batches]

    def _batches_of(self, key: tuple[int, int]) -> list[Batch]:
        """The same of a step and a seed of the data, where data are; made ahead of the step."""
        training, (step, seed) = self.run.training, key
        shares = np.arange(training.batch).reshape(self.processes.count, training.accumulation, -1)
        return [
            batch_of(self.source, self.run, step, places=of, seed=seed) for of in shares[self.processes.rank]
        ]

    def _backward(self, micro_batches: list[Batch], *, measured: bool) -> tuple[Tensor, Row, list[Tensor]]:
        """Gradients of the mean loss of the batch.

        Returns:
            The losses of this process's samples; where it is measured, the observables, and x_L of every
            micro-batch.
        """
        count, losses, row, trunks = len(micro_batches), [], {}, []
        with ExitStack() as stack:
            if measured:
                probe = Probe(self.network, blocks=self.blocks, passes=count, group=self.processes.group)
                stack.enter_context(probe)
                if self.blocks:
                    hook = self.network.blocks[-1].register_forward_hook(
                        lambda _, __, x: None if recomputing() else trunks.append(x.detach())
                    )
                    stack.callback(hook.remove)
            for number, (noisy, texts, clean, noise) in enumerate(micro_batches, start=1):
                with nullcontext() if number == count else self.processes.adding_up(self.model):
                    with self.processes.autocast():
                        velocity = self.model(noisy, texts)
                    found = flow_losses(velocity, clean, noise)
                    (found.mean() / count).backward()
                losses.append(found.detach())
            if measured:
                row = dict(probe.values())
        return torch.cat(losses), row, trunks

    def _measured_again(self, micro_batches: list[Batch]) -> tuple[Row, list[Tensor]]:
        """Observables and x_L of a step whose gradients are there already, and stay as they are."""
        weights = list(self.optimiser.parameters.values())
        gradients = [weight.grad for weight in weights]
        self.optimiser.zero_grad()
        _, row, trunks = self._backward(micro_batches, measured=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return row, trunks

    def _functional_step(self, micro_batches: list[Batch], before: list[Tensor]) -> float:
        """Delta of the step that has just been made, over the whole batch."""
        with torch.no_grad():
            after = [self.processes.trunk(self.network, noisy, texts) for noisy, texts, _, _ in micro_batches]
        return self.processes.mean(displacement(torch.cat(before), torch.cat(after)).square()) ** 0.5

    def _report(self, event: Event, norms: NDArray[np.float64], losses: Tensor, row: Row) -> None:
        """The autopsy, as text beside the store and in it."""
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
        """Why the run ends here; `steps` where it does not."""
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
        """Do on an alarm what the configuration says; why the run ends here, `steps` where it does not."""
        training = self.run.training
        asked = answer(training, alarm, self._roll_backs)
        document, said = {**alarm.document(), "action": asked.action}, asked.said
        checkpoint = None
        if asked.before is not None:
            older = asked.before
            checkpoint = self.processes.first(
                lambda: states.last_checkpoint(self.out, self.processes.tell, before=older)
            )
            if checkpoint is None:
                document["action"] = "lower_all"
                said += f"; no checkpoint is older than step {older}: all rates are lowered"
        self.optimiser.lower(asked.lowered, training.alarm_factor)
        if checkpoint is not None:
            said += f"; it goes back to {checkpoint.name}, with all rates lowered"
            self._roll_back(checkpoint, document)
        elif self.telemetry is not None:
            self.telemetry.annotate(document)
        self.processes.tell(said)
        return "alarm" if asked.action == "stop" else "steps"

    def _roll_back(self, checkpoint: Path, alarm: Mapping[str, Any]) -> None:
        """Go on from a checkpoint with the rates as they are now and a fresh order of the data."""
        left = self.step
        self._load(checkpoint)
        self._roll_backs += 1
        self.watch = Watch(self.run)
        self.watch.restore(states.watch_of(checkpoint))
        if self.telemetry is not None:
            self.telemetry = Telemetry(
                self.out / states.TELEMETRY, after=self.step, run=self.run, spent=self.telemetry.wall
            )
            text = f"steps {self.step + 1} to {left} were abandoned on an alarm"
            self.telemetry.annotate({"step": self.step, "text": text, "alarm": alarm})
        self._save()
        self.processes.first(lambda: states.drop_behind(self.out, self.step))

    def _save(self) -> None:
        if self.telemetry is not None:
            self.telemetry.flush()
        wall = self.processes.first(lambda: 0.0 if self.telemetry is None else self.telemetry.wall)
        states.save(
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
