"""Do long contexts change the collapse? Front and amplification from 64 to 16,384 tokens.

Predicted before the sweeps were run (width 128, 2 heads, sigma sqrt(D) = 1.41, 16 blocks):

* The front does not keep moving with T. It settles where T exceeds a few D: 9.3 +- 1.1 blocks at 64 tokens,
  11.1 at 256, 12.2 at 1024, 12.5 +- 1.3 at 4096, 12.6 at 16,384, 12.6 at a million (mean +- standard
  deviation between seeds). To first order front(T) = front(infinity) - K / T with K = 530 blocks x tokens:
  what starts the collapse of unrelated tokens is 1 / T plus a few 1 / D.
* With a common part of the adjoints (cosine 0.1) A - 1 grows like T: the exponent between 1024 and 4096
  tokens is at least 0.93 in every block, between 4096 and 16,384 at least 0.97.
* Without one, A - 1 of the attention writer does not grow with T near the loss and grows like T far from it,
  and the border moves away from the loss as ln T, about a block per factor of 5: the plateau of A - 1 at
  distance 2, 3, 4, 5 is 4, 24, 115, 480. Exponents between 64 and 256, 256 and 1024, 1024 and 4096, 4096
  and 16,384 tokens:
  distance 2: 0.04, 0.01, 0.00, 0.00; distance 4: 0.49, 0.20, 0.06, 0.02; distance 6: 0.80, 0.70, 0.56, 0.31;
  distance 8: 0.68, 0.77, 0.87, 0.82; distance 12: 0.51, 0.72, 0.89, 0.95.

What would refute this: a front at 4096 or 16,384 tokens more than 5 % and 3 standard errors from the
forecast; an exponent near the loss above 0.3 without a common part; one below 0.7 with it beyond 1024 tokens.

The forecast of 16,384 tokens was of 2 seeds at both adjoint cosines; one seed without a common part was run.
"""

from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting

LONG_CONTEXTS = Sweep(
    name="long_contexts",
    claim="front and amplification from 64 to 4096 tokens, for unrelated and for related loss adjoints",
    base=Setting(depth=16, width=128, heads=2, weight_std=0.125),
    axes={"tokens": (64, 256, 1024, 4096), "adjoint_cosine": (0.0, 0.1)},
    seeds=8,
    laws=("G1", "A2", "A4", "P1"),
    backward=True,
)


LONG_CONTEXTS_LARGEST = Sweep(
    name="long_contexts_largest",
    claim="front and amplification of 16,384 tokens, for unrelated loss adjoints",
    base=LONG_CONTEXTS.base,
    axes={"tokens": (16384,), "adjoint_cosine": (0.0,)},
    seeds=1,
    laws=LONG_CONTEXTS.laws,
    backward=True,
)
