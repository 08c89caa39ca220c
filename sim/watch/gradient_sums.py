"""The backward half of a measured step: cotangents of writers, adjoints, gradients of queries and keys."""

# S token sets, T tokens, D width, M features written, N features read

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meanmode.sim.anatomy.anatomy import Reader, Weight
from meanmode.sim.observe.layer_hooks import watched
from meanmode.sim.observe.step_record import WriterSum
from meanmode.sim.observe.token_parts import directions, token_parts, unit_parts
from meanmode.sim.observe.writer_gradients import coherence
from meanmode.sim.trunk.precision import single
from meanmode.sim.watch.guard import Guard
from meanmode.sim.watch.step_sums import StepSums
from meanmode.sim.watch.token_sets import TokenSets, cosine
from meanmode.sim.watch.watch_plan import WatchPlan

PRODUCT_ERROR = 1e-2
"""Largest relative error of W y (+ b) against the output of a writer."""


GRADIENT_ERROR, HALF_ERROR = 1e-4, 1e-2
"""Largest relative error of sum delta y^T against the gradient of the weight; the second where products are
computed with fewer digits than single precision has."""


MODES = ("g_mean", "g_ctr", "g_inner")


class GradientSums:
    """What the backward passes of a step say.

    Args:
        plan: what is measured.
        sums: receives the values.
        guard: wraps every hook.
        first: whether to keep what the check of the gradients needs.
    """

    def __init__(self, plan: WatchPlan, sums: StepSums, guard: Guard, *, first: bool) -> None:
        self.plan, self.sums, self.first = plan, sums, first
        self._guard = guard
        self.writers: dict[int, WriterSum] = {}
        self._errors: dict[int, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        self._coarse = False
        self._lost: dict[int, str] = {}
        self._padding: dict[str, Tensor] = {}

    def hooks(self) -> Iterator[RemovableHandle]:
        """Hook the weights whose gradients are read."""
        for reader, block in self._readers():
            for letter in "qkv":
                name, weight = f"grad_rms_{letter}", getattr(reader, letter)
                parameter = self.plan.parameters[weight.parameter]
                if self.plan.wants(name) and parameter.requires_grad:
                    rows = partial(self._rows, name, block, weight, _is_transposed(reader, weight, parameter))
                    yield parameter.register_post_accumulate_grad_hook(self._guard(rows))
        if self.first and self.plan.wants(*MODES):
            for name in {of.writer.parameter for of in self.plan.writers.values()}:
                if self.plan.parameters[name].requires_grad:
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
        rows = [gradient[start:stop] for start, stop in weight.rows] or [gradient]
        energy = sum(torch.linalg.vector_norm(part, dtype=torch.float64).square() for part in rows)
        assert isinstance(energy, Tensor)
        self.sums.size(name, (block,), (energy / sum(part.numel() for part in rows)).sqrt())

    def _weight(self, name: str, gradient: Tensor) -> None:
        self._coarse |= gradient.dtype.itemsize < 4
        gradient = single(gradient.detach())
        self._own[name] = self._own[name] + gradient if name in self._own else gradient.clone()

    def check_product(self, number: int, y: Tensor, output: Tensor) -> None:
        """Compare the output of a writer with W y (+ b)."""
        of = self.plan.writers[number]
        weight = single(of.weight.detach())
        product = single(y) @ (weight if of.writer.transposed else weight.mT)
        product = product if of.bias is None else product + of.bias
        self._coarse |= output.dtype.itemsize < 4
        size = torch.linalg.vector_norm(single(output)).clamp_min(torch.finfo(torch.float32).tiny)
        self._errors[number] = torch.linalg.vector_norm(product - output) / size

    def watch(self, number: int, sets: TokenSets | None, y: Tensor, output: Tensor) -> Tensor | None:
        """Have the backward pass report the cotangent of a writer's output; returns what takes its place."""
        if not (torch.is_grad_enabled() and output.requires_grad):
            return None
        if not self.plan.wants(*MODES, "amplification", "kappa"):
            return None
        of = self.plan.writers[number]
        if sets is None or sets.in_order(y.detach(), tokens_first=of.tokens_first) is None:
            self.lose(number, "its tokens are not those of the trunk")
            return None
        return watched(output, y, self._guard(partial(self._seen, number, sets)))

    def lose(self, number: int, reason: str) -> None:
        """Give up the gradient of a writer."""
        self._lost[number] = reason

    def _seen(self, number: int, sets: TokenSets, y: Tensor, delta: Tensor) -> None:
        of = self.plan.writers[number]
        in_order = [sets.in_order(x.detach(), tokens_first=of.tokens_first) for x in (y, delta)]
        assert in_order[0] is not None and in_order[1] is not None
        (read, kept), (written, _) = sets.apart(in_order[0]), sets.apart(in_order[1])
        if self.plan.wants(*MODES):
            self.writers.setdefault(number, WriterSum()).add(read, written, kept)
            if self.first and sets.groups is not None:
                self._add_padding(of.writer.parameter, sets.groups == 0, in_order[0], in_order[1])
        if self.plan.wants("amplification", "kappa"):
            found = coherence(read, written, absolute=False)
            directed = None
            if bool(
                found.kappa.isnan().any()
            ):  # samples with too few tokens that have a direction do not count
                directed = ((read.abs().amax(-1) != 0) & (written.abs().amax(-1) != 0)).sum(-1)
            for name, least in (("amplification", 1), ("kappa", 2)):
                if self.plan.wants(name):
                    counted = None if directed is None else directed >= least
                    self.sums.mean(name, of.place, getattr(found, name), counted)

    def _add_padding(self, name: str, left_out: Tensor, y: Tensor, delta: Tensor) -> None:
        """Keep the gradient by tokens that are left out, for the comparison with that of the weight."""
        product = single(delta[left_out]).mT @ single(y[left_out])
        self._padding[name] = self._padding[name] + product if name in self._padding else product

    def adjoint(self, block: int, suffix: str, sets: TokenSets, adjoint: Tensor) -> None:
        """Record the TCS of the loss adjoint of a state."""
        with torch.no_grad(), torch.autocast(adjoint.device.type, enabled=False):
            x, kept = sets.apart(sets.state(adjoint.detach()))
            unit, directed = directions(x)
            if kept is not None:
                directed = kept if directed is None else directed & kept
            parts = token_parts(unit) if directed is None else unit_parts(unit, directed)
            values = cosine(parts)
            counted = None if isinstance(parts.tokens, int) else parts.tokens > 1
            name = f"adjoint_tcs_{suffix}" if suffix else "adjoint_tcs"
            self.sums.mean(name, (block,), values, counted)

    def finish(self) -> dict[int, str]:
        """Turn the sums into sizes; returns the writers that are not to be trusted, with reasons."""
        lost = dict(self._lost)
        totals: dict[str, Tensor] = {}
        for number, summed in self.writers.items():
            of = self.plan.writers[number]
            for name, mode in zip(MODES, summed.modes(), strict=True):
                self.sums.size(name, of.place, mode)
            if self.first:
                total = summed.parts().sum(0)
                known = totals.get(of.writer.parameter)
                totals[of.writer.parameter] = total if known is None else known + total
        return {**self._checked(totals), **lost} if self.first else lost

    def _checked(self, totals: dict[str, Tensor]) -> dict[int, str]:
        """Writers whose product or gradient is not what their weight says."""
        found = {
            number: f"its output differs from its weight times its input by {float(error):.2g}"
            for number, error in self._errors.items()
            if not float(error) <= PRODUCT_ERROR and bool(torch.isfinite(error))
        }
        calls = defaultdict(set)
        for writer in self.plan.anatomy.writers:
            calls[writer.parameter].add(writer.call)
        coarse = self._coarse or (
            torch.cuda.is_available() and torch.get_float32_matmul_precision() != "highest"
        )
        for name, total in totals.items():
            numbers = [n for n, of in self.plan.writers.items() if of.writer.parameter == name]
            if name not in self._own or len(numbers) < len(calls[name]):
                continue
            own = self._own[name].mT if self.plan.writers[numbers[0]].writer.transposed else self._own[name]
            total = total + self._padding.get(name, 0.0)
            error = torch.linalg.vector_norm(total - own) / torch.linalg.vector_norm(own)
            if bool(torch.isfinite(error)) and float(error) > (HALF_ERROR if coarse else GRADIENT_ERROR):
                reason = f"its gradient differs from the sum of its products by {float(error):.2g}"
                found |= dict.fromkeys(numbers, reason)
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
