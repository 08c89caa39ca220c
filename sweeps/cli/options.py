"""What the commands share: the stack options of a setting, comma lists, JSON and tables."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import click

from meanmode.sweeps.engine.setting_fields import FIELD_DEFINITIONS
from meanmode.theory.setting import Setting


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: no such device.
    """
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot compute on device {device!r}: {said}") from error


TYPES: dict[str, type] = {
    field.name: float if field.name in ("ffn_ratio", "writer_std") else type(field.default)
    for field in dataclasses.fields(Setting)
}


class CommaList(click.ParamType):
    """A comma-separated list of distinct values, which becomes an axis."""

    name = "LIST"

    def __init__(self, of: type) -> None:
        self.of = of

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.of(part.strip()) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of {self.of.__name__} values", param, ctx)


def stack_options(*, lists: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option per field of `Setting`: one value with its default, or a list that becomes an axis."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(Setting)):
            if field.name == "rope":
                default = None if lists else field.default
                command = click.option(
                    "--rope/--no-rope", default=default, help=f"{FIELD_DEFINITIONS['rope']}."
                )(command)
                continue
            flag = f"--{field.name.replace('_', '-')}"
            kind = CommaList(TYPES[field.name]) if lists else TYPES[field.name]
            command = click.option(
                flag,
                type=kind,
                default=None if lists else field.default,
                show_default=not lists and field.default is not None,
                help=f"{FIELD_DEFINITIONS[field.name]}.",
            )(command)
        return command

    return decorate


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`: one JSON document and nothing else on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def shard_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--shard I/N`: compute one share of a store that several processes fill together."""
    return click.option(
        "--shard",
        metavar="I/N",
        help="Compute only share I of N, such as 1/4. Start all N with the same --out, at any time, on one "
        "machine or several: the first creates the store, the others join it without --resume.",
    )(command)


def show_json(document: Any) -> None:
    """Print a JSON document; infinities and NaN, which JSON lacks, must have been replaced by null."""
    click.echo(json.dumps(document, allow_nan=False, indent=1))


def show_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as an aligned table, with the fields of the setting that all rows share on a line above."""
    import pandas as pd

    table = pd.DataFrame(rows)
    fields = [field.name for field in dataclasses.fields(Setting) if field.name in table]
    fixed = {name: rows[0][name] for name in fields if table[name].nunique(dropna=False) == 1}
    click.echo(", ".join(f"{name} {value}" for name, value in fixed.items() if value not in (None, False)))
    shown = table.drop(columns=list(fixed)).dropna(axis="columns", how="all")
    click.echo(shown.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}"))
