"""The Gram recursion: the cosines of all pairs of tokens, block by block, for inputs with structure."""

# W realisations, T tokens, L blocks, S segments, K columns of a root of a Gram matrix, D width

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from meanmode.theory.meanfield.gram_heads import Heads, gram_root, rope_angles
from meanmode.theory.meanfield.predicted_front import crossing
from meanmode.theory.meanfield.swiglu_moments import sigmoid_kernel, silu_kernel
from meanmode.theory.setting import Gains, Setting

Array = NDArray[np.float64]
SCORES = 4096
"""Rows of attention that `map` averages over per layer: T tokens times 4096 / T drawn heads."""

REALISATIONS = 32
SHORTEST = 1e-7
"""Tokens shorter than this after a merge, relative to before, are zero up to rounding."""


UNCOVERED = {
    "highway": "it normalises its branch token by token",
    "pre_norm": "its trunk has no norm",
    "state_space": "its scan is no attention matrix",
}


def token_cosines(tokens: ArrayLike) -> Array:
    """Cosine of every pair of tokens [T, T], the state of the recursion, from their features [T, D].

    Raises:
        ValueError: not a finite matrix of at least two tokens, or a token of zeros, which has no direction.
    """
    features = np.asarray(tokens, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
        raise ValueError(f"tokens must be a finite matrix of at least two rows, got shape {features.shape}")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"token {int(np.argmin(lengths))} is zero and has no direction: leave it out")
    return np.asarray((features / lengths) @ (features / lengths).T)


