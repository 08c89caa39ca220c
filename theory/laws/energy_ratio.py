"""Laws E1 to E3, F1 and M1: the collapse front in closed form, and its mirror image for the adjoint.

E1 to E3 are exact; F1 and M1 are what the recursion becomes where attention is uniform and nothing else acts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, KroneckerDelta, Rational, Sum, Symbol, cancel, diff, exp, log

from meanmode.theory.laws.amplification import evaluate_rayleigh
from meanmode.theory.laws.merges import GRADIENT, TANGENT, entry, pairing, square
from meanmode.theory.proof.index_sums import off_diagonal, over
from meanmode.theory.proof.law import Law, Premises, Relation, Sides, Step
from meanmode.theory.proof.symbols import T, b, s, t
from meanmode.theory.proof.token_sums import WIDTH, TokenSums, average, token_projectors

STATE, DIRECTION = IndexedBase("X", real=True), IndexedBase("u", real=True)


WEIGHT = IndexedBase("W", real=True)


COSINE = Symbol("c", real=True)


STD, GAIN, ALPHA = Symbol("sigma", positive=True), Symbol("lambda", real=True), Symbol("alpha", real=True)


ODDS, FIRST_ODDS, DEPTH = Symbol("a", positive=True), Symbol("a_0", positive=True), Symbol("l", integer=True)


e, f = (Symbol(name, integer=True, positive=True) for name in "ef")


FRONT = Rational(9, 10)


def odds(cosine: Expr) -> Expr:
    """a = (1 + (T - 1) c) / (1 - c) = (T - 1) rho^2."""
    return (1 + (T - 1) * cosine) / (1 - cosine)


def cosine_of(value: Expr) -> Expr:
    """c = (a - 1) / (a + T - 1), the inverse of `odds`."""
    return (value - 1) / (value + T - 1)


def _algebra(name: str, left: Expr, right: Expr, relation: Relation = Relation.EQUAL) -> Step:
    return Step(name=name, left=left, right=right, relation=relation, normal_form=cancel)


def _pair_mean(base: IndexedBase) -> Expr:
    """Mean of <x_t, x_s> over distinct tokens."""
    inner = Sum(base[t, b] * base[s, b], over(b, WIDTH))
    return Sum(off_diagonal(t, s) * inner, over(t, T), over(s, T)) / (T * (T - 1))


def _unit_energies(premises: Premises) -> list[Step]:
    tokens = TokenSums(premises, unit={DIRECTION: premises.unit_square})
    direction, cosine = entry(DIRECTION), _pair_mean(DIRECTION)
    return [
        tokens.step(
            "unit tokens: |J X|^2 = 1 + (T - 1) c, c the mean of cos over distinct pairs",
            square(tokens.mean(direction, t)),
            1 + (T - 1) * cosine,
        ),
        tokens.step(
            "unit tokens: |P X|^2 = (T - 1)(1 - c)",
            square(tokens.centered(direction, t)),
            (T - 1) - (T - 1) * cosine,
        ),
    ]


def _energy_ratio(premises: Premises) -> list[Step]:
    ratio = (1 + (T - 1) * COSINE) / ((T - 1) * (1 - COSINE))
    return [
        *_unit_energies(premises),
        _algebra("(T - 1) rho^2 = (1 + (T - 1) c) / (1 - c)", (T - 1) * ratio, odds(COSINE)),
    ]


def _front_odds(premises: Premises) -> list[Step]:
    distance = 10 * T * (COSINE - FRONT) / (1 - COSINE)
    return [
        *_unit_energies(premises),
        _algebra("TCS = 0.9: a = 9 T + 1", odds(FRONT), 9 * T + 1),
        _algebra("a = 9 T + 1: TCS = 0.9", cosine_of(9 * T + 1), FRONT),
        _algebra(
            "a - (9 T + 1) = 10 T (c - 0.9) / (1 - c): the same sign for c < 1",
            odds(COSINE) - (9 * T + 1),
            distance,
        ),
    ]


def _moments(premises: Premises) -> list[Step]:
    tokens, state = TokenSums(premises), entry(STATE)
    own, pair, mean, centered = (Symbol(name, positive=True) for name in ("d", "o", "m", "p"))
    second = square(state(t)) / T
    of_moments = (own + (T - 1) * pair) / T
    return [
        tokens.step(
            "m = |J X|^2 / T = (d + (T - 1) o) / T",
            square(tokens.mean(state, t)) / T,
            second / T + (T - 1) / T * _pair_mean(STATE),
        ),
        tokens.step(
            "p = |P X|^2 / T = d - m",
            square(tokens.centered(state, t)) / T,
            second - square(tokens.mean(state, t)) / T,
        ),
        _algebra(
            "c = o / d = (T m / (m + p) - 1) / (T - 1)",
            (T * of_moments / own - 1) / (T - 1),
            pair / own,
        ),
        _algebra(
            "c = (a - 1) / (a + T - 1) with a = (T - 1) m / p",
            cosine_of((T - 1) * mean / centered),
            (T * mean / (mean + centered) - 1) / (T - 1),
        ),
        _algebra("a of that c is a", odds(cosine_of(ODDS)), ODDS),
        _algebra("c of a(c) is c", cosine_of(odds(COSINE)), COSINE),
        _algebra("da/dc = T / (1 - c)^2 > 0", diff(odds(COSINE), COSINE), T / (1 - COSINE) ** 2),
    ]


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
    """What both directions share: uniform attention has no centered output, and a Gaussian matrix's gain."""
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
        _algebra(
            "m' = (m + lambda^2 g m) / R, p' = p / R: (T - 1) m' / p' = G (T - 1) m / p, G = 1 + lambda^2 g",
            (T - 1) * ((mean + GAIN**2 * branch) / divisor) / (centered / divisor),
            growth * ((T - 1) * mean / centered),
        ),
        _algebra("a_l = a_0 G^l at l = 0", solution.subs(DEPTH, 0), FIRST_ODDS),
        _algebra("and from l to l + 1", solution.subs(DEPTH, DEPTH + 1), rate * solution),
        _algebra(
            "a_0 G^l* = 9 T + 1 at l* = ln((9 T + 1) / a_0) / ln G",
            FIRST_ODDS * exp(front * log(rate)),
            9 * T + 1,
        ),
        _algebra(
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
        _algebra(
            "so a_d = (T - 1) m_d / p_d multiplies by G per merge, going down",
            (T - 1) * (energy + GAIN**2 * attention_gain * energy) / excess,
            rate * ((T - 1) * energy / excess),
        ),
        _algebra("a_d(l) = a_d(L) G^(L - l) at l = L", down.subs(DEPTH, last), adjoint),
        _algebra("and from l to l - 1", cancel(down.subs(DEPTH, DEPTH - 1) / down), growth),
        _algebra(
            "a_l a_d(l) = a_0 a_d(L) G^L at every l",
            cancel(forward * growth**DEPTH * down / growth**last),
            forward * adjoint,
        ),
        _algebra(
            "writer inputs aligned (c_y = 1): A - 1 = (T - 1) c_d = (T - 1)(a_d - 1) / (a_d + T - 1)",
            (T - 1) * cosine_of(odds(coherence)),
            (T - 1) * coherence,
        ),
    ]


