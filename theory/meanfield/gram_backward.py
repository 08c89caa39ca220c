"""The backward pass on the adjoint Gram matrix: the writers' gradients of tokens with structure."""

# W realisations, H heads, T tokens, D width, L blocks, F features per head

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from meanmode.theory.meanfield.gram_heads import gram_root, summed_gram
from meanmode.theory.meanfield.gram_layers import Drawn, GramLayers, Layer, gram
from meanmode.theory.meanfield.swiglu_moments import sigmoid_kernel, silu_kernel

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class GramGradients:
    """Gradients of the writers W_O (attn) and W_2 (ffn) in every realisation.

    Attributes:
        amplification: A (A2) [W, L, 2].
        mode_ratio: G_mean / G_ctr (G1) [W, L, 2]; inf where no centered part is left.
        output_cosine: pair cosine of the adjoints of the writer's output [W, L, 2].
        adjoint_tcs: mean cosine of the adjoints dL/dX_l of distinct tokens [W, L + 1].
    """

    amplification: Array
    mode_ratio: Array
    output_cosine: Array
    adjoint_tcs: Array


def joined(groups: Sequence[GramGradients]) -> GramGradients | None:
    """The gradients of all realisations; None for no groups."""
    if not groups:
        return None
    names = ("amplification", "mode_ratio", "output_cosine", "adjoint_tcs")
    return GramGradients(**{name: np.concatenate([getattr(of, name) for of in groups]) for name in names})


def mean_cosine(matrix: Array) -> Array:
    """Mean of the entries of [..., T, T] off the diagonal; NaN for one token."""
    tokens = matrix.shape[-1]
    if tokens < 2:
        return np.full(matrix.shape[:-2], np.nan)
    off = matrix.sum((-1, -2)) - np.trace(matrix, axis1=-2, axis2=-1)
    return np.asarray(off / (tokens * (tokens - 1)))


class GramAdjoint:
    """The adjoint on its way down: its features [W, T, D] where writers are drawn, else its Gram matrix.

    The loss adjoint has pair cosine `adjoint_cosine` and is independent of the tokens. A branch returns the
    Gram matrix J(H): of its values M^T H M, of queries, keys, gates and decays the Gram matrix of their
    derivatives, drawn as the forward pass drew them; SwiGLU returns r g H (C k(C))' entry by entry. Where
    writers are drawn, the norm's Jacobian and the noise of a finite width are those of the drawn tokens.
    Heuristic: a branch's transposed weights are drawn anew, independent of what the forward pass wrote.

    Args:
        layers: the sub-layers.
        drawn: what is drawn, as in the forward pass.
        shape: W and T.
    """

    def __init__(self, layers: GramLayers, drawn: Drawn, shape: tuple[int, int]) -> None:
        self.layers, self.drawn = layers, drawn
        (_, tokens), cosine = shape, layers.setting.adjoint_cosine
        if drawn.writers:
            random, width = drawn.generator(-1 % 2**32, 2), layers.setting.width
            common = random.standard_normal((shape[0], 1, width))
            own = random.standard_normal((*shape, width))
            self.adjoint = np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own
        else:
            self.adjoint = np.broadcast_to((1 - cosine) * np.eye(tokens) + cosine, (*shape, tokens))

    def _gram(self, adjoint: Array) -> Array:
        return gram(adjoint) if self.drawn.writers else adjoint

    def cosine(self) -> Array:
        """Mean cosine of the adjoints of distinct tokens [W]."""
        matrix = self._gram(self.adjoint)
        lengths = np.sqrt(np.maximum(np.diagonal(matrix, axis1=-2, axis2=-1), np.finfo(float).tiny))
        return mean_cosine(matrix / (lengths[..., :, None] * lengths[..., None, :]))

    def descend(self, layer: Layer) -> tuple[Array, Array, Array]:
        """Pass the adjoint through a norm, a merge and a branch; return `writer_statistics` of its writer."""
        layers, gains = self.layers, self.layers.gains(layer.index)
        if self.drawn.writers:
            along = np.sum(self.adjoint * layer.after, axis=-1, keepdims=True)
            inner = (self.adjoint - along * layer.after) / layer.lengths[..., None]
            skipped = layers.parts(inner, gains.mean_skip, gains.centered_skip)
            cotangent = gram(layers.parts(inner, gains.mean_write, gains.centered_write))
        else:
            inner = self.adjoint / (layer.lengths[..., :, None] * layer.lengths[..., None, :])
            skipped = layers.parts_of_gram(inner, gains.mean_skip, gains.centered_skip)
            cotangent = layers.parts_of_gram(inner, gains.mean_write, gains.centered_write)
        returned = layers.gain(layer.index) * self._returned(layer, cotangent)
        if self.drawn.writers:
            noise = self.drawn.generator(layer.index, 2).standard_normal(skipped.shape)
            self.adjoint = skipped + gram_root(returned) @ noise / np.sqrt(layers.setting.width)
        else:
            self.adjoint = skipped + returned
        size = np.mean(np.abs(self.adjoint), axis=(-1, -2), keepdims=True)
        self.adjoint = self.adjoint / np.maximum(size, np.finfo(float).tiny)  # A does not depend on it
        return writer_statistics(layer.written, cotangent)

    def _returned(self, layer: Layer, cotangent: Array) -> Array:
        """Gram matrix of the adjoints that a branch returns, per unit of gain."""
        if layer.index % 2:
            kernel = silu_kernel(self.layers.gate_std)
            slopes = kernel(layer.cosines) + layer.cosines * kernel.deriv()(layer.cosines)
            return np.asarray(cotangent * slopes)
        return self._through_attention(layer, cotangent)

    def _through_attention(self, layer: Layer, cotangent: Array) -> Array:
        heads, drawn = self.layers.heads, self.drawn
        root, above = layer.root, gram_root(cotangent)
        random, noise = drawn.generator(layer.index, 0), drawn.generator(layer.index, 3)
        gated, gate_std = self.layers.setting.mixer == "gated", self.layers.gate_std
        valued = cotangent * sigmoid_kernel(gate_std)(layer.cosines) if gated else cotangent
        valued_root = gram_root(valued) if gated else above
        total = np.zeros_like(cotangent)
        for group in heads.groups(root, drawn.heads):
            operands = heads.operands(root, group, random)
            mixing = heads.matrices(root, group, operands)
            total += summed_gram(np.swapaxes(mixing, -1, -2) @ valued_root[..., None, :, :])
            if heads.mixer == "uniform":
                continue
            values, adjoints = (heads.features(of, group, noise) for of in (root, above))
            if gated:
                adjoints = adjoints * expit(gate_std * heads.features(root, group, noise))
            outward = adjoints @ np.swapaxes(values, -1, -2) / np.sqrt(heads.width)
            for adjoint in heads.pulled_back(operands, mixing, outward):
                total += summed_gram(adjoint)
        total /= drawn.heads
        if gated:  # the derivative of a gate's logit is its cotangent times the mixed value
            gate = sigmoid_kernel(gate_std)
            mixed = layer.written / gate(layer.cosines)
            total += cotangent * mixed * gate.deriv()(layer.cosines)
        return total


