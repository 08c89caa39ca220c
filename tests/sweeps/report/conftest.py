"""What the tests of reports share: crafted runs, and the path of one that collapses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meanmode.sim.store.files import Variable
from meanmode.sim.store.run_store import create_run
from meanmode.sim.store.run_writer import RunWriter

DEPTH, STEPS, ONSET = 8, 120, 80
BLOCK, WRITER = ("block",), ("block", "writer")
DIMS = {
    "loss": (),
    "grad_norm": (),
    "lr": (),
    "tcs": BLOCK,
    "rho": BLOCK,
    "g_mean": WRITER,
    "g_ctr": WRITER,
    "amplification": WRITER,
    "grad_rms_q": BLOCK,
    "grad_rms_k": BLOCK,
}
HOSTILE = "<script>alert(1)</script>"


def row(step: int, onset: int | None) -> dict[str, Any]:
    """A step of a run that learns; from the onset on its blocks become alike, from the last to the third."""
    since = -1 if onset is None else step - onset
    blocks = np.arange(DEPTH + 1)
    alike = (since >= 0) & (blocks >= max(DEPTH - since, 3))
    noise = 1 + 0.02 * np.random.default_rng(step).normal()
    per_writer = np.ones((DEPTH + 1, 2)) * noise
    return {
        "loss": noise * (2.0 if since >= 0 else 1 + np.exp(-step / 20)),
        "grad_norm": noise,
        "lr": 1e-3 * step,
        "tcs": np.where(alike, 0.99, 0.2 * noise * blocks / DEPTH),
        "rho": np.where(alike, 50.0, 1.0),
        "g_mean": per_writer * (40 if since >= 0 else 1),
        "g_ctr": per_writer * (1e-4 if since >= 0 else 1),
        "amplification": per_writer,
        "grad_rms_q": np.where(alike, 1e-6, 1e-2),
        "grad_rms_k": np.where(alike, 1e-6, 1e-2),
    }


@pytest.fixture(scope="session")
def craft() -> Callable[..., Path]:
    """Write a run with the rows up to a step, or continue it."""

    def write(
        path: Path, last: int, *, onset: int | None = ONSET, events: tuple[dict[str, Any], ...] = ()
    ) -> Path:
        if not path.exists():
            create_run(
                path,
                steps=STEPS,
                interval=10,
                sizes={"block": range(DEPTH + 1), "writer": ["attn", "ffn"]},
                variables={
                    name: Variable(dims=of, definition=f"{name} of a test") for name, of in DIMS.items()
                },
                attributes={"configuration": json.dumps({"depth": DEPTH, "name": HOSTILE}), "laws": "[]"},
            )
            writer = RunWriter(path)
        else:
            writer = RunWriter(path)
        for event in events:
            writer.annotate(event)
        for step in range(writer.last + 1, last + 1):
            writer.log(step, row(step, onset))
        writer.flush()
        return path

    return write


@pytest.fixture(scope="session")
def collapsed(craft: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that collapses at step 80 of 120, with an event report that names a hostile parameter."""
    event = {"step": ONSET, "signal": HOSTILE, "largest": [{"name": HOSTILE}]}
    return craft(tmp_path_factory.mktemp("reported") / "run <b>&.zarr", STEPS, events=(event,))
