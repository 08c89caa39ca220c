"""The phase diagram of the block map for T, D -> infinity: growth, fixed points and bistability."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from scipy.optimize import brentq

from meanmode.theory.meanfield.coverage import why_not_one_cosine
from meanmode.theory.meanfield.front import FRONT_COSINE
from meanmode.theory.meanfield.swiglu_moments import silu_kernel
from meanmode.theory.setting import Setting, identity_blend

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedPoint:
    """A pair cosine that the block map leaves unchanged.

    Attributes:
        cosine: the pair cosine.
        multiplier: derivative of the map at it.
    """

    cosine: float
    multiplier: float

    @property
    def stable(self) -> bool:
        """Whether the map contracts towards the fixed point."""
        return abs(self.multiplier) < 1


class BlockMap:
    """Map of the pair cosine through one block for T, D -> infinity, exact for fresh Gaussian weights.

    Attention averages the centered part away, so after a mixer e I + l A (0, 1 for pure attention) F has
    moments g ((e + l)^2 c + e^2 (1 - c)) for tokens and g (e + l)^2 c for pairs; SwiGLU has r g kap(1) and
    r g c kap(c), with g = (weight_std^2 D)(writer_std^2 D), r the FFN ratio and kap the kernel of silu.

    Args:
        setting: only weight and writer std times sqrt(width), the FFN ratio, the merge and the mixer matter.

    Raises:
        ValueError: a setting that the theory does not cover (`meanmode.theory.meanfield.coverage`).
    """

    def __init__(self, setting: Setting) -> None:
        reason = why_not_one_cosine(setting)
        if reason is not None:
            raise ValueError(reason)
        read = setting.weight_std**2 * setting.width
        writer_std = setting.weight_std if setting.writer_std is None else setting.writer_std
        attention_gain = read * writer_std**2 * setting.width
        self.ffn_gain = setting.ffn_ratio * attention_gain
        kernel = silu_kernel(float(np.sqrt(read)))
        self.at_zero, self.at_one = float(kernel(0.0)), float(kernel(1.0))
        self.slope_at_one = float(kernel.deriv()(1.0))
        self.swiglu = Polynomial([0.0, 1.0]) * kernel
        gains, ffn = setting.writer_gains
        identity, share = identity_blend(setting.mixer, setting.mixer_share)
        # factors of the attention merge on the energies of the mean and the centered part
        self.raised = gains.mean_skip**2 + gains.mean_write**2 * attention_gain * (identity + share) ** 2
        self.spread = gains.centered_skip**2 + gains.centered_write**2 * attention_gain * identity**2
        self.mean_skip, self.mean_write = ffn.mean_skip**2, ffn.mean_write**2
        self.part_skip, self.part_write = ffn.centered_skip**2, ffn.centered_write**2

    def __call__(self, cosine: Array) -> Array:
        """The pair cosine after one block."""
        mean = self.raised * cosine
        cosine = mean / (mean + self.spread * (1 - cosine))
        pair = self.ffn_gain * self.swiglu(cosine)
        mean = self.mean_skip * cosine + self.mean_write * pair
        part = self.part_skip * (1 - cosine) + self.part_write * (self.ffn_gain * self.at_one - pair)
        return mean / (mean + part)

    def growth(self) -> float:
        """Multiplier of a small cosine; below 1, unrelated tokens stay unrelated."""
        ffn = self.mean_skip + self.mean_write * self.ffn_gain * self.at_zero
        spread = self.part_skip + self.part_write * self.ffn_gain * self.at_one
        return self.raised * ffn / (self.spread * spread)

    def decay(self) -> float:
        """Multiplier of a small 1 - c; below 1 the collapsed state is stable; inf if no mean is left."""
        spread = self.part_skip + self.part_write * self.ffn_gain * (self.at_one + self.slope_at_one)
        raised = self.raised * (self.mean_skip + self.mean_write * self.ffn_gain * self.at_one)
        return self.spread * spread / raised if raised else np.inf

    def odds_bound(self) -> float:
        """Q with c' / (1 - c') <= Q c / (1 - c) for every c; Q < 1 proves that no input collapses.

        Attention multiplies the odds by a constant; for SwiGLU kap(c) <= kap(1), since kap is a power series
        with nonnegative coefficients.
        """
        ffn = (self.mean_skip + self.mean_write * self.ffn_gain * self.at_one) / (
            self.part_skip + self.part_write * self.ffn_gain * self.at_one
        )
        return self.raised / self.spread * ffn

    def fixed_points(self) -> list[FixedPoint]:
        """All fixed points in [0, 1], in ascending order; 0 and 1 are always among them."""
        grid = np.concatenate(
            [np.logspace(-7, -2, 500), np.linspace(0.01, 1, 4001)[1:-1], 1 - np.logspace(-3, -8, 300)]
        )
        grid = np.unique(grid)
        gap = self(grid) - grid
        points = [FixedPoint(cosine=0.0, multiplier=self.growth())]
        for left in np.flatnonzero(np.sign(gap[:-1]) * np.sign(gap[1:]) < 0):
            cosine = brentq(lambda c: float(self(np.array(c)) - c), grid[left], grid[left + 1], xtol=1e-15)
            step = 1e-6 * min(cosine, 1 - cosine)
            high, low = self(np.array(cosine + step)), self(np.array(cosine - step))
            points.append(FixedPoint(cosine=cosine, multiplier=float((high - low) / (2 * step))))
        return [*points, FixedPoint(cosine=1.0, multiplier=self.decay())]

    def threshold(self) -> float:
        """Smallest input cosine that leads past the front; 0 if all do, inf if none below the front does."""
        points = self.fixed_points()
        held = [point.cosine for point in points if point.stable and point.cosine < FRONT_COSINE]
        if not held:
            return 0.0
        beyond = [point.cosine for point in points if not point.stable and point.cosine > held[-1]]
        collapses = any(point.stable and point.cosine >= FRONT_COSINE for point in points)
        return beyond[0] if collapses and beyond else np.inf
