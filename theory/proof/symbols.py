"""Index and length symbols that the laws share."""

from sympy import IndexedBase, Symbol

from meanmode.theory.proof.law import TOKENS

T = TOKENS
WIDTH = Symbol("D", integer=True, positive=True)
M, N, B = (Symbol(name, integer=True, positive=True) for name in "MNB")
t, s, r, a, b, k, j = (Symbol(name, integer=True, positive=True) for name in "tsrabkj")
COLUMN = IndexedBase("v", shape=(T,), real=True)
