"""The page of all laws, what each claims and how it is proved: `python -m meanmode.theory.laws.page`."""

from collections.abc import Mapping

from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.proof.law import PREMISES, Law, Relation, Step

HEAD = """# Laws

Made by `python -m meanmode.theory.laws.page > theory/LAWS.md`. `mms verify` proves them, `mms law TAG` shows formulas.
A step marked `=` is an identity whose two sides have one normal form for every size, `>=` a difference that
is a sum of nonnegative terms, `!=` a counterexample, `by` a classical theorem that is cited.
"""


def step_line(number: int, step: Step) -> str:
    """One numbered step: how it is decided, and what it says."""
    cited = f" (by {step.theorem})" if step.relation is Relation.THEOREM else ""
    return f"{number}. `{step.relation.value}` `{step.name}`{cited}"


def section(law: Law) -> str:
    """One law: statement, assumptions, source, steps."""
    steps = [step_line(number, step) for number, step in enumerate(law.derive(PREMISES), start=1)]
    claims = [f"- `{claim.strip()}`" for claim in law.statement.split(";  ")]
    assumed = "; ".join(f"`{assumption}`" for assumption in law.assumes)
    parts = [
        f"## {law.tag}: {law.title}",
        "\n".join(claims),
        f"Assumes: {assumed}.",
        f"Source: {law.source}.",
    ]
    return "\n\n".join([*parts, "\n".join(steps)])


def laws_page(laws: Mapping[str, Law] = LAWS) -> str:
    """The whole page, in Markdown."""
    return "\n".join([HEAD, *(section(law) + "\n" for law in laws.values())])


if __name__ == "__main__":
    print(laws_page(), end="")
