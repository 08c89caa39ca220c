"""Alarms in watched models of other libraries, on seeds that no rule was set on."""

from meanmode.sweeps.engine.stock.stock_run import DISTURBANCES
from meanmode.sweeps.engine.stock.stock_study import StockStudy
from meanmode.sweeps.engine.study import Case

HEALTHY = {
    "BERT, 4 blocks": {"family": "bert", "depth": 4, "rate": 1e-2},
    "GPT-2, 6 blocks": {"family": "gpt2", "depth": 6, "rate": 3e-3},
    "ViT, 6 blocks": {"family": "vit", "depth": 6, "rate": 1e-3},
    "DiT, 6 blocks": {"family": "dit", "depth": 6, "rate": 3e-3},
}
"""Models that learn their task; the first is the shallow twin of the one that collapses."""


SAID = {"none": "", "data": ", other data", "restart": ", restart of the rate", "nan": ", a loss of NaN"}


DEEP = Case(label="BERT, 24 blocks", options={"family": "bert", "depth": 24, "rate": 1e-2})


WATCHED_ALARMS = StockStudy(
    name="watched_alarms",
    claim="alarms in watched BERT, GPT-2, ViT and DiT: collapses and NaN found in time, and false alarms",
    cases=(
        DEEP,
        *(
            Case(label=f"{label}{SAID[kind]}", options={**options, "disturbance": kind})
            for label, options in HEALTHY.items()
            for kind in DISTURBANCES
        ),
        Case(label="ViT, 6 blocks, rate 3e-3", options={"family": "vit", "depth": 6, "rate": 3e-3}),
    ),
    seeds=20,
    first_seed=100,
    expectation="BERT of 24 blocks collapses in at least 18 of 20 seeds, its twin of 4 blocks learns in all; "
    "recall of collapses and NaN at least .95 within two measurements; at most 1 false alarm per 10,000 "
    "steps, with ViT whose tokens are alike for a while before it learns",
)


WATCHED_ALARMS_UNLOGGED = StockStudy(
    name="watched_alarms_unlogged",
    claim="alarms without a logged gradient norm: a ViT without a warm-up that learns, and BERT that "
    "collapses",
    cases=(
        Case(
            label="ViT, 6 blocks, rate 3e-3, no warm-up",
            options={"family": "vit", "depth": 6, "rate": 3e-3, "warmup": 1},
        ),
        DEEP,
    ),
    seeds=12,
    first_seed=400,
    expectation="scored without the gradient norm, by rules that take unknown gradients to live: the ViT "
    "learns in at least 11 of 12 seeds, with at most 1 false alarm in its 4,800 steps; of the collapses of "
    "BERT 70 % are found within two measurements",
)


WATCHED_ALARMS_DEEP = StockStudy(
    name="watched_alarms_deep",
    claim="collapses of BERT found in time, after the seeds of watched_alarms had changed a rule",
    cases=(DEEP,),
    seeds=20,
    first_seed=300,
    expectation="17 of 20 collapses found within two measurements, all of them within ten",
)
