"""Laws F1 and M1: growth of the energy ratio up to the front, and its mirror image for the adjoint.

The mean-field recursion reduces to these laws if attention is uniform and there is no FFN.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, KroneckerDelta, Subs, Sum, Symbol, exp, log

from meanmode.theory.laws.amplification import evaluate_rayleigh
from meanmode.theory.laws.energy_ratio import (
    DIRECTION,
    STATE,
    cosine_of,
    energy_odds,
    odds,
    pair_mean,
    unit_tokens,
)
from meanmode.theory.laws.merge_cotangents import GRADIENT, TANGENT
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.letters import Letter
from meanmode.theory.proof.step import Step, rational
from meanmode.theory.proof.symbols import WIDTH, N, T, a, b, s, t
from meanmode.theory.proof.token_projectors import STATE as STATES
from meanmode.theory.proof.token_projectors import TokenProjectors
from meanmode.theory.proof.token_sums import (
    NESTED,
    TokenSums,
    average,
    entry,
    pairing,
    token_projectors,
)

WEIGHT = IndexedBase("W", shape=(WIDTH, WIDTH), real=True)
INPUT_DIRECTION = IndexedBase("y", shape=(N,), real=True)
WRITER = Letter("W", WIDTH, WIDTH)
STD, GAIN, ALPHA = Symbol("sigma", positive=True), Symbol("lambda", real=True), Symbol("alpha", real=True)
FIRST_ODDS, DEPTH = Symbol("a_0", positive=True), Symbol("l", integer=True)
e, f, g, h = (Symbol(name, integer=True, positive=True) for name in "efgh")


def _expected_square(base: IndexedBase) -> Expr:
    """E |xbar^T V O|^2 for xbar the token average: E V_eb V_fc = sigma^2 delta_ef delta_bc, likewise O.

    V and O are independent, so E V_eb V_fc O_bg O_cg is the product of both moments.
    """
    left, right = (Sum(base[s, index], over(s, T)) / T for index in (e, f))
    values = STD**2 * KroneckerDelta(e, f) * KroneckerDelta(g, h)
    outputs = STD**2 * KroneckerDelta(g, h)
    indices = (over(index, WIDTH) for index in (e, f, g, h, b))
    return Sum(left * right * values * outputs, *indices)


def _growth() -> tuple[Expr, Expr]:
    """g = sigma^4 D^2 and G = 1 + lambda^2 g."""
    attention_gain = STD**4 * WIDTH**2
    return attention_gain, 1 + GAIN**2 * attention_gain


def _uniform_attention(premises: Premises, base: IndexedBase, letter: Letter) -> list[Step]:
    """Steps of both laws: uniform attention writes to the mean only, and the gain of Gaussian writers."""
    tokens, words = TokenSums(premises), TokenProjectors(premises)
    state = entry(base)
    coherent = average(state)
    attention_gain, growth = _growth()
    written = Sum(base[NESTED, b], over(NESTED, T)) / T
    square = Sum(coherent**2, over(b, WIDTH))
    name = letter.name
    merged = letter + GAIN * words.mean * letter * WRITER
    return [
        tokens.step(
            f"uniform attention J: P J {name} = 0, the branch has no centered part",
            tokens.centered(lambda token: written, t),
            Integer(0),
        ),
        words.step(
            f"a merge, {name} + lambda J {name} W: its centered part is P {name}",
            words.centered * merged,
            words.centered * letter,
        ),
        words.step(
            f"a merge: its mean is J {name} + lambda J {name} W",
            words.mean * merged,
            words.mean * letter + GAIN * words.mean * letter * WRITER,
        ),
        tokens.step(
            "W = W_V W_O, independent and Gaussian: E |xbar^T W|^2 = (sigma^2 D)^2 |xbar|^2 = g |xbar|^2",
            _expected_square(base),
            attention_gain * square,
        ),
        tokens.step(
            "E W = 0: E |xbar + lambda W^T xbar|^2 = |xbar|^2 + lambda^2 E |W^T xbar|^2 = G |xbar|^2",
            square + GAIN**2 * _expected_square(base),
            growth * square,
        ),
    ]


def _front_depth(premises: Premises) -> list[Step]:
    mean, centered, divisor = (Symbol(name, positive=True) for name in ("m", "p", "R"))
    attention_gain, growth = _growth()
    branch = attention_gain * mean
    rate, depth = Symbol("G", positive=True), Symbol("x", real=True)
    solution = FIRST_ODDS * rate**DEPTH
    front = log((9 * T + 1) / FIRST_ODDS) / log(rate)
    leaky = (1 - premises.mean_leak * ALPHA) ** 2 * mean + ALPHA**2 * branch
    return [
        *_uniform_attention(premises, STATE, STATES),
        rational(
            "m' = (m + lambda^2 g m) / R, p' = p / R: (T - 1) m' / p' = G (T - 1) m / p, G = 1 + lambda^2 g",
            (T - 1) * ((mean + GAIN**2 * branch) / divisor) / (centered / divisor),
            growth * ((T - 1) * mean / centered),
        ),
        rational("a_l = a_0 G^l at l = 0", Subs(solution, DEPTH, 0), FIRST_ODDS),
        rational("and from l to l + 1", Subs(solution, DEPTH, DEPTH + 1), rate * solution),
        rational(
            "a_0 G^l* = 9 T + 1 at l* = ln((9 T + 1) / a_0) / ln G",
            Subs(FIRST_ODDS * exp(depth * log(rate)), depth, front),
            9 * T + 1,
        ),
        rational(
            "MV-Split: m' / p' = ((1 - alpha)^2 + alpha^2 g) m / p, a front only if that factor exceeds 1",
            (leaky / divisor) / (centered / divisor),
            ((1 - ALPHA) ** 2 + ALPHA**2 * attention_gain) * mean / centered,
        ),
    ]


def _aligned_amplification() -> Expr:
    """A - 1 = |grad|^2 / (T w^2) - 1 for cotangents of one norm and one input: d_t = w u_t, y_t = y."""
    weight = Symbol("w", positive=True)
    gradient = Sum(weight * DIRECTION[t, a] * INPUT_DIRECTION[b], over(t, T))
    return Sum(gradient**2, over(a, WIDTH), over(b, N)) / (T * weight**2) - 1


def _mirror(premises: Premises) -> list[Step]:
    tokens = TokenSums(premises, unit=dict.fromkeys((DIRECTION, INPUT_DIRECTION), premises.unit_square))
    growth = Symbol("G", positive=True)
    forward, adjoint, last = (Symbol(name, positive=True) for name in ("a_0", "a_d(L)", "L"))
    written = Sum(average(lambda token: TANGENT[token, e]) * WEIGHT[e, b], over(e, WIDTH))
    read = Sum(tokens.mean(lambda token: GRADIENT[token, e], t) * WEIGHT[b, e], over(e, WIDTH))
    down, up = adjoint * growth ** (last - DEPTH), Symbol("x", real=True)
    energy, excess, cosine = (Symbol(name, positive=True) for name in ("m", "p", "c_d"))
    attention_gain, rate = _growth()
    return [
        tokens.step(
            "the adjoint of X -> X + lambda J X W is G -> G + lambda J G W^T",
            pairing(GRADIENT[t, b], TANGENT[t, b] + GAIN * written),
            pairing(GRADIENT[t, b] + GAIN * read, TANGENT[t, b]),
        ),
        *_uniform_attention(premises, GRADIENT, Letter("G", T, WIDTH)),
        rational(
            "so a_d = (T - 1) m_d / p_d multiplies by G per merge, going down",
            (T - 1) * (energy + GAIN**2 * attention_gain * energy) / excess,
            rate * ((T - 1) * energy / excess),
        ),
        rational("a_d(l) = a_d(L) G^(L - l) at l = L", Subs(down, DEPTH, last), adjoint),
        rational("and from l to l - 1", Subs(down, DEPTH, DEPTH - 1), growth * down),
        rational(
            "a_l a_d(l) = a_0 a_d(L) G^L at every l",
            Subs(forward * growth**up, up, DEPTH) * Subs(adjoint * growth**up, up, last - DEPTH),
            forward * adjoint * growth**last,
        ),
        tokens.step(
            "writer inputs aligned, y_t = y, cotangents of one norm: A - 1 = (T - 1) c_d",
            _aligned_amplification(),
            (T - 1) * pair_mean(DIRECTION),
        ),
        rational(
            "c_d = (a_d - 1) / (a_d + T - 1)",
            cosine,
            cosine_of(odds(cosine)),
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
    clauses=(
        Clause(
            says="rho^2 multiplies by G = 1 + lambda^2 g per merge",
            steps=("a merge, X + lambda", "a merge: its mean", "W = W_V W_O", "E W = 0", "m' = (m"),
        ),
        Clause(says="a_l = a_0 G^l", steps=("a_l = a_0 G^l", "and from l")),
        Clause(says="l* = ln((9 T + 1) / a_0) / ln G, l counting merges", steps=("a_0 G^l*",)),
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
    clauses=(
        Clause(
            says="a_d(l) = a_d(L) G^(L - l)",
            steps=(
                "the adjoint of",
                "a merge, G + lambda",
                "a merge: its mean",
                "W = W_V W_O",
                "E W = 0",
                "so a_d",
                "a_d(l) = a_d(L)",
                "and from l",
            ),
        ),
        Clause(says="a_l a_d(l) = a_0 a_d(L) G^L at every l", steps=("a_l a_d(l)",)),
        Clause(
            says="A - 1 = (T - 1)(a_d - 1) / (a_d + T - 1) for aligned writer inputs",
            steps=("writer inputs aligned", "c_d = (a_d - 1)"),
        ),
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
