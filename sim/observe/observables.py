"""The observables of arXiv:2605.06169 App. A, exact; those of attention and gradients are re-exported."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width

from jaxtyping import Float, Int
from torch import Tensor

from meanmode.sim.observe.attention_statistics import leakage, mu_eff, retention, row_div
from meanmode.sim.observe.token_parts import (
    EPS,
    TokenParts,
    centered,
    deficit,
    directions,
    need_pair,
    token_parts,
    unit_parts,
)
from meanmode.sim.observe.writer_gradients import kappa, writer_amplification, writer_modes

__all__ = [
    "EPS",
    "adjoint_tcs",
    "centered",
    "kappa",
    "leakage",
    "mu_eff",
    "r_tr",
    "retention",
    "rho",
    "row_div",
    "tcs",
    "tcs_deficit",
    "tcs_frame",
    "var_gain",
    "writer_amplification",
    "writer_modes",
    "zero_tokens",
]


def zero_tokens(x: Float[Tensor, "*B T D"]) -> Int[Tensor, "*B"]:
    """How many tokens vanish: they have no direction and are left out of every cosine."""
    return (x.abs().amax(-1) == 0).sum(-1)


def tcs_deficit(x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """1 - TCS, from the centered unit tokens, so that it stays accurate where all tokens nearly agree.

    With n unit tokens u_t, sum_{s != t} u_s . u_t = |sum u|^2 - n, hence 1 - TCS is
    sum_t |u_t - ubar|^2 / (n - 1). NaN where fewer than two tokens have a direction.

    Raises:
        ValueError: fewer than two tokens.
    """
    need_pair(x)
    return deficit(unit_parts(*directions(x)))


def tcs(x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """Mean cosine similarity over ordered pairs of distinct tokens (TCS, App. A); 1 is full homogenisation.

    Exact, in O(T D). Zero tokens are left out; NaN where fewer than two tokens have a direction.

    Raises:
        ValueError: fewer than two tokens.
    """
    return 1 - tcs_deficit(x)


def tcs_frame(x: Float[Tensor, "*B T D"], frames: int) -> Float[Tensor, "*B"]:
    """Mean cosine similarity over pairs of tokens of one frame of a video, averaged over its frames.

    Raises:
        ValueError: fewer than two tokens in a frame.
    """
    return tcs(x.unflatten(-2, (frames, -1))).mean(-1)


def adjoint_tcs(adjoint: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """Mean cosine similarity of the loss adjoints dL/dX_l over ordered pairs of distinct tokens.

    Raises:
        ValueError: fewer than two tokens.
    """
    return tcs(adjoint)


def _ratio(of: Tensor, to: Tensor) -> Tensor:
    return of / (to + EPS)


def parts_rho(x: TokenParts) -> Tensor:
    """rho from the parts of the trunk."""
    return _ratio(x.mean_norm, x.centered_norm)


def parts_r_tr(trunk: TokenParts, branch: TokenParts) -> Tensor:
    """r_TR from the parts of trunk and branch."""
    return _ratio(branch.norm, trunk.norm)


def parts_var_gain(trunk: TokenParts, branch: TokenParts) -> Tensor:
    """VarGain from the parts of trunk and branch."""
    return _ratio(branch.centered_norm, trunk.centered_norm)


def rho(x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """|mu(X)|_F / (|c(X)|_F + eps), the paper's energy ratio (a ratio of norms)."""
    need_pair(x)
    return parts_rho(token_parts(x))


def r_tr(trunk: Float[Tensor, "*B T D"], branch: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """|U(X)|_F / (|X|_F + eps): the branch output against the trunk it is added to."""
    return parts_r_tr(token_parts(trunk), token_parts(branch))


def var_gain(trunk: Float[Tensor, "*B T D"], branch: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """|c(U(X))|_F / (|c(X)|_F + eps): the centered part a branch returns for the centered part it reads."""
    need_pair(trunk)
    return parts_var_gain(token_parts(trunk), token_parts(branch))
