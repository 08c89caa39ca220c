"""Interventions on the blocks of a model: parts of gradients and tokens changed, parameters frozen."""

# B batch (behind a leading axis R of runs in an ensemble), T tokens, D width, M features written, N read

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sim.linear import Linear
from sim.merges import Merge, Replicated, Segments
from sim.parts import GradientChange, PartChange, Parts, Turn, change_tokens
from sim.record import BACKWARD_OBSERVABLES, Array, Record
from sim.stack import Block, blocks_of
from sim.watch import eager

ACTIONS = ("delete", "scale", "replace", "freeze")
PARTS = ("mean", "centered")
GRADIENTS = ("writer-gradient", "reader-gradient")
FIELDS = ("branch", "trunk")
GROUPS = ("readers", "writers", "queries-keys", "values", "attention", "ffn", "gates", "alpha")


def _one_of(kind: str, word: str | None, known: Sequence[str]) -> None:
    if word not in known:
        raise ValueError(f"unknown {kind} {word!r}: choose one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """One change to a network under study. `str` and `parse` are its textual form:

        delete:mean:writer-gradient@blocks=8-16          replace:centered:trunk@seed=3
        scale=0.5:mean:branch@blocks=1,3,8-16            freeze:queries-keys@blocks=1-4
        control:delete:mean:writer-gradient@blocks=8-16@seed=3

    Mean and centered part are of all tokens of a sample, JX and PX with the global J of the diagnostics
    (the J of a segment is what MV-Split's own gains act on); of a gradient they are DW_mu and DW_c (G1).

    `replace` and `control` put in R, the part with its features permuted and their signs flipped at random,
    the same way in every pass: norm, rank, spectrum and what tokens, samples and steps have in common stay,
    the direction is random. Of a part M there remains

        M untouched, M - R under the control of `delete`, 0 under `delete`, R under `replace`

    so that M, and a random part of its norm, are present or absent independently of each other (the sign of R
    means nothing). The control of any change is as large as the change, sample by sample of a field.

    Attributes:
        action: `delete`, `scale` by `factor` or `replace` a part; `freeze` a group of parameters.
        target: whose part: `writer-gradient` (of operator.proj and ffn.w2), `reader-gradient` (of the
            mixer's readers and ffn.w13), `branch` (what either merge is given) or `trunk` (what either merge
            returns). With `freeze` the group: `readers`, `writers`, `queries-keys` (whatever the mixing
            matrix is made of), `values`, `attention`, `ffn`, `gates` (all of the merges) or `alpha` alone.
        part: `mean` or `centered`; None with `freeze`.
        factor: of `scale`, and only there.
        control: leave the part, and make a change of the same norm in a random direction instead.
        seed: of the random direction; 0 where nothing is drawn.
        blocks: which, from 1, in ascending order; None for all.

    Raises:
        ValueError: an unknown word, or a combination that means nothing.
    """

    action: str
    target: str
    part: str | None = None
    factor: float | None = None
    control: bool = False
    seed: int = 0
    blocks: Sequence[int] | None = None

    def __post_init__(self) -> None:
        _one_of("action", self.action, ACTIONS)
        if self.action == "freeze":
            _one_of("group of parameters", self.target, GROUPS)
            if self.part is not None or self.control:
                raise ValueError(f"freeze holds whole parameters: it has no part and no control, got {self}")
        else:
            _one_of("part", self.part, PARTS)
            _one_of("target", self.target, (*GRADIENTS, *FIELDS))
        if (self.factor is None) is (self.action == "scale"):
            raise ValueError(f"a factor belongs to scale, and to nothing else, got {self}")
        if self.factor is not None and not math.isfinite(self.factor):
            raise ValueError(f"the factor of scale must be finite, got {self.factor}")
        if self.seed < 0 or (self.seed and not self.control and self.action != "replace"):
            raise ValueError(f"a seed, from 0, belongs to replace and to a control, got {self}")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(self.blocks))  # a list, where it comes from JSON
            ascending = all(first < second for first, second in itertools.pairwise(self.blocks))
            if not self.blocks or self.blocks[0] < 1 or not ascending:
                raise ValueError(f"blocks are numbered from 1, in ascending order, got {self.blocks}")

    @classmethod
    def parse(cls, text: str) -> "Intervention":
        """The intervention of a textual form.

        Raises:
            ValueError: a text of another form, or one that names no intervention.
        """
        head, *options = text.split("@")
        words = head.split(":")
        control = words[0] == "control"
        action, equals, factor = words[control].partition("=") if len(words) > control else ("", "", "")
        _one_of("action", action, ACTIONS)
        names = ("target",) if action == "freeze" else ("part", "target")
        if len(words) != control + 1 + len(names):
            form = "freeze:GROUP" if action == "freeze" else "[control:]ACTION[=FACTOR]:PART:TARGET"
            raise ValueError(f"an intervention reads {form}[@blocks=1,4-8][@seed=N], got {text!r}")
        fields: dict[str, Any] = dict(zip(names, words[control + 1 :], strict=True))
        if equals:
            fields["factor"] = _number(float, factor, text)
        for option in options:
            name, _, value = option.partition("=")
            _one_of("option", name, ("blocks", "seed"))
            fields[name] = _number(int, value, text) if name == "seed" else _parsed_blocks(value, text)
        return cls(action=action, control=control, **fields)

    def __str__(self) -> str:
        factor = "" if self.factor is None else f"={self.factor!r}"
        words = ("control" if self.control else None, f"{self.action}{factor}", self.part, self.target)
        blocks = "" if self.blocks is None else f"@blocks={_written_blocks(self.blocks)}"
        seed = f"@seed={self.seed}" if self.seed else ""
        return ":".join(word for word in words if word is not None) + blocks + seed

    def acts_on(self, block: int) -> bool:
        """Whether the block of this number is among its blocks."""
        return self.blocks is None or block in self.blocks


def _number(kind: type[int] | type[float], word: str, text: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{word!r} in {text!r} is no {'whole ' * (kind is int)}number") from None


def _parsed_blocks(words: str, text: str) -> tuple[int, ...]:
    """1,4-6 as (1, 4, 5, 6)."""
    blocks: list[int] = []
    for word in words.split(","):
        first, dash, last = word.partition("-")
        start = _number(int, first, text)
        end = _number(int, last, text) if dash else start
        if end < start:
            raise ValueError(f"blocks are given in ascending order, got {word!r} in {text!r}")
        blocks.extend(range(start, end + 1))
    return tuple(blocks)


def _written_blocks(blocks: Sequence[int]) -> str:
    """(1, 4, 5, 6) as 1,4-6."""
    starts = [block for block in blocks if block - 1 not in blocks]
    ends = [block for block in blocks if block + 1 not in blocks]
    return ",".join(
        str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)
    )


def members_of(block: Block, group: str) -> list[nn.Parameter]:
    """The parameters of a block that make one of `GROUPS`."""
    mixer, ffn, merges = block.operator, block.ffn, (block.merge_attn, block.merge_ffn)
    if group == "alpha":
        return [gain for merge in merges for name, gain in merge.named_parameters() if name == "alpha"]
    members: dict[str, tuple[nn.Module, ...]] = {
        "readers": (*mixer.readers, ffn.w13),
        "writers": (mixer.proj, ffn.w2),
        "queries-keys": mixer.sources,
        "values": (mixer.v_proj,),
        "attention": (mixer,),
        "ffn": (ffn,),
        "gates": merges,
    }
    return [parameter for module in members[group] for parameter in module.parameters()]


class Interventions:
    """Intervenes in every pass of a model whose forward and backward both lie inside its `with` block.

    Several on one part follow each other in their order. What each leaves untouched, to the bit:

    * a part of a gradient: the forward pass, the gradients of all other parameters and of every activation;
    * a part of branch or trunk: what comes before it in the forward pass, and all parameters. Behind it, and
      in the whole backward pass, the network is another one, and differentiated as such;
    * frozen parameters: the forward pass and all other gradients. They have no gradient, so that torch
      optimisers neither move nor decay them and their moments stand still; what gradient they had, and that
      they take one, comes back at the end;
    * all blocks that are not named, and everything afterwards, but for what the optimiser remembers.

    A `sim.probe.Probe` inside or around it sees the forward pass as changed and the gradients of the loss as
    they were before a change; what an optimiser got is `handed_on`. Activation checkpointing, gradient
    accumulation and ensembles are followed. What is compiled runs as it was written meanwhile.

    Args:
        model: any module that holds `sim.stack.Block`s, in order.
        interventions: all that act at the same time.
        first: number of the model's first block, where it stands for blocks of a deeper one.

    Raises:
        ValueError: no blocks in the model, an unknown block, or nothing to freeze.
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
        """`g_mean` and `g_ctr` of the writer gradients as the last backward pass handed them on.

        Each [L + 1, W], behind an axis of runs for an ensemble; NaN where none was changed.
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
            raise ValueError(f"the {target} of block {place[0]} is changed already: use one context for all")
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

        # ahead of the hooks that are there, so that they see what flows on
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


def replicate_tokens(
    x: Float[Tensor, "*B T D"], segments: Segments, copies: int
) -> tuple[Float[Tensor, "*B kT D"], Segments]:
    """Every token `copies` times in a row, and the segments that go with it (law X1).

    Positions go with the tokens: token i of the result stands where token i // copies stood. Where the
    targets of the tokens are replicated too, the mean loss, all parameter gradients and what an optimiser
    makes of them stay what they are, while the amplification of every writer is multiplied.

    Raises:
        ValueError: fewer than one copy, or segments that do not add up to the tokens.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if sum(segments) != x.shape[-2]:
        raise ValueError(f"segments {segments} hold {sum(segments)} tokens, the input has {x.shape[-2]}")
    return x.repeat_interleave(copies, dim=-2), Replicated(segments, copies)
