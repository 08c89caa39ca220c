"""Bounds of the numbers that sampling, evaluation and encoding are asked for, stated once.

They are generous: what lies beyond them is a slip of the keyboard, which would fill the memory or never end.
"""

BOUNDS: dict[str, tuple[int, int]] = {
    "side": (1, 4096),
    "limit": (1, 10**9),
    "each": (1, 1000),
    "steps": (1, 10**5),
    "seed": (0, 2**63 - 1),
    "batch": (1, 2**16),
    "samples": (3, 10**7),
    "reference": (3, 10**7),
}
"""Smallest and largest value by the name of the option and field."""


GUIDANCE, TIME_SHIFT = (0.0, 1000.0), (1e-6, 1e6)
"""Bounds of the guidance scale and of the shift of the sampling times."""
