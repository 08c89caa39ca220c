"""The Gram recursion: the cosines of all pairs of tokens, block by block, for inputs with structure."""

# W realisations, T tokens, L blocks, S segments, K columns of a root of a Gram matrix, D width

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meanmode.theory.meanfield.coverage import why_not_gram
from meanmode.theory.meanfield.front import crossing
from meanmode.theory.meanfield.gram_backward import GramGradients, gram_gradients, joined, mean_cosine
from meanmode.theory.meanfield.gram_heads import JITTER, Heads, gram_root, rope_angles
from meanmode.theory.meanfield.gram_layers import Drawn, GramLayers, gram
from meanmode.theory.meanfield.structured_inputs import input_cosines
from meanmode.theory.setting import Setting

Array = NDArray[np.float64]
SCORES = 4096
"""Rows of attention that `map` averages over per layer: T tokens times 4096 / T drawn heads."""

REALISATIONS = 64
"""Realisations of `walk` and `exact`."""

GROUP = 8
"""Realisations that are followed together."""


def forecast_realisations(setting: Setting) -> int:
    """Realisations of a forecast that takes seconds: 64 up to 128 tokens, fewer for more, at least 8."""
    return int(np.clip(2**20 // sum(setting.segments) ** 2, 8, REALISATIONS))


@dataclass(frozen=True, kw_only=True, slots=True)
class GramFront:
    """The collapse of one input, in blocks.

    Attributes:
        front: mean over realisations of the first block at which the TCS of the image tokens reaches 0.9,
            interpolated; None if fewer than half of them reach it within the depth.
        front_std: standard deviation over realisations; None with `front`, and for `map`.
        tcs: TCS after blocks 0, 1, ..., L, averaged over realisations [L + 1].
        profiles: TCS of every realisation [W, L + 1].
        segment_tcs: the same within each segment [L + 1, S]; NaN for a segment of one token.
        samples: front of every realisation [W]; inf if it was not reached.
        gradients: of the writers, if the backward pass was asked for.
    """

    front: float | None
    front_std: float | None
    tcs: Array
    segment_tcs: Array
    profiles: Array = field(repr=False)
    samples: Array = field(repr=False)
    gradients: GramGradients | None = field(default=None, repr=False)


class GramField:
    """One input at initialisation, followed by the T x T matrix C of the cosines of its tokens.

    For Gaussian weights C_l is a Markov chain (law E4): queries, keys, values and hidden units are R G with
    R R^T = C and G standard normal, and the writers add F = S^(1/2) G with S the Gram matrix of their input.
    The width enters only as noise.

    * `map`: no noise, infinite width at the head width of the setting. Attention writes g E[M C M^T], a mean
      over heads drawn with a fixed seed (`SCORES`); SwiGLU writes r g C k(C) entry by entry, k the SiLU
      kernel; a merge is s_m J + s_c P on the left and right of C; RMSNorm divides by the diagonal.
    * `walk`: as many heads as the setting has, and the noise of the writers W_O and W_2.
    * `exact`: draws every weight; the law of the chain, without approximation except that the norms'
      epsilons are left out.

    With `backward`, `map` and `walk` also pass the Gram matrix of the adjoints down (`GramAdjoint`).

    Args:
        setting: the stack. `batch` must be 1.
        cosines: cosines of the input's tokens [T, T] (`token_cosines`), which the network then sees exactly.
            None uses the input of the setting: tokens of these cosines, embedded at random in its width.
        segments: token counts of the segments in order, over which merges take their means; None uses those
            of the setting.
        mask: whether token i attends to token j [T, T], such as a lower triangle; None allows all pairs. A
            scan takes none.
        rope: rotary angles [T, head_width / 2]; None uses the setting's 2-D positions if it has `rope`.

    Raises:
        ValueError: the merge or the mixer is not covered, or the arguments do not fit each other.
    """

    def __init__(
        self,
        setting: Setting,
        cosines: ArrayLike | None = None,
        segments: Sequence[int] | None = None,
        mask: ArrayLike | None = None,
        rope: ArrayLike | None = None,
    ) -> None:
        reason = why_not_gram(setting)
        if reason is not None:
            raise ValueError(reason)
        if setting.mixer == "state_space" and mask is not None:
            raise ValueError("a state-space mixer scans the tokens in both directions: it takes no mask")
        self.setting, self.embedded = setting, cosines is None
        given = input_cosines(setting) if cosines is None else np.asarray(cosines, dtype=np.float64)
        self.cosines = _checked(given, sum(setting.segments))
        counts = tuple(setting.merge_segments if segments is None else segments)
        self.segments = tuple(count for count in counts if count)
        if min(counts) < 0 or sum(counts) != len(self.cosines):
            raise ValueError(f"segments {counts} do not add up to the {len(self.cosines)} tokens")
        owner = np.repeat(np.arange(len(self.segments)), self.segments)
        means = (owner[:, None] == owner) / np.take(self.segments, owner)
        angles = None
        if rope is not None:
            angles = np.asarray(rope, dtype=np.float64)
        elif setting.rope:
            angles = rope_angles(setting.tokens, setting.text_tokens, setting.head_width)
        if angles is not None and angles.shape != (len(self.cosines), setting.head_width // 2):
            raise ValueError(
                f"rope must hold {setting.head_width // 2} angles for each of {len(self.cosines)} tokens, "
                f"got shape {angles.shape}"
            )
        self.layers = GramLayers(setting, means, Heads.of(setting, self._mask(mask), angles))

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

    def map(self, *, backward: bool = False) -> GramFront:
        """The recursion at infinite width; the same on every call."""
        count = self.setting.heads if self.setting.mixer == "state_space" else 2
        heads = -(-max(2, -(-SCORES // len(self.cosines))) // count) * count
        drawn = Drawn(heads=heads, writers=False, readers=False, group=0)
        return self._front([self._followed(self.cosines[None], drawn, backward)], drawn)

    def walk(self, realisations: int = REALISATIONS, *, backward: bool = False) -> GramFront:
        """Realisations with finitely many heads and the Wishart noise of the writers, no other."""
        return self._realised(realisations, readers=False, backward=backward)

    def exact(self, realisations: int = REALISATIONS) -> GramFront:
        """Realisations of the chain itself: all weights are drawn."""
        return self._realised(realisations, readers=True, backward=False)

    def _realised(self, realisations: int, *, readers: bool, backward: bool) -> GramFront:
        if not self.embedded and self.setting.width < len(self.cosines):
            left = np.linalg.eigvalsh(self.cosines)[: -self.setting.width].sum()
            if left > 1e-6 * len(self.cosines):
                raise ValueError(
                    f"tokens of width {self.setting.width} cannot have these cosines: their rank is higher"
                )
        passes = []
        for group, start in enumerate(range(0, realisations, GROUP)):
            drawn = Drawn(heads=self.setting.heads, writers=True, readers=readers, group=group)
            tokens = self._tokens(min(GROUP, realisations - start), drawn)
            passes.append(self._followed(tokens, drawn, backward))
        return self._front(passes, drawn)

    def _tokens(self, realisations: int, drawn: Drawn) -> Array:
        """Unit tokens of the input [W, T, D]."""
        shape = (realisations, len(self.cosines), self.setting.width)
        if self.embedded:
            tokens = gram_root(self.cosines) @ drawn.generator(0, 4).standard_normal(shape)
            return np.asarray(tokens / np.linalg.norm(tokens, axis=-1, keepdims=True))
        root = gram_root(self.cosines, self.setting.width)
        tokens = np.zeros(shape)
        tokens[..., : root.shape[-1]] = root
        return tokens

    def _followed(self, tokens: Array, drawn: Drawn, backward: bool) -> tuple[Array, GramGradients | None]:
        """TCS [L + 1, W, 2 + S] of all tokens, the image and each segment, and the gradients."""
        seen = [self._observed(gram(tokens) if drawn.writers else tokens)]
        passed = []
        shape = tokens.shape[:2]
        for index in range(2 * self.setting.depth):
            layer = self.layers.step(tokens, index, drawn)
            tokens = layer.after
            if backward:
                passed.append(layer)
            if index % 2:
                seen.append(self._observed(gram(tokens) if drawn.writers else tokens))
        gradients = gram_gradients(self.layers, drawn, passed, shape) if backward else None
        return np.stack(seen), gradients

    def _front(self, passes: Sequence[tuple[Array, GramGradients | None]], drawn: Drawn) -> GramFront:
        seen = np.concatenate([profiles for profiles, _ in passes], axis=1)
        gradients = joined([found for _, found in passes if found is not None])
        samples = crossing(seen[..., 1])
        reached = samples[np.isfinite(samples)]
        found = 2 * len(reached) >= len(samples)
        return GramFront(
            front=float(reached.mean()) if found else None,
            front_std=float(reached.std()) if found and drawn.writers else None,
            tcs=seen[..., 0].mean(1),
            segment_tcs=seen[..., 2:].mean(1),
            profiles=seen[..., 0].T,
            samples=samples,
            gradients=gradients,
        )

    def _observed(self, cosines: Array) -> Array:
        """TCS of all tokens, of the image and of each segment [W, 2 + S]."""
        edges = np.cumsum([0, *self.segments])
        parts = [slice(None), slice(self.setting.tokens), *(slice(*pair) for pair in pairwise(edges))]
        return np.stack([mean_cosine(cosines[:, part, part]) for part in parts], axis=-1)


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
    if least < -JITTER:  # rounding, as of cosines in single precision
        values, vectors = np.linalg.eigh(cosines)
        cosines = (vectors * np.maximum(values, 0)) @ vectors.T
    lengths = np.sqrt(np.diagonal(cosines))
    return np.asarray(0.5 * (cosines + cosines.T) / (lengths[:, None] * lengths))
