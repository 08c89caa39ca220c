"""The backward half of a measured step: cotangents of writers, adjoints, gradients of queries and keys."""

# S token sets, T tokens, D width, M features written, N features read

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meanmode.sim.anatomy.anatomy import Reader, Weight
from meanmode.sim.anatomy.traced_pass import tensors_in
from meanmode.sim.observe.layer_hooks import watched
from meanmode.sim.observe.measurement import Measurement
from meanmode.sim.observe.observable_names import COHERENCE_OBSERVABLES, GRADIENT_MODES
from meanmode.sim.observe.process_sums import is_sharded
from meanmode.sim.observe.shared_writers import SharedWriterSum
from meanmode.sim.observe.token_sets import TokenSets
from meanmode.sim.observe.writer_gradients import WriterSum
from meanmode.sim.trunk.precision import single
from meanmode.sim.watch.compiled_hooks import CompiledHooks
from meanmode.sim.watch.guard import Guard
from meanmode.sim.watch.watch_plan import WatchedWriter, WatchPlan

PRODUCT_ERROR = 1e-2
"""Largest relative error of W y (+ b) against the output of a writer."""


TURNS = 3
"""How often the end of a backward pass is put off until callbacks that are queued in it have run."""


DIFFERS = "its gradient differs from the sum of its products by {:.2g}"
"""Why a writer is not measured."""


GRADIENT_ERROR, HALF_ERROR = 1e-4, 1e-2
"""Largest relative error of sum delta y^T against the gradient of the weight; the second where products are
computed with fewer digits than single precision has."""


