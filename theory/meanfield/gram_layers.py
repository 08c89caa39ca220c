"""The sub-layers of the Gram recursion: how a block moves the cosines of all pairs of tokens."""

# W realisations, T tokens, D width, K columns of a root of a Gram matrix

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from meanmode.theory.meanfield.gram_heads import Heads, gram_root
from meanmode.theory.meanfield.swiglu_moments import sigmoid_kernel, silu_kernel
from meanmode.theory.setting import Gains, Setting

Array = NDArray[np.float64]
SHORTEST = 1e-7
"""Tokens shorter than this after a merge, relative to before, are zero up to rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """Which weights are drawn; the others enter by their expectation at infinite width.

    Attributes:
        heads: heads drawn per layer.
        writers: whether the writers W_O and W_2 are drawn, which gives tokens finitely many features.
        readers: whether all other weights are.
        group: number of the realisations that are drawn together, part of every seed.
    """

    heads: int
    writers: bool
    readers: bool
    group: int

    def generator(self, layer: int, use: int) -> np.random.Generator:
        """The random stream of a sub-layer and a use, the same in every pass."""
        return np.random.default_rng(np.random.SeedSequence(0, spawn_key=(self.group, layer, use)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A sub-layer of the forward pass, as the backward pass needs it.

    Attributes:
        index: number of the sub-layer, even for attention, odd for SwiGLU.
        cosines: cosines of its input [W, T, T].
        root: a root R of them, R R^T = C [W, T, K].
        written: Gram matrix of the input of its writer, per unit of gain [W, T, T].
        lengths: lengths of the tokens after the merge, where 1 is that before it [W, T].
        after: unit tokens after the norm [W, T, D], or their cosines [W, T, T] if no writer is drawn.
    """

    index: int
    cosines: Array
    root: Array
    written: Array
    lengths: Array
    after: Array


def gram(tokens: Array) -> Array:
    """Gram matrix of tokens [..., T, K]."""
    return np.asarray(tokens @ np.swapaxes(tokens, -1, -2))


class GramLayers:
    """The sub-layers of one setting.

    Args:
        setting: the stack.
        means: J, the projector on the means over segments [T, T].
        heads: law of the mixing matrices.
    """

    def __init__(self, setting: Setting, means: Array, heads: Heads) -> None:
        self.setting, self.means, self.heads = setting, means, heads
        writer = setting.weight_std if setting.writer_std is None else setting.writer_std
        self.read, write = setting.weight_std**2 * setting.width, writer**2 * setting.width
        self.gate_std = float(np.sqrt(self.read))
        self.attention_gain = self.read * write
        self.ffn_gain = setting.ffn_ratio * self.attention_gain

    def gain(self, index: int) -> float:
        """Energy that a sub-layer writes per unit of the energy of its writer's input."""
        return self.ffn_gain if index % 2 else self.attention_gain

    def gains(self, index: int) -> Gains:
        """Gains of the merge of a sub-layer."""
        return self.setting.writer_gains[index % 2]

    def parts(self, tokens: Array, mean: float, centered: float) -> Array:
        """(mean J + centered P) X, J and P by segment."""
        if mean == centered:
            return centered * tokens
        return centered * tokens + (mean - centered) * (self.means @ tokens)

    def parts_of_gram(self, matrix: Array, mean: float, centered: float) -> Array:
        """S G S with S = mean J + centered P."""
        half = self.parts(matrix, mean, centered)
        return self.parts(np.swapaxes(half, -1, -2), mean, centered)

    def step(self, tokens: Array, index: int, drawn: Drawn) -> Layer:
        """One sub-layer with its merge and its norm, from unit tokens, or cosines if no writer is drawn."""
        width = self.setting.width
        cosines = gram(tokens) if drawn.writers else tokens
        few = not drawn.writers or cosines.shape[-1] <= width
        root = gram_root(cosines) if few else tokens  # of K = min(T, D) columns
        inner = self._swiglu if index % 2 else self._attention
        written, gains = inner(cosines, root, index, drawn), self.gains(index)
        branch = self.gain(index) * written
        if drawn.writers:
            noise = drawn.generator(index, 1).standard_normal((*cosines.shape[:-1], width))
            output = gram_root(branch) @ noise / np.sqrt(width)
            merged = self.parts(tokens, gains.mean_skip, gains.centered_skip)
            merged = merged + self.parts(output, gains.mean_write, gains.centered_write)
            lengths = _checked_lengths(np.sqrt(np.sum(merged**2, axis=-1)))
            after = merged / lengths[..., None]
        else:  # the Gram matrix of trunk with branch vanishes on average, as W_O is fresh
            matrix = self.parts_of_gram(cosines, gains.mean_skip, gains.centered_skip)
            matrix = matrix + self.parts_of_gram(branch, gains.mean_write, gains.centered_write)
            diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
            lengths = _checked_lengths(np.sqrt(np.maximum(diagonal, 0)))
            after = matrix / (lengths[..., :, None] * lengths[..., None, :])
        return Layer(index=index, cosines=cosines, root=root, written=written, lengths=lengths, after=after)

    def _attention(self, cosines: Array, root: Array, index: int, drawn: Drawn) -> Array:
        """Gram matrix of the input of W_O per unit of gain."""
        if drawn.readers:
            outputs = self.heads.drawn_outputs(root, drawn.heads, drawn.generator(index, 0))
            return gram(outputs) / outputs.shape[-1]
        mixed = self.heads.expected_gram(root, drawn.heads, drawn.generator(index, 0))
        if self.setting.mixer == "gated":
            mixed *= sigmoid_kernel(self.gate_std)(cosines)
        return mixed

    def _swiglu(self, cosines: Array, root: Array, index: int, drawn: Drawn) -> Array:
        """Gram matrix of the input of W_2 per unit of gain."""
        if not drawn.readers:
            return np.asarray(cosines * silu_kernel(self.gate_std)(cosines))
        random = drawn.generator(index, 0)
        shape = (*root.shape[:-2], root.shape[-1], self.setting.ffn_width)
        gate, value = (root @ random.standard_normal(shape) for _ in range(2))
        gate *= self.gate_std
        hidden = gate * expit(gate) * value
        return gram(hidden) / self.setting.ffn_width


def _checked_lengths(lengths: Array) -> Array:
    if not (lengths > SHORTEST).all():
        raise ValueError(
            f"the merge leaves a token of relative length {lengths.min():.1g}, which has no direction: hard "
            "centering needs segments of several different tokens"
        )
    return lengths
