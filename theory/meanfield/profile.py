"""Predicted depth profiles of forward and backward observables, averaged over realisations."""

# W realisations, B batch, L blocks

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from meanmode.theory.meanfield.backward import Adjoint, WriterGradient, writer_inputs
from meanmode.theory.meanfield.coverage import follows_gram, why_not_covered
from meanmode.theory.meanfield.forward import TINY, MeanField, State
from meanmode.theory.meanfield.gram import GramField, forecast_realisations
from meanmode.theory.meanfield.predicted_front import Step, Walkers
from meanmode.theory.meanfield.row_moments import attention_of
from meanmode.theory.setting import Setting

Array = NDArray[np.float64]
PROFILE_REALISATIONS = 200


def energy_ratio(tokens: float, cosine: Array) -> Array:
    """rho = |mu(X)|_F / |c(X)|_F from the pair cosine c: rho^2 = (1 + (T - 1) c) / ((T - 1)(1 - c)) (E1)."""
    return np.sqrt(np.maximum(1 + (tokens - 1) * cosine, 0) / ((tokens - 1) * np.maximum(1 - cosine, 1e-300)))


def spectral_edge(tokens: int, dimensions: float, head_width: int) -> float:
    """|P A P|_2 / (1 - c) of the linearised softmax, for centered tokens in `dimensions` dimensions.

    The logits are X W_Q W_K^T X^T, so the edge is that of a free product of Gram matrices: its square is the
    minimum over z > 0 of (1 + z)^2 (1 + D z / T)^2 (z + d_h / D) / z, divided by d_h, with D the dimensions.
    """

    def square(log_z: float) -> float:
        z = np.exp(log_z)
        return float((1 + z) ** 2 * (1 + dimensions * z / tokens) ** 2 * (z + head_width / dimensions) / z)

    return float(np.sqrt(minimize_scalar(square, bounds=(-20, 5), method="bounded").fun / head_width))


class ProfileObservables:
    """The forward observables of arXiv:2605.06169 App. A as functions of the state, for one setting.

    The centered tokens of a deep stack occupy fewer than D directions: their purity
    Pi = v / ((1 - c)^2 (1 + 2 c - c^2)) is 1 / D for fresh tokens. For T >= 64, retention and leakage are
    accurate to about 6 %; mu_eff, given for softmax only, to about 10 % below c = 0.85 and 10-30 % too high
    above it (heuristic column weights, no edge fluctuation).
    """

    def __init__(self, field: MeanField) -> None:
        self.field = field
        setting = field.setting
        self.tokens = setting.tokens + setting.text_tokens
        purities = np.geomspace(1 / setting.width, 0.5, 24)
        edges = [spectral_edge(self.tokens, 1 / purity, setting.head_width) for purity in purities]
        self.edges = (np.log(purities), edges)

    def operator(self, state: State) -> dict[str, Array]:
        """Retention, leakage, row diversity and mu_eff of the attention matrix computed from this state."""
        field = self.field
        cosine = field.cosine(state.mean_energy)
        rows = field.rows(cosine)
        others, open_cosine = self.tokens - 1, np.maximum(1 - cosine, TINY)
        purity = np.maximum(state.spread / (open_cosine**2 * (1 + 2 * cosine - cosine**2)), 1 / field.width)
        purity = np.minimum(purity, 1.0)
        responding = rows.square_response * open_cosine**2 * purity
        common = (field.identity + field.share) ** 2
        leaked = np.maximum(rows.square + others * rows.overlap - common, 0) / others
        if attention_of(field.setting.mixer) == "softmax":
            leaked = leaked + field.share**2 * state.mean_energy * open_cosine * purity
        observables = {
            "retention": np.sqrt(np.maximum(rows.square - rows.overlap + responding, 0)),
            "leakage": np.sqrt(leaked),
            "row_div": np.sqrt(np.maximum((1 - 1 / self.tokens) * (1 - rows.overlap / rows.square), 0)),
        }
        if field.setting.mixer == "softmax":
            edge = np.interp(np.log(purity), *self.edges)
            columns = np.exp(np.maximum(cosine * open_cosine, 0) / 2)
            linear = (1 - rows.square) * self.tokens / others
            observables["mu_eff"] = linear * open_cosine * columns * edge
        return observables

    def branch(self, step: Step, attention: bool) -> dict[str, Array]:
        """Residual ratio and variance gain of a branch output relative to the trunk it is added to.

        The variance gain of attention is sqrt(g) times the retention, since P A X = P A P X (law P2); the
        same holds for e I + l A.
        """
        moments, mean = step.branch, step.before.mean_energy
        if attention:
            gain = np.sqrt(self.field.attention_gain) * self.operator(step.before)["retention"]
            return {"r_tr": np.sqrt(moments.token), "var_gain": gain}
        written = moments.token - self.field.mean_energy(moments.token, moments.pair)
        return {
            "r_tr": np.sqrt(moments.token),
            "var_gain": np.sqrt(np.maximum(written, 0) / np.maximum(1 - mean, TINY)),
        }


