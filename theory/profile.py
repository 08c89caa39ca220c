"""Predicted depth profiles of the forward observables, from the recursion's realisations."""

# W realisations, B batch, L blocks

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from theory.front import ATTENTION_KURTOSIS, FFN_KURTOSIS, Walkers
from theory.recursion import Branch, MeanField
from theory.setting import Setting

Array = NDArray[np.float64]

WRITERS = ("attn", "ffn")
PROFILE_REALISATIONS = 200


def energy_ratio(field: MeanField, cosine: Array) -> Array:
    """rho = |mu(X)|_F / |c(X)|_F from the pair cosine: rho^2 = (1 + (T - 1) c) / ((T - 1) (1 - c)), exact."""
    tokens = field.tokens
    return np.sqrt(np.maximum(1 + (tokens - 1) * cosine, 0) / ((tokens - 1) * np.maximum(1 - cosine, 1e-300)))


def spectral_edge(tokens: int, width: int, head_width: int) -> float:
    """|P A P|_2 / (1 - c) of the linear part of the softmax, for wide stacks.

    The logits are X W_Q W_K^T X^T, so the edge is that of a free product of Gram matrices, whose S-transform
    gives the square as the minimum over z > 0 of (1 + z)^2 (1 + D z / T)^2 (z + d_h / D) / z, divided by d_h.
    """

    def square(log_z: float) -> float:
        z = np.exp(log_z)
        return float((1 + z) ** 2 * (1 + width * z / tokens) ** 2 * (z + head_width / width) / z)

    return float(np.sqrt(minimize_scalar(square, bounds=(-20, 5), method="bounded").fun / head_width))


class ProfileObservables:
    """The forward observables of REFERENCE App. A as functions of the pair cosine, for one setting.

    Retention and row diversity hold to a few per cent below c ~ 0.6. Leakage and mu_eff lie too low beyond c
    ~ 0.3, where the centered tokens live in a subspace that the one-cosine ansatz does not see.
    """

    def __init__(self, field: MeanField) -> None:
        self.field = field
        self.edge = spectral_edge(field.tokens, field.width, field.setting.head_width)

    def operator(self, cosine: Array) -> dict[str, Array]:
        """Retention, leakage, row diversity and mu_eff of the attention matrix that sees this cosine."""
        field = self.field
        square, overlap, _ = field.rows(cosine)
        others, open_cosine = field.tokens - 1, np.maximum(1 - cosine, 1e-300)
        spread = field.cosine_variance(cosine)
        correction = ((1 - square) * spread - (1 - overlap) * cosine * spread) / open_cosine
        return {
            "retention": np.sqrt(np.maximum(square - overlap + correction, 0)),
            "leakage": np.sqrt(np.maximum(square + others * overlap - 1, 0) / others),
            "row_div": np.sqrt(np.maximum((1 - 1 / field.tokens) * (1 - overlap / square), 0)),
            "mu_eff": (1 - cosine) * self.edge,
        }

    def branch(self, mean_energy: Array, moments: Branch) -> dict[str, Array]:
        """Residual ratio and variance gain of a branch output over the trunk it is added to."""
        written = moments.token - self.field.mean_energy(moments.token, moments.pair)
        return {
            "r_tr": np.sqrt(moments.token),
            "var_gain": np.sqrt(np.maximum(written, 0) / np.maximum(1 - mean_energy, 1e-300)),
        }


def predict_profile(setting: Setting, realisations: int = PROFILE_REALISATIONS) -> dict[str, Array]:
    """Mean over realisations of tcs, rho [L + 1] and of the operator [L] and branch [L, 2] observables.

    Entry l of tcs and rho is the state after block l; entry l of the others belongs to block l + 1, whose
    attention sees the state after block l. The columns of r_tr and var_gain are the writers attn and ffn. rho
    is averaged in the logarithm, since it grows without bound behind the front.
    """
    walkers = Walkers(MeanField(setting), realisations)
    observables = ProfileObservables(walkers.field)
    states, operators, branches = [walkers.cosine()], [], []
    for _ in range(setting.depth):
        operators.append(observables.operator(walkers.cosine()))
        passed = []
        for sub_layer, kurtosis in (
            (walkers.field.attention, ATTENTION_KURTOSIS),
            (walkers.field.ffn, FFN_KURTOSIS),
        ):
            before = walkers.mean_energy
            passed.append(observables.branch(before, walkers.step(sub_layer, kurtosis)))
        branches.append(passed)
        states.append(walkers.cosine())
    profile = {
        "tcs": np.array([state.mean() for state in states]),
        "rho": np.array([np.exp(np.log(energy_ratio(walkers.field, state)).mean()) for state in states]),
    }
    for name in ("retention", "leakage", "row_div", "mu_eff"):
        profile[name] = np.array([operator[name].mean() for operator in operators])
    for name in ("r_tr", "var_gain"):
        profile[name] = np.array([[writer[name].mean() for writer in passed] for passed in branches])
    return profile
