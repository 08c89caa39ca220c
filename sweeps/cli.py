"""The command line `mms`: verify, law, predict, sweep, onset, compare, figures, demo."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pandas as pd

from sweeps.sweep import FIELD_DEFINITIONS
from theory import LAWS, Setting

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
            self.fail(f"{value!r} is no comma-separated list of {self.of.__name__} values", param, ctx)


def stack_options(*, lists: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The stack options of DESIGN, as single values with their defaults or as lists that become axes."""

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


def show_json(document: Any) -> None:
    """Print a JSON document; infinities and NaN are not JSON and must have become null."""
    click.echo(json.dumps(document, allow_nan=False, indent=1))


def show_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as an aligned table, the setting's fields that no row varies in one line above it."""
    table = pd.DataFrame(rows)
    fields = [field.name for field in dataclasses.fields(Setting) if field.name in table]
    fixed = {name: rows[0][name] for name in fields if table[name].nunique(dropna=False) == 1}
    click.echo(", ".join(f"{name} {value}" for name, value in fixed.items() if value not in (None, False)))
    shown = table.drop(columns=list(fixed)).dropna(axis="columns", how="all")
    click.echo(shown.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}"))


@click.group()
@click.version_option(package_name="mean-mode-screaming")
def cli() -> None:
    """Will a very deep diffusion transformer collapse, when, and why: derive, predict, measure, compare."""


@cli.command()
@click.argument("tags", nargs=-1)
@json_option
@click.pass_context
def verify(ctx: click.Context, tags: tuple[str, ...], as_json: bool) -> None:
    """Prove the laws (all, or those of TAGS) for every size; exit 1 if one fails."""
    from theory.laws import law

    proofs = [law(tag).prove() for tag in tags or LAWS]
    proved = all(proof.proved for proof in proofs)
    if as_json:
        laws = [
            {"tag": proof.tag, "proved": proof.proved, "steps": len(proof.steps), "seconds": proof.seconds}
            for proof in proofs
        ]
        show_json({"laws": laws, "all_proved": proved})
    else:
        for proof in proofs:
            stated = LAWS[proof.tag]
            verdict = "proved" if proof.proved else f"FAILED at: {'; '.join(proof.failed)}"
            click.echo(f"{proof.tag}  {stated.title}\n    {stated.statement}")
            click.echo(f"    assumes {'; '.join(stated.assumes)}")
            click.echo(
                f"    {verdict} in {len(proof.steps)} steps, {proof.seconds:.2f} s   [{stated.source}]"
            )
        click.echo(f"{sum(proof.proved for proof in proofs)} of {len(proofs)} laws proved")
    ctx.exit(0 if proved else 1)


@cli.command("law")
@click.argument("tag")
@click.option("--latex", is_flag=True, help="Print the steps as LaTeX.")
def show_law(tag: str, latex: bool) -> None:
    """One law: statement, assumptions, source and proof steps."""
    import sympy

    from theory.laws import law

    stated = law(tag)
    click.echo(f"{stated.tag}: {stated.title}\n{stated.statement}\nassumes: {'; '.join(stated.assumes)}")
    click.echo(f"source: {stated.source}")
    for number, step in enumerate(stated.prove().steps, start=1):
        verdict = "cited" if step.theorem else "proved" if step.holds() else "FAILED"
        click.echo(f"\n{number}. {step.name}  [{verdict}]{'  ' + step.theorem if step.theorem else ''}")
        click.echo(f"   {sympy.latex(step.formula()) if latex else step.formula()}")
        if step.witness != 0:
            click.echo(f"   the difference is {sympy.latex(step.witness) if latex else step.witness}")


@cli.group()
def predict() -> None:
    """Numbers from the theory."""


@predict.command("front")
@stack_options(lists=False)
@json_option
def predict_front_command(as_json: bool, **options: Any) -> None:
    """The collapse front of an untrained stack, with its spread between seeds."""
    from theory import predict_front

    setting = Setting(**options)
    prediction = predict_front(setting)
    if as_json:
        show_json(
            {
                "front": prediction.front,
                "front_std": prediction.front_std,
                "front_deterministic": prediction.front_deterministic,
                "inputs": dataclasses.asdict(setting),
            }
        )
    elif prediction.front is None:
        click.echo("no collapse front is predicted")
    else:
        beyond = (
            f" (beyond the {setting.depth} blocks of the stack)" if prediction.front > setting.depth else ""
        )
        place = f"{prediction.front:.1f} +- {prediction.front_std:.1f} between seeds"
        click.echo(f"collapse front at block {place}{beyond}")


@predict.command("profile")
@stack_options(lists=False)
@json_option
def predict_profile_command(as_json: bool, **options: Any) -> None:
    """Observables block by block: TCS, rho, adjoint cosine and amplification of both writers."""
    from theory import predict_profile

    setting = Setting(**options)
    profile = predict_profile(setting)
    amplification, adjoint = profile["amplification"], profile["c_delta"]
    blocks = {
        "tcs": profile["tcs"].tolist(),
        "rho": profile["rho"].tolist(),
        "c_delta": adjoint.tolist(),
        "amplification_attn": amplification[:, 0].tolist(),
        "amplification_ffn": amplification[:, 1].tolist(),
    }
    if as_json:
        show_json({**blocks, "inputs": dataclasses.asdict(setting)})
        return
    rows = [
        {
            "block": block + 1,
            "tcs": blocks["tcs"][block + 1],
            "rho": blocks["rho"][block + 1],
            "c_delta_attn": adjoint[block, 0],
            "c_delta_ffn": adjoint[block, 1],
            "amplification_attn": amplification[block, 0],
            "amplification_ffn": amplification[block, 1],
        }
        for block in range(setting.depth)
    ]
    if rows:
        show_table(rows)


