"""Random attention heads of a stack at initialisation, drawn from the Gram matrix of its tokens alone."""

# W realisations (leading axes of any number), H heads, T tokens, K columns of a root of the Gram matrix,
# F features per head, R rotary pairs

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.special import expit

from meanmode.theory.meanfield.row_moments import attention_of
from meanmode.theory.setting import Setting, identity_blend

Array = NDArray[np.float64]
ROPE_THETA = 10000.0
JITTER = 1e-11
"""Added to the diagonal before a Cholesky factorisation, since a collapsed Gram matrix is singular."""


def gram_root(gram: Array, most: int | None = None) -> Array:
    """Root R of a Gram matrix, R R^T = C [..., T, K]: lower triangular, or of at most `most` columns.

    With `most` below T the Gram matrix must have that rank; what exceeds it is dropped.
    """
    tokens = gram.shape[-1]
    if most is None or tokens <= most:
        lift = JITTER / tokens * np.trace(gram, axis1=-2, axis2=-1) + np.finfo(float).tiny  # silent writers
        raised = gram + lift[..., None, None] * np.eye(tokens)
        if gram.ndim == 2:
            return np.asarray(cholesky(raised, lower=True, check_finite=False))
        return np.asarray(np.linalg.cholesky(raised))
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors[..., -most:] * np.sqrt(np.maximum(values[..., None, -most:], 0)))


def rope_angles(tokens: int, text_tokens: int, head_width: int) -> Array:
    """2-D rotary angles [T, R] of image tokens that form a square; text tokens, which follow, keep angle 0.

    The row sets the first half of the R = head_width / 2 pairs, the column the second, with the frequencies
    theta^(-2 k / R).
    """
    side, pairs = math.isqrt(tokens), head_width // 2
    frequency = ROPE_THETA ** (-2.0 * np.arange(pairs // 2) / pairs)
    index = np.arange(tokens)
    rows, columns = np.outer(index // side, frequency), np.outer(index % side, frequency)
    return np.concatenate([np.hstack([rows, columns]), np.zeros((text_tokens, pairs))])


def _rotated(features: Array, angles: Array) -> Array:
    """Rotate the first half of the features [..., T, F] against the second."""
    first, second = np.split(features, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """The law of the mixing matrices A of one attention layer, given the Gram matrix C of its input.

    Exact at every width: with Gaussian W_Q the queries of a head are R G, where R R^T = C and G is standard
    normal [K, F], up to a factor that QK-Norm removes; keys likewise, independently.

    Attributes:
        mixer: `softmax`, `linear`, `uniform`, `gated` or a blend with the identity.
        identity: e of the mixer e I + l A.
        share: l of it.
        width: features per head.
        mask: whether token i may attend to token j [T, T]; None allows all pairs.
        angles: rotary angles of the tokens [T, R]; None rotates nothing.
    """

    mixer: str
    identity: float
    share: float
    width: int
    mask: NDArray[np.bool_] | None
    angles: Array | None

    @classmethod
    def of(cls, setting: Setting, mask: NDArray[np.bool_] | None, angles: Array | None) -> "Heads":
        """The heads of a setting."""
        identity, share = identity_blend(setting.mixer, setting.mixer_share)
        return cls(
            mixer=attention_of(setting.mixer),
            identity=identity,
            share=share,
            width=setting.head_width,
            mask=mask,
            angles=angles,
        )

    def _features(self, root: Array, heads: int, random: np.random.Generator) -> Array:
        """Normalised queries or keys [..., H, T, F], |q|^2 = F."""
        *lead, tokens, columns = root.shape
        drawn = random.standard_normal((*lead, columns, heads * self.width))
        features = (root @ drawn).reshape(*lead, tokens, heads, self.width)
        features *= np.sqrt(self.width / np.sum(features**2, axis=-1, keepdims=True))
        features = np.moveaxis(features, -2, -3)
        return features if self.angles is None else _rotated(features, self.angles)

    def drawn(self, root: Array, heads: int, random: np.random.Generator) -> Array:
        """Independent attention matrices A [..., H, T, T] of tokens with this root of their Gram matrix."""
        tokens = root.shape[-2]
        if self.mixer == "uniform":
            entries = np.ones((*root.shape[:-2], heads, tokens, tokens))
        else:
            queries, keys = (self._features(root, heads, random) for _ in range(2))
            if self.mixer == "linear":
                queries, keys = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (queries, keys))
                entries = queries @ np.swapaxes(keys, -1, -2)
            else:  # a score is at most sqrt(F), so its exponential needs no shift
                entries = queries @ np.swapaxes(keys / np.sqrt(self.width), -1, -2)
                np.exp(entries, out=entries)
        if self.mask is not None:
            entries *= self.mask
        entries /= entries.sum(-1, keepdims=True)
        return entries

    def mixed(self, attention: Array, values: Array) -> Array:
        """(e I + l A) V for the values [..., H, T, K] of every head, or [..., 1, T, K] shared by all."""
        if self.identity:
            return self.identity * values + self.share * (attention @ values)
        return attention @ values

    def expected_gram(self, root: Array, heads: int, random: np.random.Generator) -> Array:
        """Mean over drawn heads of M C M^T, M = e I + l A: the Gram matrix of the heads at infinite width.

        Heads are drawn in groups whose matrices fit in about 64 MB.
        """
        tokens = root.shape[-2]
        group = max(1, 2**22 // (int(np.prod(root.shape[:-2])) * tokens**2))
        total = np.zeros((*root.shape[:-2], tokens, tokens))
        for start in range(0, heads, group):
            attention = self.drawn(root, min(group, heads - start), random)
            mixed = np.moveaxis(self.mixed(attention, root[..., None, :, :]), -3, -2)
            mixed = mixed.reshape(*mixed.shape[:-2], -1)
            total += mixed @ np.swapaxes(mixed, -1, -2)
        return total / heads

    def drawn_outputs(self, root: Array, heads: int, gate_std: float, random: np.random.Generator) -> Array:
        """Mixed values of all heads [..., T, H F] with drawn Gaussian W_V of unit gain, and gates if any."""
        *lead, tokens, columns = root.shape
        attention = self.drawn(root, heads, random)
        values = (root @ random.standard_normal((*lead, columns, heads * self.width))).reshape(
            *lead, tokens, heads, self.width
        )
        mixed = np.moveaxis(self.mixed(attention, np.moveaxis(values, -2, -3)), -3, -2)
        mixed = mixed.reshape(*lead, tokens, -1)
        if self.mixer == "gated":
            mixed *= expit(gate_std * (root @ random.standard_normal((*lead, columns, mixed.shape[-1]))))
        return mixed
