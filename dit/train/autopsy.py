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


NAMED = 8
"""Number of parameters with non-finite values to name."""


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


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def as_text(document: Mapping[str, Any]) -> str:
    """Return a report as text."""
    lines = [
        f"step {document['step']}: {document['signal']} is {_shown(document['value'])}, "
        f"against {_shown(document['reference'])}; gradient norm {_shown(document['grad_norm'])}",
        "",
        f"largest gradients ({len(document['largest'])}), norm and share of the squared norm:",
    ]
    lines += [
        f"  {entry['name']:44s} {_shown(entry['norm']):>10s} {_percent(entry['share'])}"
        for entry in document["largest"]
    ]
    lines += ["", "families, share of the squared norm:"]
    lines += [f"  {kind:44s} {_percent(of)}" for kind, of in document["families"].items()]
    losses = [value for value in document["losses"] if value is not None]
    gradients = [value for value in document["output_gradients"] if value is not None]
    lines += ["", f"processes: {len(document['losses'])}"]
    for name, values in (("loss", losses), ("gradient of the output", gradients)):
        if values:
            lines.append(f"  {name}: mean {np.mean(values):.4g}, spread (sd) {np.std(values):.3g}")
    bad = {kind: names for kind, names in document["not_finite"].items() if names}
    lines += ["", "NaN or infinite: " + ("none" if not bad else "")]
    for kind, names in bad.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"  {kind}: {', '.join(names[:NAMED])}{more}")
    since = document["compared_with_step"]
    against = "" if since is None else f", and the factor since step {since}"
    lines += ["", f"observables, median over deep measured blocks{against}:"]
    for name, value in document["observables"].items():
        factor = document["factors"].get(name)
        lines.append(f"  {name:28s} {_shown(value):>10s}" + ("" if factor is None else f"  x {factor:.3g}"))
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:6.2f} %"
