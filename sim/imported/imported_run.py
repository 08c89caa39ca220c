"""A run store of telemetry that was logged elsewhere: which quantity is one of ours, and at which block."""

# R rows of the source

import json
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.imported.log_files import Log, Series
from meanmode.sim.observe.record import STATE_OBSERVABLES, WRITERS, observable_dims
from meanmode.sim.store.files import StoreError, StoreExistsError, Variable, file_digest, partial_path, reason
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.run_reader import TELEMETRY
from meanmode.sim.store.run_store import RunWriter, create_run
from meanmode.theory.setting import Setting

OBSERVABLES = observable_dims(Setting(text_tokens=1), backward=True)
"""Name -> dimensions of all that is measured by block."""


PUBLISHED = {"token_sim": "tcs", "tr_ratio": "r_tr"}
"""Layer-wise quantity of the published viewer -> ours. `mu_eff` and `var_gain` are called as ours are. Its
scalars over all writers, whether sums or medians, are none of ours, which are by block and writer; its
`writer_ratio` is not the quotient of its two writer series, nor `writer_G_total` their Pythagorean sum."""


STATES = (*STATE_OBSERVABLES, "adjoint_tcs")
"""What is of a state of the trunk, and therefore of the input too; all else is of a block."""


LAYERED = re.compile(rf"(?P<base>.+)/(?P<layer>\d{{1,9}})(/(?P<writer>{'|'.join(WRITERS)}))?", re.ASCII)


NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


TAKEN = ("step", "block", "writer")


LAST_STEP = 10_000_000
"""Steps beyond it are tokens or samples: the store has a row for every optimiser step."""


ROWS_OF_CHUNK = 100


Place = tuple[int, ...]
"""Of a value within its row: none, the block, or block and writer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A quantity of the source, and what it is called in the store.

    Attributes:
        source: its name in the source, without layer and writer.
        name: in the store.
        series: where within a row -> values; of one kind of place.
    """

    source: str
    name: str
    series: dict[Place, Series]

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions behind `step`."""
        return ("block", "writer")[: len(next(iter(self.series)))]

    def document(self) -> dict[str, Any]:
        """What is said of it, JSON-serialisable."""
        blocks = sorted({place[0] for place in self.series if place})
        return {"name": self.name, "dims": list(self.dims), **({"blocks": blocks} if blocks else {})}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run store of a source would hold.

    Attributes:
        log: the source.
        columns: its quantities.
        depth: blocks; None where nothing is by block.
        first_layer: number of the first block in the source.
        step_offset: what is added to its steps.
        notes: those of the log, and what was assumed.
    """

    log: Log
    columns: tuple[Column, ...]
    depth: int | None
    first_layer: int
    step_offset: int
    notes: tuple[str, ...]

    @property
    def steps(self) -> NDArray[np.int64]:
        """All steps at which there is a value, as the store counts them [R]."""
        of_all = [series.steps for column in self.columns for series in column.series.values()]
        return np.unique(np.concatenate(of_all)) + self.step_offset

    def document(self) -> dict[str, Any]:
        """The names and the steps, JSON-serialisable."""
        steps = self.steps
        return {
            "form": self.log.form,
            "steps": {"first": int(steps[0]), "last": int(steps[-1]), "rows": len(steps)},
            "depth": self.depth,
            "first_layer": self.first_layer,
            "step_offset": self.step_offset,
            "names": {column.source: column.document() for column in self.columns},
        }


