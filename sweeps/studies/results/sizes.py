"""Captions of generated tables: what was run, read from the store, and which store it was."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from meanmode.sim.store.regular_files import read_json
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.sweep import stored_stacks
from meanmode.sweeps.studies.run_sizes import run_config, run_sizes, schedule_of, sizes_of, span

SIZES = ("width", "heads", "ffn_ratio", "tokens", "text_tokens", "batch", "weight_std")
"""Fields of a setting that a caption always names."""


def store(data: Path, name: str) -> Path:
    """The store of a name in a folder of stores."""
    return data / f"{name}.zarr"


def opened_studies(data: Path, names: Sequence[str]) -> list[OpenedStudy]:
    """Studies of labelled runs in a folder of stores, by name."""
    return [OpenedStudy.open(store(data, name)) for name in names]


def document(data: Path, name: str) -> dict[str, Any]:
    """A JSON document in a folder of stores.

    Raises:
        ValueError: no such file, or one that is not JSON.
    """
    path = data / f"{name}.json"
    try:
        return dict(read_json(path))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path} is not a JSON document ({error})") from error


def captioned(table: str, *captions: str) -> str:
    """A table with its captions below it, each a paragraph of its own."""
    return "\n\n".join([table, *captions])


def listed(sizes: Mapping[str, str]) -> str:
    """The sizes of stores by name: a sentence, or a list of several."""
    lines = [f"`{name}`: {text}." for name, text in sizes.items()]
    return lines[0] if len(lines) == 1 else "\n".join(f"- {line}" for line in lines)


def stacks_caption(data: Path, names: Sequence[str]) -> str:
    """Sizes and seeds of sweeps over synthetic stacks."""
    return listed({name: _sweep_sizes(open_cells(store(data, name))) for name in names})


def studies_caption(data: Path, names: Sequence[str]) -> str:
    """Sizes, schedule and seeds of studies of training runs."""
    return listed({name: sizes_of(open_cells(store(data, name))) for name in names})


def runs_caption(runs: Mapping[str, Sequence[xr.Dataset]]) -> str:
    """Sizes, seeds and schedule of training runs, or of folders of runs of several merges and seeds."""
    return listed({name: f"{run_sizes(of)}, {schedule_of(run_config(of[0]))}" for name, of in runs.items()})


def _sweep_sizes(data: xr.Dataset) -> str:
    sweep = stored_stacks(data.attrs)
    settings = [dataclasses.asdict(setting) for setting in sweep.settings]
    values = {name: sorted({setting[name] for setting in settings}) for name in ("depth", *SIZES)}
    return (
        f"width {span(values['width'])}, heads {span(values['heads'])}, FFN ratio "
        f"{span(values['ffn_ratio'])}, "
        f"at most {span(values['depth'])} blocks, {span(values['tokens'])} tokens, batch "
        f"{span(values['batch'])}, weight std {span(values['weight_std'])}, at initialisation, "
        f"{sweep.seeds} seeds per setting"
    )
