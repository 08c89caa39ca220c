"""Law O3: a collapse is an escape with a rate, and what ramps, constant rates and depth do to its time."""

from typing import Any

from sympy import (
    Derivative,
    Expr,
    Integer,
    Limit,
    Rational,
    Subs,
    cancel,
    exp,
    expand_log,
    log,
    oo,
    simplify,
    sqrt,
    symbols,
)

from meanmode.theory.laws.rivals import sub_layer_sum
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Step, calculus

LEVEL, GAIN, RATE, SLOPE, TIME, HORIZON = symbols("A G eta k t N", positive=True)
STEEPNESS, AGEING = symbols("b m", positive=True)
"""b, and m = 1 + c: the hazard can be integrated from t = 0 only if c > -1."""

NEEDED, FACTOR, THRESHOLD, OTHER_LEVEL = symbols("q f u a", positive=True)
"""The cumulated hazard of the quantile, ln 2 for the median; a factor of a schedule; law O2's threshold."""

C = AGEING - 1
SHAPE = AGEING + STEEPNESS
"""1 + b + c, the shape of the Weibull distribution of a ramp's collapse."""


def hazard(rate: Expr) -> Expr:
    """h = A (eta G)^b t^c at a learning rate, a constant or a function of t."""
    return LEVEL * (rate * GAIN) ** STEEPNESS * TIME**C


def cumulated_constant(level: Any, gain: Any, steepness: Any, ageing: Any, rate: Any, time: Any) -> Any:
    """int_0^t h = A (eta G)^b t^(1 + c) / (1 + c) at a constant rate; `ageing` is c (law O3)."""
    return level * (rate * gain) ** steepness * time ** (1 + ageing) / (1 + ageing)


def cumulated_ramp(level: Any, gain: Any, steepness: Any, ageing: Any, slope: Any, time: Any) -> Any:
    """int_0^t h = A (k G)^b t^(1 + b + c) / (1 + b + c) under the ramp eta = k t; `ageing` is c (law O3)."""
    shape = 1 + steepness + ageing
    return level * (slope * gain) ** steepness * time**shape / shape


def ramp_exponents(steepness: Any, ageing: Any) -> tuple[Any, Any]:
    """Exponents of a ramp's critical rate in its slope and in G, (1 + c) / (1 + b + c) and -b / (1 + b + c).

    Law O3; `ageing` is c.
    """
    shape = 1 + steepness + ageing
    return (1 + ageing) / shape, -steepness / shape


def _ramp_time() -> Expr:
    """Time at which a ramp's cumulated hazard is q."""
    return (NEEDED * SHAPE / (LEVEL * (SLOPE * GAIN) ** STEEPNESS)) ** (1 / SHAPE)


def _constant_rate() -> Expr:
    """Constant rate whose cumulated hazard at the horizon N is q."""
    return (NEEDED * AGEING / (LEVEL * HORIZON**AGEING)) ** (1 / STEEPNESS) / GAIN


def _survival() -> list[Step]:
    parts = (LEVEL, GAIN, STEEPNESS, C)
    constant, ramp = cumulated_constant(*parts, RATE, TIME), cumulated_ramp(*parts, SLOPE, TIME)
    steps = []
    for name, cumulated, rate in (("eta constant", constant, RATE), ("eta = k t", ramp, SLOPE * TIME)):
        survival = exp(-cumulated)
        steps += [
            calculus(f"{name}: d ln P(T > t) / dt = -h", Derivative(log(survival), TIME), -hazard(rate)),
            calculus(f"{name}: P(T > 0) = 1", Limit(survival, TIME, 0, "+"), Integer(1)),
        ]
    scaled = cumulated_ramp(*parts, FACTOR * SLOPE, TIME)
    return [
        *steps,
        calculus("rates times f: the cumulated hazard times f^b", scaled, FACTOR**STEEPNESS * ramp),
    ]


