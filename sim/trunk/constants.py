"""Default epsilons of the trunk's norms; no torch."""

QK_EPS = 1e-6
"""Added to the mean square in QK-Norm."""


MERGE_EPS = 1e-5
"""Added to the mean square in the RMSNorm of a merge."""
