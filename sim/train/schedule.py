"""Learning-rate schedules: a linear ramp, a linear warm-up to a constant rate, or a jump of the rate."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Learning rate min(peak, slope * step) at step 1, 2, ...: a linear ramp, or a warm-up to a constant.

    Attributes:
        slope: rate gained per step; infinite for a constant rate from the first step on.
        peak: upper limit of the rate; infinite for a ramp without limit.
        first_rate: rate of the first `first_steps` steps, which replaces min(peak, slope * step) there.
        first_steps: number of steps at `first_rate`.

    Raises:
        ValueError: slope or peak is not positive, or both are infinite.
    """

    slope: float = math.inf
    peak: float = math.inf
    first_rate: float = 0.0
    first_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("slope", "peak"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a schedule must be positive, got {getattr(self, name)}")
        if math.isinf(self.slope) and math.isinf(self.peak):
            raise ValueError("a schedule needs a finite slope (a ramp), a finite peak, or both")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        return self.first_rate if step <= self.first_steps else min(self.peak, self.slope * step)