def _ramps() -> list[Step]:
    time = _ramp_time()
    rate = SLOPE * time
    slope, gain = ramp_exponents(STEEPNESS, C)
    ratio = _ramp_time().subs(NEEDED, FACTOR * NEEDED) / time
    return [
        calculus(
            "ramp: its cumulated hazard is q at t_c, q = ln 2 for the median",
            Subs(cumulated_ramp(LEVEL, GAIN, STEEPNESS, C, SLOPE, TIME), TIME, time),
            NEEDED,
        ),
        calculus(
            "ramp: (1 + b + c) d ln eta_c / d ln k",
            SHAPE * SLOPE * Derivative(log(rate), SLOPE),
            SHAPE * slope,
        ),
        calculus(
            "ramp: (1 + b + c) d ln eta_c / d ln G",
            SHAPE * GAIN * Derivative(log(rate), GAIN),
            SHAPE * gain,
        ),
        calculus(
            "ramps with k ~ 1 / G: d ln eta_c / d ln G = -1 for every b and c",
            GAIN * Derivative(log(rate.subs(SLOPE, FACTOR / GAIN)), GAIN),
            Integer(-1),
        ),
        calculus(
            "ramp: quantiles of ln t_c lie ln(q' / q) / (1 + b + c) apart", SHAPE * log(ratio), log(FACTOR)
        ),
    ]


def _half_rates() -> list[Step]:
    half, ramp = _constant_rate(), SLOPE * _ramp_time()
    return [
        calculus(
            "half rate: the cumulated hazard at eta_h and the horizon N is q",
            Subs(cumulated_constant(LEVEL, GAIN, STEEPNESS, C, RATE, HORIZON), RATE, half),
            NEEDED,
        ),
        calculus(
            "half rate: b d ln eta_h / d ln N", STEEPNESS * HORIZON * Derivative(log(half), HORIZON), -AGEING
        ),
        calculus("half rate: d ln eta_h / d ln G", GAIN * Derivative(log(half), GAIN), Integer(-1)),
        calculus(
            "eta_c^(1 + b + c) = eta_h^b (k N)^(1 + c) (1 + b + c) / (1 + c), without A and G",
            SHAPE * log(ramp),
            STEEPNESS * log(half) + AGEING * log(SLOPE * HORIZON) + log(SHAPE / AGEING),
        ),
    ]


def _limits() -> list[Step]:
    slope, gain = ramp_exponents(STEEPNESS, C)
    # h = a (eta G / u)^b t^c
    sharp = expand_log(log(SLOPE * _ramp_time().subs(LEVEL, OTHER_LEVEL / THRESHOLD**STEEPNESS)))
    depth, step, coherence = symbols("L gamma r", positive=True)
    changes = step * sqrt(sub_layer_sum(2 * depth, coherence))
    reached = Limit(_numerator(sharp) / SHAPE, STEEPNESS, oo)
    return [
        calculus(
            "b -> infinity, A = a u^(-b): eta_c gamma sqrt(n (1 + (n - 1) r)) -> u, n = 2 L: law O2",
            Subs(exp(reached), GAIN, changes) * changes,
            THRESHOLD,
        ),
        calculus("b -> infinity: d ln eta_c / d ln k -> 0", Limit(slope, STEEPNESS, oo), Integer(0)),
        calculus("b -> infinity: d ln eta_c / d ln G -> -1", Limit(gain, STEEPNESS, oo), Integer(-1)),
        calculus("b -> 0: d ln eta_c / d ln k -> 1, a clock", Limit(slope, STEEPNESS, 0, "+"), Integer(1)),
        calculus("c -> -1: d ln eta_c / d ln k -> 0", Limit(slope, AGEING, 0, "+"), Integer(0)),
        calculus("c -> -1: d ln eta_c / d ln G -> -1", Limit(gain, AGEING, 0, "+"), Integer(-1)),
        calculus("c -> -1: d ln eta_h / d ln N -> 0", Limit(-AGEING / STEEPNESS, AGEING, 0, "+"), Integer(0)),
        calculus(
            "c = 0, b = 1: 2 d ln eta_c / d ln k is that of coherent accumulation in law O1",
            2 * Subs(slope, (AGEING, STEEPNESS), (1, 1)),
            2 * Rational(1, 2),
        ),
    ]