def _cosine(x: NDArray[Any]) -> Any:
    """Mean pair cosine of x [T, D]."""
    unit = x / (x * x).sum(1, keepdims=True) ** 0.5
    gram, tokens = unit @ unit.T, len(x)
    return (gram.sum() - np.trace(gram)) / (tokens * (tokens - 1))


def _odds(x: NDArray[Any]) -> Any:
    """(T - 1) |J X|^2 / |P X|^2."""
    mean, centered = token_projectors(x)
    return (len(x) - 1) * ((mean @ x) ** 2).sum() / ((centered @ x) ** 2).sum()


def _unit(x: NDArray[Any]) -> NDArray[Any]:
    scaled: NDArray[Any] = x / (x * x).sum(1, keepdims=True) ** 0.5
    return scaled


def evaluate_energy_ratio(x: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of E1 for tokens [T, D], normalised first."""
    tokens, cosine = len(x), _cosine(x)
    return {
        "rho_squared": (
            _odds(_unit(x)) / (tokens - 1),
            (1 + (tokens - 1) * cosine) / ((tokens - 1) * (1 - cosine)),
        )
    }


def evaluate_front_odds(x: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of E2: tokens [T, D], normalised first, against the front's distance."""
    tokens, cosine = len(x), _cosine(x)
    return {
        "distance": (_odds(_unit(x)) - (9 * tokens + 1), (10 * tokens * cosine - 9 * tokens) / (1 - cosine))
    }


def evaluate_moments(x: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of E3 for tokens [T, D] of any norms: cross over second moment from m and p."""
    tokens, (mean, centered) = len(x), token_projectors(x)
    own, gram = (x * x).sum() / tokens, x @ x.T
    pair = (gram.sum() - np.trace(gram)) / (tokens * (tokens - 1))
    m, p = ((mean @ x) ** 2).sum() / tokens, ((centered @ x) ** 2).sum() / tokens
    value = (tokens - 1) * m / p
    return {
        "mean_energy": (m, (own + (tokens - 1) * pair) / tokens),
        "centered_energy": (p, own - m),
        "cosine": (pair / own, (tokens * m / (m + p) - 1) / (tokens - 1)),
        "odds": (pair / own, (value - 1) / (value + tokens - 1)),
    }


def evaluate_front_depth(x: NDArray[Any], writer: NDArray[Any], blocks: int) -> dict[str, Sides]:
    """Both sides of F1: x [T, D] through `blocks` of X + J X W, W W^T = lambda^2 g I, W^T = -W.

    A skew writer makes exact what F1 has on average: <xbar, xbar W> = 0, |xbar W|^2 = g |xbar|^2 lambda^2.
    """
    mean, _ = token_projectors(x)
    growth = 1 + (writer[0] * writer[0]).sum()
    first, state = _odds(x), x
    for _ in range(blocks):
        state = state + mean @ state @ writer
    return {"odds": (_odds(state), first * growth**blocks)}


def evaluate_mirror(
    x: NDArray[Any], gradient: NDArray[Any], writer: NDArray[Any], blocks: int
) -> dict[str, Sides]:
    """Both sides of M1: the state x going up and the cotangent going down `blocks` of X + J X W, as in F1.

    `products` are a_l a_d(l) at every l but the last against the last; `aligned` is A of equal writer inputs.
    """
    mean, _ = token_projectors(x)
    growth = 1 + (writer[0] * writer[0]).sum()
    states, cotangents = [x], [gradient]
    for _ in range(blocks):
        states.append(states[-1] + mean @ states[-1] @ writer)
        cotangents.append(cotangents[-1] + mean @ cotangents[-1] @ writer.T)
    products = [_odds(up) * _odds(down) for up, down in zip(states, reversed(cotangents), strict=True)]
    units = _unit(gradient)
    value, tokens = _odds(units), len(x)
    excess = evaluate_rayleigh(np.stack([x[0]] * tokens), units)["excess"][0]
    return {
        "adjoint": (_odds(cotangents[-1]), _odds(gradient) * growth**blocks),
        "products": (np.array(products[:-1]), products[-1]),
        "aligned": (excess, (tokens - 1) * (value - 1) / (value + tokens - 1)),
    }


ENERGY_RATIO = Law(
    tag="E1",
    title="token cosine and energy ratio are one variable",
    statement="rho^2 = |J X|^2 / |P X|^2 = (1 + (T - 1) c) / ((T - 1)(1 - c)), c = TCS",
    assumes=("all tokens have one norm", "c < 1", "T > 1", "J = 1 1^T / T", "P = I - J"),
    source="derived here",
    derive=_energy_ratio,
    evaluate=evaluate_energy_ratio,
)


FRONT_ODDS = Law(
    tag="E2",
    title="the collapse front TCS = 0.9 is a = 9 T + 1",
    statement="a = (T - 1) rho^2 = (1 + (T - 1) c) / (1 - c);  c >= 0.9 <=> a >= 9 T + 1",
    assumes=("E1",),
    source="derived here",
    derive=_front_odds,
    evaluate=evaluate_front_odds,
)


MOMENTS = Law(
    tag="E3",
    title="mean and centered energy from second and cross moment, and back",
    statement=(
        "m = (d + (T - 1) o) / T;  p = d - m;  c = o / d = (T m / (m + p) - 1) / (T - 1)"
        " = (a - 1) / (a + T - 1), a = (T - 1) m / p"
    ),
    assumes=("d mean of |x_t|^2, o mean of <x_t, x_s> over s != t", "T > 1", "J = 1 1^T / T", "P = I - J"),
    source="derived here",
    derive=_moments,
    evaluate=evaluate_moments,
)


FRONT_DEPTH = Law(
    tag="F1",
    title="under uniform attention the energy ratio grows geometrically up to the front",
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
    title="going down, the adjoint collapses as the state does going up",
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
