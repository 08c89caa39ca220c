"""`mms results`: the generated tables of the pages of results and the gallery, from the committed stores."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("paper_figs/data"),
    show_default=True,
    help="Folder of the stores.",
)
@click.option(
    "--docs",
    type=click.Path(path_type=Path),
    default=Path("docs"),
    show_default=True,
    help="Folder of the pages, with all folders in it.",
)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a table is out of date.")
@click.pass_context
def results(ctx: click.Context, data: Path, docs: Path, check: bool) -> None:
    """Rewrite the generated tables and the gallery in a folder; the detector's table takes some minutes."""
    from tqdm import tqdm

    from meanmode.paper_figs.gallery import gallery
    from meanmode.sweeps.studies.results.pages import refreshed
    from meanmode.sweeps.studies.results.tables import TABLES

    pages, tables = sorted(docs.rglob("*.md")), {**TABLES, "gallery": gallery}
    if not pages:
        raise ValueError(f"{docs} holds no Markdown page: give the folder of the pages with --docs")
    stale = []
    for page in tqdm(pages, desc="pages", leave=False):
        text, calls = refreshed(page.read_text(), tables, data)
        stale += [f"{page}: {call}" for call in calls]
        if calls and not check:
            page.write_text(text)
    for line in stale:
        click.echo(f"{'out of date' if check else 'rewritten'}: {line}")
    if not stale:
        click.echo("every generated table is up to date")
    ctx.exit(1 if check and stale else 0)
