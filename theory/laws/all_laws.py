"""The registry: every law by its tag, ordered so that laws build on earlier ones."""

from meanmode.theory.laws.amplification import ABSOLUTE_BOUND, BOUNDED, EQUAL_MAGNITUDES, PAIR_SUM, RAYLEIGH
from meanmode.theory.laws.controls import (
    ATTENTION_ONLY,
    DIFFERENCE_MIXERS,
    HARD_CENTERING,
    LAZY_MIXER,
    TOKEN_GATES,
)
from meanmode.theory.laws.critical_rate import COHERENT_LAYERS, RAMP
from meanmode.theory.laws.energy_ratio import ENERGY_RATIO, FRONT_ODDS, MOMENTS
from meanmode.theory.laws.escape import ESCAPE
from meanmode.theory.laws.gradient_split import GRADIENT_SPLIT
from meanmode.theory.laws.gram_chain import GRAM_CHAIN
from meanmode.theory.laws.growth import FRONT_DEPTH, MIRROR
from meanmode.theory.laws.merge_backward import BACKWARD
from meanmode.theory.laws.merge_cotangents import BRANCH_COTANGENT, NOT_A_GATE
from meanmode.theory.laws.merges import GLOBAL_MEAN, MEAN_LEAKS, MERGE_PARTS
from meanmode.theory.laws.mixers import HOMOGENEOUS_VALUES, ROW_SUM_TABLE
from meanmode.theory.laws.optimisers import CLIPPING, ORTHOGONALISED
from meanmode.theory.laws.replication import REPLICATION
from meanmode.theory.laws.row_stochastic import CENTERED_PART, MEAN_IS_KEPT
from meanmode.theory.laws.softmax_null_space import NULL_SPACE
from meanmode.theory.laws.state_space import STATE_SPACE
from meanmode.theory.proof.law import Law

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
        GRAM_CHAIN,
        FRONT_DEPTH,
        MIRROR,
        RAMP,
        COHERENT_LAYERS,
        ESCAPE,
    )
}


def law(tag: str) -> Law:
    """Return the law with this tag.

    Raises:
        ValueError: no law has this tag.
    """
    if tag not in LAWS:
        raise ValueError(f"unknown law {tag!r}: choose one of {', '.join(LAWS)}")
    return LAWS[tag]
