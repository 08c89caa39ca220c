"""Event reports as text; no torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

NAMED = 8
"""Number of parameters with non-finite values to name."""


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
