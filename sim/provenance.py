"""What every store says of itself: the code that wrote it, and what its observables are."""

import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from sim import observables
from sim.record import BACKWARD_OBSERVABLES
from sim.store import Variable


def provenance() -> dict[str, str]:
    """Version and commit of the code that writes a result."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {"version": version("mean-mode-screaming"), "commit": run.stdout.strip() or "unknown"}


def observable_variables(dims: Mapping[str, tuple[str, ...]]) -> dict[str, Variable]:
    """What observables are, for a store.

    Args:
        dims: names and dimensions, of `sim.record.observable_dims`.
    """
    return {name: Variable(dims=of, definition=_definition(name)) for name, of in dims.items()}


def _definition(name: str) -> str:
    """First line of the observable's docstring, naming the segment; gradients have one of their own."""
    if name in BACKWARD_OBSERVABLES:
        return BACKWARD_OBSERVABLES[name][1]
    base, _, segment = name.partition("_image") if name.endswith("_image") else name.partition("_text")
    text = (getattr(observables, base).__doc__ or "").splitlines()[0]
    where = {"_image": " (image tokens)", "_text": " (text tokens)"}.get(segment or name[len(base) :], "")
    return f"{text.rstrip('.')}{where}; mean over the batch"
