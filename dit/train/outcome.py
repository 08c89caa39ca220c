"""How a session of training ended."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a session of training ended.

    Attributes:
        step: last step of the session.
        loss: loss at the last step of the run.
        stopped: `steps` if the run is complete, else what ended it: `divergence`, `collapse` or `alarm`.
    """

    step: int
    loss: float
    stopped: str

    @property
    def diverged(self) -> bool:
        """Whether the run ended with a loss that is not finite, whatever ended it."""
        return not math.isfinite(self.loss)

    def __str__(self) -> str:
        ends = {"steps": "complete", "divergence": "the loss is not finite", "collapse": "collapsed"}
        ends["alarm"] = "stopped on an alarm"
        loss = f", loss {self.loss:.4g}" if math.isfinite(self.loss) else ""
        return f"{ends[self.stopped]} at step {self.step}{loss}"
