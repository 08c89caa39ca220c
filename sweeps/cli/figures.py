"""`mms figures` and `mms demo`: draw figures from stores, or run the whole chain at a small size."""

from pathlib import Path

import click

from meanmode.sweeps.cli.compare import show_comparison
from meanmode.theory.laws.all_laws import LAWS


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("paper_figs/data"),
    show_default=True,
    help="Folder of the stores and forecasts to draw, or a run (its folder or store), which event_run draws.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("figures"),
    show_default=True,
    help="Folder to write the files to.",
)
@click.option("--pdf", is_flag=True, help="Also write a vector PDF of every figure.")
def figures(names: tuple[str, ...], data: Path, out: Path, pdf: bool) -> None:
    """Draw all figures, or those called NAMES, from stores, as PNG files one or two columns wide."""
    from meanmode.paper_figs.all_figures import draw_figures

    for path in draw_figures(names, data, out, pdf=pdf):
        click.echo(path)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder to write the store and the figures to.",
)
@click.pass_context
def demo(ctx: click.Context, out: Path) -> None:
    """Run the whole chain at a small size on a CPU: prove, sweep, compare, draw."""
    from meanmode.paper_figs.all_figures import draw_figures
    from meanmode.sim.store.destination import check_writable
    from meanmode.sweeps.engine.execution import run_sweep
    from meanmode.sweeps.named.demo import DEMO_WORKERS, demo_sweep
    from meanmode.sweeps.studies.comparison import compare as compare_stores

    store = out / "collapse_front.zarr"
    check_writable(store)
    proofs = [stated.prove() for stated in LAWS.values()]
    failed = [proof.tag for proof in proofs if not proof.proved]
    click.echo(f"{len(proofs) - len(failed)} of {len(proofs)} laws proved for every size: {', '.join(LAWS)}")
    run_sweep(demo_sweep(), store, resume=True, workers=DEMO_WORKERS)
    show_comparison(compare_stores([store]))
    for path in draw_figures((), out, out):
        click.echo(f"drawn: {path}")
    ctx.exit(1 if failed else 0)
