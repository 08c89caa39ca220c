"""Applies interventions to a model's blocks: changes parts of gradients and tokens, freezes parameters."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, D width, M features written, N read

import functools
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from meanmode.sim.intervene.grammar import FIELDS, GRADIENTS, PARTS, Intervention
from meanmode.sim.intervene.part_changes import GradientChange, PartChange, Parts, Turn, change_tokens
from meanmode.sim.observe.layer_hooks import eager
from meanmode.sim.observe.observable_names import BACKWARD_OBSERVABLES
from meanmode.sim.observe.record import Array, Record
from meanmode.sim.trunk.linear import Linear
from meanmode.sim.trunk.merges import Merge
from meanmode.sim.trunk.parameter_groups import members_of
from meanmode.sim.trunk.segments import Segments
from meanmode.sim.trunk.stack import blocks_of


class Interventions:
    """Intervenes in every pass whose forward and backward both lie inside its `with` block.

    Several interventions on one part are applied in order. Each leaves the following bitwise unchanged:

    * a change to a gradient: the forward pass, and the gradients of all other parameters and activations;
    * a change to branch or trunk: the forward pass up to it, and all parameters. From there on the network is
      a different one, and the whole backward pass differentiates that network;
    * freezing: the forward pass and all other gradients. Frozen parameters have no gradient, so torch
      optimisers neither move nor decay them nor update their moments; their previous gradient and
      `requires_grad` are restored on exit;
    * all of them: the blocks that are not named, and everything after exit except the optimiser's state.

    A `meanmode.sim.observe.probe.Probe` inside or around the context sees the changed forward pass, and
    gradients of the loss before any change to them; `handed_on` reports what the optimiser receives.
    Activation checkpointing, gradient accumulation and ensembles are supported. Compiled modules run
    uncompiled inside the context.

    Args:
        model: any module with `meanmode.sim.trunk.stack.Block`s, in order.
        interventions: all interventions that act at the same time.
        first: number of the model's first block, if the model is a slice of a deeper one.

    Attributes:
        interventions: the interventions, in the order in which they are applied.

    Raises:
        ValueError: the model has no blocks, a named block does not exist, or there is nothing to freeze.
    """

    def __init__(self, model: nn.Module, interventions: Iterable[Intervention], *, first: int = 1) -> None:
        self.interventions = tuple(interventions)
        self._blocks = dict(enumerate(blocks_of(model), start=first))
        for asked in self.interventions:
            chosen = [block for number, block in self._blocks.items() if asked.acts_on(number)]
            if asked.blocks is not None and not set(asked.blocks) <= set(self._blocks):
                raise ValueError(f"{asked}: the model has blocks {first} to {max(self._blocks)}")
            if asked.action == "freeze" and not any(members_of(block, asked.target) for block in chosen):
                raise ValueError(f"{asked}: these blocks have no such parameters")
        self._undo = ExitStack()
        self._sizes: dict[tuple[int, int], list[Tensor]] = {}

    def __enter__(self) -> "Interventions":
        with ExitStack() as undo:
            undo.enter_context(eager())
            for number, block in self._blocks.items():
                layers = ((block.operator.proj, block.ffn.w2), (*block.operator.readers, block.ffn.w13))
                for target, of in zip(GRADIENTS, layers, strict=True):
                    for place, layer in enumerate(of):
                        self._change_gradient(undo, layer, target, (number, place))
                for place, merge in enumerate((block.merge_attn, block.merge_ffn)):
                    self._change_fields(undo, merge, (number, place))
                for asked in self.interventions:
                    if asked.action == "freeze" and asked.acts_on(number):
                        _freeze(undo, members_of(block, asked.target))
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def handed_on(self) -> dict[str, Array]:
        """`g_mean` and `g_ctr` of the changed writer gradients, as the last backward pass handed them on.

        Each [L + 1, W], after an axis of runs in an ensemble; NaN where no gradient was changed.
        """
        dims = {name: BACKWARD_OBSERVABLES[name][0] for name in ("g_mean", "g_ctr")}
        weight = next(iter(self._blocks.values())).ffn.w2.weight
        like = next((sizes[0] for sizes in self._sizes.values()), weight[..., 0, 0])
        runs = len(like) if like.ndim else None
        record = Record(dims, max(self._blocks), runs=runs)
        for place, sizes in self._sizes.items():
            for name, size in zip(dims, sizes, strict=True):
                record.put(name, place, size)
        return record.values()

    def _changes(self, target: str, place: tuple[int, int], sides: int) -> list[PartChange]:
        found = []
        for asked in self.interventions:
            if asked.target == target and asked.acts_on(place[0]) and asked.part is not None:
                part, where = PARTS.index(asked.part), (*GRADIENTS, *FIELDS).index(target)
                replacement, direction = (
                    Turn((asked.seed, where, *place, part, use), sides) for use in range(2)
                )
                change = PartChange(
                    part=part,
                    factor=0.0 if asked.action == "delete" else asked.factor,
                    control=asked.control,
                    replacement=replacement,
                    direction=direction,
                )
                found.append(change)
        return found

    def _change_gradient(self, undo: ExitStack, layer: Linear, target: str, place: tuple[int, int]) -> None:
        changes = self._changes(target, place, 2)
        if not changes:
            return
        hooks = layer._forward_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), GradientChange) for hook in hooks):
            raise ValueError(
                f"the {target} of block {place[0]} is already changed: use one context for all changes"
            )
        report = functools.partial(self._report, place) if target == GRADIENTS[0] else None
        undo.callback(GradientChange(layer, changes, report).remove)

    def _report(self, place: tuple[int, int], parts: Parts) -> None:
        self._sizes[place] = [
            torch.linalg.vector_norm(part, dim=(-2, -1), dtype=torch.float64) for part in parts
        ]

    def _change_fields(self, undo: ExitStack, merge: Merge, place: tuple[int, int]) -> None:
        branch, trunk = (self._changes(target, place, 1) for target in FIELDS)

        def given(
            _: nn.Module, arguments: tuple[Tensor, Tensor, Segments]
        ) -> tuple[Tensor, Tensor, Segments]:
            before, output, segments = arguments
            return before, change_tokens(output, branch), segments

        def returned(_: nn.Module, __: tuple[Any, ...], x: Tensor) -> Tensor:
            return change_tokens(x, trunk)

        # run before existing hooks, so that those see the changed tensor
        if branch:
            undo.callback(merge.register_forward_pre_hook(given, prepend=True).remove)
        if trunk:
            undo.callback(merge.register_forward_hook(returned, prepend=True).remove)


def _freeze(undo: ExitStack, parameters: list[nn.Parameter]) -> None:
    def thaw(parameter: nn.Parameter, required: bool, gradient: Tensor | None) -> None:
        parameter.requires_grad_(required)
        parameter.grad = gradient

    for parameter in parameters:
        undo.callback(thaw, parameter, parameter.requires_grad, parameter.grad)
        parameter.requires_grad_(False)
        parameter.grad = None
