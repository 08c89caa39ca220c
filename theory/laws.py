"""The registry: every law under its tag, in the order in which they build on each other."""

from theory.amplification import ABSOLUTE_BOUND, BOUNDED, EQUAL_MAGNITUDES, PAIR_SUM, RAYLEIGH
from theory.control_laws import (
    ATTENTION_ONLY,
    DIFFERENCE_MIXERS,
    HARD_CENTERING,
    LAZY_MIXER,
    TOKEN_GATES,
)
from theory.front_laws import ENERGY_RATIO, FRONT_DEPTH, FRONT_ODDS, MIRROR, MOMENTS
from theory.gradient_modes import GRADIENT_SPLIT
from theory.law import Law
from theory.merge_backward import BACKWARD
from theory.merge_laws import BRANCH_COTANGENT, GLOBAL_MEAN, MEAN_LEAKS, MERGE_PARTS, NOT_A_GATE
from theory.mixer_laws import HOMOGENEOUS_VALUES, ROW_SUM_TABLE
from theory.onset import COHERENT_LAYERS, RAMP
from theory.optimiser_laws import CLIPPING, ORTHOGONALISED
from theory.projectors import CENTERED_PART, MEAN_IS_KEPT
from theory.replication import REPLICATION
from theory.softmax_null_space import NULL_SPACE
from theory.state_space_law import STATE_SPACE

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
        NULL_SPACE,
        MERGE_PARTS,
        MEAN_LEAKS,
        BRANCH_COTANGENT,
        NOT_A_GATE,
        GLOBAL_MEAN,
        BACKWARD,
        REPLICATION,
        CLIPPING,
        ORTHOGONALISED,
        HARD_CENTERING,
        DIFFERENCE_MIXERS,
        LAZY_MIXER,
        TOKEN_GATES,
        ATTENTION_ONLY,
        ROW_SUM_TABLE,
        HOMOGENEOUS_VALUES,
        STATE_SPACE,
        ENERGY_RATIO,
        FRONT_ODDS,
        MOMENTS,
        FRONT_DEPTH,
        MIRROR,
        RAMP,
        COHERENT_LAYERS,
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
