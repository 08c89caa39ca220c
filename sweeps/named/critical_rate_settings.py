"""Critical rates of settings that no law was fitted on, and the short pilots that predict them."""

from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, SEEDS

STEPS = {"steps": 800}
"""Length of most ramps."""


SETTINGS = (
    Case(label="24 blocks", options={"depth": 24, **STEPS}),
    Case(label="48 blocks", options={"depth": 48, **STEPS}),
    Case(label="200 blocks", options={"depth": 200, "steps": 500}),
    Case(label="width 32", options={"width": 32, "heads": 2, "text_width": 32, **STEPS}),
    Case(label="width 64", options={"width": 64, "heads": 4, "text_width": 64, **STEPS}),
    Case(label="batch 1", options={"batch": 1, **STEPS}),
    Case(label="batch 16", options={"batch": 16, **STEPS}),
    Case(label="batch 64", options={"batch": 64, **STEPS}),
    Case(label="64 tokens, same task", options={"patch": 1, **STEPS}),
    Case(label="64 tokens, larger images", options={"side": 16, **STEPS}),
    Case(label="4 tokens, same task", options={"patch": 4, **STEPS}),
    Case(label="every token twice", options={"copies": 2, **STEPS}),
    Case(label="every token four times", options={"copies": 4, **STEPS}),
    Case(label="beta1 0", options={"betas": (0.0, 0.999), **STEPS}),
    Case(label="beta2 0.99", options={"betas": (0.9, 0.99), **STEPS}),
    Case(label="beta2 0.95", options={"betas": (0.9, 0.95), **STEPS}),
    Case(label="no weight decay", options={"weight_decay": 0.0, **STEPS}),
    Case(label="weight decay 1", options={"weight_decay": 1.0, **STEPS}),
    Case(label="times shifted by 4", options={"time_shift": 4.0, **STEPS}),
    Case(label="one batch for ever", options={"data_steps": 1, **STEPS}),
    Case(label="DeepNorm 2.4", options={"merge": "deepnorm", "residual_gain": 2.4, "steps": 1600}),
    Case(
        label="LayerScale 0.01",
        options={"merge": "layerscale", "residual_gain": 0.01, "writer_std": None, "steps": 1600},
    ),
    Case(label="MV-Split, beta 1", options={"merge": "mv_split", "steps": 1600}),
)
"""Each changes one thing in 16 blocks of width 16, 16 + 4 tokens, batch 4, Adam (0.9, 0.999)."""


CRITICAL_RATE_SETTINGS = Study(
    name="critical_rate_settings",
    claim="critical rate of 23 settings that no law was fitted on, each predicted from a pilot before",
    base=BASE,
    cases=SETTINGS,
    seeds=SEEDS,
    first_seed=100,
    laws=("O1", "O2", "X1"),
)


PILOT_STEPS = 60
"""Steps of a pilot; its rate stays below a sixth of that at which 16 blocks collapse."""


CRITICAL_RATE_PILOTS = Study(
    name="critical_rate_pilots",
    claim="the functional step in the first 60 steps of every setting: its rate is predicted from it",
    base=BASE,
    cases=tuple(Case(label=case.label, options={**case.options, "steps": PILOT_STEPS}) for case in SETTINGS),
    seeds=4,
    first_seed=200,
    ensemble=4,
    laws=("O2",),
)
