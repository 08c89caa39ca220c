"""The backward mean-field recursion: the mean mode of the adjoint and the writer gradients it causes."""

# W realisations, B batch, L blocks; the arrays of one sub-layer are [W, B]

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meanmode.theory.meanfield.forward import TINY, MeanField, MergeGains
from meanmode.theory.meanfield.predicted_front import Step, Walkers

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterInput:
    """What the gradient of a writer needs from the forward pass through its sub-layer.

    Attributes:
        cosine: pair cosine c of the sub-layer's input.
        after: pair cosine after the sub-layer's merge and norm.
        divisor: squared divisor of that norm.
        token: second moment of one token of the writer's input y, up to a factor common with `pair`.
        pair: second moment of a pair of distinct tokens of y.
        centered: token - pair, computed from the pair spread V instead of the closure.
        slope: response of the pair product of y to that of the sub-layer's input.
        pair_spread: V, the double-centred variance of the input's pair cosines.
        carried: share of the pair spread that survives the merge.
        gains: gains of the merge.
    """

    cosine: Array
    after: Array
    divisor: Array
    token: Array
    pair: Array
    centered: Array
    slope: Array
    pair_spread: Array
    carried: Array
    gains: MergeGains


def writer_inputs(field: MeanField, steps: list[Step]) -> list[WriterInput]:
    """The forward pass as the backward pass needs it, one entry per sub-layer.

    Follows V, the part of the variance of the pair cosines that no token average removes: fresh weights add
    to it, the merge passes it on. It aligns the centered Gram matrices of trunk and adjoint (heuristic:
    mu = 3 for attention).
    """
    width = field.width
    spread = np.broadcast_to((1 - field.input_cosine) ** 2 / width, steps[0].before.mean_energy.shape)
    inputs = []
    for index, step in enumerate(steps):
        cosine, gains = field.cosine(step.before.mean_energy), step.branch.gains
        open_cosine, divisor = np.maximum(1 - cosine, TINY), step.merged.divisor
        if index % 2 == 0:
            rows, token, pair = field.mixed(step.before)
            gain, excess = field.attention_gain, np.full_like(cosine, 3.0)
            centered = open_cosine * (rows.square - rows.overlap + rows.square_response * spread)
            slope = centered / open_cosine
        else:
            gain = field.ffn_gain
            token, pair = step.branch.token / gain, step.branch.pair / gain
            (kurtosis,) = field.tables(cosine, "kurtosis")
            excess = kurtosis / field.ratio
            centered, slope = token - pair, step.branch.slope / gain
        carried = (gains.centered_skip**2 + gains.centered_write**2 * gain * slope) / divisor
        inputs.append(
            WriterInput(
                cosine=cosine,
                after=field.cosine(step.merged.state.mean_energy),
                divisor=divisor,
                token=token,
                pair=pair,
                centered=centered,
                slope=slope,
                pair_spread=spread,
                carried=carried,
                gains=gains,
            )
        )
        written = gain * (token - pair)
        fresh = 2 * gains.centered_skip**2 * gains.centered_write**2 * open_cosine * written
        fresh = fresh + gains.centered_write**4 * written**2 * (1 + excess)
        spread = carried**2 * spread + fresh / (width * divisor**2)
        spread = np.minimum(spread, (1 - inputs[-1].after) ** 2)  # reached when one direction is left
    return inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterGradient:
    """Statistics of the gradient of one writer.

    Attributes:
        adjoint_cosine: pair cosine of the cotangents of the writer's output.
        amplification: A = 1 + (T - 1) kappa (A2 at equal magnitudes).
        kappa: mean coherence of pairs of distinct tokens (A4).
        mode_ratio: G_mean / G_ctr (G1).
    """

    adjoint_cosine: Array
    amplification: Array
    kappa: Array
    mode_ratio: Array


