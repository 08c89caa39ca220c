"""Rival explanations of the critical rate: exponents in slope and depth, and how sub-layers add up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Rival:
    """One explanation of the critical rate eta_c = C k^a L^b of a ramp eta = k t.

    Attributes:
        name: its key in `RIVALS`.
        says: the condition for collapse, in one line.
        slope_exponent: the exponent a of the slope.
        depth_exponent: the exponent b of the depth at a fixed slope; None if it makes no claim.
    """

    name: str
    says: str
    slope_exponent: float
    depth_exponent: float | None

    def critical_rate(
        self, slope: float, depth: float, *, rate: float, at_slope: float, at_depth: float
    ) -> float | None:
        """Extrapolate a known critical rate to another slope and depth; None if it makes no claim.

        Args:
            slope: learning rate gained per step.
            depth: number of blocks.
            rate: the known critical rate.
            at_slope: slope at which it is known.
            at_depth: depth at which it is known.
        """
        if self.depth_exponent is None:
            if depth != at_depth:
                return None
            return rate * (slope / at_slope) ** self.slope_exponent
        return rate * (slope / at_slope) ** self.slope_exponent * (depth / at_depth) ** self.depth_exponent


RIVALS: Mapping[str, Rival] = {
    rival.name: rival
    for rival in (
        Rival(
            name="coherent",
            says="the mean writes of all steps and layers add up: L gamma sum(eta) = u",
            slope_exponent=1 / 2,
            depth_exponent=-1 / 2,
        ),
        Rival(
            name="diffusive",
            says="layers add up, steps are independent: (L gamma)^2 sum(eta^2) = u^2",
            slope_exponent=1 / 3,
            depth_exponent=-2 / 3,
        ),
        Rival(
            name="instantaneous",
            says="one step of all layers is too large: L gamma eta = u",
            slope_exponent=0.0,
            depth_exponent=-1.0,
        ),
        Rival(
            name="independent",
            says="one step of 2 L independent sub-layers is too large: sqrt(2 L) gamma eta = u (Admin)",
            slope_exponent=0.0,
            depth_exponent=-1 / 2,
        ),
        Rival(
            name="edge",
            says="adaptive edge of stability: eta lambda = 2 (1 + beta1) / (1 - beta1), at one depth",
            slope_exponent=0.0,
            depth_exponent=None,
        ),
    )
}
"""The rivals of law O1, by name."""


def edge_of_stability(beta1: float) -> float:
    """eta lambda at which a quadratic of preconditioned curvature lambda oscillates under Adam's momentum.

    Law O1, with a frozen preconditioner: 2 (1 + beta1) / (1 - beta1), 38 at beta1 = 0.9, 2 without momentum.

    Raises:
        ValueError: beta1 outside [0, 1).
    """
    if not 0 <= beta1 < 1:
        raise ValueError(f"beta1 must be in [0, 1), got {beta1}")
    return 2 * (1 + beta1) / (1 - beta1)


def sub_layer_sum(count: Any, coherence: Any) -> Any:
    """|sum of n changes|^2 / |one change|^2 = n (1 + (n - 1) r) at mean pair cosine r (law O2)."""
    return count * (1 + (count - 1) * coherence)
