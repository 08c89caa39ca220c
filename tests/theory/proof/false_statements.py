"""Statements that a kernel must not prove, by name; run as a program, it prints the verdict on each.

Most were proved by an earlier kernel: it looked at no lengths, compared numbers by their form and asserted.
"""

import dataclasses
import json

from sympy import Derivative, IndexedBase, Integer, KroneckerDelta, S, Sum, Symbol, log, nan, oo, sqrt

from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.kernel import decide
from meanmode.theory.proof.law import PREMISES
from meanmode.theory.proof.letters import Letter
from meanmode.theory.proof.step import Algebra, Facts, Relation, Step, calculus, cited, rational
from meanmode.theory.proof.symbols import N, T, b, j, s, t

ROWS = IndexedBase("a", shape=(T, T), nonnegative=True)
UNIT, SQUARE = IndexedBase("u", shape=(T, N), real=True), IndexedBase("u", shape=(N, N), real=True)
SEVEN = IndexedBase("u", shape=(T, 7), real=True)
X, SHORT = IndexedBase("x", shape=(T,), real=True), IndexedBase("y", shape=(N,), real=True)
BARE = IndexedBase("x")
FACTS = Facts(unit=dict.fromkeys((UNIT, SQUARE, SEVEN), Integer(1)), rows={ROWS: Integer(1)})
HIDDEN_ZERO = sqrt(5 + 2 * sqrt(6)) - sqrt(2) - sqrt(3)
MIXER, STATE = Letter("A", T, T), Letter("X", T, N)
OTHER = Symbol("q", positive=True)
POSITIVE, ANY, ONES = Symbol("p", positive=True), Symbol("n", integer=True), Letter("B", T, T)


def sums(left, right, relation=Relation.EQUAL, witness=S.Zero, at=None) -> Step:
    """A claim about entries whose rows or squares sum to 1."""
    return Step(
        name="false",
        left=left,
        right=right,
        relation=relation,
        witness=witness,
        at=at or {},
        algebra=Algebra.SUMS,
        facts=FACTS,
    )


def words(left, right, products=None) -> Step:
    """A claim about matrices."""
    return Step(
        name="false", left=left, right=right, algebra=Algebra.WORDS, facts=Facts(products=products or {})
    )


def negative_root() -> Step:
    """The step of C2 that says that R is positive, for -R."""
    (step,) = [step for step in LAWS["C2"].derive(PREMISES) if step.name.startswith("R is positive")]
    return Step(
        name="-R is positive semidefinite",
        left=-step.left,
        right=step.right,
        relation=Relation.AT_LEAST,
        witness=-step.witness,
        algebra=Algebra.SUMS,
    )


