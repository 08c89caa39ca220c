"""Interventions that begin at a training step and act from then on."""

from collections.abc import Sequence
from contextlib import ExitStack

from torch import nn

from meanmode.sim.intervene.grammar import Intervention
from meanmode.sim.intervene.interventions import Interventions


class ScheduledInterventions:
    """The interventions of a training run on its network.

    Args:
        network: network to change.
        schedule: pairs of the first step and the intervention as text.

    Raises:
        ValueError: the network does not have the blocks or parameters of an intervention.
    """

    def __init__(self, network: nn.Module, schedule: Sequence[tuple[int, str]]) -> None:
        self._network, self._schedule = network, schedule
        # constructing all of them refuses impossible ones before training begins
        Interventions(network, [Intervention.parse(text) for _, text in schedule])
        self._acting: tuple[str, ...] = ()
        self._active = ExitStack()

    def begin_step(self, step: int) -> None:
        """Activate the interventions that begin at this step or began earlier."""
        wanted = tuple(text for first, text in self._schedule if first <= step)
        if wanted != self._acting:
            self.close()
            self._acting = wanted
            asked = [Intervention.parse(text) for text in wanted]
            self._active.enter_context(Interventions(self._network, asked))

    def close(self) -> None:
        """End all interventions."""
        self._active.close()
        self._acting = ()
