"""The grammar of interventions: what is changed, which part of it, in which blocks; no torch."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    """One change to a network under study. `str` and `parse` convert to and from text:

        delete:mean:writer-gradient@blocks=8-16          replace:centered:trunk@seed=3
        scale=0.5:mean:branch@blocks=1,3,8-16            freeze:queries-keys@blocks=1-4
        control:delete:mean:writer-gradient@blocks=8-16@seed=3

    The mean and the centered part of a field are JX and PX over all tokens of a sample, with the global J of
    the diagnostics (MV-Split's own gains act on the J of each segment); those of a gradient are DW_mu and
    DW_c (G1).

    `replace` and `control` use R, the part with its features permuted and their signs flipped at random, the
    same way in every pass. R keeps the norm, rank and spectrum of the part and the inner products between
    tokens, samples and steps; only its direction is random. A part M becomes

        M without a change, M - R under the control of `delete`, 0 under `delete`, R under `replace`

    so M and a random part of equal norm are present or absent independently of each other (the sign of R is
    arbitrary). A control always has the norm of the change it controls for; in a field, sample by sample.

    Attributes:
        action: `delete`, `scale` by `factor` or `replace` a part; `freeze` a group of parameters.
        target: the field or gradient whose part changes: `writer-gradient` (operator.proj and ffn.w2),
            `reader-gradient` (the mixer's readers and ffn.w13), `branch` (the branch that either merge adds)
            or `trunk` (the output of either merge). With `freeze`, the group of parameters: `readers`,
            `writers`, `queries-keys` (whatever the mixing matrix is computed from), `values`, `attention`,
            `ffn`, `gates` (all parameters of the merges) or `alpha` alone.
        part: `mean` or `centered`; None with `freeze`.
        factor: factor of `scale`; None for every other action.
        control: keep the part, and instead make a change of the same norm in a random direction.
        seed: seed of the random direction; 0 if nothing is drawn.
        blocks: numbers of the blocks, from 1 and ascending; None for all.

    Raises:
        ValueError: an unknown word, or a meaningless combination.
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
                raise ValueError(f"freeze takes no part and no control, got {self}")
        else:
            _one_of("part", self.part, PARTS)
            _one_of("target", self.target, (*GRADIENTS, *FIELDS))
        if (self.factor is None) is (self.action == "scale"):
            raise ValueError(f"scale needs a factor, and no other action takes one, got {self}")
        if self.factor is not None and not math.isfinite(self.factor):
            raise ValueError(f"the factor of scale must be finite, got {self.factor}")
        if self.seed < 0 or (self.seed and not self.control and self.action != "replace"):
            raise ValueError(f"only replace and controls take a seed, which must not be negative, got {self}")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(self.blocks))  # a list if it comes from JSON
            ascending = all(first < second for first, second in itertools.pairwise(self.blocks))
            if not self.blocks or self.blocks[0] < 1 or not ascending:
                raise ValueError(f"blocks must be numbered from 1 and ascending, got {self.blocks}")

    @classmethod
    def parse(cls, text: str) -> "Intervention":
        """Parse the textual form of an intervention.

        Raises:
            ValueError: the text has another form or names no valid intervention.
        """
        head, *options = text.split("@")
        words = head.split(":")
        control = words[0] == "control"
        action, equals, factor = words[control].partition("=") if len(words) > control else ("", "", "")
        _one_of("action", action, ACTIONS)
        names = ("target",) if action == "freeze" else ("part", "target")
        if len(words) != control + 1 + len(names):
            form = "freeze:GROUP" if action == "freeze" else "[control:]ACTION[=FACTOR]:PART:TARGET"
            raise ValueError(f"an intervention has the form {form}[@blocks=1,4-8][@seed=N], got {text!r}")
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
        """Whether the intervention applies to the block of this number."""
        return self.blocks is None or block in self.blocks


LAST_BLOCK = 1_000_000
"""Largest number of a block that an intervention may name."""


def _number(kind: type[int] | type[float], word: str, text: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{word!r} in {text!r} is not a {'whole ' * (kind is int)}number") from None


def _parsed_blocks(words: str, text: str) -> tuple[int, ...]:
    """Parse 1,4-6 as (1, 4, 5, 6)."""
    blocks: list[int] = []
    for word in words.split(","):
        first, dash, last = word.partition("-")
        start = _number(int, first, text)
        end = _number(int, last, text) if dash else start
        if end < start:
            raise ValueError(f"blocks must be in ascending order, got {word!r} in {text!r}")
        if end > LAST_BLOCK:
            raise ValueError(f"no network has a block {end}: choose blocks up to {LAST_BLOCK:,} in {text!r}")
        blocks.extend(range(start, end + 1))
    return tuple(blocks)


def _written_blocks(blocks: Sequence[int]) -> str:
    """Write (1, 4, 5, 6) as 1,4-6."""
    starts = [block for block in blocks if block - 1 not in blocks]
    ends = [block for block in blocks if block + 1 not in blocks]
    return ",".join(
        str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)
    )
