"""`mms verify` and `mms law`: prove the laws, and show one with its proof."""

import time
from dataclasses import dataclass
from typing import Any

import click

from meanmode.sweeps.cli.options import json_option, show_json
from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.proof.law import Law, Proof
from meanmode.theory.proof.second_check import Comparison


@dataclass(frozen=True, kw_only=True, slots=True)
class _Check:
    """What both checkers say of one law."""

    proof: Proof
    comparisons: tuple[Comparison, ...]
    seconds: float

    @property
    def disagreed(self) -> list[str]:
        """Names of the steps with which the second checker disagrees."""
        pairs = zip(self.proof.steps, self.comparisons, strict=True)
        return [step.name for step, comparison in pairs if not comparison.agrees]

    @property
    def proved(self) -> bool:
        """Whether the kernel proves the law and the second checker agrees."""
        return self.proof.proved and not self.disagreed

    def row(self) -> dict[str, Any]:
        """The law in the JSON document."""
        return {
            "tag": self.proof.tag,
            "proved": self.proved,
            "steps": len(self.proof.steps),
            "proved_steps": self.proof.proved_steps,
            "cited": list(self.proof.cited),
            "prose": list(self.proof.prose),
            "instances": sum(comparison.instances for comparison in self.comparisons),
            "disagreed": self.disagreed,
            "seconds": self.seconds,
        }

    def verdict(self) -> str:
        """The verdict in one line."""
        if not self.proved:
            return f"FAILED at: {'; '.join(self._failures()) or 'no steps'}"
        row = self.row()
        parts = [f"proved in {row['proved_steps']} steps"]
        parts += [f"{len(row['cited'])} cited"] if row["cited"] else []
        parts += [f"{len(row['prose'])} of its claims completed in words"] if row["prose"] else []
        return f"{', '.join(parts)}; equal on {row['instances']} instances, {self.seconds:.2f} s"

    def _failures(self) -> list[str]:
        """Steps that a checker refuses, each with its reason."""
        found = []
        for step, decision, comparison in zip(
            self.proof.steps, self.proof.decisions, self.comparisons, strict=True
        ):
            if step.name in self.proof.failed:
                found.append(f"{step.name} ({decision.reason})")
            if not comparison.agrees:
                found.append(f"{step.name} (second checker: {comparison.reason})")
        return found


def _check(stated: Law) -> _Check:
    start = time.perf_counter()
    proof, comparisons = stated.prove(), stated.compare()
    return _Check(proof=proof, comparisons=comparisons, seconds=time.perf_counter() - start)


@click.command()
@click.argument("tags", nargs=-1)
@json_option
@click.pass_context
def verify(ctx: click.Context, tags: tuple[str, ...], as_json: bool) -> None:
    """Prove all laws, or those named by TAGS, for every size, and compare every step with random instances.

    Exits with 1 if the kernel refuses a step or the second checker disagrees with one.
    """
    from meanmode.theory.laws.all_laws import law

    checks = [_check(law(tag)) for tag in tags or LAWS]
    proved = all(check.proved for check in checks)
    if as_json:
        show_json({"laws": [check.row() for check in checks], "all_proved": proved})
    else:
        for check in checks:
            stated = LAWS[check.proof.tag]
            click.echo(f"{stated.tag}  {stated.title}\n    {stated.statement}")
            click.echo(f"    assumes {'; '.join(stated.assumes)}")
            click.echo(f"    {check.verdict()}   [{stated.source}]")
        click.echo(f"{sum(check.proved for check in checks)} of {len(checks)} laws proved")
    ctx.exit(0 if proved else 1)


@click.command("law")
@click.argument("tag")
@click.option("--latex", is_flag=True, help="Print the steps as LaTeX.")
def show_law(tag: str, latex: bool) -> None:
    """Show the law TAG: its claims and what shows each, assumptions, source and proof steps."""
    import sympy

    from meanmode.theory.laws.all_laws import law

    stated = law(tag)
    proof = stated.prove()
    click.echo(f"{stated.tag}: {stated.title}\n{stated.statement}\nassumes: {'; '.join(stated.assumes)}")
    click.echo(f"source: {stated.source}")
    for clause in stated.clauses:
        click.echo(f"- {clause.says}\n  by {proof.shows(clause)}")
    for number, (step, decision) in enumerate(zip(proof.steps, proof.decisions, strict=True), start=1):
        click.echo(f"\n{number}. {step.name}  [{decision.verdict.value}]{'  ' + decision.reason}".rstrip())
        if step.theorem:
            click.echo(f"   {step.theorem}\n   its conditions: {step.conditions}")
            continue
        click.echo(f"   {sympy.latex(step.formula()) if latex else step.formula()}")
        if step.witness != 0:
            click.echo(f"   the difference is {sympy.latex(step.witness) if latex else step.witness}")
        if step.at:
            click.echo(f"   at {', '.join(f'{name} = {value}' for name, value in step.at.items())}")