@dataclass(frozen=True, kw_only=True, slots=True)
class GramFront:
    """The collapse of one input, in blocks.

    Attributes:
        front: mean over realisations of the first block with TCS >= 0.9, interpolated; None if fewer than
            half of them reach it within the depth.
        front_std: standard deviation over realisations; None with `front`, and for `map`.
        tcs: TCS after blocks 0, 1, ..., L, averaged over realisations [L + 1].
        profiles: TCS of every realisation [W, L + 1].
        segment_tcs: the same within each segment [L + 1, S]; NaN for a segment of one token.
        samples: front of every realisation [W]; inf if it was not reached.
    """

    front: float | None
    front_std: float | None
    tcs: Array
    segment_tcs: Array
    profiles: Array = field(repr=False)
    samples: Array = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Which weights are drawn; the others enter by their expectation at infinite width."""

    random: np.random.Generator
    heads: int
    readers: bool
    writers: bool


class GramField:
    """One input at initialisation, followed by the T x T matrix C of the cosines of its tokens.

    For Gaussian weights C_l is a Markov chain: queries, keys, values and hidden units are R G with R R^T = C
    and G standard normal, and the writers add F = S^(1/2) G with S the Gram matrix of their input. The width
    enters only as noise.

    * `map`: no noise, infinite width at the head width of the setting. Attention writes g E[M C M^T], a mean
      over heads drawn with a fixed seed (`SCORES`); SwiGLU writes r g C k(C) entry by entry, k the SiLU
      kernel; a merge is s_m J + s_c P on the left and right of C; RMSNorm divides by the diagonal.
    * `walk`: as many heads as the setting has, and the noise of the writers W_O and W_2.
    * `exact`: draws every weight; the law of the chain, without approximation except that the norms'
      epsilons are left out.

    Args:
        setting: the stack; its width, depth, merge, mixer and standard deviations. `batch` must be 1 and
            `input_cosine` is replaced by the input.
        cosines: cosines of the input's tokens [T, T] (`token_cosines`).
        segments: token counts of the segments in order, over which merges take their means; None uses those
            of the setting.
        mask: whether token i attends to token j [T, T], such as a lower triangle; None allows all pairs.
        rope: rotary angles [T, head_width / 2]; None uses the setting's 2-D positions if it has `rope`.

    Raises:
        ValueError: the merge or the mixer is not covered, or the arguments do not fit each other.
    """

    def __init__(
        self,
        setting: Setting,
        cosines: ArrayLike,
        segments: Sequence[int] | None = None,
        mask: ArrayLike | None = None,
        rope: ArrayLike | None = None,
    ) -> None:
        for name in (*setting.merges, setting.mixer):
            if name in UNCOVERED:
                raise ValueError(f"the Gram recursion does not cover {name!r}: {UNCOVERED[name]}")
        if setting.batch != 1:
            raise ValueError(f"the Gram recursion follows one sample: batch must be 1, got {setting.batch}")
        self.setting = setting
        self.cosines = _checked(np.asarray(cosines, dtype=np.float64), sum(setting.segments))
        counts = tuple(setting.segments if segments is None else segments)
        self.segments = tuple(count for count in counts if count)
        if min(counts) < 0 or sum(counts) != len(self.cosines):
            raise ValueError(f"segments {counts} do not add up to the {len(self.cosines)} tokens")
        self.owner = np.repeat(np.arange(len(self.segments)), self.segments)
        self.means = (self.owner[:, None] == self.owner) / np.take(self.segments, self.owner)
        angles = None
        if rope is not None:
            angles = np.asarray(rope, dtype=np.float64)
        elif setting.rope:
            angles = rope_angles(setting.tokens, setting.text_tokens, setting.head_width)
        self.heads = Heads.of(setting, self._mask(mask), angles)
        if angles is not None and angles.shape != (len(self.cosines), setting.head_width // 2):
            raise ValueError(
                f"rope must hold {setting.head_width // 2} angles for each of {len(self.cosines)} tokens, "
                f"got shape {angles.shape}"
            )
        writer = setting.weight_std if setting.writer_std is None else setting.writer_std
        self.read, self.write = setting.weight_std**2 * setting.width, writer**2 * setting.width
        self.gate_std = float(np.sqrt(self.read))

    def _mask(self, mask: ArrayLike | None) -> NDArray[np.bool_] | None:
        if mask is None:
            return None
        allowed = np.asarray(mask, dtype=bool)
        if allowed.shape != self.cosines.shape or not allowed.any(1).all():
            raise ValueError(
                f"mask must be {len(self.cosines)} x {len(self.cosines)} with a token to attend to in every "
                f"row, got shape {allowed.shape}"
            )
        return allowed

    def map(self) -> GramFront:
        """The recursion at infinite width; the same on every call."""
        heads = max(2, -(-SCORES // len(self.cosines)))
        return self._followed(1, heads, readers=False, writers=False)

    def walk(self, realisations: int = REALISATIONS) -> GramFront:
        """Realisations with finitely many heads and the Wishart noise of the writers, no other."""
        return self._followed(realisations, self.setting.heads, readers=False, writers=True)

    def exact(self, realisations: int = REALISATIONS) -> GramFront:
        """Realisations of the chain itself: all weights are drawn."""
        return self._followed(realisations, self.setting.heads, readers=True, writers=True)

    def _followed(self, realisations: int, heads: int, *, readers: bool, writers: bool) -> GramFront:
        random = np.random.default_rng(np.random.SeedSequence(0))
        drawn = _Drawn(random, heads, readers, writers)
        if writers and self.setting.width < len(self.cosines):
            left = np.linalg.eigvalsh(self.cosines)[: -self.setting.width].sum()
            if left > 1e-6 * len(self.cosines):
                raise ValueError(
                    f"tokens of width {self.setting.width} cannot have these cosines: their rank is higher"
                )
        cosines = self.cosines
        if writers:
            cosines = np.repeat(cosines[None], realisations, axis=0)
        profiles = [self._observed(cosines)]
        for _ in range(self.setting.depth):
            for attention in (True, False):
                cosines = self._step(cosines, attention, drawn)
            profiles.append(self._observed(cosines))
        seen = np.stack(profiles)
        samples = crossing(seen[..., 0])
        reached = samples[np.isfinite(samples)]
        found = 2 * len(reached) >= len(samples)
        return GramFront(
            front=float(reached.mean()) if found else None,
            front_std=float(reached.std()) if found and writers else None,
            tcs=seen[..., 0].mean(1),
            segment_tcs=seen[..., 1:].mean(1),
            profiles=seen[..., 0].T,
            samples=samples,
        )

    def _observed(self, cosines: Array) -> Array:
        """TCS of all tokens and of each segment [W, 1 + S]."""
        gram = cosines.reshape(-1, *cosines.shape[-2:])
        edges = np.cumsum([0, *self.segments])
        parts = [slice(None), *(slice(*pair) for pair in pairwise(edges))]
        return np.stack([_mean_cosine(gram[:, part, part]) for part in parts], axis=-1)

    def _step(self, cosines: Array, attention: bool, drawn: _Drawn) -> Array:
        """Cosines after one sub-layer, its merge and its norm."""
        width = self.setting.width
        root = gram_root(cosines, width if drawn.writers else None)
        if attention:
            written = self.read * self.write * self._attention(cosines, root, drawn)
        else:
            gain = self.setting.ffn_ratio * self.read * self.write
            written = gain * self._swiglu(cosines, root, drawn)
        gains = self.setting.writer_gains[0 if attention else 1]
        if not drawn.writers:
            return _normalised(self._merged_gram(cosines, written, gains))
        shape = (*cosines.shape[:-1], width)
        noise = drawn.random.standard_normal((*cosines.shape[:-1], width))
        branch = gram_root(written) @ noise / np.sqrt(width)
        trunk = np.zeros(shape)
        trunk[..., : root.shape[-1]] = root
        merged = self._parts(trunk, gains.mean_skip, gains.centered_skip)
        merged = merged + self._parts(branch, gains.mean_write, gains.centered_write)
        return _normalised(merged @ np.swapaxes(merged, -1, -2))

    def _parts(self, tokens: Array, mean: float, centered: float) -> Array:
        """(mean J + centered P) X, J and P by segment."""
        if mean == centered:
            return centered * tokens
        return centered * tokens + (mean - centered) * (self.means @ tokens)

    def _merged_gram(self, trunk: Array, branch: Array, gains: Gains) -> Array:
        """Gram matrix after a merge; that of trunk with branch vanishes on average, as W_O is fresh."""
        merged = np.zeros_like(trunk)
        for gram, mean, centered in (
            (trunk, gains.mean_skip, gains.centered_skip),
            (branch, gains.mean_write, gains.centered_write),
        ):
            half = self._parts(gram, mean, centered)
            merged += self._parts(np.swapaxes(half, -1, -2), mean, centered)
        return merged

    def _attention(self, cosines: Array, root: Array, drawn: _Drawn) -> Array:
        """Gram matrix of the input of W_O per unit of gain."""
        if drawn.readers:
            outputs = self.heads.drawn_outputs(root, drawn.heads, self.gate_std, drawn.random)
            return outputs @ np.swapaxes(outputs, -1, -2) / outputs.shape[-1]
        mixed = self.heads.expected_gram(root, drawn.heads, drawn.random)
        if self.setting.mixer == "gated":
            mixed *= sigmoid_kernel(self.gate_std)(cosines)
        return mixed

    def _swiglu(self, cosines: Array, root: Array, drawn: _Drawn) -> Array:
        """Gram matrix of the input of W_2 per unit of gain."""
        if not drawn.readers:
            return np.asarray(cosines * silu_kernel(self.gate_std)(cosines))
        shape = (*root.shape[:-2], root.shape[-1], self.setting.ffn_width)
        gate, value = (root @ drawn.random.standard_normal(shape) for _ in range(2))
        gate *= self.gate_std
        hidden = gate * expit(gate) * value
        return np.asarray(hidden @ np.swapaxes(hidden, -1, -2) / self.setting.ffn_width)


def _checked(cosines: Array, tokens: int) -> Array:
    """A matrix of cosines with an exact diagonal."""
    if cosines.shape != (tokens, tokens):
        raise ValueError(
            f"the setting has {tokens} tokens: cosines must be {tokens} x {tokens}, got shape {cosines.shape}"
        )
    if not np.isfinite(cosines).all() or not np.allclose(cosines, cosines.T, atol=1e-8):
        raise ValueError("cosines must be a finite symmetric matrix")
    if not np.allclose(np.diagonal(cosines), 1, atol=1e-6):
        raise ValueError("the cosine of a token with itself is 1: normalise the tokens (token_cosines)")
    least = float(np.linalg.eigvalsh(cosines)[0])
    if least < -1e-8 * tokens:
        raise ValueError(f"no tokens have these cosines: their matrix has the negative eigenvalue {least:g}")
    return _normalised(0.5 * (cosines + cosines.T))


def _normalised(gram: Array) -> Array:
    """RMSNorm: the Gram matrix divided by the lengths of both tokens."""
    lengths = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0))
    if not (lengths > SHORTEST).all():
        raise ValueError(
            f"the merge leaves a token of relative length {lengths.min():.1g}, which has no direction: hard "
            "centering needs segments of several different tokens"
        )
    return np.asarray(gram / (lengths[..., :, None] * lengths[..., None, :]))


def _mean_cosine(gram: Array) -> Array:
    tokens = gram.shape[-1]
    if tokens < 2:
        return np.full(len(gram), np.nan)
    return np.asarray((gram.sum((-1, -2)) - np.trace(gram, axis1=-2, axis2=-1)) / (tokens * (tokens - 1)))
