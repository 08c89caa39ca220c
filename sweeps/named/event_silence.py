"""Rare exits near the threshold: whether a collapse after a small jump comes without a drift of the loss.

What counts as silent is fixed in `meanmode.sweeps.studies.events.silence`.
"""

from meanmode.sweeps.engine.splitting.splitting_study import SplittingStudy
from meanmode.sweeps.named.critical_rate import BASE
from meanmode.sweeps.named.event_jumps import NARROW

NEAR_RATE = 0.020
"""Learning rate after the jump, near the half rate of a collapse within 60 steps. Rate and levels were chosen
on seed 99, which is not in the study: 0.018 held for 70 steps with a level signal of at most 3, and 0.0225
collapsed after 26 and 29 steps."""


EVENT_SILENCE = SplittingStudy(
    name="event_silence",
    claim="which share of the exits near the threshold is silent: no drift of the loss before the collapse",
    base=BASE.with_fields({**NARROW, "rate": NEAR_RATE}),
    parents=(1500, 1501, 1502, 1503),
    levels=(3.0, 4.5, 7.0),
    trajectories=12,
    horizon=60,
    expectation="at most 1 in 20 of the exits is silent, by the loss before the jump as well as by the loss "
    "shortly before the exit",
)
