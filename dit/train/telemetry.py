"""Run telemetry: the step-by-step store and the event reports."""

# L blocks, P parameters

import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import FUNCTIONAL_STEP
from meanmode.dit.train.autopsy_text import as_text
from meanmode.dit.train.measurements import COLLAPSE_CHANCE, Row, measured_observables
from meanmode.dit.train.optimiser import families
from meanmode.sim.observe.observable_names import GRADIENT_MODES, GRADIENT_SIZES, WRITERS
from meanmode.sim.store.files import StoreError, Variable, reason, write_whole
from meanmode.sim.store.observable_variables import observable_variables
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.run_reader import stored_rows
from meanmode.sim.store.run_store import create_run
from meanmode.sim.store.run_writer import RunWriter

FLOAT, INTERVAL_BYTES = 4, 2**28
"""Bytes of a stored number, and those that the telemetry of one interval may take in memory."""

LAWS = {
    "P1": ("retention", "leakage"),
    "P2": ("mu_eff",),
    "G1": GRADIENT_MODES,
    "A2": ("amplification",),
    "S1": tuple(GRADIENT_SIZES),
}
"""Laws about observables of telemetry -> these observables."""

SCALARS = {
    "loss": Variable(definition="Loss of the batch before the update, mean over all samples"),
    "lr": Variable(definition="Learning rate of the update"),
    "grad_norm": Variable(definition="Global gradient norm before clipping"),
    "grad_norm_clipped": Variable(definition="Global gradient norm after clipping"),
    "tokens_seen": Variable(definition="Image and text tokens trained on, this step included", units="token"),
    "wall_s": Variable(definition="Time spent training, over all sessions of the run", units="s"),
    "data_wait_s": Variable(definition="Time the step waited for its batch", units="s"),
    "functional_step": Variable(definition="Delta, rms change of the last trunk by the update, same batch"),
    "collapse_chance": Variable(
        definition="P(collapse within 50 steps) by the early warning, NaN where it has nothing to say"
    ),
}
"""Scalars of every step, except `functional_step`: it costs a forward pass and is taken only at regular
measurements and events; `collapse_chance` is computed where it is."""


def variables(run: RunConfig, names: tuple[str, ...]) -> tuple[dict[str, Variable], dict[str, Any]]:
    """Return the variables in the store of a run, and the coordinates of their dimensions.

    Args:
        run: configuration of the run.
        names: names of the parameters.
    """
    left_out = set() if run.training.observes(FUNCTIONAL_STEP) else {FUNCTIONAL_STEP, COLLAPSE_CHANCE}
    scalars = {name: of for name, of in SCALARS.items() if name not in left_out}
    kinds = families(names)
    in_blocks = [kind for kind in kinds if "." in kind]
    norms = {
        "grad_norm_family": Variable(
            dims=("family",), definition="Gradient norm of a parameter family before clipping, every step"
        ),
        "grad_norm_block": Variable(
            dims=("block", "matrix"), definition="Gradient norm of every parameter of a block before clipping"
        ),
    }
    sizes = {
        "block": range(run.model.depth + 1),
        "writer": WRITERS,
        "family": list(kinds),
        "matrix": in_blocks,
    }
    return {**scalars, **norms, **observable_variables(measured_observables(run))}, sizes


def norms_by_family(names: tuple[str, ...], norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gradient norm of each family, in order; NaN if none of its parameters has a gradient."""
    squares = [np.square(norms[indices]) for indices in families(names).values()]
    return np.array([np.nan if np.isnan(of).all() else np.sqrt(np.nansum(of)) for of in squares])


def norms_by_block(
    names: tuple[str, ...], norms: NDArray[np.float64], depth: int, blocks: Collection[int]
) -> NDArray[np.float64]:
    """Return the gradient norms of all parameters of these blocks [L + 1, families]; NaN for other blocks."""
    kinds = {kind: indices for kind, indices in families(names).items() if "." in kind}
    found = np.full((depth + 1, len(kinds)), np.nan)
    for column, indices in enumerate(kinds.values()):
        for index in indices:
            block = int(names[index].split(".")[1]) + 1
            if block in blocks:
                found[block, column] = norms[index]
    return found


class Telemetry:
    """Writes the store of a run step by step; only the first process has one.

    Args:
        path: path of the store, which `lay_out` has created.
        after: last step of earlier sessions that remains valid.
        run: configuration of the run.
        spent: seconds spent in earlier sessions.
    """

    def __init__(self, path: Path, *, after: int, run: RunConfig, spent: float) -> None:
        self._writer = RunWriter(path, after=after, steps=run.training.steps)
        self._folder = path.parent
        # a store created by an older version lacks some variables, and is continued without them
        self._unknown = set(SCALARS) - set(self._writer.arrays)
        self._spent = spent
        self._began = time.perf_counter()

    @staticmethod
    def lay_out(path: Path, run: RunConfig, names: tuple[str, ...], origin: Mapping[str, Any]) -> None:
        """Create the store.

        Args:
            path: path of the store.
            run: configuration of the run.
            names: names of the parameters.
            origin: checkpoint, step and configuration that a fork started from; empty otherwise.

        Raises:
            ValueError: an interval takes too much memory.
        """
        held, sizes = variables(run, names)
        numbers = sum(math.prod(len(sizes[dim]) for dim in of.dims) for of in held.values())
        most = INTERVAL_BYTES // (FLOAT * numbers)
        if run.training.interval > max(most, 1):
            raise ValueError(
                f"an interval of {run.training.interval} steps of telemetry takes too much memory for "
                f"{run.model.depth} blocks: set interval to at most {most}"
            )
        laws = [tag for tag, names in LAWS.items() if any(map(run.training.observes, names))]
        laws += ["R1"] if "mv_split" in run.model.setting().merges else []
        create_run(
            path,
            steps=run.training.steps,
            interval=run.training.interval,
            sizes=sizes,
            variables=held,
            attributes={
                "configuration": json.dumps(run.document()),
                "laws": json.dumps(laws),
                "origin": json.dumps(dict(origin)),
                **provenance(),
            },
        )

    @property
    def wall(self) -> float:
        """Seconds spent training so far, over all sessions."""
        return self._spent + time.perf_counter() - self._began

    def log(self, step: int, row: Row, earlier: Sequence[tuple[int, Row]]) -> None:
        """Write a step, and earlier steps released from the ring buffer."""
        for before, kept in earlier:
            self._writer.log(before, kept)
        row = {**row, "wall_s": self.wall}
        self._writer.log(step, {name: value for name, value in row.items() if name not in self._unknown})

    def report(self, document: Mapping[str, Any]) -> Path:
        """Write a report on an event to the store and to a text file beside it, whose path is returned."""
        self._writer.annotate(document)
        text = self._folder / f"autopsy-{document['step']:08d}.txt"
        try:
            write_whole(text, as_text(document).encode())
        except OSError as error:
            raise StoreError(f"{text} could not be written ({reason(error)})") from error
        return text

    def last_loss(self) -> float:
        """Return the loss of the last logged step; NaN if none is logged."""
        last, writer = self._writer.last, self._writer
        if last < writer.first:
            return float("nan")
        return float(stored_rows(writer.path, writer.arrays["loss"], last - 1, last)[0])

    def annotate(self, event: Mapping[str, Any]) -> None:
        """Add an event to the store."""
        self._writer.annotate(event)

    def flush(self) -> None:
        """Write all buffered steps to disk."""
        self._writer.flush()
