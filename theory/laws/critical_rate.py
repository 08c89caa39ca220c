"""Laws O1 and O2: rival explanations of the critical learning rate, distinguished by their exponents."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from sympy import (
    Derivative,
    Expr,
    IndexedBase,
    Integer,
    Limit,
    Matrix,
    Rational,
    Subs,
    Sum,
    log,
    nsimplify,
    oo,
    sqrt,
    symbols,
)

from meanmode.theory.laws.rivals import RIVALS, sub_layer_sum
from meanmode.theory.proof.index_sums import off_diagonal, over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Algebra, Facts, Relation, Step, calculus, cited, rational

SLOPE, DEPTH, RATE, GAIN, THRESHOLD = symbols("k L eta gamma u", positive=True)
MOMENTUM, CURVATURE = symbols("beta_1 lambda", positive=True)


def _critical_rates() -> dict[str, Expr]:
    """eta_c of every rival that has a law over time, for slopes far below eta_c; the proof checks them."""
    third = Rational(1, 3)
    return {
        "coherent": sqrt(2 * SLOPE * THRESHOLD / (DEPTH * GAIN)),
        "diffusive": (3 * SLOPE * THRESHOLD**2) ** third / (DEPTH * GAIN) ** (2 * third),
        "instantaneous": THRESHOLD / (DEPTH * GAIN),
        "independent": THRESHOLD / (sqrt(2 * DEPTH) * GAIN),
    }


LEADING = {1: RATE**2 / (2 * SLOPE), 2: RATE**3 / (3 * SLOPE)}
"""Power -> sum of eta^power over the steps of a ramp up to eta, for slopes far below eta."""


def _ramp_sums() -> list[Step]:
    step, last = symbols("s n", integer=True, positive=True)
    reached = {1: RATE * (RATE + SLOPE) / (2 * SLOPE)}
    reached[2] = reached[1] * (2 * RATE + SLOPE) / 3
    names = {1: "sum_{s <= n} k s at eta = k n is eta (eta + k) / (2 k)"}
    names[2] = "sum_{s <= n} (k s)^2 at eta = k n is eta (eta + k) (2 eta + k) / (6 k)"
    return [
        *(
            calculus(
                names[power],
                Sum((SLOPE * step) ** power, (step, 1, last)),
                total.subs(RATE, SLOPE * last),
            )
            for power, total in reached.items()
        ),
        *(
            calculus(
                f"for k << eta the sum of eta^{power} is eta^{power + 1} / ({power + 1} k)",
                Limit(reached[power] / leading, SLOPE, 0, "+"),
                Integer(1),
            )
            for power, leading in LEADING.items()
        ),
    ]


def _exponents() -> list[Step]:
    """The critical rate of every rival reaches its threshold and has the exponents it claims."""
    displaced = {
        "coherent": DEPTH * GAIN * LEADING[1],
        "diffusive": (DEPTH * GAIN) ** 2 * LEADING[2],
        "instantaneous": DEPTH * GAIN * RATE,
        "independent": 2 * DEPTH * (GAIN * RATE) ** 2,
    }
    reaches = {**dict.fromkeys(displaced, THRESHOLD), "diffusive": THRESHOLD**2, "independent": THRESHOLD**2}
    steps = []
    for name, rate in _critical_rates().items():
        rival = RIVALS[name]
        steps += [
            calculus(f"{name}: {rival.says}, at eta_c", Subs(displaced[name], RATE, rate), reaches[name]),
            calculus(
                f"{name}: 6 d ln eta_c / d ln k",
                6 * SLOPE * Derivative(log(rate), SLOPE),
                6 * nsimplify(rival.slope_exponent),
            ),
            calculus(
                f"{name}: 6 d ln eta_c / d ln L",
                6 * DEPTH * Derivative(log(rate), DEPTH),
                6 * nsimplify(rival.depth_exponent),
            ),
        ]
    return steps


def _edge() -> list[Step]:
    # m' = beta1 m + (1 - beta1) lambda x, x' = x - eta m'
    push = (1 - MOMENTUM) * CURVATURE
    update = Matrix([[MOMENTUM, push], [-RATE * MOMENTUM, 1 - RATE * push]])
    edge = 2 * (1 + MOMENTUM) / (1 - MOMENTUM)
    trace = update[0, 0] + update[1, 1]
    determinant = update[0, 0] * update[1, 1] - update[0, 1] * update[1, 0]
    # 0 < 1 - beta1 is written as a symbol of its own, so that signs can be read off
    rest, gap = symbols("q g", positive=True)
    below = {CURVATURE: (edge - gap) / RATE, MOMENTUM: 1 - rest}
    return [
        rational(
            "edge: -1 is an eigenvalue of (m, x) -> (m', x') at eta lambda = 2 (1 + beta1) / (1 - beta1)",
            Subs(1 + trace + determinant, CURVATURE, edge / RATE),
            Integer(0),
        ),
        rational("edge: the determinant is beta1 < 1", determinant, MOMENTUM),
        rational(
            "below the edge by g: 1 + trace + determinant = (1 - beta1) g > 0",
            (1 + trace + determinant).subs(CURVATURE, below[CURVATURE]).subs(MOMENTUM, below[MOMENTUM]),
            Integer(0),
            Relation.AT_LEAST,
            witness=rest * gap,
        ),
        rational(
            "for every eta lambda > 0: 1 - trace + determinant = (1 - beta1) eta lambda > 0",
            (1 - trace + determinant).subs(MOMENTUM, below[MOMENTUM]),
            Integer(0),
            Relation.AT_LEAST,
            witness=rest * RATE * CURVATURE,
        ),
        cited(
            "so both eigenvalues lie within the unit circle below the edge",
            theorem=(
                "Jury's criterion: a real 2 x 2 matrix has spectral radius below 1 if and only if its "
                "determinant is below 1 and 1 +- trace + determinant > 0"
            ),
            conditions="the three steps before; at the edge the first of the two signs is 0",
        ),
    ]


def _ramp(premises: Premises) -> list[Step]:
    return [*_ramp_sums(), *_exponents(), *_edge()]


def evaluate_ramp(slope: Any, steps: int, beta1: Any) -> dict[str, Sides]:
    """Both sides of O1: sums over the steps of a ramp, and the eigenvalue -1 at the edge of stability."""
    rates = [slope * step for step in range(1, steps + 1)]
    eta, edge = rates[-1], 2 * (1 + beta1) / (1 - beta1)
    return {
        "coherent": (sum(rates), eta * (eta + slope) / (2 * slope)),
        "diffusive": (sum(rate**2 for rate in rates), eta * (eta + slope) * (2 * eta + slope) / (6 * slope)),
        "edge": ((beta1 + 1) * (2 - (1 - beta1) * edge) + (1 - beta1) * edge * beta1, 0 * beta1),
    }


RAMP = Law(
    tag="O1",
    title="under a learning-rate ramp each rival has its own exponents in slope and depth",
    clauses=(
        Clause(
            says=(
                "eta = k t, eta_c = C k^a L^b: coherent (1/2, -1/2), diffusive (1/3, -2/3), "
                "instantaneous (0, -1), independent (0, -1/2)"
            ),
            steps=(
                "for k << eta the sum of eta^1",
                "for k << eta the sum of eta^2",
                *(f"{name}: {RIVALS[name].says}" for name in _critical_rates()),
                *(f"{name}: 6 d ln eta_c / d ln {by}" for name in _critical_rates() for by in "kL"),
            ),
        ),
        Clause(
            says="edge of stability: eta lambda = 2 (1 + beta1) / (1 - beta1)",
            steps=(
                "edge: -1",
                "edge: the determinant",
                "below the edge",
                "for every eta lambda",
                "so both eigenvalues",
            ),
        ),
    ),
    assumes=(
        "the gain gamma of a write and the threshold u do not depend on k and L",
        "k << eta_c",
        "edge: a quadratic and a preconditioner that stands still",
    ),
    source="derived here; independent sub-layers after arXiv:2004.08249, the edge after arXiv:2207.14484",
    derive=_ramp,
    evaluate=evaluate_ramp,
)


SUB_LAYERS, FEATURES = symbols("n M", integer=True, positive=True)
CHANGE, DIRECTION = (IndexedBase(name, shape=(SUB_LAYERS, FEATURES), real=True) for name in "du")


def _coherent_layers(premises: Premises) -> list[Step]:
    first, second, feature = symbols("i j a", integer=True, positive=True)
    size, cosine, number = symbols("s r n", positive=True)
    features, each = over(feature, FEATURES), over(first, SUB_LAYERS)
    other = over(second, SUB_LAYERS)

    def square(change: Callable[[Expr], Expr]) -> Expr:
        return Sum(Sum(change(first), each) ** 2, features)

    pair = Sum(CHANGE[first, feature] * CHANGE[second, feature], features)
    own = Sum(CHANGE[first, feature] ** 2, features)
    directions = Sum(DIRECTION[first, feature] * DIRECTION[second, feature], features)
    mean_cosine = Sum(off_diagonal(first, second) * directions, each, other) / (SUB_LAYERS * (SUB_LAYERS - 1))
    # minus the exponent of the critical rate in the number of sub-layers
    exponent = -number * Derivative(log(THRESHOLD / sqrt(sub_layer_sum(number, cosine))), number)
    return [
        Step(
            name="|sum_i d_i|^2 = sum_i |d_i|^2 + sum_{i != j} <d_i, d_j>",
            left=square(lambda index: CHANGE[index, feature]),
            right=Sum(own, each) + Sum(off_diagonal(first, second) * pair, each, other),
            algebra=Algebra.SUMS,
        ),
        Step(
            name="d_i = s u_i, |u_i| = 1, mean pair cosine r: |sum_i d_i|^2 = s^2 n (1 + (n - 1) r)",
            left=square(lambda index: size * DIRECTION[index, feature]),
            right=size**2 * sub_layer_sum(SUB_LAYERS, mean_cosine),
            algebra=Algebra.SUMS,
            facts=Facts(unit={DIRECTION: premises.unit_square}),
        ),
        calculus("r = 0, independent: -d ln eta_c / d ln n", Subs(exponent, cosine, 0), Rational(1, 2)),
        calculus("n r -> infinity: -d ln eta_c / d ln n", Limit(exponent.doit(), number, oo), Integer(1)),
    ]


def evaluate_coherent_layers(changes: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of O2 for n changes [n, M] of equal norm."""
    count = len(changes)
    norms = (changes * changes).sum(1)
    gram = changes @ changes.T
    cosine = (gram.sum() - norms.sum()) / (count * (count - 1)) / norms[0]
    total = changes.sum(0)
    return {"square": ((total * total).sum(), norms[0] * sub_layer_sum(count, cosine))}


COHERENT_LAYERS = Law(
    tag="O2",
    title="the functional step of independent sub-layers grows like sqrt(L), that of coherent ones like L",
    clauses=(
        Clause(
            says="|sum_i d_i|^2 = s^2 n (1 + (n - 1) r), n = 2 L sub-layers, r their mean pair cosine",
            steps=("d_i = s u_i",),
        ),
        Clause(
            says=(
                "Delta = eta gamma sqrt(n (1 + (n - 1) r)): eta_c ~ L^(-1/2) for n r << 1, "
                "L^(-1) for n r >> 1"
            ),
            steps=("d_i = s u_i", "r = 0", "n r -> infinity"),
        ),
    ),
    assumes=(
        "the changes d_i that the sub-layers make to the last trunk add up and are of equal norm eta gamma",
        "the exponents: gamma, r and the threshold of Delta do not depend on L",
    ),
    source="derived here (A4 with sub-layers for tokens; r = 0 is arXiv:2004.08249)",
    derive=_coherent_layers,
    evaluate=evaluate_coherent_layers,
)