class Adjoint:
    """The adjoint dL/dX on its way down through the sub-layers: mean and centered energy, and orientation.

    The loss adjoint has pair cosine `adjoint_cosine` and no norm, and is independent of X. Exact in
    expectation over fresh weights: the value, query and key paths of attention and the two factors of SwiGLU.
    Heuristic: the share of the adjoint that the next norm's Jacobian can still remove, and independent
    fluctuations forward and backward.

    Args:
        field: the recursion.
        walkers: the forward walkers; their realisations and random stream are reused.
    """

    def __init__(self, field: MeanField, walkers: Walkers) -> None:
        self.field, self.random = field, walkers.random
        tokens, cosine = field.tokens, field.adjoint_cosine
        shape = walkers.state.mean_energy.shape
        self.mean = np.broadcast_to((1 + (tokens - 1) * cosine) / tokens, shape)
        self.centered = 1 - self.mean
        if self.random is not None:
            deviation = np.sqrt(2 / field.width) * (cosine * (1 - cosine) + (1 - cosine) / tokens)
            self.mean = np.maximum(self.mean + deviation * self.random.standard_normal(shape), TINY)
        self.orientation = np.zeros(shape)
        self.exposed_mean = self.exposed_centered = np.ones(shape)
        (self.slope_energy,) = field.tables(np.ones_like(field.tokens), "gate_slope")

    def cosine(self) -> Array:
        """Current pair cosine of the adjoint [W, B]."""
        return (self.field.tokens * self.mean / (self.mean + self.centered) - 1) / (self.field.tokens - 1)

    def _through_norm(self, given: WriterInput) -> None:
        """RMSNorm Jacobian (I - x x^T / D) / divisor: the common mode loses (2 - c^2) / D, a token 1 / D."""
        tokens, width = self.field.tokens, self.field.width
        common, single = self.exposed_mean * self.mean, self.exposed_centered * self.centered
        lost_mean = (2 - given.after**2) * common - single / tokens
        lost_centered = single * (1 + 1 / tokens) - (1 - given.after**2) * common
        self.mean = np.maximum(self.mean - lost_mean / width, TINY) / given.divisor
        self.centered = np.maximum(self.centered - lost_centered / width, TINY) / given.divisor
        self.orientation = self.orientation * given.carried / given.divisor

    def descend(self, given: WriterInput, attention: bool) -> WriterGradient:
        """Pass the adjoint through a merge and its branch; return the gradient of the writer between them."""
        self._through_norm(given)
        gains, field, tokens = given.gains, self.field, self.field.tokens
        mean, centered = gains.mean_write**2 * self.mean, gains.centered_write**2 * self.centered
        energy = mean + centered
        cosine = (tokens * mean / energy - 1) / (tokens - 1)
        gradient = self._gradient(given, mean, centered, cosine)
        token, pair, seeded, passed, own = self._jacobian(given, cosine, energy, attention)
        returned = energy * (token + (tokens - 1) * pair) / tokens
        returned_centered = energy * token - returned
        oriented = gains.centered_write**2 * self.orientation
        self.orientation = gains.centered_skip**2 * self.orientation + passed * oriented + seeded
        skipped_mean, skipped_centered = (
            gains.mean_skip**2 * self.mean,
            gains.centered_skip**2 * self.centered,
        )
        tilt: Array | float = 0.0
        if self.random is not None:
            aside, length = self.random.standard_normal((2, *mean.shape))
            tilt = 2 * np.sqrt(np.maximum(skipped_mean * returned, 0) / field.width) * aside
            returned = returned * (1 + np.sqrt(own / field.width) * length)
        self.mean = np.maximum(skipped_mean + tilt + returned, TINY * energy)
        self.centered = skipped_centered + returned_centered
        aligned = gains.centered_skip**2 / given.divisor
        self.exposed_mean = np.clip(1 - skipped_mean * aligned / self.mean, 0, 1)
        self.exposed_centered = np.clip(1 - skipped_centered * aligned / self.centered, 0, 1)
        return gradient

    def _gradient(self, given: WriterInput, mean: Array, centered: Array, cosine: Array) -> WriterGradient:
        """A and G_mean / G_ctr from the moments of y and its cotangent and their Gram matrices' alignment."""
        tokens = self.field.tokens
        part = (tokens - 1) / tokens * given.centered
        common = (given.token + (tokens - 1) * given.pair) / tokens
        oriented = given.gains.centered_write**2 * self.orientation
        aligned = tokens * given.slope * given.pair_spread * oriented / np.maximum(part * centered, 1e-300)
        coherent = (tokens - 1) * given.pair / given.token * cosine
        excess = coherent + aligned * (part / given.token) * (centered / (mean + centered))
        with np.errstate(divide="ignore"):  # uniform attention writes no centered part: the ratio is infinite
            ratio = (tokens - 1) * common / part * mean / centered / np.maximum(1 + aligned, 0.05)
        return WriterGradient(
            adjoint_cosine=cosine,
            amplification=1 + excess,
            kappa=excess / (tokens - 1),
            mode_ratio=np.sqrt(np.maximum(ratio, 0)),
        )

    def _jacobian(
        self, given: WriterInput, cosine: Array, energy: Array, attention: bool
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Second moments of the transposed Jacobian: token, pair, created and passed orientation, noise."""
        field, c, others = self.field, given.cosine, self.field.tokens - 1
        if attention:
            gain, open_cosine = field.attention_gain, 1 - given.cosine
            common, kept, weight = (field.identity + field.share) ** 2, field.identity**2, field.share**2
            mixer, rows = field.rows(c), field.attention_rows(c)
            square, overlap = rows.square, rows.overlap
            key: Array | float = 0.0
            query: Array | float = 0.0
            crossed: Array | float = 0.0
            if field.attentions == {"softmax"}:  # other rows depend on their logits only at order 1/d_h
                # the softmax Jacobian diag(a) - a a^T leaves 1 - |a|^2 of |a|^2, to leading order
                key = square * (1 - square) + c * cosine * others * overlap * (1 - overlap)
                query = (1 - square) * (open_cosine**2 * square + given.pair_spread)
                crossed = (1 - overlap) * (open_cosine**2 * overlap + given.pair_spread)
            valued = mixer.square + cosine * others * mixer.overlap
            token = gain * (valued + weight * query + weight * open_cosine * key)
            pair = (common - mixer.square) / others + cosine * (common - mixer.overlap)
            pair = pair + weight * cosine * crossed - weight * open_cosine * key / others
            seeded = 2 * gain * weight * energy * (1 / field.tokens + c * cosine)
            passed = gain * kept + gain * weight * (1 + open_cosine**2) / field.tokens
            return token, gain * pair, seeded, passed, np.full_like(c, 4.0)
        read, gain = field.gate_variance, field.ffn_gain
        kernel, slopes, slopes_slope = field.tables(c, "kernel", "gate_slope", "gate_slope_slope")
        pair_gate = read * c * slopes + kernel
        token = np.broadcast_to(gain * (read * self.slope_energy + field.silu_energy), c.shape)
        seeded = gain * energy * cosine * read * (2 * slopes + c * slopes_slope)
        return token, gain * cosine * pair_gate, seeded, gain * pair_gate, 2 + 2 / field.ratio
