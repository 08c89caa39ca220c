"""The observables of arXiv:2605.06169 App. A, exact; those of attention and gradients are re-exported."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width

import torch
from jaxtyping import Float, Int
from torch import Tensor

from meanmode.sim.observe.attention_statistics import leakage, mu_eff, retention, row_div
from meanmode.sim.observe.token_parts import (
    EPS,
    TokenParts,
    centered,
    directions,
    need_pair,
    spread_out_parts,
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
    "segment_cosines",
    "segment_parts",
    "segment_state",
    "tcs",
    "tcs_deficit",
    "var_gain",
    "writer_amplification",
    "writer_modes",
    "zero_tokens",
]


def zero_tokens(x: Float[Tensor, "*B T D"]) -> Int[Tensor, "*B"]:
    """How many tokens vanish: they have no direction and are left out of every cosine."""
    return (x.abs().amax(-1) == 0).sum(-1)


def _deficit(parts: TokenParts) -> Tensor:
    pairs = parts.tokens - 1
    if isinstance(pairs, int):
        return parts.spread / pairs
    return torch.where(pairs > 0, parts.spread / pairs, torch.nan)


def tcs_deficit(x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """1 - TCS, from the centered unit tokens, so that it stays accurate where all tokens nearly agree.

    With n unit tokens u_t, sum_{s != t} u_s . u_t = |sum u|^2 - n, hence 1 - TCS is
    sum_t |u_t - ubar|^2 / (n - 1). NaN where fewer than two tokens have a direction.

    Raises:
        ValueError: fewer than two tokens.
    """
    need_pair(x)
    return _deficit(unit_parts(*directions(x)))


def tcs(x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """Mean cosine similarity over ordered pairs of distinct tokens (TCS, App. A); 1 is full homogenisation.

    Exact, in O(T D). Zero tokens are left out; NaN where fewer than two tokens have a direction.

    Raises:
        ValueError: fewer than two tokens.
    """
    return 1 - tcs_deficit(x)


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


def _lengths(segments: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in segments if length)


def _sets(segments: tuple[int, ...]) -> dict[str, slice]:
    """All tokens under "", and image and text where there is text, if they have two tokens or more."""
    image, total = segments[0], sum(segments)
    named = {"": slice(0, total), "_image": slice(0, image), "_text": slice(image, total)}
    kept = named if len(_lengths(segments)) > 1 else {"": named[""]}
    return {suffix: place for suffix, place in kept.items() if place.stop - place.start > 1}


def _joined(segments: tuple[int, ...], measured: list[TokenParts]) -> dict[str, TokenParts]:
    whole = measured[0] if len(measured) == 1 else measured[0].joined(measured[1])
    named = dict(zip(("", "_image", "_text"), (whole, *measured), strict=False))
    return {suffix: named[suffix] for suffix in _sets(segments)}


def segment_parts(x: Float[Tensor, "*B T D"], segments: tuple[int, ...]) -> dict[str, TokenParts]:
    """Mean and centered part of all tokens (suffix ""), and with text of `_image` and `_text` tokens.

    A segment of one token has neither pairs nor a centered part and is left out.
    """
    spread_out = spread_out_parts(x, _lengths(segments), unit=False)
    if spread_out:
        return _joined(segments, spread_out[0])
    return {suffix: token_parts(x[..., place, :]) for suffix, place in _sets(segments).items()}


def segment_cosines(x: Float[Tensor, "*B T D"], segments: tuple[int, ...]) -> dict[str, Tensor]:
    """TCS of the sets of tokens of `segment_parts`."""
    spread_out = spread_out_parts(x, _lengths(segments), plain=False)
    units = _joined(segments, spread_out[1]) if spread_out else _unit_parts(x, segments)
    return {suffix: 1 - _deficit(part) for suffix, part in units.items()}


def _unit_parts(x: Tensor, segments: tuple[int, ...]) -> dict[str, TokenParts]:
    unit, directed = directions(x)
    return {
        suffix: unit_parts(unit[..., place, :], None if directed is None else directed[..., place, :])
        for suffix, place in _sets(segments).items()
    }


def segment_state(
    x: Float[Tensor, "*B T D"], segments: tuple[int, ...]
) -> tuple[dict[str, TokenParts], dict[str, Tensor]]:
    """`segment_parts` and the TCS of the same sets of tokens, from as few passes over them as can be."""
    spread_out = spread_out_parts(x, _lengths(segments))
    if spread_out:
        parts, units = (_joined(segments, measured) for measured in spread_out)
    else:
        parts = {suffix: token_parts(x[..., place, :]) for suffix, place in _sets(segments).items()}
        units = _unit_parts(x, segments)
    return parts, {suffix: 1 - _deficit(part) for suffix, part in units.items()}
