"""Numerical constants of the trunk that need no torch."""

QK_EPS = 1e-6


MERGE_EPS = 1e-5