def writer_statistics(inputs: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """A, G_mean / G_ctr and the pair cosine of the adjoints of a writer, [W] each.

    From the Gram matrices Y of its input y and H of the adjoint delta of its output, [W, T, T].

    A = sum_st Y_st H_st / sum_t Y_tt H_tt (A2). G_mean^2 = T^2 |mean y|^2 |mean delta|^2 and G_ctr^2 =
    sum_st (P Y P)_st (P H P)_st (G1).
    """
    tokens = inputs.shape[-1]
    own = np.einsum("...tt,...tt->...", inputs, cotangent)
    amplification = np.sum(inputs * cotangent, axis=(-1, -2)) / own
    mean = inputs.mean((-1, -2)) * cotangent.mean((-1, -2)) * tokens**2
    parts = [
        matrix
        - matrix.mean(-1, keepdims=True)
        - matrix.mean(-2, keepdims=True)
        + matrix.mean((-1, -2), keepdims=True)
        for matrix in (inputs, cotangent)
    ]
    centered = np.maximum(np.sum(parts[0] * parts[1], axis=(-1, -2)), 0)
    with np.errstate(divide="ignore"):
        ratio = np.sqrt(np.maximum(mean, 0) / centered)
    energy = np.trace(cotangent, axis1=-2, axis2=-1)
    cosine = (cotangent.sum((-1, -2)) / energy - 1) / (tokens - 1)
    return amplification, ratio, cosine


def gram_gradients(
    layers: GramLayers, drawn: Drawn, passed: Sequence[Layer], shape: tuple[int, int]
) -> GramGradients:
    """The gradients of all writers of a stack whose forward pass went through these sub-layers."""
    adjoint = GramAdjoint(layers, drawn, shape)
    cosines, statistics = [adjoint.cosine()], []
    for layer in reversed(passed):
        statistics.append(adjoint.descend(layer))
        if layer.index % 2 == 0:
            cosines.append(adjoint.cosine())
    found = np.array(statistics[::-1]).reshape(-1, 2, 3, shape[0])  # [block, writer, statistic, W]
    amplification, ratio, cosine = (np.moveaxis(found[:, :, which], -1, 0) for which in range(3))
    return GramGradients(
        amplification=amplification,
        mode_ratio=ratio,
        output_cosine=cosine,
        adjoint_tcs=np.stack(cosines[::-1], axis=-1),
    )
