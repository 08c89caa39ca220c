"""The registry: every law under its tag, in the order in which they build on each other."""

from theory.amplification import ABSOLUTE_BOUND, BOUNDED, EQUAL_MAGNITUDES, PAIR_SUM, RAYLEIGH
from theory.gradient_modes import GRADIENT_SPLIT
from theory.law import Law
from theory.projectors import CENTERED_PART, MEAN_IS_KEPT

LAWS: dict[str, Law] = {
    law.tag: law
    for law in (
        MEAN_IS_KEPT,
        CENTERED_PART,
        GRADIENT_SPLIT,
        PAIR_SUM,
        RAYLEIGH,
        BOUNDED,
        EQUAL_MAGNITUDES,
        ABSOLUTE_BOUND,
    )
}


def law(tag: str) -> Law:
    """The law of a tag.

    Raises:
        ValueError: no law has this tag.
    """
    if tag not in LAWS:
        raise ValueError(f"unknown law {tag!r}: choose one of {', '.join(LAWS)}")
    return LAWS[tag]
