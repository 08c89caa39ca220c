"""Reports on suspicious steps: gradients, losses, non-finite values and observables at an event."""

# L blocks, P parameters

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from meanmode.dit.train.measurements import Event, Row
from meanmode.dit.train.optimiser import Optimiser, families, local
from meanmode.sim.observe.observable_names import WRITERS
from meanmode.sim.onset.deep_blocks import deep_median

LARGEST = 15
"""Number of parameters with the largest gradients to list (arXiv:2605.06169 App. F)."""


COMPARED = ("tcs", "rho", "g_mean", "g_ctr", "amplification", "kappa", "grad_rms_q", "grad_rms_k")
"""Observables in a report, with their change since the previous measurement."""


@torch.no_grad()
def not_finite(optimiser: Optimiser) -> dict[str, list[str]]:
    """Return the parameters whose weights, gradients or moments are not finite, in this process's shards."""
    found: dict[str, list[str]] = {"weight": [], "gradient": [], "moments": []}
    for name, weight in optimiser.parameters.items():
        held = {
            "weight": [weight],
            "gradient": [] if weight.grad is None else [weight.grad],
            "moments": list(optimiser.moments(name).values()),
        }
        for kind, tensors in held.items():
            if not all(bool(local(tensor).isfinite().all()) for tensor in tensors):
                found[kind].append(name)
    return found


def _numbers(values: Sequence[float]) -> list[float | None]:
    """Convert numbers for JSON; non-finite ones become null."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _medians(row: Row) -> dict[str, float]:
    """Return the medians of the compared observables over the deep measured blocks, per writer if split."""
    found = {}
    for name in COMPARED:
        values = row.get(name)
        if values is None:
            continue
        values = np.asarray(values, dtype=np.float64)
        if values.ndim == 1:
            found[name] = deep_median(values)
        else:
            found |= {f"{name}_{writer}": deep_median(values[:, at]) for at, writer in enumerate(WRITERS)}
    for writer in WRITERS:
        mean, rest = found.get(f"g_mean_{writer}"), found.get(f"g_ctr_{writer}")
        if mean is not None and rest:
            found[f"g_mean_over_g_ctr_{writer}"] = mean / rest
    return found


def examine(
    event: Event,
    *,
    names: tuple[str, ...],
    norms: NDArray[np.float64],
    losses: Sequence[float],
    output_gradients: Sequence[float],
    bad: Mapping[str, Sequence[str]],
    now: Row,
    before: tuple[int, Row] | None,
) -> dict[str, Any]:
    """Return the report on an event as a JSON document (arXiv:2605.06169 App. F).

    Args:
        event: the suspicious step.
        names: names of the parameters.
        norms: gradient norms of the parameters before clipping [P].
        losses: mean loss of each process's share of the batch.
        output_gradients: norm of dL/dv of each process's share.
        bad: parameters with non-finite values, as returned by `not_finite`.
        now: observables at this step.
        before: step and observables of the previous measurement, if there is one.
    """
    squares = np.where(np.isin(names, bad["gradient"]), np.inf, np.nan_to_num(np.square(norms)))
    with np.errstate(over="ignore"):
        total = float(squares.sum())
    order = np.argsort(-squares)[:LARGEST]
    share = squares / total if 0 < total < np.inf else np.full(len(norms), np.nan)
    by_family = {kind: float(share[indices].sum()) for kind, indices in families(names).items()}
    medians = _medians(now)
    earlier = {} if before is None else _medians(before[1])
    return {
        "step": event.step,
        "signal": event.signal,
        "value": _numbers([event.value])[0],
        "reference": _numbers([event.reference])[0],
        "grad_norm": _numbers([total**0.5])[0],
        "largest": [
            {"name": names[at], "norm": _numbers([norms[at]])[0], "share": _numbers([share[at]])[0]}
            for at in order
        ],
        "families": {
            kind: _numbers([of])[0] for kind, of in sorted(by_family.items(), key=lambda item: -item[1])
        },
        "losses": _numbers(losses),
        "output_gradients": _numbers(output_gradients),
        "not_finite": {kind: list(of) for kind, of in bad.items()},
        "observables": {name: _numbers([value])[0] for name, value in medians.items()},
        "compared_with_step": None if before is None else before[0],
        "factors": {
            name: _numbers([value / earlier[name]])[0]
            for name, value in medians.items()
            if earlier.get(name) and np.isfinite(earlier[name])
        },
    }
