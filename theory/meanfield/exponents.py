"""Exponents of an untrained stack: how fast token distances and adjoints grow or shrink per block."""

# W realisations, L blocks

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meanmode.theory.meanfield.backward import Adjoint, writer_inputs
from meanmode.theory.meanfield.forward import MeanField
from meanmode.theory.meanfield.phase_diagram import BlockMap
from meanmode.theory.meanfield.predicted_front import Step, Walkers
from meanmode.theory.setting import Setting

Array = NDArray[np.float64]
REALISATIONS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Exponents:
    """Exponents at one pair cosine for T, D -> infinity, in natural logarithms of energies per block.

    Attributes:
        cosine: the pair cosine at which they hold; only at a fixed point for more than one block.
        forward: of the distance to the fixed point; at 1, of 1 - c. Negative: it is attracting.
        backward_mean: of the energy of the adjoint's token mean, from a block's output to its input.
        backward_centered: of the energy of the adjoint's centered part by itself; below a cosine of 1 the
            mean part feeds it.
    """

    cosine: float
    forward: float
    backward_mean: float
    backward_centered: float

    @property
    def backward(self) -> float:
        """Exponent of the whole adjoint: that of its faster part, since the two are triangular."""
        return max(self.backward_mean, self.backward_centered)


def exponents(block: BlockMap, cosine: float = 1.0) -> Exponents:
    """Exponents of a block at a pair cosine (derived here), exact for fresh weights and T, D -> infinity.

    With the factors of `BlockMap` (a^2 the skip, b^2 the write of a merge, for mean m and centered part p),
    the pair product of a branch F(c), F' its derivative and n the squared divisors of the norms, both passes
    share their factors, since the transposed Jacobian has the same norm:

        c' = m / (m + p)                 forward, by the quotient rule
        mean:     (a_m^2 + b_m^2 F'(c)) / n    backward, of both sub-layers
        centered: (a_p^2 + b_p^2 F'(1)) / n, and b_m^2 (F'(1) - F'(c)) / n from the mean to the centered part

    For SwiGLU F = r g c kap(c). Attention passes the mean on as (e + l)^2 and the centered part as e^2. So
    at c = 1 the centered adjoint has the exponent of 1 - c, and at c = 0 the mean adjoint has that of c.

    Raises:
        ValueError: a cosine outside of 0 to 1, or one that a merge without a mean never reaches.
    """
    if not 0 <= cosine <= 1:
        raise ValueError(f"an exponent is defined for a pair cosine from 0 to 1, got {cosine}")
    slope, gain = block.swiglu.deriv(), block.ffn_gain
    divisor = block.raised * cosine + block.spread * (1 - cosine)
    if not divisor:
        raise ValueError(
            f"a merge that removes the mean leaves no state of cosine {cosine:g}: ask for another"
        )
    between = block.raised * cosine / divisor
    turned = block.raised * block.spread / divisor**2
    here, one = gain * float(slope(between)), gain * float(slope(1.0))
    pair = gain * float(block.swiglu(between))
    mean = block.mean_skip * between + block.mean_write * pair
    part = block.part_skip * (1 - between) + block.part_write * (gain * block.at_one - pair)
    up, down = block.mean_skip + block.mean_write * here, block.part_skip + block.part_write * here
    through = block.part_skip + block.part_write * one
    norms = divisor * (mean + part)
    multiplier = turned * (up * part + mean * down) / (mean + part) ** 2
    return Exponents(
        cosine=cosine,
        forward=_log(multiplier),
        backward_mean=_log(block.raised * up / norms),
        backward_centered=_log(block.spread * through / norms),
    )


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Energies:
    """Mean logarithms over realisations after blocks 0 to L [L + 1] of a stack of finite size.

    Attributes:
        distance: of 1 - c.
        mean: of the energy of the adjoint's token mean, in units of the energy of the loss adjoint.
        centered: the same for its centered part.
    """

    distance: Array
    mean: Array
    centered: Array


def predict_energies(setting: Setting, realisations: int = REALISATIONS) -> Energies:
    """Follow the distance to the collapsed state forward and the adjoint backward, by the finite recursion.

    Raises:
        ValueError: a setting that the theory does not cover.
    """
    field = MeanField(setting)
    walkers = Walkers(field, realisations)
    distance, steps = [_mean_log(1 - walkers.cosine())], list[Step]()
    for _ in range(setting.depth):
        steps += [walkers.step(field.attention), walkers.step(field.ffn)]
        distance.append(_mean_log(1 - walkers.cosine()))
    adjoint = Adjoint(field, walkers)
    energies = [(_mean_log(adjoint.mean), _mean_log(adjoint.centered))]
    inputs = writer_inputs(field, steps) if steps else []
    for index in reversed(range(len(steps))):
        adjoint.descend(inputs[index], attention=index % 2 == 0)
        if index % 2 == 0:
            energies.append((_mean_log(adjoint.mean), _mean_log(adjoint.centered)))
    mean, centered = np.array(energies[::-1]).T
    return Energies(distance=np.array(distance), mean=mean, centered=centered)


def _mean_log(values: Array) -> float:
    return float(np.log(np.maximum(values, 1e-300)).mean())
