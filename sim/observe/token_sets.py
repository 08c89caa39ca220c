"""Which tokens of a stream belong together: samples, packed sequences, segments; padding is left out."""

# B batch, T tokens, D width, S sets of tokens (samples or packed sequences), N tokens of the longest

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from meanmode.sim.observe.token_parts import TokenParts, directions, spread_out_parts, token_parts, unit_parts

Parts = dict[str, TokenParts]
"""Name of a segment (empty: all tokens) -> its parts."""


class Measured(NamedTuple):
    """Parts of all tokens and of every segment.

    Attributes:
        plain: parts of the tokens; empty if they were not asked for.
        unit: parts of the unit tokens; empty if they were not asked for.
    """

    plain: Parts
    unit: Parts


@dataclass(frozen=True)
class TokenSets:
    """The token sets of one stream in one forward pass.

    Attributes:
        layout: a letter for each dimension of a state: B batch, T tokens, D width.
        shape: shape of a state.
        groups: number of each token's sequence, 0 for padding [B, T]; None if each sample is one sequence.
        segments: name -> number of tokens, in order; empty if there is one segment.
    """

    layout: str
    shape: tuple[int, ...]
    groups: Int[Tensor, "B T"] | None = None
    segments: tuple[tuple[str, int], ...] = ()

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.shape[self.layout.index("B")] if "B" in self.layout else 1

    @property
    def tokens(self) -> int:
        """Number of tokens per sample, padding included."""
        found = 1
        for letter, size in zip(self.layout, self.shape, strict=True):
            found *= size if letter == "T" else 1
        return found

    def masked(self, groups: Tensor | None) -> "TokenSets":
        """The same with groups, if these have the shape of the tokens and leave something out or apart."""
        if groups is None or tuple(groups.shape) != (self.batch, self.tokens):
            return self
        return self if bool((groups == 1).all()) else replace(self, groups=groups)

    def divided(self, segments: Mapping[str, int]) -> "TokenSets":
        """The same with segments, if their lengths add up to the number of tokens."""
        return (
            replace(self, segments=tuple(segments.items())) if sum(segments.values()) == self.tokens else self
        )

    def in_order(self, x: Tensor, *, tokens_first: bool = False) -> Float[Tensor, "B T F"] | None:
        """Features as [B, T, F]; None if they cannot be those of the same tokens.

        Features may come in the layout of the states, flattened in the order of these or, if `tokens_first`,
        with the tokens before the samples; or regrouped within samples, such as in windows, where the order
        within a sample does not matter.
        """
        leading = x.shape[:-1]
        if leading.numel() != self.batch * self.tokens:
            return None
        if x.ndim == 2 and tokens_first:
            return x.reshape(self.tokens, self.batch, -1).transpose(0, 1)
        order = [at for at, letter in enumerate(self.layout) if letter != "D"]
        place = sorted(order, key=lambda at: self.layout[at] != "B")
        if leading == tuple(self.shape[at] for at in order):
            x = x.permute(*[order.index(at) for at in place], x.ndim - 1)
        elif x.ndim == 2 and order != place:
            sizes = [self.shape[at] for at in order]
            x = x.reshape(*sizes, -1).permute(*[order.index(at) for at in place], len(order))
        elif self.groups is not None and x.ndim != 2:
            return None
        elif order != place or (x.ndim > 2 and leading[0] % self.batch):
            return None
        return x.reshape(self.batch, self.tokens, x.shape[-1])

    def state(self, x: Tensor) -> Float[Tensor, "*R B T D"]:
        """A state as [B, T, D], whichever layout it has; one of this layout may have an axis of runs too."""
        if self.layout == "BTD":
            return x
        found = self.in_order(x.movedim(self.layout.index("D"), -1))
        assert found is not None
        return found

    def apart(
        self, x: Float[Tensor, "*B T F"]
    ) -> tuple[Float[Tensor, "*S N F"], Bool[Tensor, "*S N 1"] | None]:
        """Tokens of every sequence, zero where it has none, and a mask of those it has (None: all)."""
        if self.groups is None:
            return x, None
        kept = self.groups > 0
        if bool((self.groups <= 1).all()):
            return x.masked_fill(~kept[..., None], 0.0), kept[..., None]
        index, there = _packed(self.groups)
        return x.flatten(0, 1)[index].masked_fill(~there[..., None], 0.0), there[..., None]

    @property
    def spans(self) -> dict[str, slice]:
        """Places of all tokens (empty name) and of each segment of two tokens or more."""
        found, start = {"": slice(0, self.tokens)}, 0
        for name, count in self.segments:
            if count > 1:
                found[name] = slice(start, start + count)
            start += count
        return found

    def measured(self, x: Float[Tensor, "*B T D"], *, plain: bool = True, unit: bool = True) -> Measured:
        """Parts of all tokens and of every segment that has two tokens or more.

        Args:
            x: tokens; only with groups may they not have more than one leading axis.
            plain: whether the parts of the tokens are needed.
            unit: whether the parts of the unit tokens are needed.
        """
        if not plain and not unit:
            return Measured({}, {})
        if self.groups is not None:
            return self._masked(x, unit=unit)
        fast = spread_out_parts(x, self._lengths, plain=plain, unit=unit)
        if fast:
            return Measured(*(self._named(parts) for parts in fast))
        found = Measured({}, {})
        units, directed = directions(x) if unit else (x, None)
        for name, place in self.spans.items():
            if plain:
                found.plain[name] = token_parts(x[..., place, :])
            if unit:
                mask = None if directed is None else directed[..., place, :]
                found.unit[name] = unit_parts(units[..., place, :], mask)
        return found

    @property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(count for _, count in self.segments if count) or (self.tokens,)

    def _named(self, parts: list[TokenParts]) -> Parts:
        if not parts:
            return {}
        names = [name for name, count in self.segments if count]
        named = {"": joined(parts), **dict(zip(names, parts, strict=False))}
        return {name: named[name] for name in self.spans}

    def _masked(self, x: Float[Tensor, "B T D"], *, unit: bool) -> Measured:
        assert self.groups is not None
        found = Measured({}, {})
        place = torch.arange(self.tokens, device=x.device)
        for name, span in self.spans.items():
            inside = (place >= span.start) & (place < span.stop)
            part, kept = replace(self, groups=self.groups * inside).apart(x)
            assert kept is not None
            found.plain[name] = unit_parts(part, kept)
            if unit:
                units, directed = directions(part)
                found.unit[name] = unit_parts(units, kept if directed is None else directed & kept)
        return found

    def unit_measured(self, x: Float[Tensor, "*B T D"]) -> TokenParts:
        """Parts of all unit tokens, without the fast path: exact whether they are spread out or not."""
        x, kept = self.apart(x)
        units, directed = directions(x)
        if kept is not None:
            directed = kept if directed is None else directed & kept
        return unit_parts(units, directed)


