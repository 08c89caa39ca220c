"""Learning-rate schedules: a ramp, a warm-up to a constant rate or to a cosine decay, or a jump."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Learning rate min(peak, slope * step) at step 1, 2, ...: a linear ramp, or a warm-up to a constant.

    With `decayed_by` the rate goes down after the peak, along half a cosine, and is 0 from that step on.

    Attributes:
        slope: rate gained per step; infinite for a constant rate from the first step on.
        peak: upper limit of the rate; infinite for a ramp without limit.
        first_rate: rate of the first `first_steps` steps, which replaces min(peak, slope * step) there.
        first_steps: number of steps at `first_rate`.
        decayed_by: step at which the rate has decayed to 0; 0 for no decay.

    Raises:
        ValueError: slope or peak is not positive, both are infinite, or one is infinite and the rate decays.
    """

    slope: float = math.inf
    peak: float = math.inf
    first_rate: float = 0.0
    first_steps: int = 0
    decayed_by: int = 0

    def __post_init__(self) -> None:
        for name in ("slope", "peak"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a schedule must be positive, got {getattr(self, name)}")
        if math.isinf(self.slope) and math.isinf(self.peak):
            raise ValueError("a schedule needs a finite slope (a ramp), a finite peak, or both")
        if self.decayed_by and math.isinf(self.slope + self.peak):
            raise ValueError("a schedule that decays needs a warm-up: a finite slope and a finite peak")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        if step <= self.first_steps:
            return self.first_rate
        rate = min(self.peak, self.slope * step)
        top = self.peak / self.slope
        if not self.decayed_by or step <= top:
            return rate
        gone = min((step - top) / max(self.decayed_by - top, 1.0), 1.0)
        return rate * (1 + math.cos(math.pi * gone)) / 2
