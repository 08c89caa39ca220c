"""Laws F1 and M1: growth of the energy ratio up to the front, and its mirror image for the adjoint.

The mean-field recursion reduces to these laws if attention is uniform and there is no FFN.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, KroneckerDelta, Sum, Symbol, cancel, exp, log

from meanmode.theory.laws.amplification import evaluate_rayleigh
from meanmode.theory.laws.energy_ratio import STATE, algebra, cosine_of, energy_odds, odds, unit_tokens
from meanmode.theory.laws.merge_cotangents import GRADIENT, TANGENT
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Law, Premises, Sides, Step
from meanmode.theory.proof.symbols import T, b, s, t
from meanmode.theory.proof.token_sums import WIDTH, TokenSums, average, entry, pairing, token_projectors

WEIGHT = IndexedBase("W", real=True)
STD, GAIN, ALPHA = Symbol("sigma", positive=True), Symbol("lambda", real=True), Symbol("alpha", real=True)
FIRST_ODDS, DEPTH = Symbol("a_0", positive=True), Symbol("l", integer=True)
e, f = (Symbol(name, integer=True, positive=True) for name in "ef")


def _expected_square(first: IndexedBase, token: Expr) -> Expr:
    """E |x^T W|^2 for x = the token average of X: E W_eb W_fb = sigma^2 delta_ef, E W = 0."""
    moment = STD**2 * KroneckerDelta(e, f)
    left, right = (Sum(first[s, index], over(s, T)) / T for index in (e, f))
    return Sum(left * right * moment, over(e, WIDTH), over(f, WIDTH), over(b, WIDTH))


def _growth() -> tuple[Expr, Expr]:
    """g = sigma^4 D^2 and G = 1 + lambda^2 g."""
    attention_gain = STD**4 * WIDTH**2
    return attention_gain, 1 + GAIN**2 * attention_gain


def _uniform_attention(premises: Premises, base: IndexedBase) -> list[Step]:
    """Steps of both laws: uniform attention has no centered output, and the gain of Gaussian matrices."""
    tokens = TokenSums(premises)
    state = entry(base)
    coherent = average(state)
    return [
        tokens.step(
            "uniform attention J: P J X = 0, the branch has no centered part",
            tokens.centered(lambda token: average(state), t),
            Integer(0),
        ),
        tokens.step(
            "J of it is J X: the branch is all mean", tokens.mean(lambda token: average(state), t), coherent
        ),
        tokens.step(
            "E |xbar^T W|^2 = sigma^2 D |xbar|^2 for one Gaussian matrix, so g = (sigma^2 D)^2 for W_V W_O",
            _expected_square(base, t),
            STD**2 * WIDTH * Sum(coherent**2, over(b, WIDTH)),
        ),
    ]


def _front_depth(premises: Premises) -> list[Step]:
    mean, centered, divisor = (Symbol(name, positive=True) for name in ("m", "p", "R"))
    attention_gain, growth = _growth()
    branch = attention_gain * mean
    rate = Symbol("G", positive=True)
    solution = FIRST_ODDS * rate**DEPTH
    front = log((9 * T + 1) / FIRST_ODDS) / log(rate)
    leaky = (1 - premises.mean_leak * ALPHA) ** 2 * mean + ALPHA**2 * branch
    return [
        *_uniform_attention(premises, STATE),
        algebra(
            "m' = (m + lambda^2 g m) / R, p' = p / R: (T - 1) m' / p' = G (T - 1) m / p, G = 1 + lambda^2 g",
            (T - 1) * ((mean + GAIN**2 * branch) / divisor) / (centered / divisor),
            growth * ((T - 1) * mean / centered),
        ),
        algebra("a_l = a_0 G^l at l = 0", solution.subs(DEPTH, 0), FIRST_ODDS),
        algebra("and from l to l + 1", solution.subs(DEPTH, DEPTH + 1), rate * solution),
        algebra(
            "a_0 G^l* = 9 T + 1 at l* = ln((9 T + 1) / a_0) / ln G",
            FIRST_ODDS * exp(front * log(rate)),
            9 * T + 1,
        ),
        algebra(
            "MV-Split: m' / p' = ((1 - alpha)^2 + alpha^2 g) m / p, a front only if that factor exceeds 1",
            (leaky / divisor) / (centered / divisor),
            ((1 - ALPHA) ** 2 + ALPHA**2 * attention_gain) * mean / centered,
        ),
    ]


def _mirror(premises: Premises) -> list[Step]:
    tokens = TokenSums(premises)
    growth = Symbol("G", positive=True)
    forward, adjoint, last = (Symbol(name, positive=True) for name in ("a_0", "a_d(L)", "L"))
    written = Sum(average(lambda token: TANGENT[token, e]) * WEIGHT[e, b], over(e, WIDTH))
    read = Sum(tokens.mean(lambda token: GRADIENT[token, e], t) * WEIGHT[b, e], over(e, WIDTH))
    down = adjoint * growth ** (last - DEPTH)
    energy, excess, coherence = (Symbol(name, positive=True) for name in ("m", "p", "c_d"))
    attention_gain, rate = _growth()
    return [
        tokens.step(
            "the adjoint of X -> X + lambda J X W is G -> G + lambda J G W^T",
            pairing(GRADIENT[t, b], TANGENT[t, b] + GAIN * written),
            pairing(GRADIENT[t, b] + GAIN * read, TANGENT[t, b]),
        ),
        *_uniform_attention(premises, GRADIENT),
        algebra(
            "so a_d = (T - 1) m_d / p_d multiplies by G per merge, going down",
            (T - 1) * (energy + GAIN**2 * attention_gain * energy) / excess,
            rate * ((T - 1) * energy / excess),
        ),
        algebra("a_d(l) = a_d(L) G^(L - l) at l = L", down.subs(DEPTH, last), adjoint),
        algebra("and from l to l - 1", cancel(down.subs(DEPTH, DEPTH - 1) / down), growth),
        algebra(
            "a_l a_d(l) = a_0 a_d(L) G^L at every l",
            cancel(forward * growth**DEPTH * down / growth**last),
            forward * adjoint,
        ),
        algebra(
            "writer inputs aligned (c_y = 1): A - 1 = (T - 1) c_d = (T - 1)(a_d - 1) / (a_d + T - 1)",
            (T - 1) * cosine_of(odds(coherence)),
            (T - 1) * coherence,
        ),
    ]


def evaluate_front_depth(x: NDArray[Any], writer: NDArray[Any], blocks: int) -> dict[str, Sides]:
    """Both sides of F1 for x [T, D] after `blocks` merges X + J X W with W W^T = lambda^2 g I, W^T = -W.

    A skew writer makes exact what F1 states on average: <xbar, xbar W> = 0, |xbar W|^2 = lambda^2 g |xbar|^2.
    """
    mean, _ = token_projectors(x)
    growth = 1 + (writer[0] * writer[0]).sum()
    first, state = energy_odds(x), x
    for _ in range(blocks):
        state = state + mean @ state @ writer
    return {"odds": (energy_odds(state), first * growth**blocks)}


def evaluate_mirror(
    x: NDArray[Any], gradient: NDArray[Any], writer: NDArray[Any], blocks: int
) -> dict[str, Sides]:
    """Both sides of M1: the state x up and the cotangent down through `blocks` merges X + J X W, as in F1.

    `products` compares a_l a_d(l) at every other l with the last; `aligned` is A - 1 for equal writer inputs.
    """
    mean, _ = token_projectors(x)
    growth = 1 + (writer[0] * writer[0]).sum()
    states, cotangents = [x], [gradient]
    for _ in range(blocks):
        states.append(states[-1] + mean @ states[-1] @ writer)
        cotangents.append(cotangents[-1] + mean @ cotangents[-1] @ writer.T)
    products = [
        energy_odds(up) * energy_odds(down) for up, down in zip(states, reversed(cotangents), strict=True)
    ]
    units = unit_tokens(gradient)
    value, tokens = energy_odds(units), len(x)
    excess = evaluate_rayleigh(np.stack([x[0]] * tokens), units)["excess"][0]
    return {
        "adjoint": (energy_odds(cotangents[-1]), energy_odds(gradient) * growth**blocks),
        "products": (np.array(products[:-1]), products[-1]),
        "aligned": (excess, (tokens - 1) * (value - 1) / (value + tokens - 1)),
    }


FRONT_DEPTH = Law(
    tag="F1",
    title="under uniform attention the energy ratio grows geometrically with depth",
    statement=(
        "rho^2 multiplies by G = 1 + lambda^2 g per merge;  a_l = a_0 G^l;  "
        "l* = ln((9 T + 1) / a_0) / ln G, l counting merges"
    ),
    assumes=(
        "attention is uniform, A = J, and there is no FFN",
        "E over W_V, W_O independent N(0, sigma^2) and of the state: E |X + lambda F|^2 has no cross term",
        "energies by their expectation, g = sigma^4 D^2; the norm divides all tokens by one R",
    ),
    source="derived here",
    derive=_front_depth,
    evaluate=evaluate_front_depth,
)


MIRROR = Law(
    tag="M1",
    title="the adjoint collapses on its way down as the state does on its way up",
    statement=(
        "a_d(l) = a_d(L) G^(L - l);  a_l a_d(l) = a_0 a_d(L) G^L at every l;  "
        "A - 1 = (T - 1)(a_d - 1) / (a_d + T - 1) for aligned writer inputs"
    ),
    assumes=(
        "F1",
        "the cotangent is independent of W_V, W_O",
        "the adjoint of the softmax weights is neglected",
        "the norm's projection, O(1 / D), is neglected",
    ),
    source="derived here",
    derive=_mirror,
    evaluate=evaluate_mirror,
)
