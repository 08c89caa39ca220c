"""Does another residual merge make a BERT of 24 blocks learn that does not learn as it is built?"""

from meanmode.sweeps.engine.stock.stock_study import StockStudy
from meanmode.sweeps.engine.study import Case

DYING = {"family": "bert", "depth": 24, "rate": 1e-2}
"""Of 24 blocks and post-norm; with 4 blocks it learns the task at the same rate."""


WATCHED_MERGES = StockStudy(
    name="watched_merges",
    claim="which residual merge makes a post-norm BERT of 24 blocks learn that collapses as it is built",
    cases=(
        Case(label="as built", options=DYING),
        Case(label="4 blocks, as built", options={**DYING, "depth": 4}),
        Case(label="MV-Split, alpha frozen at 0", options={**DYING, "merge": "mv_split frozen"}),
        Case(label="MV-Split, alpha learned from 0", options={**DYING, "merge": "mv_split"}),
        Case(label="LayerScale, .1", options={**DYING, "merge": "layerscale"}),
        Case(label="DeepNorm", options={**DYING, "merge": "deepnorm"}),
        Case(label="pre-norm", options={**DYING, "family": "bert_pre_norm"}),
    ),
    seeds=8,
    first_seed=200,
    expectation="as built none of 8 seeds learns, with 4 blocks all do; pre-norm 8, DeepNorm and LayerScale "
    "at least 6, MV-Split with alpha frozen at least 5, with alpha learned at least 4: the mean cannot take "
    "over where its write is closed",
)
