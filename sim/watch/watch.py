"""`Watch`: measures any transformer in somebody else's training script."""

import atexit
import contextlib
import math
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from meanmode.sim.anatomy.anatomy import Anatomy
from meanmode.sim.anatomy.discovery import discover
from meanmode.sim.anatomy.untouched import reshard
from meanmode.sim.observe.layer_hooks import eager
from meanmode.sim.observe.probe import UNKNOWN
from meanmode.sim.observe.process_sums import is_sharded, mean_of_processes
from meanmode.sim.onset.deep_blocks import deep_median
from meanmode.sim.watch.compiled_hooks import CompiledHooks
from meanmode.sim.watch.compiled_steps import CompiledSteps
from meanmode.sim.watch.forms.forms import Form, form_of
from meanmode.sim.watch.guard import Guard, say
from meanmode.sim.watch.measured_step import MeasuredStep
from meanmode.sim.watch.training_processes import TrainingProcesses, unwrapped
from meanmode.sim.watch.watch_plan import WatchPlan
from meanmode.sim.watch.watched_names import SHOWN, chosen
from meanmode.sim.watch.watched_rows import Sink, WatchedRows
from meanmode.sim.watch.writer_weights import mean_square_updates, recorded_weights

SCALED = {"g_mean": 1, "g_ctr": 1, "g_inner": 2, "grad_rms_q": 1, "grad_rms_k": 1, "grad_rms_v": 1}
"""Observable -> power of the loss scale of mixed-precision training that is in it."""

UNCALLED = "the watched model was not called inside it; watch the module whose call makes the forward pass"
BACKWARDS = "open a step once, around all its micro-batches, and watch another training with another Watch"
"""Said of a step without a forward pass, and of steps that do not grow."""

Arrays = dict[str, NDArray[np.float64]]