def joined(parts: list[TokenParts]) -> TokenParts:
    """The parts of a union of token sets."""
    whole, *others = parts
    for other in others:
        whole = whole.joined(other)
    return whole


def together(measured: dict[str, Measured], several: tuple[str, ...]) -> Measured:
    """The states of several streams as one, and each under its name."""
    if not set(measured) <= set(several):
        return next(iter(measured.values()))
    kinds = (
        {stream: found[kind][""] for stream, found in measured.items() if found[kind]} for kind in (0, 1)
    )
    return Measured(*({"": joined(list(of.values())), **of} if of else {} for of in kinds))


def _packed(groups: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "S N"], Bool[Tensor, "S N"]]:
    """Indices of the tokens of every sequence, in rows of equal length, and which of them are there."""
    apart = groups.flatten() + (groups.max() + 1) * torch.arange(
        len(groups), device=groups.device
    ).repeat_interleave(groups.shape[1])
    places = (groups.flatten() > 0).nonzero()[:, 0]
    _, sequence, counts = torch.unique(apart[places], return_inverse=True, return_counts=True)
    order = torch.argsort(sequence, stable=True)
    row = sequence[order]
    column = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[row]
    index = torch.zeros(len(counts), int(counts.max()), dtype=torch.long, device=groups.device)
    index[row, column] = places[order]
    return index, torch.arange(index.shape[1], device=groups.device) < counts[:, None]


def groups_of(arguments: Mapping[str, object], stream: str) -> Int[Tensor, "B T"] | None:
    """Numbers of the sequences of tokens from the arguments of a model's forward pass; None if it has none.

    From a two-dimensional attention mask (0 padding, 1 token; larger numbers tell packed sequences apart), a
    padding mask (true at padding), or position indices that start again within a row (packed sequences).

    Args:
        arguments: name -> argument.
        stream: name of the stream.
    """
    decoder = "decoder" in stream.split(".")
    for name in ("decoder_attention_mask",) if decoder else ("attention_mask", "encoder_attention_mask"):
        mask = arguments.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask.long()
    for name in ("src_key_padding_mask", "key_padding_mask"):
        mask = arguments.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.dtype == torch.bool:
            return (~mask).long()
    positions = arguments.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim == 2 and bool(((positions == 0).sum(-1) > 1).any()):
        return (positions == 0).cumsum(-1).clamp_min(1)
    return None
