"""One measured step: hooks on a model's own passes, over all micro-batches, and what they yield."""

# B batch, T tokens, D width, M features written, N features read

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from meanmode.sim.anatomy.anatomy import Block
from meanmode.sim.observe.layer_hooks import recomputing, watched
from meanmode.sim.observe.measurement import Measurement
from meanmode.sim.observe.record import Record
from meanmode.sim.observe.token_parts import measuring
from meanmode.sim.observe.token_sets import Measured, together
from meanmode.sim.watch.backward_hooks import BackwardHooks
from meanmode.sim.watch.compiled_hooks import CompiledHooks
from meanmode.sim.watch.guard import Guard
from meanmode.sim.watch.hook_points import ARGUMENTS, OUTPUT, PRODUCT, HookPoint, at
from meanmode.sim.watch.intercepted import intercepted
from meanmode.sim.watch.measured_attention import MeasuredAttention
from meanmode.sim.watch.stream_sets import StreamSets
from meanmode.sim.watch.watch_plan import WatchedWriter, WatchPlan


class MeasuredStep:
    """Hooks one step; use `hooked` around its passes and then `arrays`.

    Args:
        plan: what to hook.
        guard: wraps every hook.
        first: whether to check every writer against its weight and its gradient.
        group: processes that share the batch; None for a single process.
        compiled: hooks that are compiled with the model; None hooks the uncompiled model.
    """

    def __init__(
        self,
        plan: WatchPlan,
        guard: Guard,
        *,
        first: bool,
        group: dist.ProcessGroup | None = None,
        compiled: CompiledHooks | None = None,
    ) -> None:
        self.plan, self.first, self._compiled = plan, first, compiled
        self.record = Record(
            plan.dims,
            plan.depth,
            writers=len(plan.labels),
            suffixes=[f"_{suffix}" for suffix in plan.suffixes],
            latest=False,
            group=group,
            device=next(plan.model.parameters()).device,
        )
        self.measurement = Measurement(self.record)
        self._attentions = MeasuredAttention(self.record, plan)
        self.gradients = BackwardHooks(plan, self.measurement, guard, first=first, compiled=compiled)
        self.passes = 0
        self._guard = guard
        self._calls: Counter[Any] = Counter()
        self._sets = StreamSets(plan)
        self._adjoints: set[tuple[int, str]] = set()
        self._block = 0
        self._live = False
        self._replaced: set[int] = set()
        self._late: set[int] = set()

    @property
    def incomplete(self) -> bool:
        """Whether a compiled step left some hooks out, so that its values are not to be used."""
        return self._compiled is not None and self._compiled.incomplete

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Hook the model inside the context."""
        plan = self.plan
        functional = {id(of.weight): number for number, of in plan.writers.items() if not of.writer.hooked}
        attends = plan.wants("max_logit", "attention_entropy") and bool(plan.readers)
        functions = {
            "product": partial(self._functional, functional) if functional else None,
            "attention": self._guard(self._attention) if attends else None,
            "softmax": self._guard(self._softmax) if attends else None,
        }
        with contextlib.ExitStack() as stack:
            for handle in self.gradients.hooks():
                stack.callback(handle.remove)
            if self.gradients.shared:
                follow = plan.model.register_forward_hook(self._guard(self.gradients.follow))
                stack.callback(follow.remove)
            if self._compiled is not None:
                stack.enter_context(self._compiled.installed(list(self._points()), **functions))
            else:
                begin = self._guard(self.begin)
                first = plan.model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True)
                stack.callback(first.remove)
                for point in self._points():
                    stack.callback(point.hook().remove)
                stack.enter_context(intercepted(**functions))
            yield

    def _points(self) -> Iterator[HookPoint]:
        plan, guard = self.plan, self._guard
        homes: dict[str, list[Block]] = defaultdict(list)
        for block in plan.anatomy.blocks:
            if block.module:
                homes[block.module].append(block)
        for name, blocks in homes.items():
            module = plan.modules[name]
            yield HookPoint(
                name=f"enter {name}",
                module=module,
                takes=ARGUMENTS,
                work=guard(partial(self._enter, blocks)),
                chosen=plan.given.get(name),
            )
            yield HookPoint(
                name=f"leave {name}",
                module=module,
                takes=OUTPUT,
                work=guard(partial(self._leave, blocks)),
                paths=tuple(dict.fromkeys(place.path for block in blocks for place in block.outputs)),
            )
        by_module: dict[nn.Module, list[int]] = defaultdict(list)
        for number, of in plan.writers.items():
            if of.writer.hooked:
                by_module[of.module].append(number)
        for module, numbers in by_module.items():
            yield HookPoint(
                name=f"write {numbers[0]}",
                module=module,
                takes=PRODUCT,
                work=guard.always(partial(self._hooked_product, numbers)),
            )
        if plan.wants("r_tr"):
            yield from self._trunk_points()

    def _trunk_points(self) -> Iterator[HookPoint]:
        plan, guard = self.plan, self._guard
        before, after, branches = {}, {}, defaultdict(list)
        for number, of in plan.writers.items():
            writer = of.writer
            if plan.usable(writer.norms.before, writer):
                before[writer.norms.before] = writer.stream
            if of.branch:
                branches[of.branch].append(number)
        for writer in plan.anatomy.writers:
            if plan.usable(writer.norms.after, writer):
                after[writer.norms.after] = writer.stream
        for name, stream in before.items():
            work = guard(partial(self._norm_input, name, stream))
            chosen = plan.given.get(name)
            yield HookPoint(
                name=f"norm {name}", module=plan.modules[name], takes=ARGUMENTS, work=work, chosen=chosen
            )
        for name, stream in after.items():
            work = guard(partial(self._norm_output, stream))
            yield HookPoint(name=f"normed {name}", module=plan.modules[name], takes=OUTPUT, work=work)
        for name, numbers in branches.items():
            work = guard(partial(self._branch_output, numbers))
            yield HookPoint(name=f"branch {name}", module=plan.modules[name], takes=OUTPUT, work=work)

    # the passes

    def begin(self, model: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Start a forward pass of the model; a pre-hook of it."""
        if recomputing():
            return
        self._live = torch.is_grad_enabled()
        self.passes += self._live
        self._calls.clear()
        self.measurement.forget()
        self._sets.begin(model, args, options)

    @property
    def _measuring(self) -> bool:
        return self._live and not recomputing()

    def _call(self, module: object) -> int:
        self._calls[module] += 1
        return self._calls[module] - 1

    def _enter(self, blocks: list[Block], module: nn.Module, args: Any, options: dict[str, Any]) -> None:
        if not self._measuring:
            return
        call = self._call(("in", module))
        block = next((of for of in blocks if of.call == call), None)
        if block is None:
            return
        self._block = block.index
        streams = self.plan.streams[block.index]
        x = self._given(block.module, streams[0], args, options)
        if x is not None and len(streams) == 1:
            with measuring(x.device):
                found = self._trunk(streams[0], x, unit=block.index == 1)
                if block.index == 1:
                    self.measurement.state((0,), found)
            if block.index == 1:
                self._watch_adjoint(0, streams[0], "", x)

    def _given(self, name: str, stream: str, args: Any, options: dict[str, Any]) -> Tensor | None:
        """The argument of a module that is the known state of the stream, or else the first that can be one.

        Where it was is kept for compiled hooks, which see no other argument.
        """
        found = self.plan.anatomy.stream(stream)
        given: list[tuple[int | str, Any]] = [*enumerate(args), *options.items()]
        able = {
            key: x
            for key, x in given
            if isinstance(x, Tensor) and x.is_floating_point() and x.ndim == len(found.layout)
            if not found.width or x.shape[found.layout.index("D")] == found.width
        }
        key = next((key for key, x in able.items() if self.measurement.lies_at(stream, x)), None)
        key = next(iter(able), None) if key is None else key
        if key is None:
            return None
        if self._compiled is None:
            self.plan.given[name] = key
        return able[key]

    def _leave(self, blocks: list[Block], module: nn.Module, _: Any, output: Any) -> None:
        again = recomputing()
        block = blocks[0]
        if not again:
            call = self._call(("out", module))
            found = next((of for of in blocks if of.call == call), None)
            if found is None or not self._live:
                return
            block = found
        elif len(blocks) > 1:
            return
        streams: dict[str, list[Tensor]] = defaultdict(list)
        for place in block.outputs:
            streams[place.stream].append(at(output, place.path))
        measured = {}
        for stream, pieces in streams.items():
            layout = self.plan.anatomy.stream(stream).layout
            if any(piece.ndim != len(layout) for piece in pieces):
                continue  # a head that keeps one token, which has no pairs
            x = pieces[0] if len(pieces) == 1 else torch.cat(pieces, layout.index("T"))
            if not again:
                with measuring(x.device):
                    measured[stream] = self._trunk(stream, x)
            suffix = stream if stream in self.plan.several else ""
            if block.index in self.plan.blocks:
                self._watch_adjoint(block.index, stream, suffix, x)
        if measured and block.index in self.plan.blocks:
            device = next(iter(streams.values()))[0].device
            with measuring(device):
                self.measurement.state((block.index,), together(measured, self.plan.several))

    # the trunk

    def _trunk(self, stream: str, x: Tensor, *, unit: bool = True) -> Measured:
        """The parts of the current state of a stream, those of its unit tokens on demand."""
        plain, wanted = self.measurement.wants_state()
        sets = self._sets.of(stream, x)
        if self._compiled is not None:
            self.measurement.forget(stream)  # compiled code writes to the same place again and again
        return self.measurement.trunk(x, sets, stream=stream, plain=plain, unit=unit and wanted)

    def _watch_adjoint(self, block: int, stream: str, suffix: str, x: Tensor) -> None:
        """Hook the adjoint once per pass: checkpointing builds the graph twice, or late if reentrant."""
        key = (block, stream)
        sets = self._sets.known(stream)
        if sets is None or not self.plan.wants("adjoint_tcs"):
            return
        report = self._guard(partial(self.gradients.adjoint, block, suffix, sets))
        if self._compiled is not None:
            self._compiled.expect(x, lambda cotangent, _: report(cotangent))
            return
        if not recomputing():
            self._adjoints.discard(key)
        if not (x.requires_grad and torch.is_grad_enabled()) or key in self._adjoints:
            return
        self._adjoints.add(key)
        x.register_hook(report)

    def _norm_input(self, name: str, stream: str, _: nn.Module, args: Any, options: dict[str, Any]) -> None:
        if self._measuring and (x := self._given(name, stream, args, options)) is not None:
            with measuring(x.device):
                self._trunk(stream, x, unit=False)

    def _norm_output(self, stream: str, _: nn.Module, __: Any, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        if self._measuring and isinstance(x, Tensor):
            with measuring(x.device):
                self._trunk(stream, x, unit=False)

    # the writers

    def _hooked_product(
        self, numbers: list[int], module: nn.Module, args: Any, options: dict[str, Any], output: Any
    ) -> Tensor | None:
        y = args[0] if args else next(iter(options.values()))
        return self._product(numbers, module, y, output)

    def _functional(
        self, numbers: dict[int, int], y: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor
    ) -> Tensor:
        writers = self.plan.writers
        gathered = self.gradients.shared and any(writers[n].current is weight for n in numbers.values())
        if self._compiled is not None:  # compiled code hands in the weight itself or another view of it
            own = [of for of, other in writers.items() if other.weight.data_ptr() == weight.data_ptr()]
            weight = writers[own[0]].weight if own else weight
        else:
            own = [of for of, other in writers.items() if other.current is weight]
        if not own or not (gathered or id(weight) in numbers):
            return output
        found = self._guard.always(self._product)(own, weight, y, output)
        return output if found is None else found

    def _product(self, numbers: list[int], key: object, y: Tensor, output: Tensor) -> Tensor | None:
        if recomputing():
            return self._again(numbers, y, output)
        if not self._live or self._guard.failed:
            self._replaced.difference_update(numbers)
            return None
        call = self._call(key)
        number = next((of for of in numbers if self.plan.writers[of].writer.call == call), None)
        if number is None:
            return None
        of = self.plan.writers[number]
        self._forward(number, of, y, output)
        if number in self.plan.broken:
            return None
        if self._compiled is not None or not torch.is_grad_enabled():
            self._late.add(number)
        replaced = self.gradients.watch(number, self._sets.of_writer(of, output), y, output)
        self._replaced.discard(number)
        if replaced is not None:
            self._replaced.add(number)
        return replaced

    def _again(self, numbers: list[int], y: Tensor, output: Tensor) -> Tensor | None:
        """A product that activation checkpointing computes again.

        If the first pass had a graph, its cotangents are reported there, and this one must only save as many
        tensors. If it had none (reentrant), they are reported here.
        """
        late = [number for number in numbers if number in self._late]
        if not late:
            same = output.requires_grad and not self._replaced.isdisjoint(numbers)
            return watched(output, y, _ignored) if same else None
        if len(numbers) > 1:
            for number in late:
                self.gradients.lose(
                    number, "reentrant checkpointing recomputes a layer that has several calls"
                )
            return None
        of = self.plan.writers[late[0]]
        return self.gradients.watch(late[0], self._sets.of_writer(of, output), y, output)

    def _forward(self, number: int, of: WatchedWriter, y: Tensor, output: Tensor) -> None:
        with measuring(output.device):
            if self.first and self.passes == 1 and not of.routed and number not in self.plan.broken:
                self.gradients.check_product(number, y.detach(), output.detach())
            if not of.branch:
                self._branch(of, output.detach())

    def _branch_output(self, numbers: list[int], module: nn.Module, _: Any, output: Any) -> None:
        if not self._measuring:
            return
        call = self._call(("branch", module))
        x = output[0] if isinstance(output, tuple) else output
        for number in numbers:
            if self.plan.writers[number].writer.call == call and isinstance(x, Tensor):
                with measuring(x.device):
                    self._branch(self.plan.writers[number], x.detach())

    def _branch(self, of: WatchedWriter, branch: Tensor) -> None:
        stream = of.writer.stream
        trunk = self.measurement.latest(stream)
        sets = self._sets.known(stream)
        if not of.trunk or trunk is None or sets is None or not self.plan.wants("r_tr"):
            return
        x = sets.in_order(branch, tokens_first=of.tokens_first)
        if x is not None:
            self.measurement.branch(of.place, trunk.plain, sets.measured(x, unit=False).plain)

    # attention

    def _attention(self, *args: Any, **options: Any) -> None:
        if self._measuring:
            self._attentions.fused(self._block, self._sets.all(), *args, **options)

    def _softmax(self, found: Tensor, weights: Tensor) -> None:
        if self._measuring and found.shape == weights.shape:
            self._attentions.softmax(self._block, self._sets.all(), found.detach())


def _ignored(y: Tensor, delta: Tensor) -> None:
    """Nothing is reported."""
