"""How rate and residual gain must scale with depth so that the functional step stays the same."""

import math

import numpy as np

from meanmode.theory.laws.rivals import sub_layer_sum
from meanmode.theory.meanfield.first_step import predict_functional_step
from meanmode.theory.setting import Setting


def size_exponent(first: float, second: float, coherence: float) -> float:
    """Exponent in depth of the functional step per rate, from one number of blocks to another (law O2).

    1/2 for independent and 1 for coherent sub-layers. To keep the functional step, rate times residual gain
    falls with the opposite exponent: all of it by the rate, or all of it by the lambda of LayerScale and
    ReZero or 1 / a of DeepNorm.

    Raises:
        ValueError: depths that are not positive and different.
    """
    if not 0 < first != second > 0:
        raise ValueError(f"an exponent needs two different positive depths, got {first} and {second}")
    ratio = sub_layer_sum(2 * second, coherence) / sub_layer_sum(2 * first, coherence)
    return math.log(ratio) / (2 * math.log(second / first))


def first_step_coherence(setting: Setting) -> float:
    """r of law O2 at the first step of AdamW with zero writers: Delta^2 = a L^2 + b L, so r = a / (a + 2 b).

    Raises:
        ValueError: as `predict_functional_step`.
    """
    step, depth = predict_functional_step(setting), setting.depth
    coherent = (step.mean_coherent**2 + step.centered_coherent**2) / depth**2
    independent = (step.mean_independent**2 + step.centered_independent**2) / depth
    return coherent / (coherent + 2 * independent)


def leaky_mean(depth: int, alpha: float, coherence: float) -> float:
    """Size of the mean of the functional step under MV-Split, in units of what one sub-layer writes.

    With zero writers the merge keeps (1 - alpha) of the mean and adds alpha of a write, so that the write k
    sub-layers below the end counts alpha (1 - alpha)^k (R2). The sum has no exponent in depth beyond
    1 / alpha sub-layers. The centered part grows as in the plain merge, times beta.

    Raises:
        ValueError: an alpha outside of 0 to 1.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"the mean is a leaky integrator for alpha above 0 and at most 1, got {alpha}")
    shares = alpha * (1 - alpha) ** np.arange(2 * depth)
    return float(np.sqrt((1 - coherence) * (shares**2).sum() + coherence * shares.sum() ** 2))
