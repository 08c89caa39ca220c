"""What a trainer does on an alarm of the detector: nothing, stop, lower rates, or go back and lower them."""

from dataclasses import dataclass

import numpy as np

from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.train.optimiser import RATE_GROUPS, REST
from meanmode.sim.onset.detector import Alarm

ROLL_BACKS = 3
"""A run that fails again behind so many older checkpoints is not saved by one more."""


EVERY_GROUP = (*RATE_GROUPS, REST)


LOWERED = {"lower_readers": ("readers",), "lower_all": EVERY_GROUP, "roll_back": EVERY_GROUP}
"""The groups of parameters whose rates an action lowers."""


SAID = {
    "log": "it goes on",
    "stop": "it stops",
    "lower_readers": "the rates of the readers are lowered",
    "lower_all": "all rates are lowered",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What is done on an alarm.

    Attributes:
        action: of `TrainingConfig.on_alarm`; `lower_all` where a run is not to be rolled back once more.
        lowered: groups of parameters whose rates are multiplied by `alarm_factor`.
        before: the step that a checkpoint must be older than to go back to; None where none is asked for.
        said: a sentence.
    """

    action: str
    lowered: tuple[str, ...]
    before: int | None
    said: str


def answer(training: TrainingConfig, alarm: Alarm, roll_backs: int) -> Answer:
    """What the configuration has done on an alarm.

    Args:
        training: of the run.
        alarm: what was seen.
        roll_backs: made before.
    """
    action = training.on_alarm
    lowered = LOWERED.get(action, ())
    if action != "roll_back":
        return Answer(action=action, lowered=lowered, before=None, said=f"{alarm}; {SAID[action]}")
    if roll_backs >= ROLL_BACKS:
        said = f"{alarm}; it was rolled back {roll_backs} times already: {SAID['lower_all']}"
        return Answer(action="lower_all", lowered=lowered, before=None, said=said)
    before = min(of.first_step for of in alarm.moved) - training.event_window
    return Answer(action=action, lowered=lowered, before=before, said=str(alarm))


def order_seed(data_seed: int, roll_backs: int) -> int:
    """The seed of the order, noise, times and dropped texts of the data: another one behind a roll-back."""
    if not roll_backs:
        return data_seed
    return int(np.random.SeedSequence(data_seed, spawn_key=(roll_backs,)).generate_state(1)[0])
