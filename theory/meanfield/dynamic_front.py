"""The dynamic front: the recursion run with gains measured block by block on the current weights."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meanmode.theory.meanfield.cosine_tables import Tables
from meanmode.theory.meanfield.forward import MeanField, MergeGains
from meanmode.theory.meanfield.front import FrontPrediction, crossing
from meanmode.theory.meanfield.predicted_front import REALISATIONS, Walkers
from meanmode.theory.setting import Gains, Setting

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockGains:
    """Factors by which one block multiplies energies, measured on its current weights.

    Attributes:
        attention: energy per feature of W_O W_V x for a token of unit energy; at initialisation
            weight_std^2 D writer_std^2 D.
        ffn: the same for W2 W_value over the hidden units, without the gate; at initialisation r times
            `attention`.
        gate_std: standard deviation of the gates for a token of unit energy.
        merge_attn: gains of the merge after attention.
        merge_ffn: gains of the merge after the FFN.
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
    """One recursion per sub-layer; the tables depend only on the standard deviation of the gates."""

    def __init__(self, setting: Setting, blocks: Sequence[BlockGains]) -> None:
        self.start = MeanField(setting)
        self.fields = [field for gains in blocks for field in self._fields(setting, gains)]

    def _fields(self, setting: Setting, gains: BlockGains) -> Iterator[MeanField]:
        # gate deviations are rounded to 0.1 %, so that similar blocks share a table
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
        for index, field in enumerate(self.fields):
            walkers.field = field
            walkers.step(field.ffn if index % 2 else field.attention)
            if index % 2:
                states.append(walkers.cosine())
        return np.stack(states)


def dynamic_front(
    setting: Setting, blocks: Sequence[BlockGains], realisations: int = REALISATIONS
) -> FrontPrediction:
    """Predict the collapse front of a stack whose blocks have these gains, up to its last block.

    Tokens, width, mixer, batch and input cosine come from the setting; the measured gains replace its weight
    and writer std, depth and merge. Heuristic for trained weights: they are correlated with each other and
    with the tokens, while the recursion sees only their size.

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
