"""Does the collapse appear in a post-norm ViT and a post-norm language model, and which merges help them?

Statistics, chosen before the runs. Failure: not learned, that is, the median loss of the last 50 steps is
not below .75 of the initial one. Half rates of failure, and of mean-mode collapse (deep TCS above .9 to the
end with that loss above .85 of the initial one), by `HalfRate`, per merge and depth. Kinds: mean mode, plain
divergence (by the label of our own runs), never learned (neither), learned.

The rates were chosen on seed 900 alone, as built, at most one run for each rate and depth. ViT: 16 blocks
learned at 1e-3 and not from 3e-3 on, 4 at 3e-3 and not from 1e-2 on. BERT: 16 blocks learned at 3e-3, at 1e-2
they learned and were back at their initial loss at the end, at 3e-2 they collapsed; 4 learned at 1e-2 and
collapsed at 3e-2. No other merge was tried. The loss of BERT counts all letters, because with the masked ones
alone 4 blocks did not learn in 1,000 steps. The weights of the ViT are as small as those of BERT, because
with those of nn.Transformer (Xavier) the tokens of 24 blocks were alike from the first step on.
"""

from collections.abc import Sequence
from typing import Any

from meanmode.sweeps.engine.stock.stock_study import StockStudy
from meanmode.sweeps.engine.study import Case

SHORT = {"steps": 300, "warmup": 50, "every": 20}
SHALLOW, DEEP = 4, 12
VIT_RATES, TEXT_RATES = (1e-3, 2.5e-3, 6e-3), (5e-3, 1e-2, 2e-2)
VIT_RAMP, TEXT_RAMP = 1.2e-2, 3e-2
"""Rates at the end of the ramps."""


MERGES = {
    "as built": {},
    "MV-Split, alpha learned from 0": {"merge": "mv_split"},
    "MV-Split, alpha frozen at 0": {"merge": "mv_split frozen"},
    "LayerScale, .1": {"merge": "layerscale"},
    "DeepNorm": {"merge": "deepnorm"},
    "highway": {"merge": "highway"},
}


def _rates(label: str, options: dict[str, Any], rates: Sequence[float]) -> list[Case]:
    return [Case(label=f"{label}, rate {rate:g}", options={**options, "rate": rate}) for rate in rates]


def _cases(family: str, rates: Sequence[float]) -> tuple[Case, ...]:
    deep = {**SHORT, "family": family, "depth": DEEP}
    found = _rates(f"{SHALLOW} blocks, as built", {**deep, "depth": SHALLOW}, rates)
    for label, merge in MERGES.items():
        found += _rates(f"{DEEP} blocks, {label}", {**deep, **merge}, rates)
    return (*found, *_rates(f"{DEEP} blocks, pre-norm", {**deep, "family": f"{family}_pre_norm"}, rates))


def _ramps(label: str, family: str, rate: float) -> list[Case]:
    ramp = {**SHORT, "warmup": SHORT["steps"], "family": family, "depth": DEEP, "rate": rate}
    frozen = {**ramp, "merge": "mv_split frozen"}
    return [
        Case(label=f"{label}, as built", options=ramp),
        Case(label=f"{label}, MV-Split, alpha frozen at 0", options=frozen),
    ]


BACKBONE_VIT = StockStudy(
    name="backbone_vit",
    claim="learning rates at which a post-norm ViT on digits does not learn or collapses, by depth and merge",
    cases=_cases("vit_encoder", VIT_RATES),
    seeds=6,
    first_seed=500,
    expectation="as built, 12 blocks fail at a half rate of 1e-3 to 2.5e-3, at most .7 of that of 4 "
    "blocks; at "
    "6e-3 at least 4 of 6 end in the mean mode; MV-Split with alpha frozen: none of 18 in the mean "
    "mode, but a half rate of failure at most 1.5 times that as built; alpha learned: fewer in the "
    "mean mode than as built; LayerScale: at least 1.5 times; DeepNorm: less than 1.5 times; highway: "
    "at least 1.5 times; pre-norm: at least 5 of 6 learn at 6e-3",
)


BACKBONE_TEXT = StockStudy(
    name="backbone_text",
    claim="learning rates at which a post-norm BERT on text does not learn or collapses, by depth and merge",
    cases=_cases("bert_text", TEXT_RATES),
    seeds=6,
    first_seed=600,
    expectation="as built, 12 blocks fail at a half rate of 5e-3 to 1.5e-2, at most .7 of that of 4 "
    "blocks; at "
    "2e-2 at least 5 of 6 end in the mean mode, and of all in the mean mode at least a third had "
    "learned before; MV-Split with alpha frozen: none of 18 in the mean mode, and a half rate of "
    "failure at least that as built; alpha learned: fewer in the mean mode than as built; LayerScale "
    "and highway: at least 1.5 times; DeepNorm: less than 1.5 times; pre-norm: at least 5 of 6 learn "
    "at 2e-2",
)


BACKBONE_RAMPS = StockStudy(
    name="backbone_ramps",
    claim="learning rates at which linear ramps of a post-norm ViT and a post-norm BERT collapse",
    cases=(
        *_ramps("ViT, 12 blocks", "vit_encoder", VIT_RAMP),
        *_ramps("BERT, 12 blocks", "bert_text", TEXT_RAMP),
    ),
    seeds=6,
    first_seed=700,
    expectation="as built at least 5 of 6 ramps of either end in the mean mode, at a median rate between 1 "
    "and 3 "
    "times the half rate of failure at constant rates; with alpha frozen none does",
)
