"""Laws O1 and O2: rival explanations of the critical learning rate, distinguished by their exponents."""

from typing import Any

from numpy.typing import NDArray
from sympy import (
    Expr,
    IndexedBase,
    Integer,
    Matrix,
    Rational,
    Sum,
    cancel,
    diff,
    expand,
    eye,
    limit,
    log,
    nsimplify,
    oo,
    powdenest,
    simplify,
    sqrt,
    summation,
    symbols,
)

from meanmode.theory.laws.rivals import RIVALS, sub_layer_sum
from meanmode.theory.proof.index_sums import IndexSums, off_diagonal, over
from meanmode.theory.proof.law import Law, Premises, Sides, Step

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


def _equal(name: str, left: Expr, right: Expr) -> Step:
    return Step(name=name, left=left, right=right, normal_form=lambda words: simplify(powdenest(words)))


LEADING = {1: RATE**2 / (2 * SLOPE), 2: RATE**3 / (3 * SLOPE)}
"""Power -> sum of eta^power over the steps of a ramp up to eta, for slopes far below eta."""


def _ramp_sums() -> list[Step]:
    step, last = symbols("s n", integer=True, positive=True)
    sums = {power: summation((SLOPE * step) ** power, (step, 1, last)) for power in LEADING}
    reached = {power: expand(total.subs(last, RATE / SLOPE)) for power, total in sums.items()}
    return [
        _equal(
            "sum_{s <= n} k s at eta = k n is eta (eta + k) / (2 k)",
            reached[1],
            RATE * (RATE + SLOPE) / (2 * SLOPE),
        ),
        _equal(
            "sum_{s <= n} (k s)^2 at eta = k n is eta (eta + k) (2 eta + k) / (6 k)",
            reached[2],
            RATE * (RATE + SLOPE) * (2 * RATE + SLOPE) / (6 * SLOPE),
        ),
        *(
            _equal(
                f"for k << eta the sum of eta^{power} is eta^{power + 1} / ({power + 1} k)",
                limit(reached[power] / leading, SLOPE, 0, "+"),
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
            _equal(f"{name}: {rival.says}, at eta_c", displaced[name].subs(RATE, rate), reaches[name]),
            _equal(
                f"{name}: 6 d ln eta_c / d ln k",
                6 * SLOPE * diff(log(rate), SLOPE),
                6 * nsimplify(rival.slope_exponent),
            ),
            _equal(
                f"{name}: 6 d ln eta_c / d ln L",
                6 * DEPTH * diff(log(rate), DEPTH),
                6 * nsimplify(rival.depth_exponent),
            ),
        ]
    return steps


def _edge() -> list[Step]:
    # m' = beta1 m + (1 - beta1) lambda x, x' = x - eta m'
    push = (1 - MOMENTUM) * CURVATURE
    update = Matrix([[MOMENTUM, push], [-RATE * MOMENTUM, 1 - RATE * push]])
    edge = 2 * (1 + MOMENTUM) / (1 - MOMENTUM)
    oscillates = (update + eye(2)).det()
    return [
        _equal(
            "edge: -1 is an eigenvalue of (m, x) -> (m', x') at eta lambda = 2 (1 + beta1) / (1 - beta1)",
            cancel(oscillates.subs(CURVATURE, edge / RATE)),
            Integer(0),
        ),
        _equal(
            "edge: the determinant is beta1 < 1, so that is where it loses stability", update.det(), MOMENTUM
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
    statement=(
        "eta = k t, eta_c = C k^a L^b: coherent (1/2, -1/2), diffusive (1/3, -2/3), instantaneous (0, -1), "
        "independent (0, -1/2);  edge of stability: eta lambda = 2 (1 + beta1) / (1 - beta1)"
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


CHANGE = IndexedBase("d", real=True)
SUB_LAYERS, FEATURES = symbols("n M", integer=True, positive=True)


def _coherent_layers(premises: Premises) -> list[Step]:
    first, second, feature = symbols("i j a", integer=True, positive=True)
    size, cosine, number = symbols("s r n", positive=True)
    form = IndexSums().normal_form
    features, each = over(feature, FEATURES), over(first, SUB_LAYERS)
    other = over(second, SUB_LAYERS)
    pair = Sum(CHANGE[first, feature] * CHANGE[second, feature], features)
    own = Sum(CHANGE[first, feature] ** 2, features)
    exponent = -number * diff(log(THRESHOLD / sqrt(sub_layer_sum(number, cosine))), number)
    return [
        Step(
            name="|sum_i d_i|^2 = sum_i |d_i|^2 + sum_{i != j} <d_i, d_j>",
            left=Sum(Sum(CHANGE[first, feature], each) ** 2, features),
            right=Sum(own, each) + Sum(off_diagonal(first, second) * pair, each, other),
            normal_form=form,
        ),
        _equal(
            "equal sizes s, mean pair cosine r: n s^2 + n (n - 1) r s^2 = s^2 n (1 + (n - 1) r)",
            number * size**2 + number * (number - 1) * cosine * size**2,
            size**2 * sub_layer_sum(number, cosine),
        ),
        _equal(
            "r = 0, independent: -d ln eta_c / d ln n",
            exponent.subs(cosine, 0),
            Rational(1, 2),
        ),
        _equal("n r -> infinity: -d ln eta_c / d ln n", limit(exponent, number, oo), Integer(1)),
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
    statement=(
        "|sum_i d_i|^2 = s^2 n (1 + (n - 1) r), n = 2 L sub-layers, r their mean pair cosine;  "
        "Delta = eta gamma sqrt(n (1 + (n - 1) r)): eta_c ~ L^(-1/2) for n r << 1, L^(-1) for n r >> 1"
    ),
    assumes=(
        "the changes d_i that the sub-layers make to the last trunk add up and are of equal norm eta gamma",
        "the exponents: gamma, r and the threshold of Delta do not depend on L",
    ),
    source="derived here (A4 with sub-layers for tokens; r = 0 is arXiv:2004.08249)",
    derive=_coherent_layers,
    evaluate=evaluate_coherent_layers,
)