FALSE = {
    "a trace of a row-stochastic matrix is 1": sums(Sum(ROWS[j, j], over(j, T)), Integer(1)),
    "squares on a diagonal sum to 1": sums(Sum(SQUARE[b, b] ** 2, over(b, N)), Integer(1)),
    "part of a row sums to 1": sums(Sum(ROWS[t, j], over(j, T - 1)), Integer(1)),
    "more than a row sums to 1": sums(Sum(ROWS[t, j], over(j, T + 1)), Integer(1)),
    "5 squares sum to what 7 do": sums(Sum(SEVEN[t, b] ** 2, over(b, 5)), Sum(SEVEN[t, b] ** 2, over(b, 7))),
    "a column of a row-stochastic matrix sums to 1": sums(Sum(ROWS[j, t], over(j, T)), Integer(1)),
    "a delta beyond the range": sums(Sum(KroneckerDelta(t, T + 1) * X[t], over(t, T)), X[T + 1]),
    "a delta to a multiple": sums(Sum(KroneckerDelta(t, 2 * s) * X[t], over(t, T)), X[2 * s]),
    "a delta to an index of unknown length": sums(Sum(KroneckerDelta(t, s), over(t, T)), Integer(1)),
    "a delta to an index of another length": sums(
        Sum(KroneckerDelta(t, b) * X[t] * SHORT[b], over(t, T)), X[t] * SHORT[t]
    ),
    "a sum from 0 is one from 1": sums(Sum(X[t], (t, 0, T)), Sum(X[t], over(t, T))),
    "a sum from 2 is one from 1": sums(Sum(X[t], (t, 2, T)), Sum(X[t], over(t, T))),
    "a base without lengths": sums(Sum(BARE[t], over(t, T)), Sum(BARE[s], over(s, T))),
    "an index beyond the base": sums(Sum(X[t + 1], over(t, T)), Sum(X[t], over(t, T))),
    "another base's length": sums(Sum(X[b], over(b, N)), Sum(X[t], over(t, T))),
    "an index bound twice": sums(
        Sum(X[t] * Sum(X[t], over(t, T)), over(t, T)), Sum(X[t] ** 2, over(t, T)) * T
    ),
    "an index bound and free": sums(X[t] * Sum(X[t], over(t, T)), Sum(X[t] ** 2, over(t, T))),
    "an index as a number": sums(Sum(t * X[t], over(t, T)), t * Sum(X[t], over(t, T))),
    "a length of at most 0": sums(Sum(1, over(t, T - T - 3)), Integer(-3)),
    "equal roots are unequal": calculus("false", sqrt(5 + 2 * sqrt(6)), sqrt(2) + sqrt(3), Relation.UNEQUAL),
    "nan is not 1": calculus("false", nan, Integer(1), Relation.UNEQUAL),
    "infinity is not 1": calculus("false", oo, Integer(1), Relation.UNEQUAL),
    "infinity is infinity less 1": rational("false", oo, oo - 1),
    "a hidden 0 times p + 1, divided by it": rational(
        "false", (HIDDEN_ZERO * POSITIVE + HIDDEN_ZERO) / HIDDEN_ZERO, POSITIVE + 1
    ),
    "p / 0 is 2 p / 0, with a hidden 0": rational(
        "false", POSITIVE / HIDDEN_ZERO, 2 * POSITIVE / HIDDEN_ZERO
    ),
    "a symbol is not 1": calculus("false", POSITIVE, Integer(1), Relation.UNEQUAL),
    "a point outside the declared sign": Step(
        name="false",
        left=POSITIVE,
        right=sqrt(POSITIVE**2 + 0 * POSITIVE),
        relation=Relation.UNEQUAL,
        algebra=Algebra.CALCULUS,
        at={POSITIVE: -1},
    ),
    "a point whose rows do not sum to 1": sums(
        Sum(ROWS[t, j], over(j, T)), Integer(1), Relation.UNEQUAL, at={T: 1, t: 1, ROWS: ((2,),)}
    ),
    "a point with too many entries": sums(
        Sum(X[t], over(t, T)), Integer(0), Relation.UNEQUAL, at={T: 1, X: (1, 2)}
    ),
    "a witness that may be negative": sums(X[t], Integer(0), Relation.AT_LEAST, X[t]),
    "a square of a complex number": rational(
        "false", Symbol("z") ** 2, Integer(0), Relation.AT_LEAST, witness=Symbol("z") ** 2
    ),
    "an equality with a witness": rational("false", Integer(3), Integer(2), witness=Integer(1)),
    "a theorem proves nothing": cited("false", theorem="Fermat's", conditions="none"),
    "a theorem without its conditions": cited("false", theorem="Fermat's", conditions=""),
    "a theorem without a name": cited("false", theorem="", conditions="none"),
    "words commute": words(MIXER * STATE * Letter("W", N, N), MIXER * Letter("W", N, N) * STATE),
    "shapes that do not fit": words(STATE * MIXER - STATE * MIXER + STATE * STATE, STATE * STATE),
    "1 of a matrix that is not square": words(1 + STATE, STATE + 1),
    "two shapes of one name": words(Letter("X", T, N), Letter("X", N, T)),
    "a product of another shape": words(
        MIXER * STATE, Letter("W", N, N), {(MIXER, STATE): Letter("W", N, N)}
    ),
    "a letter without a shape": words(Symbol("A", commutative=False), Symbol("A", commutative=False)),
    "two shapes that cancel": words(STATE - STATE + MIXER, MIXER + 0 * STATE - MIXER + STATE),
    "a bound on a matrix": dataclasses.replace(words(STATE, STATE), relation=Relation.AT_LEAST),
    "a derivative of a root that is not real": calculus(
        "false",
        Derivative(log((POSITIVE - OTHER) * POSITIVE), OTHER),
        1 / (OTHER - POSITIVE),
    ),
    "words commute in a rational function": rational("false", MIXER * ONES, ONES * MIXER),
    "entries in a rational function": rational("false", Sum(X[t], over(t, 2)), X[1] + X[2]),
    "a sum of any number of terms": calculus("false", Sum(1, (t, 1, ANY)), ANY),
    "-R is positive semidefinite": negative_root(),
}
"""Name -> the statement."""


def verdicts() -> dict[str, str]:
    """What the kernel says of each false statement, and of a law."""
    said = {name: decide(step).verdict.value for name, step in FALSE.items()}
    return said | {tag: str(LAWS[tag].prove().proved) for tag in ("P1", "A3", "O2")}


if __name__ == "__main__":
    print(json.dumps(verdicts()))
