"""Random mixing matrices at initialisation and their derivatives, from the Gram matrix of the tokens."""

# W realisations (leading axes of any number), H heads, T tokens, K columns of a root of the Gram matrix,
# F features per head, R rotary pairs

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.special import expit, log_expit

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


def _rotated(features: Array, angles: Array | None) -> Array:
    """Rotate the first half of the features [..., T, F] against the second."""
    if angles is None:
        return features
    first, second = np.split(features, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)


def _elu_plus_one(features: Array) -> Array:
    return np.where(features > 0, features + 1, np.exp(np.minimum(features, 0)))


@dataclass(frozen=True, slots=True)
class Side:
    """Queries or keys after QK-Norm.

    Attributes:
        features: normalised and rotated [..., H, T, F], of squared length F.
        lengths: lengths before the norm over sqrt(F), at unit gain [..., H, T, 1].
    """

    features: Array
    lengths: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Operands:
    """What mixing matrices are computed from: queries and keys, logits of a scan [..., H, T], or nothing."""

    sides: tuple[Side, Side] | None = None
    logits: Array | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """The law of the mixing matrices of one layer, given the Gram matrix C of its input.

    Exact at every width: with Gaussian W_Q the queries of a head are R G, where R R^T = C and G is standard
    normal [K, F], up to a factor that QK-Norm removes; keys likewise, independently. The decays of a scan are
    sigmoid(s R G + b), one column of G per head.

    Attributes:
        mixer: `softmax`, `linear`, `uniform`, `gated` or `state_space`.
        identity: e of the mixer e I + l A.
        share: l of it.
        width: features per head.
        count: heads of the stack, over which the offsets b of the decays run.
        gate_std: s, the standard deviation of a gate.
        mask: whether token i may attend to token j [T, T]; None allows all pairs.
        angles: rotary angles of the tokens [T, R]; None rotates nothing.
    """

    mixer: str
    identity: float
    share: float
    width: int
    count: int
    gate_std: float
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
            count=setting.heads,
            gate_std=setting.weight_std * setting.width**0.5,
            mask=mask,
            angles=angles,
        )

    def features(self, root: Array, heads: int, random: np.random.Generator) -> Array:
        """Gaussian features of unit gain for every head [..., H, T, F]."""
        *lead, tokens, columns = root.shape
        drawn = root @ random.standard_normal((*lead, columns, heads * self.width))
        return np.moveaxis(drawn.reshape(*lead, tokens, heads, self.width), -2, -3)

    def side(self, features: Array) -> Side:
        """QK-Norm and positions of the queries or keys of every head [..., H, T, F]."""
        lengths = np.sqrt(np.sum(features**2, axis=-1, keepdims=True) / self.width)
        return Side(_rotated(features / lengths, self.angles), lengths)

    def operands(self, root: Array, heads: int, random: np.random.Generator) -> Operands:
        """Draw what the matrices of independent heads are computed from."""
        if self.mixer == "uniform":
            return Operands()
        if self.mixer == "state_space":
            *lead, _, columns = root.shape
            logits = self.gate_std * (root @ random.standard_normal((*lead, columns, heads)))
            offsets = np.log(2.0 ** np.arange(1, self.count + 1) - 1)  # as meanmode.sim.trunk.state_space
            logits = logits + np.resize(offsets, heads)
            return Operands(logits=np.swapaxes(logits, -1, -2))
        queries, keys = (self.side(self.features(root, heads, random)) for _ in range(2))
        return Operands(sides=(queries, keys))

    def matrices(self, root: Array, heads: int, operands: Operands) -> Array:
        """The mixing matrices e I + l A of these heads, or those of a scan [..., H, T, T]."""
        if operands.logits is not None:
            onward, back = _scans(operands.logits)
            return onward + back
        mixing = self._attention(root, heads, operands)
        if self.identity:
            mixing = self.share * mixing + self.identity * np.eye(root.shape[-2])
        return mixing

    def _attention(self, root: Array, heads: int, operands: Operands) -> Array:
        tokens = root.shape[-2]
        if operands.sides is None:
            entries = np.ones((*root.shape[:-2], heads, tokens, tokens))
        elif self.mixer == "linear":
            queries, keys = (_elu_plus_one(side.features) for side in operands.sides)
            entries = queries @ np.swapaxes(keys, -1, -2)
        else:  # a score is at most sqrt(F), so its exponential needs no shift
            queries, keys = (side.features for side in operands.sides)
            entries = queries @ np.swapaxes(keys / np.sqrt(self.width), -1, -2)
            np.exp(entries, out=entries)
        if self.mask is not None:
            entries *= self.mask
        entries /= entries.sum(-1, keepdims=True)
        return entries

    def drawn(self, root: Array, heads: int, random: np.random.Generator) -> Array:
        """Independent mixing matrices [..., H, T, T] of tokens with this root of their Gram matrix."""
        return self.matrices(root, heads, self.operands(root, heads, random))

    def groups(self, root: Array, heads: int) -> list[int]:
        """Numbers of heads, `heads` in all, whose matrices fit in about 64 MB together."""
        group = max(1, 2**22 // (int(np.prod(root.shape[:-2])) * root.shape[-2] ** 2))
        if self.mixer == "state_space":  # the offsets run over the heads of the stack
            group = max(1, group // self.count) * self.count
        return [min(group, heads - start) for start in range(0, heads, group)]

    def expected_gram(self, root: Array, heads: int, random: np.random.Generator) -> Array:
        """Mean over drawn heads of M C M^T: the Gram matrix of the heads at infinite width."""
        total = np.zeros((*root.shape[:-1], root.shape[-2]))
        for group in self.groups(root, heads):
            total += summed_gram(self.drawn(root, group, random) @ root[..., None, :, :])
        return total / heads

    def drawn_outputs(self, root: Array, heads: int, random: np.random.Generator) -> Array:
        """Mixed values of all heads [..., T, H F] with drawn Gaussian W_V of unit gain, and gates if any."""
        mixing = self.drawn(root, heads, random)
        mixed = np.moveaxis(mixing @ self.features(root, heads, random), -3, -2)
        mixed = mixed.reshape(*mixed.shape[:-2], -1)
        if self.mixer == "gated":
            *lead, _, columns = root.shape
            mixed *= expit(self.gate_std * (root @ random.standard_normal((*lead, columns, mixed.shape[-1]))))
        return mixed

    def pulled_back(self, operands: Operands, mixing: Array, cotangent: Array) -> list[Array]:
        """Adjoints of the tokens that reach them through the mixing matrices, before the last projection.

        Args:
            operands: of these heads.
            mixing: their matrices [..., H, T, T].
            cotangent: adjoints of the matrices [..., H, T, T].

        Returns:
            Arrays [..., H, T, K]; W_Q, W_K or the projection of the decays, of any gain that QK-Norm leaves,
            turns the sum of their Gram matrices into that of the tokens' adjoints.
        """
        if operands.logits is not None:
            return [self.gate_std * _scan_slopes(operands.logits, cotangent)[..., None]]
        if operands.sides is None or not self.share:
            return []
        attention, linear = mixing, self.mixer == "linear"
        if self.identity:
            attention = (mixing - self.identity * np.eye(mixing.shape[-1])) / self.share
        scores = self.share * cotangent
        scores = scores - np.sum(attention * scores, axis=-1, keepdims=True)
        mapped = [_elu_plus_one(side.features) if linear else side.features for side in operands.sides]
        if linear:
            entries = mapped[0] @ np.swapaxes(mapped[1], -1, -2)
            allowed = np.ones_like(entries) if self.mask is None else self.mask
            scores = scores * allowed / np.sum(entries * allowed, axis=-1, keepdims=True)
        else:
            scores = attention * scores / np.sqrt(self.width)
        found = []
        for side, other, slopes in zip(
            operands.sides, mapped[::-1], (scores, np.swapaxes(scores, -1, -2)), strict=True
        ):
            adjoint = slopes @ other
            if linear:
                adjoint = adjoint * np.minimum(_elu_plus_one(side.features), 1)
            along = np.sum(adjoint * side.features, axis=-1, keepdims=True) / self.width
            adjoint = (adjoint - along * side.features) / side.lengths
            found.append(_rotated(adjoint, None if self.angles is None else -self.angles))
        return found


def summed_gram(features: Array) -> Array:
    """Sum over heads of the Gram matrices of their features [..., H, T, K]."""
    flat = np.moveaxis(features, -3, -2)
    flat = flat.reshape(*flat.shape[:-2], -1)
    return np.asarray(flat @ np.swapaxes(flat, -1, -2))


def _products(log_keep: Array) -> Array:
    """prod_{s < k <= t} a_k at (t, s), 0 above the diagonal [..., T, T]; exponents are never positive."""
    total = np.cumsum(log_keep, axis=-1)
    exponents = np.minimum(total[..., :, None] - total[..., None, :], 0)
    return np.asarray(np.tril(np.exp(exponents)))


def _scans(logits: Array) -> tuple[Array, Array]:
    """Half of the matrices of the scan in each direction: (1 - a_s) prod_{s < k <= t} a_k (law N10)."""
    write, log_keep = expit(-logits), log_expit(logits)
    onward = 0.5 * _products(log_keep) * write[..., None, :]
    back = 0.5 * _products(log_keep[..., ::-1])[..., ::-1, ::-1] * write[..., None, :]
    return onward, back


def _scan_slopes(logits: Array, cotangent: Array) -> Array:
    """Adjoints of the logits [..., T]: d ln M_ts / d logit_k is 1 - a_k for s < k <= t and -a_s for k = s."""
    keep, total = expit(logits), np.zeros_like(logits)
    for matrix, flipped in zip(_scans(logits), (False, True), strict=True):
        weighted = cotangent * matrix
        if flipped:
            weighted = weighted[..., ::-1, ::-1]
        ahead = np.flip(np.cumsum(np.flip(weighted, -2), axis=-2), -2)  # [k, s]: sum over t >= k
        carried, written = np.tril(ahead, -1).sum(-1), weighted.sum(-2)
        if flipped:
            carried, written = carried[..., ::-1], written[..., ::-1]
        total += (1 - keep) * carried - keep * written
    return total
