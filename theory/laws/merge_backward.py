"""Law R6: the backward pass of MV-Split followed by RMSNorm in closed form."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Sum, Symbol, diff

from meanmode.theory.laws.merge_cotangents import (
    ALPHA,
    BETA,
    BRANCH_ENTRY,
    GRADIENT,
    TANGENT,
    TRUNK_ENTRY,
    MergeSums,
)
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Step
from meanmode.theory.proof.symbols import WIDTH, T, a, b, t
from meanmode.theory.proof.token_sums import average, entry, pairing

MERGED, DELTA = (IndexedBase(name, shape=(T, WIDTH), real=True) for name in ("Z", "Delta"))
INVERSE_RMS = Symbol("r", positive=True)
ALONG = Symbol("x", real=True)


def rms_norm_tangent(premises: Premises) -> Expr:
    """dY_tb along dZ = H, from the definition of RMSNorm; r = (|Z_t|^2 / D + eps)^(-1/2)."""
    moved = Sum((MERGED[t, a] + ALONG * TANGENT[t, a]) ** 2, over(a, WIDTH)) / WIDTH
    slope = diff(moved, ALONG).subs(ALONG, 0)
    divisor = Symbol("n", positive=True)
    scale = divisor**premises.norm_exponent
    scale_slope = diff(scale, divisor) * slope
    tangent = scale * TANGENT[t, b] + scale_slope * MERGED[t, b]
    return tangent.subs(divisor, INVERSE_RMS**-2)


def norm_cotangent() -> Expr:
    """Delta_tb = r G_tb - (r^3 / D) <G_t, Z_t> Z_tb."""
    inner = Sum(GRADIENT[t, a] * MERGED[t, a], over(a, WIDTH))
    return INVERSE_RMS * GRADIENT[t, b] - INVERSE_RMS**3 / WIDTH * inner * MERGED[t, b]


def _backward(premises: Premises) -> list[Step]:
    sums = MergeSums(premises)
    delta, mean_delta = DELTA[t, b], average(entry(DELTA))
    trunk, branch = entry(TRUNK_ENTRY), entry(BRANCH_ENTRY)
    gain = IndexedBase("h", shape=(WIDTH,), real=True)[b]
    tangent = TANGENT[t, b]
    mean_gap = average(branch) - average(trunk)
    leaked = sums.mean(branch, t) - premises.mean_leak * sums.mean(trunk, t)
    return [
        sums.step(
            "RMSNorm differentiated: dY_t = r dZ_t - (r^3 / D) <Z_t, dZ_t> Z_t",
            rms_norm_tangent(premises),
            INVERSE_RMS * tangent
            - INVERSE_RMS**3 / WIDTH * Sum(MERGED[t, a] * TANGENT[t, a], over(a, WIDTH)) * MERGED[t, b],
        ),
        sums.step(
            "<G_t, dY_t> = <Delta_t, dZ_t>, Delta_t = r G_t - (r^3 / D) <G_t, Z_t> Z_t",
            Sum(GRADIENT[t, b] * rms_norm_tangent(premises), over(b, WIDTH)),
            Sum(norm_cotangent() * tangent, over(b, WIDTH)),
        ),
        sums.step(
            "along dX: dL/dX = Delta - alpha*mean(Delta)",
            pairing(delta, sums.trunk_tangent()),
            pairing(delta, tangent) - pairing(ALPHA[b] * mean_delta, tangent),
        ),
        sums.step(
            "along dF: dL/dF = beta*Delta + (alpha - beta)*mean(Delta)",
            pairing(delta, sums.branch_tangent()),
            pairing(BETA[b] * delta, tangent) + pairing((ALPHA[b] - BETA[b]) * mean_delta, tangent),
        ),
        sums.step(
            "along dalpha: dL/dalpha = sum_t Delta_t*(Fbar - Xbar)",
            pairing(delta, gain * leaked),
            Sum(gain * Sum(delta, over(t, T)) * mean_gap, over(b, WIDTH)),
        ),
        sums.step(
            "along dbeta: dL/dbeta = sum_t Delta_t*(F_t - Fbar)",
            pairing(delta, gain * sums.centered(branch, t)),
            Sum(gain * Sum(delta * (branch(t) - average(branch)), over(t, T)), over(b, WIDTH)),
        ),
    ]


def merge_norm(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], eps: Any
) -> NDArray[Any]:
    """RMSNorm(X + beta*(P F) + alpha*J(F - X)) on one segment [T, D]."""
    z = _merged(x, f, alpha, beta)
    return z * _inverse_rms(z, eps)


def _merged(x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any]) -> NDArray[Any]:
    x_mean, f_mean = x.sum(0) / len(x), f.sum(0) / len(f)
    return x + beta * (f - f_mean) + alpha * (f_mean - x_mean)


def _inverse_rms(z: NDArray[Any], eps: Any) -> NDArray[Any]:
    inverse: NDArray[Any] = ((z * z).sum(1, keepdims=True) / z.shape[1] + eps) ** -0.5
    return inverse


def merge_norm_backward(
    x: NDArray[Any],
    f: NDArray[Any],
    alpha: NDArray[Any],
    beta: NDArray[Any],
    eps: Any,
    gradient: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """dL/dX, dL/dF, dL/dalpha, dL/dbeta of `merge_norm` for the cotangent `gradient` of its output."""
    z = _merged(x, f, alpha, beta)
    inverse = _inverse_rms(z, eps)
    inner = (gradient * z).sum(1, keepdims=True)
    delta = inverse * gradient - inverse**3 / z.shape[1] * inner * z
    mean_delta, x_mean, f_mean = (value.sum(0) / len(x) for value in (delta, x, f))
    return (
        delta - alpha * mean_delta,
        beta * delta + (alpha - beta) * mean_delta,
        (delta * (f_mean - x_mean)).sum(0),
        (delta * (f - f_mean)).sum(0),
    )


def evaluate_backward(
    x: NDArray[Any],
    f: NDArray[Any],
    alpha: NDArray[Any],
    beta: NDArray[Any],
    eps: Any,
    gradient: NDArray[Any],
    tangents: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]],
) -> dict[str, Sides]:
    """Both sides of R6 along tangents of X, F [T, D], alpha, beta [D]: <G, dY> against the closed form.

    dY comes from forward differentiation of z n^(-1/2), where n is the mean square plus eps.
    """
    dx, df, dalpha, dbeta = tangents
    z = _merged(x, f, alpha, beta)
    tokens = len(x)
    dz = {
        "trunk": dx - alpha * (dx.sum(0) / tokens),
        "branch": beta * df + (alpha - beta) * (df.sum(0) / tokens),
        "alpha": dalpha * np.stack([(f - x).sum(0) / tokens] * tokens),
        "beta": dbeta * (f - f.sum(0) / tokens),
    }
    n = (z * z).sum(1, keepdims=True) / z.shape[1] + eps
    closed = merge_norm_backward(x, f, alpha, beta, eps, gradient)
    sides = {}
    for (name, tangent), cotangent, direction in zip(dz.items(), closed, tangents, strict=True):
        dn = 2 * (z * tangent).sum(1, keepdims=True) / z.shape[1]
        dy = tangent / n**0.5 - z * dn / (2 * n * n**0.5)
        sides[name] = ((gradient * dy).sum(), (cotangent * direction).sum())
    return sides


BACKWARD = Law(
    tag="R6",
    title="the backward pass of MV-Split and RMSNorm in closed form",
    clauses=(
        Clause(
            says="Delta_t = r_t G_t - (r_t^3 / D) <G_t, Z_t> Z_t, r_t = (|Z_t|^2 / D + eps)^(-1/2)",
            steps=("RMSNorm differentiated", "<G_t, dY_t>"),
        ),
        Clause(says="dX_t = Delta_t - alpha*mean(Delta)", steps=("along dX",)),
        Clause(says="dF_t = beta*Delta_t + (alpha - beta)*mean(Delta)", steps=("along dF",)),
        Clause(says="dalpha = sum_t Delta_t*(Fbar - Xbar)", steps=("along dalpha",)),
        Clause(says="dbeta = sum_t Delta_t*(F_t - Fbar)", steps=("along dbeta",)),
    ),
    assumes=(
        "X' = RMSNorm(Z), Z of R1, G = dL/dX'",
        "means over the segment of t; dalpha and dbeta add over segments",
        "|Z_t|^2 / D + eps > 0",
    ),
    source="arXiv:2605.06169 Eq. 48-54",
    derive=_backward,
    evaluate=evaluate_backward,
)
