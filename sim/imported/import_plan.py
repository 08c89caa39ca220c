"""The plan of an import: which quantity of a foreign log gets which name, at which block and writer."""

# R rows of the source

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.imported.branches import Series
from meanmode.sim.imported.known_names import SCALARS, our_names
from meanmode.sim.imported.log_files import Log
from meanmode.sim.observe.observable_names import STATE_OBSERVABLES, WRITERS, observable_dims
from meanmode.theory.setting import Setting

OBSERVABLES = observable_dims(Setting(text_tokens=1), backward=True)
"""Name -> dimensions of everything that is measured by block."""


PUBLISHED = {"token_sim": "tcs", "tr_ratio": "r_tr"}
"""Layer-wise quantity of the published viewer -> our observable; `mu_eff` and `var_gain` have the same name
in both. The viewer's scalars over all writers, whether sums or medians, match none of our observables, which
are by block and writer; its `writer_ratio` is not the quotient of its two writer series, nor is
`writer_G_total` their Pythagorean sum."""


STATES = (*STATE_OBSERVABLES, "adjoint_tcs")
"""Observables of a state of the trunk, and thus of the input too; all others belong to a block."""


LAYERED = re.compile(rf"(?P<base>.+)/(?P<layer>\d{{1,9}})(/(?P<writer>{'|'.join(WRITERS)}))?", re.ASCII)


NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


TAKEN = ("step", "block", "writer")


LONGEST_NAME = 120
"""Characters of a name in the store, where it names a folder; longer ones of the source are cut."""


LAST_STEP = 100_000_000
"""Steps beyond this must count tokens or samples."""


LARGEST_DEPTH = 10_000
"""Most blocks of an imported run."""


LARGEST_VARIABLE = 2**28
"""Most values of a variable in the store, which has a value for every row, block and writer."""


RowIndex = tuple[int, ...]
"""Position of a value within its row: empty, (block,), or (block, writer)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A quantity of the source, and its name in the store.

    Attributes:
        source: name in the source, without layer and writer.
        name: name in the store.
        series: position within a row -> values; all positions have the same length.
    """

    source: str
    name: str
    series: dict[RowIndex, Series]

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions after `step`."""
        return ("block", "writer")[: len(next(iter(self.series)))]

    def document(self) -> dict[str, Any]:
        """JSON-serialisable description."""
        blocks = sorted({index[0] for index in self.series if index})
        return {"name": self.name, "dims": list(self.dims), **({"blocks": blocks} if blocks else {})}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the run store of a source will hold.

    Attributes:
        log: the source.
        columns: its quantities.
        depth: number of blocks; None if nothing is by block.
        first_layer: number of the first block in the source.
        step_offset: number added to the steps of the source.
        notes: notes of the log, and assumptions made here.
    """

    log: Log
    columns: tuple[Column, ...]
    depth: int | None
    first_layer: int
    step_offset: int
    notes: tuple[str, ...]

    @property
    def steps(self) -> NDArray[np.int64]:
        """All steps with a value, numbered as in the store [R]."""
        steps = [series.steps for column in self.columns for series in column.series.values()]
        return np.unique(np.concatenate(steps)) + self.step_offset

    def document(self) -> dict[str, Any]:
        """JSON-serialisable description of names, blocks and steps."""
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
    renamed: Mapping[str, str],
    depth: int | None = None,
    first_layer: int | None = None,
    step_offset: int | None = None,
) -> Plan:
    """Decide the name and the blocks of every quantity of a source; unknown quantities keep their names.

    `NAME/LAYER` and `NAME/LAYER/WRITER` are values of one block if NAME is one of our observables or the
    source declares it layer-wise, else scalars. The only name that can be the loss, the gradient norm or the
    learning rate is taken as that. Characters that a store does not allow in names become underscores.

    Args:
        log: the source.
        renamed: name in the source, without layer -> name in the store.
        depth: number of blocks; by default as stated by the source (`N_LAYERS`), else the last layer named.
        first_layer: number of the first block in the source, 0 or 1. By default, for the viewer, what its
            layers allow, and 0 if both fit; otherwise 1, as in our stores.
        step_offset: number to add to every step; by default 1 for a source that counts from 0, else 0.

    Raises:
        ValueError: names that are taken or unknown, layers beyond the depth, or steps below 1.
    """
    unknown = renamed.keys() - {_split(name)[0] for name in log.series} - log.series.keys()
    if unknown:
        names = dict.fromkeys(_split(name)[0] for name in log.series)
        raise ValueError(f"the source has no {min(unknown)!r}: its names are {', '.join(names)}")
    notes = list(log.notes)
    renamed, said = _with_aliases(log, renamed)
    notes += said
    layers = _layers(log, renamed)
    stated = log.config.get("N_LAYERS") if depth is None else depth
    if stated is not None and (not isinstance(stated, int) or isinstance(stated, bool) or stated < 1):
        raise ValueError(f"the number of blocks must be a whole number of at least 1, got {stated!r}")
    if first_layer is None:
        first_layer = _first_layer(log, layers, stated)
    if stated is None and layers:
        stated = max(max(layers) + 1 - first_layer, 1)
        notes.append(f"the source does not say its depth, taken as {stated} blocks: --depth says another")
    if step_offset is None:
        step_offset = 1 if min(int(series.steps[0]) for series in log.series.values()) == 0 else 0
        if step_offset:
            notes.append("steps count from 0 and are numbered from 1 here, one more than in the source")
    if stated is not None and stated > LARGEST_DEPTH:
        raise ValueError(f"the number of blocks must be at most {LARGEST_DEPTH}, got {stated}: check --depth")
    columns, said = _columns(log, renamed, depth=stated or 0, first_layer=first_layer)
    plan = Plan(
        log=log,
        columns=columns,
        depth=stated,
        first_layer=first_layer,
        step_offset=step_offset,
        notes=(*notes, *said),
    )
    _check_size(plan)
    return plan