def plan_import(
    log: Log,
    *,
    scalars: Collection[str],
    renamed: Mapping[str, str],
    depth: int | None = None,
    first_layer: int | None = None,
    step_offset: int = 0,
) -> Plan:
    """Which quantity of a source gets which name, at which blocks; one that is none of ours keeps its own.

    `NAME/LAYER` and `NAME/LAYER/WRITER` are values of one block if NAME is one of our observables, or if the
    source says that it is layer-wise; of others they are scalars. A character that a store cannot have in a
    name becomes an underscore.

    Args:
        log: the source.
        scalars: our names of what is one number a step.
        renamed: name in the source, without layer, -> the name it gets.
        depth: blocks; None: what the source says (`N_LAYERS`), else the last layer that it names.
        first_layer: number that the source gives the first block, 0 or 1. None: what the layers that a viewer
            names allow, 0 where both fit; 1, as in our stores, for others.
        step_offset: added to the steps of a source that counts from 0.

    Raises:
        ValueError: names that are taken or unknown, layers that the depth does not have, or steps below 1.
    """
    unknown = renamed.keys() - {_split(name)[0] for name in log.series} - log.series.keys()
    if unknown:
        raise ValueError(f"nothing is called {min(unknown)!r} here: names are {', '.join(_bases(log))}")
    layers = _layers(log, renamed)
    notes = list(log.notes)
    stated = log.config.get("N_LAYERS") if depth is None else depth
    if stated is not None and (not isinstance(stated, int) or isinstance(stated, bool) or stated < 1):
        raise ValueError(f"the number of blocks must be a whole number of at least 1, got {stated!r}")
    if first_layer is None:
        first_layer = _first_layer(log, layers, stated)
    if stated is None and layers:
        stated = max(max(layers) + 1 - first_layer, 1)
        notes.append(f"the source does not say its depth, taken as {stated} blocks: --depth says another")
    columns: dict[str, Column] = {}
    for name, series in log.series.items():
        base, target, layer, writer = _target(log, renamed, scalars, name)
        place: Place = ()
        if layer is not None:
            place = (_block(name, target, layer + 1 - first_layer, stated or 0),)
        if writer is not None:
            place += (WRITERS.index(writer),)
        column = columns.setdefault(target, Column(source=base, name=target, series={}))
        if column.source != base or place in column.series:
            raise ValueError(
                f"{column.source!r} and {base!r} would both be called {target}: pass --name {base}=OTHER"
            )
        column.series[place] = series
        if len({len(place) for place in column.series}) > 1:
            raise ValueError(f"{base!r} is given with and without layer or writer: one of them must go")
    plan = Plan(
        log=log,
        columns=tuple(columns.values()),
        depth=stated,
        first_layer=first_layer,
        step_offset=step_offset,
        notes=tuple(notes),
    )
    first, last = plan.steps[[0, -1]]
    if first < 1:
        raise ValueError(f"steps are counted from 1, and the source has step {first}: pass --step-offset")
    if last > LAST_STEP:
        raise ValueError(
            f"the last step is {last}, more than {LAST_STEP}: steps must be those of the optimiser"
        )
    return plan


def _split(name: str) -> tuple[str, int | None, str | None]:
    """A name without layer and writer, and these."""
    found = LAYERED.fullmatch(name)
    return (found["base"], int(found["layer"]), found["writer"]) if found else (name, None, None)


def _bases(log: Log) -> list[str]:
    return list(dict.fromkeys(_split(name)[0] for name in log.series))


def _layered(log: Log, renamed: Mapping[str, str], name: str) -> bool:
    """Whether a name is that of one layer's value."""
    base, layer, _ = _split(name)
    known = renamed.get(base, PUBLISHED.get(base, base)) in OBSERVABLES or base in log.layerwise
    return layer is not None and known and name not in renamed


def _layers(log: Log, renamed: Mapping[str, str]) -> set[int]:
    """All layers that the source names."""
    named = {_split(name)[1] for name in log.series if _layered(log, renamed, name)}
    anchors = log.config.get("anchor_layers", [])
    listed = anchors if isinstance(anchors, list) else []
    return {layer for layer in (*named, *listed) if isinstance(layer, int)}


def _first_layer(log: Log, layers: set[int], depth: int | None) -> int:
    """The number of the first block: quantities of a branch leave no layer for the input."""
    if log.form != "viewer":
        return 1
    return 1 if layers and 0 not in layers and max(layers) == depth else 0


