"""What the commands share: stack options of a setting, fields of a preset, comma lists, JSON and tables."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from meanmode.sweeps.engine.setting_fields import FIELD_DEFINITIONS
from meanmode.theory.setting import Setting

if TYPE_CHECKING:
    from meanmode.dit.config.run_config import RunConfig


def settings_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--set NAME=VALUE`, repeatable: a field of the network or the training of a preset."""
    return click.option(
        "--set",
        "settings",
        metavar="NAME=VALUE",
        multiple=True,
        help="Set a field of the network or the training, such as width=64 or steps=1000. Repeatable.",
    )(command)


def preset_run(preset: str, settings: Sequence[str]) -> "RunConfig":
    """The run of a preset with the fields of `--set`.

    Raises:
        click.UsageError: an unknown preset, or a setting that is not NAME=VALUE.
        ValueError: an unknown field, or a value of the wrong type or out of range.
        StoreError: the data are no latent store.
    """
    from meanmode.dit.config.field_ranges import shown
    from meanmode.dit.config.presets import PRESETS
    from meanmode.dit.data.latents import with_data

    if preset not in PRESETS:
        raise click.UsageError(f"unknown preset {shown(preset)}: choose one of {', '.join(PRESETS)}")
    fields: dict[str, str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes NAME=VALUE, got {text!r}")
        fields[name.strip()] = value.strip()
    return with_data(PRESETS[preset], fields)


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
            parts = [part.strip() for part in value.split(",")]
            if self.of is bool:  # bool("false") is True
                return tuple(click.BOOL.convert(part, param, ctx) for part in parts)
            return tuple(self.of(part) for part in parts)
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
