"""What every store says of itself: the code that wrote it, and what its observables are."""

import subprocess
from importlib.metadata import version
from pathlib import Path


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
