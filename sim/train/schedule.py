"""Learning-rate schedules: warm-up, ramp and hold."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Learning rate min(peak, slope * step) at step 1, 2, ...: a linear ramp, or a warm-up to a constant.

    Attributes:
        slope: rate gained a step; infinite for a constant rate from the first step.
        peak: where the ramp ends; infinite where it does not.
        first_rate: rate of the first steps instead, from which the ramp is then entered where it is by then.
        first_steps: how many these are.

    Raises:
        ValueError: a value that is not positive, or no finite one.
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
        """The learning rate of an update, counted from 1."""
        return self.first_rate if step <= self.first_steps else min(self.peak, self.slope * step)
