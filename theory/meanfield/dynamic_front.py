"""The dynamic front: the recursion fed with gains measured block by block from current weights."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meanmode.theory.meanfield.forward import MeanField, MergeGains
from meanmode.theory.meanfield.predicted_front import REALISATIONS, FrontPrediction, Walkers, crossing
from meanmode.theory.meanfield.tables import Tables
from meanmode.theory.setting import Gains, Setting

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockGains:
    """What one block multiplies energies by now.

    Attributes:
        attention: energy per feature of W_O W_V x for a token of unit energy; weight_std^2 D writer_std^2 D
            at the initialisation.
        ffn: the same of W2 W_value over hidden units, without the gate's factor; r times `attention` there.
        gate_std: standard deviation of the gates of a token of unit energy.
        merge_attn: gains of the merge behind attention.
        merge_ffn: gains of the merge behind the FFN.
    """

    attention: float
    ffn: float
    gate_std: float
    merge_attn: Gains
    merge_ffn: Gains


def _merge_gains(gains: Gains) -> MergeGains:
    names = [field.name for field in dataclasses.fields(Gains)]
    return MergeGains(*(np.array([[getattr(gains, name)]]) for name in names))


class _MeasuredBlocks:
    """One recursion per distinct block; the tables depend on the gate's standard deviation alone."""

    def __init__(self, setting: Setting, blocks: Sequence[BlockGains]) -> None:
        self.start = MeanField(setting)
        self.fields = [field for gains in blocks for field in self._fields(setting, gains)]

    def _fields(self, setting: Setting, gains: BlockGains) -> Iterator[MeanField]:
        # nearby gate deviations share a table, in steps of 0.1 %
        rounded = float(np.exp(np.round(np.log(max(gains.gate_std, 1e-6)), 3)))
        gated = dataclasses.replace(setting, weight_std=rounded / setting.width**0.5)
        for merge in (gains.merge_attn, gains.merge_ffn):
            field = copy.copy(self.start)
            field.tables = Tables([gated])
            field.attention_gain = np.array([[gains.attention]])
            field.ffn_gain = np.array([[gains.ffn]])
            field.gate_variance = np.array([[gains.gate_std**2]])
            (field.silu_energy,) = field.tables(np.ones((1, 1)), "kernel")
            field.gains_attn = field.gains_ffn = _merge_gains(merge)
            yield field

    def cosines(self, realisations: int) -> Array:
        """Pair cosines after every block [L + 1, W, B]."""
        walkers = Walkers(self.start, realisations)
        states = [walkers.cosine()]
        for place, field in enumerate(self.fields):
            walkers.field = field
            walkers.step(field.ffn if place % 2 else field.attention)
            if place % 2:
                states.append(walkers.cosine())
        return np.stack(states)


def dynamic_front(
    setting: Setting, blocks: Sequence[BlockGains], realisations: int = REALISATIONS
) -> FrontPrediction:
    """The collapse front of a stack whose blocks have these gains, within its blocks.

    Tokens, width, mixer, batch and input cosine are the setting's; weight and writer std, depth and merge
    give way to the measured gains. Heuristic beyond initialisation: trained weights are correlated with each
    other and with the tokens, and the recursion sees their size only.

    Raises:
        ValueError: no blocks.
    """
    if not blocks:
        raise ValueError("a dynamic front needs the gains of at least one block")
    measured = _MeasuredBlocks(setting, blocks)
    mean = crossing(measured.cosines(0).mean(-1))[0]
    samples = crossing(measured.cosines(realisations).mean(-1))
    reached = samples[np.isfinite(samples)]
    found = 2 * len(reached) >= realisations
    return FrontPrediction(
        front=float(reached.mean()) if found else None,
        front_std=float(reached.std()) if found else None,
        front_deterministic=float(mean) if np.isfinite(mean) else None,
        samples=samples,
    )
