"""Does another residual merge make a BERT of 24 blocks learn that does not learn as it is built?"""

from meanmode.sweeps.engine.stock.stock_study import StockCase, StockStudy

DYING = {"family": "bert", "depth": 24, "rate": 1e-2}
"""Of 24 blocks and post-norm; with 4 blocks it learns the task at the same rate."""


WATCHED_MERGES = StockStudy(
    name="watched_merges",
    claim="which residual merge makes a post-norm BERT of 24 blocks learn that collapses as it is built",
    cases=(
        StockCase(label="as built", options=DYING),
        StockCase(label="4 blocks, as built", options={**DYING, "depth": 4}),
        StockCase(label="MV-Split, alpha frozen at 0", options={**DYING, "merge": "mv_split frozen"}),
        StockCase(label="MV-Split, alpha learned from 0", options={**DYING, "merge": "mv_split"}),
        StockCase(label="LayerScale, .1", options={**DYING, "merge": "layerscale"}),
        StockCase(label="DeepNorm", options={**DYING, "merge": "deepnorm"}),
        StockCase(label="pre-norm", options={**DYING, "family": "bert_pre_norm"}),
    ),
    seeds=8,
    first_seed=200,
    expectation="as built none of 8 seeds learns, with 4 blocks all do; pre-norm 8, DeepNorm and LayerScale "
    "at least 6, MV-Split with alpha frozen at least 5, with alpha learned at least 4: the mean cannot take "
    "over where its write is closed",
)
