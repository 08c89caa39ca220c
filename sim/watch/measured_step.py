"""One measured step: hooks on a model's own passes, over all micro-batches, and the values they yield."""

# B batch, T tokens, D width, M features written, N features read

import contextlib
import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meanmode.sim.anatomy.anatomy import Block
from meanmode.sim.observe.layer_hooks import recomputing, watched
from meanmode.sim.observe.measurement import Measurement
from meanmode.sim.observe.record import Record
from meanmode.sim.observe.token_parts import measuring
from meanmode.sim.observe.token_sets import Measured, TokenSets, groups_of, together
from meanmode.sim.watch.backward_hooks import BackwardHooks
from meanmode.sim.watch.guard import Guard
from meanmode.sim.watch.intercepted import intercepted, logits, peak_and_entropy
from meanmode.sim.watch.watch_plan import WatchedWriter, WatchPlan


class MeasuredStep:
    """Hooks one step; use `hooked` around its passes and then `arrays`.

    Args:
        plan: what to hook.
        guard: wraps every hook.
        first: whether to check every writer against its weight and its gradient.
        group: processes that share the batch; None for a single process.
    """

    def __init__(
        self, plan: WatchPlan, guard: Guard, *, first: bool, group: dist.ProcessGroup | None = None
    ) -> None:
        self.plan, self.first = plan, first
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
        self.gradients = BackwardHooks(plan, self.measurement, guard, first=first)
        self.passes = 0
        self._guard = guard
        self._calls: Counter[Any] = Counter()
        self._arguments: dict[str, object] = {}
        self._sets: dict[str, TokenSets] = {}
        self._adjoints: set[tuple[int, str]] = set()
        self._block = 0
        self._live = False
        self._replaced: set[int] = set()
        self._late: set[int] = set()

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Hook the model inside the context."""
        plan = self.plan
        functional = {id(of.weight): number for number, of in plan.writers.items() if not of.writer.hooked}
        attends = plan.wants("max_logit", "attention_entropy") and bool(plan.readers)
        with contextlib.ExitStack() as stack:
            for handle in self._hooks():
                stack.callback(handle.remove)
            stack.enter_context(
                intercepted(
                    product=partial(self._functional, functional) if functional else None,
                    attention=self._guard(self._attention) if attends else None,
                    softmax=self._guard(self._softmax) if attends else None,
                )
            )
            yield

    def _hooks(self) -> Iterator[RemovableHandle]:
        plan, guard = self.plan, self._guard
        yield plan.model.register_forward_pre_hook(guard(self.begin), with_kwargs=True, prepend=True)
        homes: dict[str, list[Block]] = defaultdict(list)
        for block in plan.anatomy.blocks:
            if block.module:
                homes[block.module].append(block)
        for name, blocks in homes.items():
            module = plan.modules[name]
            yield module.register_forward_pre_hook(guard(partial(self._enter, blocks)), with_kwargs=True)
            yield module.register_forward_hook(guard(partial(self._leave, blocks)))
        by_module: dict[nn.Module, list[int]] = defaultdict(list)
        for number, of in plan.writers.items():
            if of.writer.hooked:
                by_module[of.module].append(number)
        for module, numbers in by_module.items():
            hook = guard.always(partial(self._hooked_product, numbers))
            yield module.register_forward_hook(hook, with_kwargs=True)
        if plan.wants("r_tr"):
            yield from self._trunk_hooks()
        yield from self.gradients.hooks()
        if self.gradients.shared:
            yield plan.model.register_forward_hook(guard(self.gradients.follow))

    def _trunk_hooks(self) -> Iterator[RemovableHandle]:
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
            hook = guard(partial(self._norm_input, stream))
            yield plan.modules[name].register_forward_pre_hook(hook, with_kwargs=True)
        for name, stream in after.items():
            yield plan.modules[name].register_forward_hook(guard(partial(self._norm_output, stream)))
        for name, numbers in branches.items():
            yield plan.modules[name].register_forward_hook(guard(partial(self._branch_output, numbers)))

    # the passes

    def begin(self, model: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Start a forward pass of the model; a pre-hook of it."""
        if recomputing():
            return
        self._live = torch.is_grad_enabled()
        self.passes += self._live
        self._calls.clear()
        self._sets.clear()
        self.measurement.forget()
        try:
            bound = inspect.signature(model.forward).bind_partial(*args, **options).arguments
        except TypeError:
            bound = {}
        self._arguments = {**bound, **bound.get("kwargs", {}), **options}

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
        if len(streams) != 1:
            return
        x = self._given(streams[0], args, options)
        if x is not None:
            with measuring(x.device):
                found = self._trunk(streams[0], x, unit=block.index == 1)
                if block.index == 1:
                    self.measurement.state(0, found)
            if block.index == 1:
                self._watch_adjoint(0, streams[0], "", x)

    def _given(self, stream: str, args: Any, options: dict[str, Any]) -> Tensor | None:
        """The argument that is the known state of the stream, or else the first that can be one."""
        found = self.plan.anatomy.stream(stream)
        first = None
        for x in (*args, *options.values()):
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != len(found.layout):
                continue
            if found.width and x.shape[found.layout.index("D")] != found.width:
                continue
            if self.measurement.lies_at(stream, x):
                return x
            first = x if first is None else first
        return first

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
            x = output
            for key in place.path:
                x = x[key]
            streams[place.stream].append(x)
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
                self.measurement.state(block.index, together(measured, self.plan.several))

    # the trunk

    def _set_of(self, stream: str, x: Tensor) -> TokenSets:
        known = self._sets.get(stream)
        if known is not None and known.shape == tuple(x.shape):
            return known
        found = self.plan.anatomy.stream(stream)
        sets = TokenSets(found.layout, tuple(x.shape))
        sets = sets.masked(groups_of(self._arguments, stream))
        parts = {part.stream: part.tokens for part in found.parts if part.stream}
        for segments in (self.plan.segments, parts):
            sets = sets.divided(segments) if segments and not sets.segments else sets
        self._sets[stream] = sets
        return sets

    def _trunk(self, stream: str, x: Tensor, *, unit: bool = True) -> Measured:
        """The parts of the current state of a stream, those of its unit tokens on demand."""
        plain, wanted = self.measurement.wants_state()
        sets = self._set_of(stream, x)
        return self.measurement.trunk(x, sets, stream=stream, plain=plain, unit=unit and wanted)

    def _watch_adjoint(self, block: int, stream: str, suffix: str, x: Tensor) -> None:
        """Hook the adjoint once per pass: checkpointing builds the graph twice, or late if reentrant."""
        key = (block, stream)
        if not recomputing():
            self._adjoints.discard(key)
        if not (x.requires_grad and torch.is_grad_enabled() and self.plan.wants("adjoint_tcs")):
            return
        if key in self._adjoints or stream not in self._sets:
            return
        self._adjoints.add(key)
        sets = self._sets[stream]
        x.register_hook(self._guard(partial(self.gradients.adjoint, block, suffix, sets)))

    def _norm_input(self, stream: str, _: nn.Module, args: Any, options: dict[str, Any]) -> None:
        if self._measuring and (x := self._given(stream, args, options)) is not None:
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
        if id(weight) not in numbers and not gathered:
            return output
        own = [of for of, other in writers.items() if other.current is weight]
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
        if not torch.is_grad_enabled():
            self._late.add(number)
        replaced = self.gradients.watch(number, self._sets_of(of, output), y, output)
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
        return self.gradients.watch(late[0], self._sets_of(of, output), y, output)

    def _sets_of(self, of: WatchedWriter, output: Tensor) -> TokenSets | None:
        """The token sets of the stream of a writer; from its output if no state was seen yet."""
        sets = self._sets.get(of.writer.stream)
        layout = self.plan.anatomy.stream(of.writer.stream).layout
        if sets is None and output.ndim == len(layout) and layout[-1] == "D":
            sets = self._set_of(of.writer.stream, output)
        return sets

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
        if not of.trunk or trunk is None or not self.plan.wants("r_tr"):
            return
        x = self._sets[stream].in_order(branch, tokens_first=of.tokens_first)
        if x is not None:
            self.measurement.branch(of.place, trunk, self._sets[stream], x)

    # attention

    def _queries(self, found: Tensor) -> Tensor | None:
        """Which queries are not padding; None if all are."""
        for sets in self._sets.values():
            if sets.groups is not None and sets.groups.shape == (found.shape[0], found.shape[-2]):
                return sets.groups > 0
        return None

    def _attention(self, *args: Any, **options: Any) -> None:
        if not self._measuring or self._block not in self.plan.readers:
            return
        query = args[0] if args else options["query"]
        with measuring(query.device):
            found, taken = logits(*args, **options)
            kept = self._queries(query)
            self._put_attention(found, None if kept is None else kept[:, taken])

    def _softmax(self, found: Tensor, weights: Tensor) -> None:
        if self._measuring and self._block in self.plan.readers and found.shape == weights.shape:
            with measuring(found.device):
                self._put_attention(found.detach(), self._queries(found))

    def _put_attention(self, found: Tensor, kept: Tensor | None) -> None:
        if found.ndim != 4 or self._block not in self.plan.blocks:
            return
        peak, entropy, there = peak_and_entropy(found.detach(), kept)
        self.record.put("max_logit", (self._block,), peak)
        self.record.put("attention_entropy", (self._block,), entropy, there)


def _ignored(y: Tensor, delta: Tensor) -> None:
    """Nothing is reported."""
