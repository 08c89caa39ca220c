"""The forward mean-field recursion: mean energy and spread of the pair cosines after every sub-layer."""

# W realisations (seeds) of one setting, or one row per setting; B batch; every array of a state is [W, B]

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from meanmode.theory.meanfield.cosine_tables import Tables
from meanmode.theory.meanfield.coverage import why_not_one_cosine
from meanmode.theory.meanfield.row_moments import RowMoments, attention_of
from meanmode.theory.setting import Gains, Setting, identity_blend

Array = NDArray[np.float64]
TINY = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The trunk after an RMSNorm, |x|^2 = D for every token.

    Attributes:
        mean_energy: m = |JX|^2 / (T D); the energy of the centered part is 1 - m.
        spread: v, the variance of the pair cosines c_ij within a sample.
    """

    mean_energy: Array
    spread: Array


@dataclass(frozen=True, slots=True)
class MergeGains:
    """The gains of a merge (`Gains`), one row per setting."""

    mean_skip: Array
    mean_write: Array
    centered_skip: Array
    centered_write: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """Moments of a sub-layer's output per feature, and fluctuations of the writer's input over the readers.

    Attributes:
        gains: gains of the merge that the output enters.
        token: second moment of one token.
        pair: second moment of a pair of distinct tokens, averaged over pairs.
        slope: derivative of `pair` in the cosine of that pair, from the FFN or the identity in a mixer.
        curvature: second derivative of `pair` in the cosine of that pair.
        fresh: D times the relative variance that fresh weights add to a pair product.
        mean: D times the relative variance, over the readers, of the energy of the branch mean.
        mean_centered: the same for the covariance of the energies of branch mean and centered part.
        centered: the same for the variance of the energy of the centered part.
        pair_token: the same for the covariance of a pair product and the energy of one of its tokens.
        own: the same for the variance of the energy of one token.
        crossed: the same for the covariance of the energies of two tokens.
        crossed_by_pair: whether `crossed` multiplies the squared pair product (attention) or the squared
            energy of a token (FFN).
    """

    gains: MergeGains
    token: Array
    pair: Array
    slope: Array
    curvature: Array
    fresh: Array | float
    mean: Array
    mean_centered: Array
    centered: Array
    pair_token: Array
    own: Array
    crossed: Array
    crossed_by_pair: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """Result of a merge: the state after its RMSNorm, and the squared divisor of that norm."""

    state: State
    divisor: Array


def _lognormal(normal: Array, variance: Array) -> Array:
    """A positive factor with mean 1 and, to leading order, this variance."""
    return np.exp(np.sqrt(variance) * normal - 0.5 * variance)


class MeanField:
    """The recursion of one setting, or of several at once.

    With fresh Gaussian weights the moments of a branch follow from the trunk's mean pair cosine
    c = (T m - 1) / (T - 1) (TCS, arXiv:2605.06169 App. A) and the spread of the pair cosines around it.
    Exact to order 1/D: the start, the drift of E cos(z_i, z_j) through a merge and its RMSNorm, and the tilt
    and energy of the branch mean. Heuristic: one pair cosine for all pairs of a sample, log-normal energies,
    and the third moment and saturation of the spread. Text and image tokens have the same statistics, so T
    counts both; only merges that project each segment separately distinguish them. The rows of a mixer
    e I + l A are those of A blended with the identity, exactly: E a_ij = 1 / T for every pair, including
    i = j.

    Args:
        settings: the stacks, one per row of the state; `rope` is ignored, since positions are not part of the
            one-cosine ansatz.

    Raises:
        ValueError: a setting that the theory does not cover (`meanmode.theory.meanfield.coverage`).
    """

    def __init__(self, *settings: Setting) -> None:
        for setting in settings:
            reason = why_not_one_cosine(setting)
            if reason is not None:
                raise ValueError(reason)

        def column(values: Sequence[float]) -> Array:
            return np.array(values, dtype=np.float64)[:, None]

        self.setting = settings[0]
        blends = [identity_blend(setting.mixer, setting.mixer_share) for setting in settings]
        self.identity, self.share = (column(part) for part in zip(*blends, strict=True))
        self.attentions = {attention_of(setting.mixer) for setting in settings}
        self.tokens = column([setting.tokens + setting.text_tokens for setting in settings])
        self.width = column([setting.width for setting in settings])
        self.ratio = column([setting.ffn_ratio for setting in settings])
        self.input_cosine = column([setting.input_cosine for setting in settings])
        self.adjoint_cosine = column([setting.adjoint_cosine for setting in settings])
        names = [field.name for field in fields(Gains)]
        self.gains_attn, self.gains_ffn = (
            MergeGains(*(column([getattr(gains, name) for gains in of]) for name in names))
            for of in zip(*(setting.writer_gains for setting in settings), strict=True)
        )
        read = column([setting.weight_std for setting in settings]) ** 2 * self.width
        writers = [s.weight_std if s.writer_std is None else s.writer_std for s in settings]
        write = column(writers) ** 2 * self.width
        self.attention_gain = read * write
        self.ffn_gain = self.ratio * read * write
        self.gate_variance = read
        self.tables = Tables(settings)
        (self.silu_energy,) = self.tables(np.ones_like(read), "kernel")

    def cosine(self, mean_energy: Array) -> Array:
        """Pair cosine of tokens of unit energy, c = (T m - 1) / (T - 1); exact."""
        return (self.tokens * mean_energy - 1) / (self.tokens - 1)

    def mean_energy(self, token: Array, pair: Array) -> Array:
        """Energy of the token mean from the second moments of one token and of a pair; exact."""
        return (token + (self.tokens - 1) * pair) / self.tokens

    def start(self, shape: tuple[int, int], random: np.random.Generator | None) -> State:
        """The synthetic input: c0 minus its bias c0 (1 - c0^2) / (2 D), and the spread of Gaussian tokens."""
        cosine, tokens = self.input_cosine, self.tokens
        biased = cosine - 0.5 * cosine * (1 - cosine**2) / self.width
        mean = np.broadcast_to((1 + (tokens - 1) * biased) / tokens, shape)
        if random is not None:
            deviation = np.sqrt(2 / self.width) * (cosine * (1 - cosine) + (1 - cosine) / tokens)
            mean = np.clip(mean + deviation * random.standard_normal(shape), 0.0, 1.0)
        spread = (1 - cosine) ** 2 * (1 + 2 * cosine - cosine**2) / self.width
        return State(mean_energy=mean, spread=np.broadcast_to(spread, shape))

    def attention_rows(self, cosine: Array) -> RowMoments:
        """Moments of the rows of the attention matrix A at each cosine."""
        names = ("concentration", "divergence", "square_response", "overlap_response")
        concentration, divergence, square_response, overlap_response = self.tables(cosine, *names)
        square = 1 / self.tokens + (1 - cosine) * concentration
        overlap = square - (1 - cosine) ** 2 * divergence
        return RowMoments(
            square=square,
            overlap=overlap,
            square_response=square_response,
            overlap_response=overlap_response,
        )

    def rows(self, cosine: Array) -> RowMoments:
        """Moments of the rows of the mixer e I + l A at each cosine."""
        rows, weight = self.attention_rows(cosine), self.share**2
        crossed = 2 * self.identity * self.share / self.tokens
        return RowMoments(
            square=weight * rows.square + crossed + self.identity**2,
            overlap=weight * rows.overlap + crossed,
            square_response=weight * rows.square_response,
            overlap_response=weight * rows.overlap_response,
        )

    def mixed(self, state: State) -> tuple[RowMoments, Array, Array]:
        """Row moments, and the second moments of one and of two mixed tokens per unit of attention gain."""
        cosine, common = self.cosine(state.mean_energy), (self.identity + self.share) ** 2
        rows = self.rows(cosine)
        token = common * cosine + (1 - cosine) * rows.square + rows.square_response * state.spread
        pair = common * cosine + (1 - cosine) * rows.overlap + rows.overlap_response * state.spread
        return rows, token, pair

    def attention(self, state: State) -> Branch:
        """Moments of the attention output; W_V is a second Gaussian matrix before the writer."""
        _, token, pair = self.mixed(state)
        none, wishart = np.zeros_like(token), np.full_like(token, 2.0)
        return Branch(
            gains=self.gains_attn,
            token=self.attention_gain * token,
            pair=self.attention_gain * pair,
            slope=none + self.attention_gain * self.identity**2,
            curvature=none,
            fresh=4.0,
            mean=wishart,
            mean_centered=none,
            centered=wishart / (self.tokens - 1),
            pair_token=wishart,
            own=wishart,
            crossed=wishart,
            crossed_by_pair=True,
        )

    def ffn(self, state: State) -> Branch:
        """Moments of the SwiGLU output, to second order in the deviations of the pair cosines."""
        cosine, gain, ratio = self.cosine(state.mean_energy), self.ffn_gain, self.ratio
        pair, slope, curvature = self.tables(cosine, "swiglu", "slope", "curvature")
        names = ("mean", "mean_centered", "centered", "pair_token", "own", "crossed")
        units = dict(zip(names, (unit / ratio for unit in self.tables(cosine, *names)), strict=True))
        return Branch(
            gains=self.gains_ffn,
            token=np.broadcast_to(gain * self.silu_energy, cosine.shape),
            pair=gain * (pair + 0.5 * state.spread * curvature),
            slope=gain * slope,
            curvature=gain * curvature,
            fresh=2.0 + 2.0 / ratio,
            crossed_by_pair=False,
            **units,
        )

    def merge(self, state: State, branch: Branch, random: np.random.Generator | None = None) -> Merged:
        """Apply the residual merge and its RMSNorm; without `random`, the mean recursion without noise."""
        return _Merge(self, state, branch).pass_on(random)


class _Merge:
    """One merge: energies of skip and write in the mean and the centered part, over the squared divisor."""

    def __init__(self, field: MeanField, state: State, branch: Branch) -> None:
        self.field, self.state, self.branch = field, state, branch
        gains, tokens = branch.gains, field.tokens
        write = np.maximum(
            field.mean_energy(branch.token, branch.pair), 0
        )  # an energy; the expansion in 1/D may make it negative
        energies = (
            gains.mean_skip**2 * state.mean_energy,
            gains.mean_write**2 * write,
            gains.centered_skip**2 * (1 - state.mean_energy),
            gains.centered_write**2 * (branch.token - write),
        )
        self.divisor = sum(energies[1:], start=energies[0])
        self.mean_skip, self.mean_write, self.part_skip, self.part_write = (
            part / self.divisor for part in energies
        )
        self.kept = gains.centered_skip**2 / self.divisor
        self.response = gains.centered_write**2 * branch.slope / self.divisor
        self.bend = gains.centered_write**2 * branch.curvature / self.divisor
        others = tokens - 1
        self.skip_token, self.skip_pair = (
            self.mean_skip + self.part_skip,
            self.mean_skip - self.part_skip / others,
        )
        self.token, self.pair = self.mean_write + self.part_write, self.mean_write - self.part_write / others
        self.cosine = self.skip_pair + self.pair

    def drift(self) -> Array:
        """E cos(z_i, z_j) minus the cosine of the mean energies, to order 1/D.

        The features of F = y W are independent given y, so the fourth moments of Z = X + F are sums over
        pairings; the ratio z_i . z_j / (|z_i| |z_j|) is expanded to second order.
        """
        branch, width = self.branch, self.field.width
        product_token = 2 * (
            self.skip_token * self.pair + self.skip_pair * self.token + self.token * self.pair
        )
        product_token = product_token + branch.pair_token * self.token * self.pair
        own = 4 * self.skip_token * self.token + (2 + branch.own) * self.token**2
        base = self.pair if branch.crossed_by_pair else self.token
        crossed = 4 * self.skip_pair * self.pair + 2 * self.pair**2 + branch.crossed * base**2
        return (-product_token + 0.75 * self.cosine * own + 0.25 * self.cosine * crossed) / width

    def fresh_spread(self) -> Array:
        """Variance that fresh weights add to the pair cosines, in units of 1/D."""
        a, b, c, d, cosine = self.skip_token, self.skip_pair, self.token, self.pair, self.cosine
        linear = (
            2 * (a * c + b * d) * (1 + cosine**2)
            - 4 * cosine * (a * d + b * c)
            - 4 * (1 - cosine) ** 2 * b * d
        )
        square = (c**2 + d**2) * (1 + cosine**2) - 4 * cosine * c * d - 2 * (1 - cosine) ** 2 * d**2
        return np.maximum(linear + 0.5 * self.branch.fresh * square, 0)

    def spread(self, after: Array) -> Array:
        """v after the merge; v / (1 - c)^2 ignores fluctuations that rescale 1 - c for all pairs equally.

        Heuristic: the skewness of the pair cosines (exact for Gaussian tokens, a gamma distribution at
        c = 1), and the depletion of the fresh part by the purity of the centered Gram matrix.
        """
        cosine, v = self.field.cosine(self.state.mean_energy), self.state.spread
        open_cosine = np.maximum(1 - cosine, TINY)
        share = (6 * cosine**2 - 2 * cosine**3) / (1 + 2 * cosine - cosine**2) ** 2
        skew = -2 * share * v**2 / open_cosine * self.bend
        through = self.kept + self.response
        kept = np.maximum(v * through**2 + through * skew, 0)
        purity = np.minimum(0.5 * v / open_cosine**2, 0.5)
        fresh = self.fresh_spread() * (1 + purity - 6 * purity**2) / self.field.width
        return (kept + fresh) / np.maximum(1 - self.cosine, TINY) ** 2 * (1 - after) ** 2

    def pass_on(self, random: np.random.Generator | None) -> Merged:
        """State and divisor after the merge and its norm."""
        tokens = self.field.tokens
        mean = self.mean_skip + self.mean_write
        drift = (tokens - 1) / tokens * self.drift()
        if random is None:
            after, divisor = mean + drift, self.divisor
        else:
            walked, stretch, expected = self._walk(mean, random)
            after, divisor = walked + drift - expected, self.divisor * stretch
        after = np.clip(after, TINY, 1 - TINY)
        state = State(mean_energy=after, spread=self.spread(self.field.cosine(after)))
        return Merged(state=state, divisor=divisor)

    def _walk(self, mean: Array, random: np.random.Generator) -> tuple[Array, Array, Array]:
        """One random step: mean energy, factor on the divisor, and the drift caused by the ratio alone."""
        branch, width, tokens = self.branch, self.field.width, self.field.tokens
        tilt, part, mean_unit, part_unit, writer = random.standard_normal((5, *mean.shape))
        mean_variance = branch.mean / width
        shared = branch.mean_centered / np.sqrt(np.maximum(branch.mean, TINY) * width)
        rest = np.sqrt(np.maximum(branch.centered / width - shared**2, 0))
        grown = self.mean_write * _lognormal(writer, 2 / width) * _lognormal(mean_unit, mean_variance)
        mean_step = np.sqrt(4 * self.mean_skip * grown / width) * tilt + grown - self.mean_write
        part_variance = (4 * self.part_skip * self.part_write + 2 * self.part_write**2) / (tokens - 1)
        part_variance += (4 * self.kept + 2 * self.response) * self.response * self.state.spread
        part_variance = np.maximum(part_variance, 0) / width
        part_own = np.exp(shared * mean_unit + rest * part_unit - 0.5 * branch.centered / width)
        part_step = np.sqrt(part_variance) * part + self.part_write * (part_own - 1)
        raised = np.maximum(mean + mean_step, 0)
        lowered = np.maximum(1 - mean + part_step, TINY)
        mean_square = (4 * self.mean_skip * self.mean_write + 2 * self.mean_write**2) / width
        mean_square = mean_square + self.mean_write**2 * mean_variance
        crossed = self.mean_write * self.part_write * branch.mean_centered / width
        part_square = part_variance + self.part_write**2 * branch.centered / width
        expected = -(mean_square + crossed) + mean * (mean_square + 2 * crossed + part_square)
        return raised / (raised + lowered), raised + lowered, expected