@cli.group("sweep")
def sweep_group() -> None:
    """Sweeps over synthetic stacks."""


@sweep_group.command("list")
def sweep_list() -> None:
    """The named sweeps."""
    from sweeps.named import SWEEPS

    for sweep in SWEEPS.values():
        click.echo(f"{sweep.name}: {sweep.claim}; {len(sweep.cells)} cells")


@sweep_group.command("run")
@click.argument("name", default="collapse_front")
@stack_options(lists=True)
@click.option("--seeds", type=click.IntRange(min=1), help="Seeds of every setting.")
@click.option("--out", type=click.Path(path_type=Path), help="Store to write.  [default: NAME.zarr]")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--resume", is_flag=True, help="Go on with the store where it stopped.")
@click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help="Print the resolved configuration, the work to be done and the forecast.",
)
def sweep_run(
    name: str, seeds: int | None, out: Path | None, workers: int, resume: bool, dry_run: bool, **options: Any
) -> None:
    """Run a named sweep; every stack option takes a comma list and becomes an axis."""
    from sweeps.execute import forecast_rows, provenance, run_sweep
    from sweeps.named import named_sweep

    rope = options.pop("rope")
    given = {field: values for field, values in options.items() if values is not None}
    if rope is not None:
        given["rope"] = (rope,)
    sweep = named_sweep(name).with_options(given, seeds)
    out = out or Path(f"{name}.zarr")
    if dry_run:
        plan = {"cells": len(sweep.cells), "runs": len(sweep.units()), "out": str(out)}
        show_json({**sweep.configuration(), **plan, **provenance(), "forecast": forecast_rows(sweep)})
        return
    run_sweep(sweep, out, resume=resume, workers=workers)
    click.echo(f"{out}: {len(sweep.cells)} cells", err=True)


@sweep_group.command("status")
@click.argument("store", type=click.Path(path_type=Path))
@json_option
def sweep_status(store: Path, as_json: bool) -> None:
    """How many cells of a store are to do, done, failed and diverged."""
    from sweeps.execute import count_status

    counts = count_status(store)
    if as_json:
        show_json(counts)
    else:
        click.echo("  ".join(f"{name} {count}" for name, count in counts.items()))


@sweep_group.command("compact")
@click.argument("store", type=click.Path(path_type=Path))
def sweep_compact(store: Path) -> None:
    """Rewrite a complete store with one chunk per variable: the same bits in few files."""
    from sim.store import compact

    compact(store)


@cli.command()
@click.argument("store", type=click.Path(path_type=Path))
@json_option
def onset(store: Path, as_json: bool) -> None:
    """Measured collapse front of every finished cell of a sweep."""
    from sweeps.compare import onset_cells

    cells = onset_cells(store)
    if as_json:
        show_json({"cells": cells})
    elif cells:
        show_table(cells)
    else:
        click.echo("no finished cells")


@cli.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of the README.")
def compare(stores: tuple[Path, ...], as_json: bool, as_markdown: bool) -> None:
    """Predicted against measured fronts, by setting; the forecast is the one each STORE began with."""
    from sweeps.compare import compare as compare_stores
    from sweeps.compare import markdown

    document = compare_stores(list(stores))
    if as_json:
        show_json(document)
    elif as_markdown:
        click.echo(markdown(document))
    else:
        show_comparison(document)


def show_comparison(document: dict[str, Any]) -> None:
    """Print the table of a comparison and its summary line."""
    show_table(document["rows"])
    median, mean = document["median_abs_relative_error"], document["mean_abs_relative_error"]
    if median is not None:
        click.echo(f"|relative error| of the predictions: median {median:.2%}, mean {mean:.2%}")


@cli.command()
@click.argument("names", nargs=-1)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("paper_figs/data"),
    show_default=True,
    help="Folder of stores.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("figures"),
    show_default=True,
    help="Folder of PNG files.",
)
def figures(names: tuple[str, ...], data: Path, out: Path) -> None:
    """Draw figures (all, or NAMES) from stores."""
    from paper_figs import draw_figures

    for path in draw_figures(names, data, out):
        click.echo(path)


@cli.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for store and figures.",
)
@click.pass_context
def demo(ctx: click.Context, out: Path) -> None:
    """The whole chain, small, on a CPU: prove, sweep, compare, draw."""
    from paper_figs import draw_figures
    from sweeps.compare import compare as compare_stores
    from sweeps.demo import DEMO_WORKERS, demo_sweep
    from sweeps.execute import run_sweep

    proofs = [stated.prove() for stated in LAWS.values()]
    failed = [proof.tag for proof in proofs if not proof.proved]
    click.echo(f"{len(proofs) - len(failed)} of {len(proofs)} laws proved for every size: {', '.join(LAWS)}")
    store = out / "collapse_front.zarr"
    run_sweep(demo_sweep(), store, resume=True, workers=DEMO_WORKERS)
    show_comparison(compare_stores([store]))
    for path in draw_figures((), out, out):
        click.echo(f"drawn: {path}")
    ctx.exit(1 if failed else 0)


def main() -> None:
    """Entry point: whatever the user can put right becomes one line on stderr and exit 2."""
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = 2
    except click.ClickException as error:
        click.echo(f"mms: {error.format_message()}", err=True)
        status = 2
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        click.echo(f"mms: {' '.join(str(error).split())}", err=True)
        status = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("mms: stopped; a sweep goes on with --resume", err=True)
        status = 130
    sys.exit(status)