def predict_profile(setting: Setting, realisations: int | None = None) -> dict[str, Array]:
    """Predict the observables at every block, averaged over realisations.

    Returns:
        `tcs`, `rho`, `adjoint_tcs` [L + 1] after block l, where block 0 is the input; `retention`, `leakage`,
        `row_div` and, for softmax, `mu_eff` [L] of block l + 1, whose attention sees the state after block l;
        `r_tr`, `var_gain`, `c_delta`, `amplification`, `kappa`, `mode_ratio` [L, 2] of the writers attn and
        ffn of block l + 1. rho and mode_ratio = g_mean / g_ctr are averaged in the logarithm, since they grow
        without bound after the front. Where tokens are not exchangeable (`follows_gram`), by the Gram
        recursion: without the observables of A and of the branches.
    """
    reason = why_not_covered(setting)
    if reason is not None:
        raise ValueError(reason)
    if follows_gram(setting):
        return _gram_profile(setting, realisations or max(forecast_realisations(setting) // 2, 8))
    field = MeanField(setting)
    walkers = Walkers(field, realisations or PROFILE_REALISATIONS)
    states = [walkers.state]
    steps: list[Step] = []
    for _ in range(setting.depth):
        steps += [walkers.step(field.attention), walkers.step(field.ffn)]
        states.append(walkers.state)
    observables = ProfileObservables(field)
    cosines = [field.cosine(state.mean_energy) for state in states]
    profile = {
        "tcs": np.array([cosine.mean() for cosine in cosines]),
        "rho": np.array(
            [np.exp(np.log(energy_ratio(observables.tokens, cosine)).mean()) for cosine in cosines]
        ),
    }
    operators = [observables.operator(state) for state in states[:-1]]
    for name in operators[0] if operators else ():
        profile[name] = np.array([operator[name].mean() for operator in operators])
    branches = [observables.branch(step, attention=index % 2 == 0) for index, step in enumerate(steps)]
    for name in ("r_tr", "var_gain"):
        profile[name] = _by_writer([branch[name].mean() for branch in branches])
    return profile | _backward_profile(field, walkers, steps)


def _gram_profile(setting: Setting, realisations: int) -> dict[str, Array]:
    walked = GramField(setting).walk(realisations, backward=True)
    tokens, gradients = sum(setting.segments), walked.gradients
    if gradients is None:
        raise RuntimeError("the walk made no backward pass")
    logs = np.log(np.clip(gradients.mode_ratio, 1e-300, 1e300))
    return {
        "tcs": walked.tcs,
        "rho": np.exp(np.log(energy_ratio(tokens, walked.profiles)).mean(0)),
        "adjoint_tcs": gradients.adjoint_tcs.mean(0),
        "c_delta": gradients.output_cosine.mean(0),
        "amplification": gradients.amplification.mean(0),
        "kappa": (gradients.amplification.mean(0) - 1) / (tokens - 1),
        "mode_ratio": np.exp(logs.mean(0)),
    }


def _by_writer(values: list[float]) -> Array:
    return np.array(values, dtype=np.float64).reshape(-1, 2)


def _backward_profile(field: MeanField, walkers: Walkers, steps: list[Step]) -> dict[str, Array]:
    adjoint = Adjoint(field, walkers)
    cosines = [adjoint.cosine().mean()]
    gradients: list[WriterGradient] = []
    inputs = writer_inputs(field, steps) if steps else []
    for index in reversed(range(len(steps))):
        gradients.append(adjoint.descend(inputs[index], attention=index % 2 == 0))
        if index % 2 == 0:
            cosines.append(adjoint.cosine().mean())
    gradients.reverse()
    return {
        "adjoint_tcs": np.array(cosines[::-1]),
        "c_delta": _by_writer([gradient.adjoint_cosine.mean() for gradient in gradients]),
        "amplification": _by_writer([gradient.amplification.mean() for gradient in gradients]),
        "kappa": _by_writer([gradient.kappa.mean() for gradient in gradients]),
        "mode_ratio": _by_writer(
            [np.exp(np.log(np.maximum(gradient.mode_ratio, 1e-300)).mean()) for gradient in gradients]
        ),
    }
