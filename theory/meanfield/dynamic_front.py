"""The dynamic front: where a stack of current weights collapses, from their sizes and what they share."""

# S samples, T tokens, D width, R shared directions, M rows of a matrix, H heads, F features per head,
# L blocks, W realisations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from meanmode.theory.meanfield.front import crossing
from meanmode.theory.meanfield.gram_heads import Heads, Operands, rope_angles
from meanmode.theory.setting import Gains, Setting

Array = NDArray[np.float64]
REALISATIONS = 8
TINY = 1e-30
UNCOVERED = ("gated", "state_space")
"""Mixers whose trained gates or decays the overlaps do not hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """A matrix [M, D] as its product with the shared directions of the trunk, and the size of the rest.

    A writer [D, M] is described by its transpose: its product is then what it writes along the directions.

    Attributes:
        basis: orthonormal directions E of the trunk [D, R]; R = 0 leaves the size alone.
        shared: W E [M, R].
        rest: standard deviation of the entries of W (1 - E E^T), |W (1 - E E^T)|_F / sqrt(M (D - R)).
    """

    basis: Array
    shared: Array
    rest: float

    @classmethod
    def of(cls, matrix: ArrayLike, basis: Array) -> "Overlap":
        """Measure a matrix [M, D] against directions [D, R], R < D."""
        weight = np.asarray(matrix, dtype=np.float64)
        shared = weight @ basis
        energy = max(float(np.square(weight).sum() - np.square(shared).sum()), 0.0)
        entries = len(weight) * (basis.shape[0] - basis.shape[1])
        return cls(basis=basis, shared=shared, rest=(energy / entries) ** 0.5)

    def drawn(self, random: np.random.Generator) -> Array:
        """The same overlap and size, otherwise random: W E E^T + rest G (1 - E E^T) [M, D]."""
        fresh = self.rest * random.standard_normal((len(self.shared), len(self.basis)))
        return fresh + (self.shared - fresh @ self.basis) @ self.basis.T


@dataclass(frozen=True, kw_only=True, slots=True)
class Coherence:
    """Cross Gram of trunk X and branch F of one sub-layer, both outside the shared directions.

    J is the mean over the tokens of a sample, P = 1 - J; inner products are summed over samples.

    Attributes:
        mean: <JX, JF> / <JX, JX>; of fresh weights 0 +- sqrt(gain / D), and with it the front is that of
            sizes. Blocks that each raise the mean by a little add up.
        centered: <PX, PF> / <PX, PX>.
        gain: |JF - mean JX|^2 / |JX|^2, how strongly readers and writer together respond to the trunk's mean;
            None takes it from the sizes, as for SwiGLU, whose response depends on the cosines themselves.
    """

    mean: float
    centered: float
    gain: float | None

    @classmethod
    def of(cls, trunk: Array, branch: Array, basis: Array) -> "Coherence":
        """Measure the trunk and the branch of a sub-layer [S, T, D]."""
        (mean, rest), (into, around) = (_parts(_outside(of, basis)) for of in (trunk, branch))
        energy = max(float(np.sum(mean**2)), TINY)
        along = float(np.sum(mean * into)) / energy
        return cls(
            mean=along,
            centered=float(np.sum(rest * around)) / max(float(np.sum(rest**2)), TINY),
            gain=float(np.sum((into - along * mean) ** 2)) / energy,
        )

    def imposed(self, trunk: Array, branch: Array, basis: Array) -> Array:
        """The branch, changed by multiples of JX, PX and JF, so that it has this coherence."""
        outside = _outside(branch, basis)
        (mean, rest), (into, around) = _parts(_outside(trunk, basis)), _parts(outside)
        drawn = Coherence.of(trunk, branch, basis)
        across = into - drawn.mean * mean
        if self.gain is not None and drawn.gain:
            across = across * (self.gain / drawn.gain) ** 0.5
        centered = around + (self.centered - drawn.centered) * rest
        return np.asarray(branch - outside + across + self.mean * mean + centered)


def _outside(x: Array, basis: Array) -> Array:
    return x - (x @ basis) @ basis.T


def _parts(x: Array) -> tuple[Array, Array]:
    mean = x.mean(-2, keepdims=True)
    return mean, x - mean


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockOverlaps:
    """One block of current weights, as far as the dynamic front sees it.

    Attributes:
        queries: W_Q; None for a mixer without queries and keys.
        keys: W_K.
        values: W_V.
        attention_writer: W_O^T.
        gate: the half of W_13 under the SiLU.
        hidden: its other half.
        ffn_writer: W_2^T.
        attention: coherence of the attention branch with the trunk; None leaves the branch as it is drawn.
        ffn: the same of the SwiGLU branch.
        merge_attn: gains of the merge after attention.
        merge_ffn: gains of the merge after the FFN.
    """

    queries: Overlap | None
    keys: Overlap | None
    values: Overlap
    attention_writer: Overlap
    gate: Overlap
    hidden: Overlap
    ffn_writer: Overlap
    attention: Coherence | None
    ffn: Coherence | None
    merge_attn: Gains
    merge_ffn: Gains


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicFront:
    """The predicted collapse of a stack of current weights, in blocks.

    Attributes:
        front: mean over realisations of the first block with TCS >= 0.9, interpolated; None if fewer than
            half of them reach it.
        front_std: standard deviation over realisations; None with `front`.
        tcs: TCS after blocks 0, 1, ..., L, averaged over samples and realisations [L + 1].
        samples: front of every realisation [W]; inf if it was not reached.
    """

    front: float | None
    front_std: float | None
    tcs: Array
    samples: Array = dataclasses.field(repr=False)


def dynamic_front(
    setting: Setting,
    blocks: Sequence[BlockOverlaps],
    tokens: ArrayLike,
    realisations: int = REALISATIONS,
) -> DynamicFront:
    """Predict the collapse front of a stack of current weights from what its blocks share.

    At initialisation the branches of different blocks are orthogonal to the trunk on average, and only sizes
    matter. Trained blocks share directions, in two ways.

    *Shared directions* E [D, R], which the writers of all blocks write. With x_t = E a_t + r_t and r_t
    orthogonal to E, a reader gives W x_t = (W E) a_t + a Gaussian part of covariance rest^2 r_s . r_t, a
    writer E (E^T W) y_t + a Gaussian part, orthogonal to E, of covariance rest^2 y_s . y_t. The coefficients
    add up along the depth: their cross Gram matrix with the branch is A (E^T W) Y^T, not zero on average.

    *Coherence with the trunk's mean.* The trunk forgets: its mean at a block is what the blocks before it
    wrote, another direction at every depth. What each block adds along that mean, <JX, JF> = k <JX, JX>, adds
    up all the same: with m the energy of the mean and g its gain, m (1 + k)^2 + m g over the new squared
    length, in place of m (1 + g). A k of 0.1 for 100 sub-layers outweighs all sizes, and needs changes of the
    weights of some percent.

    All else is drawn afresh: coefficients and Gram matrix are then a Markov chain, of which this follows
    realisations. Without shared directions and coherence it is the chain of law E4 with measured sizes. So
    are blocks with a strong direction each that others do not share: rank without coherence.

    The tokens enter through their Gram matrix and their coefficients along E alone, besides what the
    coherences were measured with. Heuristic: the rest is Gaussian and independent between matrices; the
    coherence does not depend on the cosines.

    Args:
        setting: sizes, mixer and positions of the stack; weights, depth, merge and input come from the
            other arguments.
        blocks: the overlaps of all blocks in order.
        tokens: input of the stack [S, T, D], of any lengths.
        realisations: number of draws of the rest.

    Raises:
        ValueError: no blocks, tokens that do not fit the setting, or a mixer that is not covered.
    """
    if not blocks:
        raise ValueError("a dynamic front needs the overlaps of at least one block")
    if setting.mixer in UNCOVERED:
        raise ValueError(f"the dynamic front does not cover the mixer {setting.mixer!r}: it sees no gates")
    inputs = np.asarray(tokens, dtype=np.float64)
    expected = (sum(setting.segments), setting.width)
    if inputs.ndim != 3 or inputs.shape[1:] != expected:
        raise ValueError(f"tokens must be [samples, {expected[0]}, {expected[1]}], got {list(inputs.shape)}")
    chain = _Chain(setting, blocks)
    seeds = np.random.SeedSequence(0).spawn(realisations)
    profiles = np.stack([chain.profile(inputs, np.random.default_rng(seed)) for seed in seeds], axis=1)
    samples = crossing(profiles)
    reached = samples[np.isfinite(samples)]
    found = 2 * len(reached) >= realisations
    return DynamicFront(
        front=float(reached.mean()) if found else None,
        front_std=float(reached.std()) if found else None,
        tcs=profiles.mean(1),
        samples=samples,
    )


class _Chain:
    """The stack with all weights drawn that the overlaps leave open."""

    def __init__(self, setting: Setting, blocks: Sequence[BlockOverlaps]) -> None:
        self.setting, self.blocks = setting, blocks
        rotated = setting.rope and setting.mixer != "uniform"
        angles = rope_angles(setting.tokens, setting.text_tokens, setting.head_width) if rotated else None
        self.heads = Heads.of(setting, None, angles)
        counts = [count for count in setting.segments if count]
        owner = np.repeat(np.arange(len(counts)), counts)
        self.means = (owner[:, None] == owner) / np.take(counts, owner)

    def profile(self, tokens: Array, random: np.random.Generator) -> Array:
        """TCS after blocks 0 to L, averaged over samples [L + 1], in one realisation."""
        x = _normalised(tokens)
        found = [_mean_cosine(x)]
        for block in self.blocks:
            for layer, coherence, writer, gains in (
                (self._attention, block.attention, block.attention_writer, block.merge_attn),
                (self._swiglu, block.ffn, block.ffn_writer, block.merge_ffn),
            ):
                branch = layer(block, x, random)
                if coherence is not None:
                    branch = coherence.imposed(x, branch, writer.basis)
                x = self._merged(x, branch, gains)
            found.append(_mean_cosine(x))
        return np.array(found)

    def _attention(self, block: BlockOverlaps, x: Array, random: np.random.Generator) -> Array:
        values = self._split(x @ block.values.drawn(random).T)
        operands = Operands()
        if block.queries is not None and block.keys is not None:
            queries, keys = (self._split(x @ of.drawn(random).T) for of in (block.queries, block.keys))
            operands = Operands(sides=(self.heads.side(queries), self.heads.side(keys)))
        mixed = self.heads.matrices(x, self.setting.heads, operands) @ values
        joined = np.moveaxis(mixed, -3, -2).reshape(*x.shape)
        return np.asarray(joined @ block.attention_writer.drawn(random))

    def _split(self, features: Array) -> Array:
        """Features [S, T, D] by head [S, H, T, F]."""
        return np.moveaxis(features.reshape(*features.shape[:-1], self.setting.heads, -1), -2, -3)

    def _swiglu(self, block: BlockOverlaps, x: Array, random: np.random.Generator) -> Array:
        gate, hidden = (x @ of.drawn(random).T for of in (block.gate, block.hidden))
        return np.asarray((gate * expit(gate) * hidden) @ block.ffn_writer.drawn(random))

    def _merged(self, trunk: Array, branch: Array, gains: Gains) -> Array:
        """The trunk after a merge and its norm; means are taken in each segment."""
        merged = gains.centered_skip * trunk + gains.centered_write * branch
        skip, write = gains.mean_skip - gains.centered_skip, gains.mean_write - gains.centered_write
        if skip or write:
            merged = merged + self.means @ (skip * trunk + write * branch)
        return _normalised(merged)


def _normalised(tokens: Array) -> Array:
    """RMSNorm: |x|^2 = D."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(tokens / np.sqrt(np.square(tokens).mean(-1, keepdims=True)))


def _mean_cosine(tokens: Array) -> float:
    """TCS of tokens with |x|^2 = D [S, T, D], averaged over samples."""
    count, width = tokens.shape[-2:]
    energy = np.square(tokens.sum(-2)).sum(-1) / width
    return float(np.mean((energy - count) / (count * (count - 1))))
