"""Reactions of the trainer to an alarm: log it, stop, lower learning rates, or roll back and lower them."""

from dataclasses import dataclass

import numpy as np

from meanmode.dit.config.training_config import TrainingConfig
from meanmode.sim.onset.detector import Alarm
from meanmode.sim.train.parameter_rules import RATE_GROUPS, REST

ROLL_BACKS = 3
"""Largest number of roll-backs of a run; if it still fails after these, another one will not save it."""


EVERY_GROUP = (*RATE_GROUPS, REST)
"""All groups of parameters with a learning rate."""


LOWERED = {"lower_readers": ("readers",), "lower_all": EVERY_GROUP, "roll_back": EVERY_GROUP}
"""Action -> groups of parameters whose learning rates it lowers."""


SAID = {
    "log": "training continues",
    "stop": "training stops",
    "lower_readers": "the learning rates of the readers are lowered",
    "lower_all": "all learning rates are lowered",
}
"""Action -> what the user is told about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The reaction to an alarm.

    Attributes:
        action: action as in `TrainingConfig.on_alarm`; `lower_all` if the run has used up its roll-backs.
        lowered: groups of parameters whose learning rates are multiplied by `alarm_factor`.
        before: step that the checkpoint of a roll-back must precede; None for no roll-back.
        said: message to the user.
    """

    action: str
    lowered: tuple[str, ...]
    before: int | None
    said: str


def answer(training: TrainingConfig, alarm: Alarm, roll_backs: int) -> Answer:
    """Return the reaction to an alarm.

    Args:
        training: training options of the run.
        alarm: the alarm of the detector.
        roll_backs: number of roll-backs made so far.
    """
    action = training.on_alarm
    lowered = LOWERED.get(action, ())
    if action != "roll_back":
        return Answer(action=action, lowered=lowered, before=None, said=f"{alarm}; {SAID[action]}")
    if roll_backs >= ROLL_BACKS:
        said = f"{alarm}; already rolled back {roll_backs} times: {SAID['lower_all']}"
        return Answer(action="lower_all", lowered=lowered, before=None, said=said)
    before = min(of.first_step for of in alarm.moved) - training.event_window
    return Answer(action=action, lowered=lowered, before=before, said=str(alarm))


def order_seed(data_seed: int, roll_backs: int) -> int:
    """Return the seed of the sample order, noise, times and dropped texts, new after every roll-back."""
    if not roll_backs:
        return data_seed
    return int(np.random.SeedSequence(data_seed, spawn_key=(roll_backs,)).generate_state(1)[0])