class Watch:
    """Measures a transformer while a script of any kind trains it; gradients stay the same to the bit.

    Every `every`-th step, and the first, is measured over all its micro-batches; at other steps nothing is
    hooked. Residual writers, blocks and streams are discovered in the first forward pass that is measured. An
    error inside the watch is reported once, and training goes on.

    With `DistributedDataParallel` and `fully_shard`, values are those of the batch of all processes and of
    the gradient that they have averaged, the same in every process; the first one writes, reports and calls
    the sink. Every process opens the same steps; small sums are exchanged when one closes.

        watch = Watch(model, every=100, out="runs/mine")
        for step, batch in enumerate(loader, 1):
            with watch.step(step):
                loss = model(**batch).loss
                loss.backward()
                watch.log(loss=loss)
            optimiser.step()
            optimiser.zero_grad()
        watch.close()

    Args:
        model: any transformer; compiled by `torch.compile` too, as a whole or in parts (its first measured
            step runs uncompiled), and wrapped by DDP or FSDP2, now or later.
        every: steps between measurements.
        out: folder for a run store, which `mms onset` and others read; None writes none.
        run: a batch or a callable, as `discover` takes it, to discover the anatomy at once.
        anatomy: a known or corrected anatomy; None discovers it.
        blocks: numbers of the blocks to measure, from 1; None for all.
        names: observables to measure; None for all.
        segments: name -> number of tokens, in order, such as `{"cls": 1, "image": 196}`: state observables
            are also measured on each segment of two tokens or more, in streams of as many tokens.
        sink: called with each measured step and a few scalars.

    Attributes:
        anatomy: the anatomy; None until it is discovered.
        latest: scalars of the last measured step: medians over the deeper half of the blocks.
        alarms: alarms of the detector so far, in the first process.

    Raises:
        ValueError: a value out of range, names that are not in the model, or tensor parallelism.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 100,
        out: str | os.PathLike[str] | None = None,
        run: Any = None,
        anatomy: Anatomy | None = None,
        blocks: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        segments: Mapping[str, int] | None = None,
        sink: Sink | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.model, self.every = unwrapped(model), every
        self._processes = TrainingProcesses(self.model)
        self.latest: dict[str, float] = {}
        self.values: Arrays = {}
        self._rows = WatchedRows(None if out is None else Path(out), sink, every=every)
        self.alarms = self._rows.alarms
        self._blocks = None if blocks is None else tuple(blocks)
        self._names = chosen(None if names is None else tuple(names))
        self._segments = dict(segments or {})
        self._guard = Guard()
        self._compiling = CompiledSteps(model, self._guard)
        self._forms: list[Form] = []
        self._plan: WatchPlan | None = None
        self._step = self._first = 0
        self._open: tuple[int, Arrays, dict[int, Tensor]] | None = None
        self._logged: dict[int, dict[str, Any]] = {}
        self._checked = self._discovering = self._stopped = self._due = self._told = False
        if anatomy is None and run is not None:
            anatomy = discover(self.model, run)
        if anatomy is not None:
            self._lay_out(anatomy)
        if out is not None:
            atexit.register(_write_rest, weakref.ref(self))

    @property
    def anatomy(self) -> Anatomy | None:
        """The anatomy; None until it is discovered."""
        return self._plan.anatomy if self._plan else None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, step: int, *, scaler: Any = None) -> AbstractContextManager[None]:
        """Context for all forward and backward passes of a step, closed before the update.

        Args:
            step: number of the step, from 1.
            scaler: a `GradScaler` whose scale the loss was multiplied by.

        Raises:
            ValueError: the step is below 1.
        """
        if step < 1:
            raise ValueError(f"steps are counted from 1, got {step}: use enumerate(loader, 1)")
        again = self._open is not None and step == self._open[0]
        if again or step < self._step:
            self._open = None if again else self._open  # a part of a step is no step
            self.close()
            self._guard.fail(ValueError(f"step {step} comes after step {self._step}: {BACKWARDS}"))
        self._step = step
        self._first = self._first or step
        if self._due:
            self._guard.always(self._put_updates)()
        if self._open is not None:
            self._guard(self._settle)()
        # an error in one process is known to the others at the next measured step only
        failed = self._guard.failed if self._processes.group is None else self._stopped
        if failed or (step != 1 and step % self.every):
            return contextlib.nullcontext()
        return self._measured(step, scaler)

    def log(self, *, loss: Any = None, grad_norm: Any = None, lr: Any = None) -> None:
        """Log numbers or tensors of one element for the current step; no device is waited for.

        Args:
            loss: loss of the step.
            grad_norm: global norm of the gradients, before clipping.
            lr: learning rate.
        """
        given = {"loss": loss, "grad_norm": grad_norm, "lr": lr}
        if not self._guard.failed and self._step:
            self._guard(self._keep)({name: value for name, value in given.items() if value is not None})

    def attach(self, trainer: Any) -> "Watch":
        """Watch what a trainer trains, without `step` and `log`; its logs show the scalars as `meanmode/...`.

        Args:
            trainer: a Trainer of `transformers` or of Lightning, or an `Accelerator` after its `prepare`.

        Raises:
            ValueError: something else, or an accelerator that prepared no optimiser of the model.
        """
        if all(form.trainer is not trainer for form in self._forms):
            self._forms.append(form_of(self, trainer))
        return self

    def close(self) -> None:
        """Write everything that is left to the store; the watch can go on afterwards."""
        for form in self._forms:
            form.steps.discard()
        self._guard(self._settle)()
        self._guard(self._rows.finish)()

    # one measured step

    @contextlib.contextmanager
    def _measured(self, step: int, scaler: Any) -> Iterator[None]:
        with contextlib.ExitStack() as hooks:
            found: list[MeasuredStep] = []
            scale = 1.0 if scaler is None else self._guard(scaler.get_scale)()
            self._guard(self._begin)(hooks, found)
            yield
        lost: dict[int, str] = {}
        with torch.no_grad():
            for measured in found:
                lost = self._guard(measured.gradients.finish)() or {}
        if found and found[0].incomplete:
            return
        if self._guard.always(self._agreed)(step, found, lost):
            self._guard(self._finish)(step, found[0], scale, lost)

    def _begin(self, hooks: contextlib.ExitStack, found: list[MeasuredStep]) -> None:
        """Hook the model, or its first call if the anatomy is not known."""
        self._processes = TrainingProcesses(self.model)  # it may have been wrapped or sharded since
        if self._checked and self._compiling.possible(self._processes):
            self._hook_compiled(hooks, found)
            return
        hooks.enter_context(eager())
        if self._plan is None:
            discovery = self._guard(lambda *given: self._discovered(hooks, found, *given))
            handle = self.model.register_forward_pre_hook(discovery, with_kwargs=True, prepend=True)
            hooks.callback(handle.remove)
            return
        if self._processes.sharded and not any(is_sharded(of.weight) for of in self._plan.writers.values()):
            self._lay_out(self._plan.anatomy)
        self._hook(hooks, found)

    def _agreed(self, step: int, found: list[MeasuredStep], lost: dict[int, str]) -> bool:
        """Whether all processes have measured the step; each then has the same writers."""
        processes, plan = self._processes, self._plan
        called = any(measured.passes for measured in found)
        error = processes.verdict(ok=not self._guard.failed, called=called, plan=plan)
        if error == "not called":
            self._say(f"step {step} was not measured: {UNCALLED}")
        elif error and not self._guard.failed:
            self._guard.failed = True
            self._say(f"the watch stops, training goes on: {error}")
        self._stopped = self._guard.failed
        if error or self._stopped or plan is None:
            return False
        processes.keep_common_writers(plan, found[0].record, lost)
        self._due = processes.sharded and plan.wants("update_rms")
        return True

    def _say(self, message: str) -> None:
        if self._processes.first:
            say(message)

    def _discovered(
        self,
        hooks: contextlib.ExitStack,
        found: list[MeasuredStep],
        model: nn.Module,
        args: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        """Discover the anatomy from the first call of the model, and hook this call already."""
        if self._plan is not None or self._discovering or not torch.is_grad_enabled():
            return
        self._discovering = True  # the discovery calls the model again
        try:
            anatomy = discover(model, lambda: model(*args, **options))
        finally:
            self._discovering = False
        self._lay_out(anatomy)
        self._hook(hooks, found)
        found[0].begin(model, args, options)

    def _lay_out(self, anatomy: Anatomy) -> None:
        reshard(self.model)  # the parameters that an optimiser sees
        plan = WatchPlan(self.model, anatomy, blocks=self._blocks, names=self._names, segments=self._segments)
        self._plan = plan
        unmeasured = [f"{anatomy.writers[n].parameter}: {why}" for n, why in plan.broken.items()]
        unknown = [of.writer.parameter for of in plan.writers.values() if not of.trunk]
        if unmeasured:
            self._say(f"no gradient parts are measured for {_listed(unmeasured)}")
        if unknown and plan.wants("r_tr"):
            self._say(
                f"r_tr is not measured for {_listed(unknown)}: the trunk or the branch is inside a module"
            )

    def _hook(self, hooks: contextlib.ExitStack, found: list[MeasuredStep]) -> None:
        found[:] = [self._measurement(None)]
        hooks.enter_context(found[0].hooked())

    def _hook_compiled(self, hooks: contextlib.ExitStack, found: list[MeasuredStep]) -> None:
        """Hook a compiled model; if that fails, this pass and all later ones run uncompiled."""

        def uncompiled(model: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            hooks.enter_context(eager())
            self._hook(hooks, found)
            found[0].begin(model, args, options)

        assert self._plan is not None
        compiled = CompiledHooks(self._compiling.functions)
        found[:] = [self._measurement(compiled)]
        hooks.enter_context(found[0].hooked())
        hooks.enter_context(self._compiling.begun(compiled, found[0].begin, uncompiled))

    def _measurement(self, compiled: CompiledHooks | None) -> MeasuredStep:
        assert self._plan is not None
        group = self._processes.group
        return MeasuredStep(self._plan, self._guard, first=not self._checked, group=group, compiled=compiled)

    def _finish(self, step: int, measured: MeasuredStep, scale: float, lost: dict[int, str]) -> None:
        plan = measured.plan
        with torch.no_grad():
            held = recorded_weights(measured.measurement, plan)
            arrays = measured.record.arrays()
        for name, power in SCALED.items():
            if name in arrays:
                arrays[name] /= scale**power
        if not self._checked and plan.wants("max_logit") and plan.readers:
            if np.isnan(arrays["max_logit"]).all():
                self._say("attention logits are not measured: no call of torch.nn.functional forms them")
        self._checked = True
        if lost:
            said = [f"{plan.anatomy.writers[number].parameter}: {why}" for number, why in lost.items()]
            self._say(f"no gradient parts are measured for {_listed(said)}")
            plan.broken |= lost
        broken = {plan.writers[number].place for number in plan.broken if number in plan.writers}
        if not self._told and any(place not in broken for place in measured.record.unknown):
            self._told = True
            self._say(UNKNOWN)
        for number in plan.broken:
            for name in ("g_mean", "g_ctr", "g_inner", "amplification", "kappa"):
                if name in arrays:
                    arrays[name][plan.writers[number].place] = math.nan
        self.values = arrays
        self._open = (step, arrays, held)
        self._show(arrays)

    def _show(self, arrays: Arrays) -> None:
        shown = {name: deep_median(arrays[name]) for name in SHOWN if name in arrays}
        self.latest = {name: value for name, value in shown.items() if not math.isnan(value)}

    # the rows

    def _keep(self, given: dict[str, Any]) -> None:
        """Hold scalars of this step, without waiting for a device."""
        held = {
            name: of.detach().clone() if isinstance(of, Tensor) else float(of) for name, of in given.items()
        }
        self._logged.setdefault(self._step, {}).update(held)

    def _settle(self) -> None:
        """Complete the last measured row by its update, and hand out all rows up to it."""
        plan = self._plan
        if plan is None:
            return
        if not self._processes.sharded:
            self._put_updates()
        step, arrays, _ = self._open or (0, {}, {})
        self._open = None
        logged, self._logged = self._logged, {}
        if not self._processes.first:
            return
        rows: dict[int, dict[str, Any]] = {
            number: {name: float(value) for name, value in row.items()} for number, row in logged.items()
        }
        if step:
            rows.setdefault(step, {}).update(arrays)
        for number in sorted(rows):
            latest = self.latest if number == step else None
            self._rows.hand_out(plan, number, rows[number], first=self._first, latest=latest)
        self._rows.flush(now=False)

    def _put_updates(self) -> None:
        """Add the sizes of the updates to the last measured row; shards are summed over processes."""
        plan, (_, arrays, held) = self._plan, self._open or (0, {}, {})
        assert plan is not None
        found = self._guard(mean_square_updates)(plan, held) if held else None
        if self._due:
            self._due = False
            if found is None:
                found = torch.full((len(plan.writers),), math.nan, dtype=torch.float64)
            found = found.to(self._processes.device)
            found = mean_of_processes(found, self._processes.group)
        if found is not None and arrays:
            for of, value in zip(plan.writers.values(), found.sqrt().tolist(), strict=True):
                arrays["update_rms"][of.place] = value


def _write_rest(watch: "weakref.ref[Watch]") -> None:
    """Write held rows when the program ends without `close`."""
    alive = watch()
    if alive is not None:
        alive._guard(alive._settle)()
        alive._guard(alive._rows.flush)(now=True)


def _listed(said: Sequence[str]) -> str:
    return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