class BackwardHooks:
    """Hooks the backward passes of a step, and checks at the first step what they report.

    Args:
        plan: what is measured.
        measurement: measures the tensors.
        guard: wraps every hook.
        first: whether to check every writer against its weight and its gradient.
        compiled: hooks that are compiled with the model; None hooks the uncompiled model.
    """

    def __init__(
        self,
        plan: WatchPlan,
        measurement: Measurement,
        guard: Guard,
        *,
        first: bool,
        compiled: CompiledHooks | None = None,
    ) -> None:
        self.plan, self.measurement, self.first, self._compiled = plan, measurement, first, compiled
        self._guard = guard
        self._errors: dict[int, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        self._coarse = False
        self._lost: dict[int, str] = {}
        self._padding: dict[str, Tensor] = {}
        self.shared = measurement.record.group is not None
        self._pass = -1
        self._gathered: dict[str, RemovableHandle] = {}

    def hooks(self) -> Iterator[RemovableHandle]:
        """Hook the weights whose gradients are read."""
        for reader, block in self._readers():
            for letter in "qkv":
                name, weight = f"grad_rms_{letter}", getattr(reader, letter)
                parameter = self.plan.parameters[weight.parameter]
                if self.plan.wants(name) and parameter.requires_grad and not self.shared:
                    rows = partial(self._rows, name, block, weight, _is_transposed(reader, weight, parameter))
                    yield parameter.register_post_accumulate_grad_hook(self._guard(rows))
        if self.plan.wants(*GRADIENT_MODES):
            for name in {of.writer.parameter for of in self.plan.writers.values()}:
                if self.shared and (not self.first or is_sharded(self.plan.parameters[name])):
                    continue
                if self.plan.parameters[name].requires_grad and (self.first or name in self.plan.alone):
                    yield self.plan.parameters[name].register_hook(self._guard(partial(self._weight, name)))

    def _readers(self) -> Iterator[tuple[Reader, int]]:
        for block in self.plan.blocks:
            for reader in self.plan.readers.get(block, [])[:1]:
                yield reader, block

    def _rows(self, name: str, block: int, weight: Weight, transposed: bool, parameter: nn.Parameter) -> None:
        """Read the gradient accumulated so far, before anything clips it."""
        if parameter.grad is None:
            return
        gradient = parameter.grad.detach()
        gradient = gradient.mT if transposed else gradient
        if self.shared:
            pieces = weight.rows or ((0, len(gradient)),)
            self.measurement.root_mean_square_of_rows(name, (block,), gradient, pieces)
            return
        rows = [gradient[start:stop] for start, stop in weight.rows] or [gradient]
        self.measurement.root_mean_square(name, (block,), rows[0] if len(rows) == 1 else torch.cat(rows))

    def _weight(self, name: str, gradient: Tensor) -> None:
        if not self.first:
            of = self.plan.writers[self.plan.alone[name]]
            self.measurement.gradient(of.place, gradient.mT if of.writer.transposed else gradient)
            return
        self._coarse |= gradient.dtype.itemsize < 4
        gradient = single(gradient.detach())
        self._own[name] = self._own[name] + gradient if name in self._own else gradient.clone()

    def check_product(self, number: int, y: Tensor, output: Tensor) -> None:
        """Compare the output of a writer with W y (+ b)."""
        of = self.plan.writers[number]
        current, bias = of.current, of.bias
        if is_sharded(of.weight):
            if is_sharded(current):
                return  # given back before the output could be seen
            self._watch_gathered(of, current)
            bias = None if bias is None else of.module._parameters.get("bias")
        weight = single(current.detach())
        product = single(y) @ (weight if of.writer.transposed else weight.mT)
        product = product if bias is None else product + bias
        self._coarse |= output.dtype.itemsize < 4
        size = torch.linalg.vector_norm(single(output)).clamp_min(torch.finfo(torch.float32).tiny)
        self._errors[number] = torch.linalg.vector_norm(product - output) / size

    def _watch_gathered(self, of: WatchedWriter, weight: Tensor) -> None:
        """Read the gradient of a weight that FSDP2 has gathered, before the processes average it."""
        name = of.writer.parameter
        if weight.requires_grad and name not in self._gathered and self.plan.wants(*GRADIENT_MODES):
            self._gathered[name] = weight.register_hook(self._guard(partial(self._weight, name)))

    # the end of a backward pass, where processes share the batch

    def follow(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Have the backward pass from an output of the model read the gradients at its end."""
        for _, x in tensors_in(output):
            if x.requires_grad and x.grad_fn is not None:
                x.register_hook(self._guard(self._read_at_end))

    def _read_at_end(self, _: Tensor | None = None) -> None:
        """Read the gradients when this backward pass ends: they are averaged, and not yet clipped."""
        number = torch._C._current_graph_task_id()
        if self.shared and number not in (-1, self._pass):
            self._pass = number
            self._wait(TURNS)

    def _wait(self, turns: int) -> None:
        # DDP and FSDP2 finish in such callbacks too, which they queue during the pass or in a callback
        work = partial(self._wait, turns - 1) if turns else self._read
        torch.autograd.Variable._execution_engine.queue_callback(self._guard(work))

    def _read(self) -> None:
        with torch.no_grad():
            for of in self.plan.writers.values():
                gradient = of.weight.grad
                if gradient is not None and of.writer.transposed:
                    gradient = gradient.mT
                self.measurement.shared_gradient(of.place, gradient)
            for reader, block in self._readers():
                for letter in "qkv":
                    name, weight = f"grad_rms_{letter}", getattr(reader, letter)
                    parameter = self.plan.parameters[weight.parameter]
                    if self.plan.wants(name):
                        self._rows(name, block, weight, _is_transposed(reader, weight, parameter), parameter)

    def watch(self, number: int, sets: TokenSets | None, y: Tensor, output: Tensor) -> Tensor | None:
        """Have the backward pass report the cotangent of a writer's output; returns what takes its place."""
        if self._compiled is None and not (torch.is_grad_enabled() and output.requires_grad):
            return None
        if not self.plan.wants(*GRADIENT_MODES, *COHERENCE_OBSERVABLES):
            return None
        of = self.plan.writers[number]
        if sets is None or sets.in_order(y.detach(), tokens_first=of.tokens_first) is None:
            self.lose(number, "its tokens are not those of the trunk")
            return None
        report = self._guard(partial(self._seen, number, sets))
        if self._compiled is not None:
            self._compiled.expect(output, lambda cotangent, beside: report(beside[0], cotangent))
            return None
        return watched(output, y, report)

    def lose(self, number: int, reason: str) -> None:
        """Give up the gradient of a writer."""
        self._lost[number] = reason

    def _seen(self, number: int, sets: TokenSets, y: Tensor, delta: Tensor) -> None:
        self._read_at_end()
        of = self.plan.writers[number]
        in_order = [sets.in_order(x.detach(), tokens_first=of.tokens_first) for x in (y, delta)]
        assert in_order[0] is not None and in_order[1] is not None
        (read, kept), (written, _) = sets.apart(in_order[0]), sets.apart(in_order[1])
        # a weight whose only products these are has their sum as its gradient, if no token is left out;
        # at the first step that is checked
        # compiled code writes elsewhere to the place of a tensor, which cannot be kept until then
        follows = not self.first and self._compiled is None
        follows = follows and kept is None and of.writer.parameter in self.plan.alone
        follows = follows and of.weight.requires_grad
        self.measurement.product(of.place, read, written, kept, gradient_follows=follows)
        if self.first and sets.groups is not None and self.plan.wants(*GRADIENT_MODES):
            self._add_padding(of.writer.parameter, sets.groups == 0, in_order[0], in_order[1])

    def _add_padding(self, name: str, left_out: Tensor, y: Tensor, delta: Tensor) -> None:
        """Keep the gradient by tokens that are left out, for the comparison with that of the weight."""
        product = single(delta[left_out]).mT @ single(y[left_out])
        self._padding[name] = self._padding[name] + product if name in self._padding else product

    def adjoint(self, block: int, suffix: str, sets: TokenSets, adjoint: Tensor) -> None:
        """Record the TCS of the loss adjoint of a state."""
        self.measurement.adjoint(block, sets, adjoint, suffix)

    def finish(self) -> dict[int, str]:
        """Complete what waits; returns the writers that are not to be trusted, with reasons."""
        self.measurement.finish()
        for handle in self._gathered.values():
            handle.remove()
        if not self.first:
            return dict(self._lost)
        forms = self._checked_forms()
        totals: dict[str, Tensor] = {}
        for of in self.plan.writers.values():
            summed = self.measurement.record.writers.get(of.place)
            if isinstance(summed, WriterSum):
                known = totals.get(of.writer.parameter)
                totals[of.writer.parameter] = summed.total() if known is None else known + summed.total()
        # a gradient that was not compared with its products is not used in their place
        self.plan.alone = {
            name: of for name, of in self.plan.alone.items() if name in self._own.keys() & totals
        }
        return {**self._checked(totals), **forms, **self._lost}

    def _checked(self, totals: dict[str, Tensor]) -> dict[int, str]:
        """Writers whose product or gradient is not what their weight says."""
        found = {
            number: f"its output differs from its weight times its input by {float(error):.2g}"
            for number, error in self._errors.items()
            if not float(error) <= PRODUCT_ERROR and bool(torch.isfinite(error))
        }
        calls = defaultdict(set)
        allowed = self._allowed()
        for writer in self.plan.anatomy.writers:
            calls[writer.parameter].add(writer.call)
        for name, total in totals.items():
            numbers = [n for n, of in self.plan.writers.items() if of.writer.parameter == name]
            if name not in self._own or len(numbers) < len(calls[name]):
                continue
            own = self._own[name].mT if self.plan.writers[numbers[0]].writer.transposed else self._own[name]
            total = total + self._padding.get(name, 0.0)
            error = torch.linalg.vector_norm(total - own) / torch.linalg.vector_norm(own)
            if bool(torch.isfinite(error)) and float(error) > allowed:
                found |= dict.fromkeys(numbers, DIFFERS.format(float(error)))
        return found

    def _allowed(self) -> float:
        coarse = torch.cuda.is_available() and torch.get_float32_matmul_precision() != "highest"
        return HALF_ERROR if self._coarse or coarse else GRADIENT_ERROR

    def _checked_forms(self) -> dict[int, str]:
        """The same of gradients, where only random forms of the sum of products are kept."""
        found: dict[int, str] = {}
        for of in self.plan.writers.values():
            name = of.writer.parameter
            summed, own = self.measurement.record.writers.get(of.place), self._own.get(name)
            if own is None or not isinstance(summed, SharedWriterSum) or name not in self.plan.alone:
                continue
            own = own.mT if of.writer.transposed else own
            size = torch.linalg.vector_norm(own)
            error = summed.error_of(own - self._padding.get(name, 0.0)) / max(float(size), 1e-300)
            if self._allowed() < error < math.inf:
                found[self.plan.alone[name]] = DIFFERS.format(error)
        return found


def _is_transposed(reader: Reader, weight: Weight, parameter: nn.Parameter) -> bool:
    """Whether output features are the columns of a weight, as in `Conv1D`."""
    ends = [
        stop
        for of in (reader.q, reader.k, reader.v)
        if of.parameter == weight.parameter
        for _, stop in of.rows
    ]
    return parameter.ndim == 2 and max(ends, default=0) > parameter.shape[0]
