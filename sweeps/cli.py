"""The command line `mms`: verify, law, predict, sweep, onset, compare, figures, demo."""

import sys
from pathlib import Path
from typing import Any

import click

from sweeps.cli_detect import detect, margin
from sweeps.cli_encode import encode
from sweeps.cli_evaluate import evaluate
from sweeps.cli_import import import_log
from sweeps.cli_predict import predict
from sweeps.cli_sample import sample
from sweeps.cli_study import waiting
from sweeps.cli_sweep import sweep_group
from sweeps.cli_train import export, train
from sweeps.options import json_option, show_json, show_table
from theory import LAWS


@click.group()
@click.version_option(package_name="mean-mode-screaming")
def cli() -> None:
    """Will a very deep diffusion transformer collapse, when, and why: derive, predict, measure, compare."""


cli.add_command(predict)
cli.add_command(sweep_group)
cli.add_command(train)
cli.add_command(encode)
cli.add_command(import_log)
cli.add_command(detect)
cli.add_command(margin)
cli.add_command(waiting)
cli.add_command(sample)
cli.add_command(evaluate)
cli.add_command(export)


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
            {
                "tag": proof.tag,
                "proved": proof.proved,
                "steps": len(proof.steps),
                "cited": list(proof.cited),
                "seconds": proof.seconds,
            }
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


@cli.command()
@click.argument("store", type=click.Path(path_type=Path))
@json_option
def onset(store: Path, as_json: bool) -> None:
    """Measured onset of a training run with its evidence, or the collapse fronts of a sweep's finished cells.

    STORE is a sweep, a run's folder or its telemetry.
    """
    from sim.run_reader import is_run
    from sweeps.compare import onset_cells

    if is_run(store):
        show_run_onset(store, as_json)
        return
    cells = onset_cells(store)
    if as_json:
        show_json({"cells": cells})
    elif cells:
        show_table(cells)
    else:
        click.echo("no finished cells")


def show_run_onset(store: Path, as_json: bool) -> None:
    """Print the label of a run, its alarms, and when which signal moved."""
    from sweeps.run_onset import evidence_rows, onset_document, onset_lines

    document = onset_document(store)
    if as_json:
        show_json(document)
        return
    for line in onset_lines(store, document):
        click.echo(line)
    if document["evidence"]:
        show_table(evidence_rows(document))


@cli.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the tables of the README.")
def compare(stores: tuple[Path, ...], as_json: bool, as_markdown: bool) -> None:
    """Predicted against measured fronts, by setting; the forecast is the one each STORE began with."""
    from sweeps.compare import compare as compare_stores
    from sweeps.markdown import as_tables

    document = compare_stores(list(stores))
    if as_json:
        show_json(document)
    elif as_markdown:
        click.echo(as_tables(document))
    else:
        show_comparison(document)


def show_comparison(document: dict[str, Any]) -> None:
    """Print the table of a comparison, that of the first moves of signals if there are any, and a summary."""
    moves = [row for row in document["rows"] if row["quantity"] == "first_move"]
    show_table([row for row in document["rows"] if row not in moves])
    if moves:
        show_table(moves)
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
        click.echo("mms: stopped; a sweep or a run goes on with --resume", err=True)
        status = 130
    sys.exit(status)


if __name__ == "__main__":  # accelerate launch -m sweeps.cli train ...
    main()