def _with_aliases(log: Log, renamed: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The names that the user gives, and those that are unambiguous without; and notes about the latter."""
    counts = {
        name: len(series.steps)
        for name, series in log.series.items()
        if name not in renamed and not _layered(log, renamed, name)
    }
    aliases, notes = our_names(counts, set(renamed.values()))
    return {**aliases, **renamed}, notes


def _check_size(plan: Plan) -> None:
    """Refuse steps and variables that no store can hold.

    Raises:
        ValueError: saying which option helps.
    """
    steps = plan.steps
    first, last = steps[[0, -1]]
    if first < 1:
        raise ValueError(f"steps must start at 1 or later, got step {first}: pass another --step-offset")
    if last > LAST_STEP:
        raise ValueError(
            f"the last step is {last}, above {LAST_STEP}: if it counts samples or tokens, pass "
            "--samples-per-step"
        )
    for column in plan.columns:
        values = len(steps) * (plan.depth or 0 if column.dims else 1) * len(column.dims or (1,))
        if values > LARGEST_VARIABLE:
            raise ValueError(
                f"{column.source!r} would have {values:,} values, above {LARGEST_VARIABLE:,}: check "
                "--depth, or give a part of the log"
            )


def _columns(
    log: Log, renamed: Mapping[str, str], *, depth: int, first_layer: int
) -> tuple[tuple[Column, ...], list[str]]:
    """Sort every series of a source into the column of its name in the store; note made-up names."""
    columns: dict[str, Column] = {}
    notes = []
    # a name that is kept as it is goes before one that only becomes it
    for name in sorted(log.series, key=lambda name: not NAME.fullmatch(name)):
        series = log.series[name]
        base, target, layer, writer = _target(log, renamed, name)
        index: RowIndex = ()
        if layer is not None:
            index = (_block(name, target, layer + 1 - first_layer, depth),)
        if writer is not None:
            index += (WRITERS.index(writer),)
        column = columns.get(target)
        if column is not None and (
            column.source != base or index in column.series or len(next(iter(column.series))) != len(index)
        ):
            if target in renamed.values() and base in renamed:
                raise ValueError(
                    f"{column.source!r} and {base!r} would both be called {target}: pass --name {base}=OTHER"
                )
            base, index = name, ()
            target = _free(re.sub(r"[^A-Za-z0-9_]", "_", name).lstrip("_")[:LONGEST_NAME], columns)
            notes.append(
                f"{name} is called {target}, since its name is taken: --name {name}=OTHER says another"
            )
        columns.setdefault(target, Column(source=base, name=target, series={})).series[index] = series
    return tuple(columns.values()), notes


def _free(name: str, columns: Mapping[str, Column]) -> str:
    """A name that no column, observable or scalar has."""
    number = 2
    while f"{name}_{number}" in columns:
        number += 1
    return f"{name}_{number}"


def _split(name: str) -> tuple[str, int | None, str | None]:
    """Split a name into its base, layer and writer."""
    found = LAYERED.fullmatch(name)
    return (found["base"], int(found["layer"]), found["writer"]) if found else (name, None, None)


def _layered(log: Log, renamed: Mapping[str, str], name: str) -> bool:
    """Whether a name stands for the value of one layer."""
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
    """Number of the first block; observables of a branch have no layer for the input."""
    if log.form != "viewer":
        return 1
    return 1 if layers and 0 not in layers and max(layers) == depth else 0


def _target(log: Log, renamed: Mapping[str, str], name: str) -> tuple[str, str, int | None, str | None]:
    """Name in the source without layer and writer, name in the store, layer and writer."""
    base, layer, writer = _split(name) if _layered(log, renamed, name) else (name, None, None)
    given = renamed.get(base, PUBLISHED.get(base, base) if layer is not None else base)
    target = re.sub(r"[^A-Za-z0-9_]", "_", given).lstrip("_")[:LONGEST_NAME]
    if base in renamed and (target != given or not NAME.fullmatch(target)):
        raise ValueError(f"{given!r} is not a valid variable name: use letters, digits and underscores")
    if base in renamed and target in TAKEN:
        raise ValueError(f"{target!r} is a dimension of the store: choose another name for {base!r}")
    # what merely looks like one of our names, such as grad/norm, is not called so
    if (
        not NAME.fullmatch(target)
        or target in TAKEN
        or (target != given and target in (*OBSERVABLES, *SCALARS))
    ):
        target = f"logged_{target}"
    if writer is not None and "writer" not in OBSERVABLES.get(target, ()):
        return name, re.sub(r"[^A-Za-z0-9_]", "_", name)[:LONGEST_NAME], None, None
    return base, target, layer, writer


def _block(name: str, target: str, block: int, depth: int) -> int:
    """Check that an observable exists at a block."""
    if block == 0 and target not in STATES:
        raise ValueError(f"{name!r} would belong to the input, which has no {target}: pass --first-layer 0")
    if not 0 <= block <= depth:
        raise ValueError(
            f"{name!r} belongs to block {block}, but the depth is {depth}: check --depth and --first-layer"
        )
    return block
