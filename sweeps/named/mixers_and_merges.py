"""Does the collapse need softmax? Fronts of every mixer and every merge at initialisation, in the same stack.

Predicted before the sweep was run. The recursion covers all but `gated`, `state_space`, `highway` and
`pre_norm` (`meanmode.theory.meanfield.coverage`); for these four the front is that of a recursion to leading
order, without finite-width terms. Fronts in blocks, mean over seeds +- standard deviation between seeds:

* softmax 39 +- 5, uniform 38 +- 4, linear 38 +- 4: the same front, so softmax is not necessary.
* lazy 45 +- 6 at l = 0.75 and 95 +- 19 at l = 0.5, none at 0.25 and 0: the share l A competes with the FFN,
  which makes tokens differ. a_minus_i and i_minus_a none, identically, from any input: their row sums are 0
  (N8), so apart from leakage no mean is written, and the odds fall in every block.
* gated none: sigmoid gates leave a quarter of the gain, and the FFN wins. State space none, TCS up to about
  0.3: neighbours agree, distant tokens do not. An input cosine of 0.5 changes neither.
* With an FFN a sixth as wide softmax 21 +- 2; gated about 105, so the gate delays the front but does not
  prevent it; the state space about 16 from an input cosine of 0.5; a_minus_i still none.
* layerscale and rezero 75 +- 9, identical; deepnorm 82 +- 10; mv_split, mv_split_attn and hard_centering
  none, at TCS 0 or below; highway about 30 at lambda = 2 and none at 16, TCS 0.25 at block 100; pre_norm
  none, TCS about 0.18 at block 100, since its trunk outgrows its branches.
"""

from typing import Any

from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting

NARROW = 0.5
"""FFN ratio at which the FFN makes tokens differ only slightly."""


def _mixer(name: str, depth: int, **more: Any) -> dict[str, Any]:
    return {"mixer": name, "depth": depth, **more}


def _merge(name: str, depth: int, **more: Any) -> dict[str, Any]:
    return {"merge": name, "depth": depth, **more}


MIXERS_AND_MERGES = Sweep(
    name="mixers",
    claim="the collapse front at initialisation of every mixer and merge: what a collapse needs",
    base=Setting(width=128, heads=4, tokens=64, weight_std=0.0707, alpha=0.1, beta=1.0),
    cases=(
        _mixer("softmax", 60),
        _mixer("uniform", 60),
        _mixer("linear", 60),
        _mixer("lazy", 80, mixer_share=0.75),
        _mixer("lazy", 160),
        _mixer("lazy", 100, mixer_share=0.25),
        _mixer("lazy", 60, mixer_share=0.0),
        _mixer("a_minus_i", 60),
        _mixer("i_minus_a", 60),
        _mixer("gated", 100),
        _mixer("state_space", 100),
        _mixer("a_minus_i", 40, input_cosine=0.5),
        _mixer("gated", 60, input_cosine=0.5),
        _mixer("state_space", 60, input_cosine=0.5),
        _mixer("softmax", 40, ffn_ratio=NARROW),
        _mixer("gated", 160, ffn_ratio=NARROW),
        _mixer("a_minus_i", 40, ffn_ratio=NARROW, input_cosine=0.5),
        _mixer("state_space", 40, ffn_ratio=NARROW, input_cosine=0.5),
        _merge("layerscale", 110, residual_gain=0.7),
        _merge("rezero", 110, residual_gain=0.7),
        _merge("deepnorm", 120, residual_gain=1.5),
        _merge("mv_split", 60),
        _merge("mv_split_attn", 60),
        _merge("hard_centering", 60),
        _merge("highway", 60, residual_gain=2.0),
        _merge("highway", 100, residual_gain=16.0),
        _merge("pre_norm", 100),
    ),
    seeds=16,
    laws=("P1", "P2", "N1", "N2", "N3", "N4", "N7", "N8", "N10"),
)
