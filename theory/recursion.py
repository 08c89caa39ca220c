"""The forward mean-field recursion: one pair cosine carried through the sub-layers of a Post-Norm stack."""

# W walkers (independent realisations of a sample's mean mode), N Hermite orders

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial.hermite_e import hermegauss, hermevander
from numpy.typing import NDArray
from scipy.special import expit, gammaln

from theory.setting import Setting
from theory.softmax_statistics import softmax_statistics

Array = NDArray[np.float64]

HERMITE_ORDERS = 80


@lru_cache(maxsize=64)
def silu_kernel(std: float) -> Polynomial:
    """E[silu(std u) silu(std u')] as a power series in the correlation of the standard normal pair (u, u').

    Mehler: the coefficient of c^n is the squared n-th normalised Hermite coefficient of silu(std .), so the
        value, its derivatives and its limits are exact to the truncation, 1e-15 of its value at c = 0.
    """
    nodes, weights = hermegauss(2 * HERMITE_ORDERS)
    weights = weights / weights.sum()
    silu = std * nodes * expit(std * nodes)
    norms = np.exp(-0.5 * gammaln(np.arange(HERMITE_ORDERS) + 1))
    coefficients = (hermevander(nodes, HERMITE_ORDERS - 1) * norms).T @ (weights * silu)
    return Polynomial(coefficients**2).trim(1e-15 * coefficients[0] ** 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """Second moments of a sub-layer's output, per feature: of one token, and of a pair of distinct tokens."""

    token: Array
    pair: Array


class MeanField:
    """The recursion of one setting: mean energy in, mean energy out, sub-layer by sub-layer.

    After the RMSNorm a token has |x|^2 = D, so one number describes the ensemble: the mean energy m = |JX|^2
    / (T D), with the centered energy 1 - m and the pair cosine c = (T m - 1) / (T - 1) (TCS of REFERENCE App.
    A). Assumed: fresh Gaussian weights, one cosine for all pairs, and corrections in 1/D kept to first order.
    With text tokens the two segments carry the same statistics, so T counts both; only `mv_split` tells them
    apart.

    Args:
        setting: the stack; `rope` is ignored (positions are not part of the one-cosine ansatz).

    Raises:
        ValueError: `mv_split` with text tokens, whose two segments have no common recursion.
    """

    def __init__(self, setting: Setting) -> None:
        if setting.merge == "mv_split" and setting.text_tokens:
            raise ValueError("the theory of mv_split speaks of one segment: set text_tokens to 0")
        self.setting = setting
        self.tokens = setting.tokens + setting.text_tokens
        self.width = setting.width
        self.gains = setting.gains
        read = setting.weight_std**2 * setting.width
        write = (
            setting.weight_std if setting.writer_std is None else setting.writer_std
        ) ** 2 * setting.width
        self.attention_gain = read * write
        self.ffn_gain = setting.ffn_ratio * read * write
        self.rows = softmax_statistics(self.tokens)
        kernel = silu_kernel(float(np.sqrt(read)))
        self.silu_energy = float(kernel(1.0))
        self.swiglu = Polynomial([0.0, 1.0]) * kernel
        self.swiglu_curvature = self.swiglu.deriv(2)

    def cosine(self, mean_energy: Array) -> Array:
        """Pair cosine of tokens of unit energy: c = (T m - 1) / (T - 1), exact."""
        return (self.tokens * mean_energy - 1) / (self.tokens - 1)

    def mean_energy(self, token: Array, pair: Array) -> Array:
        """Energy of the token mean from the second moments of one token and of a pair, exact."""
        return (token + (self.tokens - 1) * pair) / self.tokens

    def cosine_variance(self, cosine: Array) -> Array:
        """Variance of the pair cosines at finite width, (1 - c^2)^2 / D, as of Gaussian directions."""
        return (1 - cosine**2) ** 2 / self.width

    def attention(self, cosine: Array) -> Branch:
        """Moments of the attention output; the softmax rows enter by S_d and S_o alone."""
        square, overlap, curvature = self.rows(cosine)
        overlap = overlap + 0.5 * curvature * (1 - cosine**2) ** 2 * (
            1 / self.setting.head_width + 1 / self.width
        )
        spread = self.cosine_variance(cosine)
        token = cosine + (1 - cosine) * square + (1 - square) * spread
        pair = cosine + (1 - cosine) * overlap + (1 - overlap) * cosine * spread
        return Branch(token=self.attention_gain * token, pair=self.attention_gain * pair)

    def ffn(self, cosine: Array) -> Branch:
        """Moments of the SwiGLU output, the spread of the pair cosines kept to second order."""
        pair = self.swiglu(cosine) + 0.5 * self.cosine_variance(cosine) * self.swiglu_curvature(cosine)
        token = np.full_like(cosine, self.ffn_gain * self.silu_energy)
        return Branch(token=token, pair=self.ffn_gain * pair)

    def merge(
        self, mean_energy: Array, branch: Branch, noise: Array | None = None, kurtosis: float = 0.0
    ) -> Array:
        """Mean energy after the residual merge and its RMSNorm.

        Args:
            mean_energy: of the trunk before the merge [W].
            branch: moments of the branch output.
            noise: standard normals [2, W], or None for the mean recursion. The first tilts the branch mean
                against the trunk mean, the second is the fluctuation of the branch mean's own energy.
            kurtosis: D times the relative variance of the branch mean's energy over the weights.
        """
        gains = self.gains
        write = self.mean_energy(branch.token, branch.pair)
        mean = gains.mean_skip**2 * mean_energy + gains.mean_write**2 * write
        if noise is not None:
            tilt = (
                2 * gains.mean_skip * gains.mean_write * np.sqrt(mean_energy * write / self.width) * noise[0]
            )
            own = gains.mean_write**2 * write * np.sqrt(kurtosis / self.width) * noise[1]
            mean = np.maximum(
                mean + tilt + own, np.finfo(float).tiny
            )  # an energy; Gaussian noise knows no sign
        centered = gains.centered_skip**2 * (1 - mean_energy) + gains.centered_write**2 * (
            branch.token - write
        )
        return mean / (mean + centered)