def _numerator(logarithm: Expr) -> Expr:
    """(1 + b + c) times the logarithm of a ramp's rate, as a sum; sympy finds the limit of this form."""
    return expand_log(simplify(cancel(logarithm * SHAPE)))


def _escape(premises: Premises) -> list[Step]:
    return [*_survival(), *_ramps(), *_half_rates(), *_limits()]


def evaluate_escape(
    level: Any, gain: Any, steepness: Any, ageing: Any, slope: Any, horizon: Any, needed: Any
) -> dict[str, Sides]:
    """Both sides of O3: cumulated hazards at the median and the half rate, exponents as ratios of rates."""
    shape = 1 + steepness + ageing

    def ramp(at: Any, of: Any = gain) -> Any:
        return at * (needed * shape / (level * (at * of) ** steepness)) ** (1 / shape)

    half = (needed * (1 + ageing) / (level * horizon ** (1 + ageing))) ** (1 / steepness) / gain
    by_slope, by_gain = ramp_exponents(steepness, ageing)
    joined = half**steepness * (slope * horizon) ** (1 + ageing) * shape / (1 + ageing)
    return {
        "median": (cumulated_ramp(level, gain, steepness, ageing, slope, ramp(slope) / slope), needed),
        "half_rate": (cumulated_constant(level, gain, steepness, ageing, half, horizon), needed),
        "slope": (ramp(4 * slope) / ramp(slope), 4**by_slope),
        "gain": (ramp(slope, 4 * gain) / ramp(slope), 4**by_gain),
        "both": (ramp(slope) ** shape, joined),
    }


ESCAPE = Law(
    tag="O3",
    title="a collapse that escapes at a rate has exponents between those of a threshold and of a clock",
    clauses=(
        Clause(
            says="h = A (eta G)^b t^c, P(T > t) = exp(-int_0^t h)",
            steps=(
                "eta constant: d ln P",
                "eta constant: P(T > 0)",
                "eta = k t: d ln P",
                "eta = k t: P(T > 0)",
            ),
        ),
        Clause(
            says=(
                "ramp eta = k t: A (k G)^b t_c^(1 + b + c) / (1 + b + c) = ln 2 at the median, "
                "eta_c ~ k^((1 + c) / (1 + b + c)) G^(-b / (1 + b + c))"
            ),
            steps=(
                "ramp: its cumulated hazard",
                "ramp: (1 + b + c) d ln eta_c / d ln k",
                "ramp: (1 + b + c) d ln eta_c / d ln G",
            ),
        ),
        Clause(
            says=(
                "half rate of N steps: A (eta_h G)^b N^(1 + c) / (1 + c) = ln 2, eta_h ~ N^(-(1 + c) / b) / G"
            ),
            steps=(
                "half rate: the cumulated hazard",
                "half rate: b d ln eta_h / d ln N",
                "half rate: d ln eta_h / d ln G",
            ),
        ),
        Clause(
            says="b -> infinity: the threshold eta_c G = u of law O2",
            steps=(
                "b -> infinity, A = a u^(-b)",
                "b -> infinity: d ln eta_c / d ln k",
                "b -> infinity: d ln eta_c / d ln G",
            ),
        ),
        Clause(
            says="c -> -1: neither the slope nor the horizon matters",
            steps=("c -> -1: d ln eta_c / d ln k", "c -> -1: d ln eta_h / d ln N"),
        ),
    ),
    assumes=(
        "c > -1, b > 0, and A, b and c do not depend on the rate, the slope or the horizon",
        "the exponents: A, b and c do not depend on G either; that b falls with the depth is an observation "
        "that is not derived",
        "many steps: the sum of the hazards of the steps is an integral",
    ),
    source="derived here; G is the sum over sub-layers of law O2",
    derive=_escape,
    evaluate=evaluate_escape,
)
