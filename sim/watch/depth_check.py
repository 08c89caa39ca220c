"""Is the depth of a model alive at initialisation? Fronts over depths and seeds, and what they say."""

# S seeds, L blocks

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from meanmode.sim.watch.depth_profile import DepthProfile, depth_profiles
from meanmode.theory.meanfield.front import FRONT_COSINE
from meanmode.theory.meanfield.predicted_front import predict_front

LOST = 0.1
"""Least share of the distinctness 1 - TCS lost in the deeper half of the blocks that counts as growing."""


FEWEST_BLOCKS = 4
"""Fewest blocks in which growing can be told from flat."""


Array = NDArray[np.float64]
Make = Callable[..., tuple[nn.Module, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a profile says of the depth; it never says whether the model trains.

    Attributes:
        kind: `homogeneous`, `growing`, `flat` or `unsure`.
        block: first block from which on the tokens are alike; None unless homogeneous.
        reason: why it is unsure; empty otherwise.
    """

    kind: str
    block: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.block is not None:
            return f"homogeneous from block {self.block}"
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


def lasting_front(blocks: Sequence[int], tcs: Array) -> float | None:
    """Block from which on the TCS stays at 0.9 or above, linearly interpolated; None if it ends below.

    Args:
        blocks: numbers of the blocks.
        tcs: TCS after each, without NaN.
    """
    below = np.flatnonzero(tcs < FRONT_COSINE)
    if not below.size:
        return float(blocks[0])
    last = int(below[-1])
    if last == len(tcs) - 1:
        return None
    share = (FRONT_COSINE - tcs[last]) / (tcs[last + 1] - tcs[last])
    return float(blocks[last] + share * (blocks[last + 1] - blocks[last]))


def depth_verdict(blocks: Sequence[int], tcs: Array) -> Verdict:
    """Judge the profiles of several seeds.

    Homogeneous: the TCS of every seed is 0.9 or above from some block to the last; the block named is the
    first after the mean front. Growing: it stays below, and the deeper half of the blocks takes away a tenth
    or more of 1 - TCS (mean over seeds). Flat: it takes away less, or adds. Nothing is extrapolated.

    Args:
        blocks: numbers of the blocks, 0 for the input of the first.
        tcs: TCS [S, blocks]; NaN where it was not measured.
    """
    last = np.isnan(tcs[:, -1])
    if last.any():
        return Verdict(
            kind="unsure",
            reason="the TCS after the last block is not a number: its state is not the output of one module, "
            "is not finite, or has fewer than two tokens",
        )
    measured = ~np.isnan(tcs).any(0)
    places, tcs = np.asarray(blocks)[measured], tcs[:, measured]
    count = int((places > 0).sum())
    if count < FEWEST_BLOCKS:
        return Verdict(kind="unsure", reason=f"fewer than {FEWEST_BLOCKS} blocks were measured, only {count}")
    if places[0] == 0 and tcs[:, 0].mean() >= FRONT_COSINE:
        reason = (
            f"the tokens are alike before the first block (TCS {tcs[:, 0].mean():.2f}): give another batch"
        )
        return Verdict(kind="unsure", reason=reason)
    fronts = [lasting_front(places.tolist(), row) for row in tcs]
    found = [front for front in fronts if front is not None]
    if len(found) == len(fronts):
        return Verdict(kind="homogeneous", block=math.ceil(np.mean(found)))
    if found:
        reason = f"the tokens are alike after the last block in {len(found)} of {len(fronts)} seeds"
        return Verdict(kind="unsure", reason=reason)
    if (tcs >= FRONT_COSINE).any():
        block = places[(tcs >= FRONT_COSINE).any(0)][0]
        return Verdict(
            kind="unsure", reason=f"the TCS is above 0.9 at block {block} but falls below it later"
        )
    middle = len(places) - 1 - count // 2
    before, after = 1 - tcs[:, middle].mean(), 1 - tcs[:, -1].mean()
    return Verdict(kind="growing" if before - after >= LOST * before else "flat")


def depth_check(
    make: Make, *, depths: Sequence[int] = (), seeds: int = 1, backward: bool = False
) -> dict[str, Any]:
    """Measure freshly made models of several depths and seeds, and judge each depth.

    Args:
        make: returns a model and a batch, or a model and a callable that runs one pass; called with a depth
            if `depths` are given, and after `torch.manual_seed` with 0, 1, ...
        depths: what `make` is called with; empty calls it without arguments.
        seeds: number of models of each depth.
        backward: whether to measure gradients of writers as well.

    Returns:
        A document ready for JSON: the verdict, and for each depth and trunk its verdict, measured and
        predicted fronts, and the observables [S][L].

    Raises:
        ValueError: a model cannot be measured, or the seeds of a depth differ in their blocks.
    """
    rows: list[dict[str, Any]] = []
    for depth in depths or (None,):
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            measured = []
            for seed in range(seeds):
                torch.manual_seed(seed)
                made = make() if depth is None else make(depth)
                measured.append(depth_profiles(*made, backward=backward))
        rows += _rows(depth, measured)
    return {"verdict": _overall(rows), "front_cosine": FRONT_COSINE, "seeds": seeds, "rows": rows}


def _rows(depth: int | None, measured: list[tuple[DepthProfile, ...]]) -> list[dict[str, Any]]:
    """One row per trunk of the models of one depth."""
    shapes = {tuple((of.trunk, of.blocks) for of in profiles) for profiles in measured}
    if len(shapes) > 1:
        given = "without a depth" if depth is None else f"at depth {depth}"
        raise ValueError(
            f"the models of the seeds {given} have different blocks: return the same but for weights"
        )
    return [_row(depth, of) for of in zip(*measured, strict=True)]


def _row(depth: int | None, seeds: tuple[DepthProfile, ...]) -> dict[str, Any]:
    first = seeds[0]
    tcs = np.stack([of.tcs for of in seeds])
    verdict = depth_verdict(first.blocks, tcs)
    fronts = []
    for row in tcs:
        there = ~np.isnan(row)
        found = bool(there[-1]) and lasting_front(np.array(first.blocks)[there].tolist(), row[there])
        fronts.append(found if isinstance(found, float) else None)
    count = sum(block > 0 for block in first.blocks)
    return {
        "depth": count if depth is None else depth,
        "trunk": first.trunk,
        "verdict": verdict.kind,
        "said": str(verdict),
        "block": verdict.block,
        "front": _spread(fronts),
        "predicted_front": _predicted(first),
        "blocks": list(first.blocks),
        "tcs": _listed(tcs),
        "rho": _listed(np.stack([of.rho for of in seeds])),
        "writers": {name: _listed(np.stack([of.writers[name] for of in seeds])) for name in first.writers},
    }


def _spread(fronts: list[float | None]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, None if some seed has no front; with one seed no deviation."""
    found = [front for front in fronts if front is not None]
    whole = len(found) == len(fronts)
    return {
        "mean": float(np.mean(found)) if whole else None,
        "std": float(np.std(found, ddof=1)) if whole and len(found) > 1 else None,
        "seeds": fronts,
    }


def _predicted(profile: DepthProfile) -> dict[str, float | None] | None:
    """The front that the theory predicts; None where it does not cover the model."""
    if profile.setting is None:
        return None
    predicted = predict_front(profile.setting)
    return {"mean": predicted.front, "std": predicted.front_std}


def _overall(rows: list[dict[str, Any]]) -> str:
    """Homogeneous if any trunk is; otherwise what the deepest trunk of each depth says, unsure first."""
    kinds = [row["verdict"] for row in rows]
    if "homogeneous" in kinds:
        return "homogeneous"
    deepest: dict[int, dict[str, Any]] = {}
    for row in rows:
        known = deepest.get(row["depth"])
        if known is None or len(row["blocks"]) > len(known["blocks"]):
            deepest[row["depth"]] = row
    said = [row["verdict"] for row in deepest.values()]
    return next(kind for kind in ("unsure", "growing", "flat") if kind in said)


def _listed(values: Array) -> list[list[float | None]]:
    return [[float(value) if math.isfinite(value) else None for value in row] for row in values]