def _target(
    log: Log, renamed: Mapping[str, str], scalars: Collection[str], name: str
) -> tuple[str, str, int | None, str | None]:
    """Name without layer and writer, name in the store, layer and writer."""
    base, layer, writer = _split(name) if _layered(log, renamed, name) else (name, None, None)
    given = renamed.get(base, PUBLISHED.get(base, base) if layer is not None else base)
    target = re.sub(r"[^A-Za-z0-9_]", "_", given).lstrip("_")
    if base in renamed and (target != given or not NAME.fullmatch(target)):
        raise ValueError(f"{given!r} is no name of a variable: use letters, digits and underscores")
    if not NAME.fullmatch(target) or target in TAKEN:
        raise ValueError(f"{base!r} cannot be the name of a variable: pass --name {base}=OTHER")
    if target != given and (target in OBSERVABLES or target in scalars):
        raise ValueError(f"{base!r} may be {target} or not: pass --name {base}={target}, or another name")
    if writer is not None and "writer" not in OBSERVABLES.get(target, ()):
        raise ValueError(f"{name!r} names a writer, and {target} is not by writer")
    return base, target, layer, writer


def _block(name: str, target: str, block: int, depth: int) -> int:
    """The block of a layer, where there is one."""
    if block == 0 and target not in STATES:
        raise ValueError(f"{name!r} would be of the input, which has no {target}: pass --first-layer 0")
    if not 0 <= block <= depth:
        raise ValueError(
            f"{name!r} is of block {block}, and the depth is {depth}: see --depth, --first-layer"
        )
    return block


def import_run(plan: Plan, out: str | Path, *, initial_loss: float | None = None) -> Path:
    """Write a run with the telemetry of a source; it appears under `out` complete or not at all.

    Steps between those of the source are NaN.

    Args:
        plan: what it holds.
        out: folder of the run; must not exist.
        initial_loss: level of the loss before any training, of a source that begins later.

    Returns:
        The store in it.

    Raises:
        StoreExistsError: something is already there.
        StoreError: no room, or another error of the file system.
    """
    out = Path(out)
    if out.exists():
        raise StoreExistsError(f"{out} already exists: pass another --out")
    partial = partial_path(out)
    try:
        partial.mkdir(parents=True)
        _write(plan, partial / TELEMETRY, initial_loss)
        partial.rename(out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(f"{out} could not be written ({reason(error)}): nothing was written") from error
        raise
    return out / TELEMETRY


def _write(plan: Plan, path: Path, initial_loss: float | None) -> None:
    steps = plan.steps
    first, last = int(steps[0]), int(steps[-1])
    spacing = int(np.median(np.diff(steps))) if len(steps) > 1 else 1
    sizes = {"block": range((plan.depth or 0) + 1), "writer": WRITERS}
    configuration = {**({} if plan.depth is None else {"depth": plan.depth}), "source": plan.log.config}
    create_run(
        path,
        steps=last,
        interval=min(ROWS_OF_CHUNK * spacing, last - first + 1),
        sizes={dim: sizes[dim] for dim in sizes if any(dim in column.dims for column in plan.columns)},
        variables={column.name: _variable(column) for column in plan.columns},
        attributes={
            "configuration": json.dumps(configuration),
            "laws": "[]",
            "source": json.dumps({file.name: file_digest(file) for file in plan.log.files}),
            "import": json.dumps({**plan.document(), "notes": plan.notes}),
            **({} if initial_loss is None else {"initial_loss": initial_loss}),
            **provenance(),
        },
    )
    shapes = {column.name: tuple(len(sizes[dim]) for dim in column.dims) for column in plan.columns}
    rows = {name: np.full((len(steps), *shape), np.nan) for name, shape in shapes.items()}
    for column in plan.columns:
        for place, series in column.series.items():
            at = np.searchsorted(steps, series.steps + plan.step_offset)
            index: tuple[Any, ...] = (at, *place)
            rows[column.name][index] = series.values
    writer, row = RunWriter(path, after=first - 1), 0
    for step in range(first, last + 1):
        here = step == steps[row]
        writer.log(step, {name: values[row] for name, values in rows.items()} if here else {})
        row += here
    writer.finish()


def _variable(column: Column) -> Variable:
    """What is known of a quantity: the source's name."""
    missing = "writer" in OBSERVABLES.get(column.name, ()) and "writer" not in column.dims
    return Variable(
        dims=column.dims,
        definition=f"{column.source} of the source{', which names no writer' if missing else ''}",
    )
