"""`mms verify` and `mms law`: prove the laws, and show one with its proof."""

import click

from meanmode.sweeps.cli.options import json_option, show_json
from meanmode.theory.laws.all_laws import LAWS


@click.command()
@click.argument("tags", nargs=-1)
@json_option
@click.pass_context
def verify(ctx: click.Context, tags: tuple[str, ...], as_json: bool) -> None:
    """Prove all laws, or those named by TAGS, for every size. Exits with 1 if a proof fails."""
    from meanmode.theory.laws.all_laws import law

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


@click.command("law")
@click.argument("tag")
@click.option("--latex", is_flag=True, help="Print the steps as LaTeX.")
def show_law(tag: str, latex: bool) -> None:
    """Show the law TAG: its statement, assumptions, source and proof steps."""
    import sympy

    from meanmode.theory.laws.all_laws import law

    stated = law(tag)
    click.echo(f"{stated.tag}: {stated.title}\n{stated.statement}\nassumes: {'; '.join(stated.assumes)}")
    click.echo(f"source: {stated.source}")
    for number, step in enumerate(stated.prove().steps, start=1):
        verdict = "cited" if step.theorem else "proved" if step.holds() else "FAILED"
        click.echo(f"\n{number}. {step.name}  [{verdict}]{'  ' + step.theorem if step.theorem else ''}")
        click.echo(f"   {sympy.latex(step.formula()) if latex else step.formula()}")
        if step.witness != 0:
            click.echo(f"   the difference is {sympy.latex(step.witness) if latex else step.witness}")
