"""Train one model of another library in a plain loop, watched, and say what became of it."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn

from meanmode.sim.onset.deep_blocks import deep_median
from meanmode.sim.onset.detector import KINDS_OF_ALARMS
from meanmode.sim.onset.training_onset import BACK, initial_level
from meanmode.sim.store.files import Variable
from meanmode.sim.watch.watch import Watch
from meanmode.sweeps.engine.stock.stock_models import stock_model
from meanmode.sweeps.engine.stock.stock_run import StockRun
from meanmode.sweeps.engine.stock.stock_task import Trained
from meanmode.theory.meanfield.front import FRONT_COSINE

MOST_ALARMS = 4
"""Alarms of a run that are kept."""


LAST_STEPS = 50
"""Steps whose median loss is the final loss."""


CLIP = 1.0
"""Norm to which gradients are clipped."""


MEASURED = {
    "tcs": "TCS",
    "rho": "rho",
    "adjoint_tcs": "TCS of the loss adjoints",
    "g_mean": "G_mean",
    "g_ctr": "G_ctr",
    "amplification": "A",
    "grad_rms_q": "rms of the gradient of the queries",
    "grad_rms_k": "rms of the gradient of the keys",
    "max_logit": "largest attention logit",
    "attention_entropy": "entropy of the attention rows in nats",
}
"""Observables that are kept at measured steps, as medians over deep blocks."""


OUTCOME = {
    "final_loss": Variable(definition=f"median loss of the last {LAST_STEPS} steps"),
    "initial_loss": Variable(definition="median loss of the first 10 steps"),
    "collapse_step": Variable(
        definition="measured step from which the deep TCS is above 0.9 to the end, in a run whose final loss "
        f"is above {BACK} of its initial one; NaN: none",
        units="step",
    ),
    "alarm_step": Variable(dims=("alarm",), definition="steps at which alarms were raised", units="step"),
    "alarm_kind": Variable(
        dims=("alarm",),
        definition="kinds of the alarms: "
        + ", ".join(f"{n} {kind}" for n, kind in enumerate(KINDS_OF_ALARMS)),
    ),
}


SERIES = {
    "loss": Variable(dims=("step",), definition="loss of the batch before the update"),
    "grad_norm": Variable(dims=("step",), definition="global gradient norm before clipping"),
    **{
        name: Variable(dims=("measurement",), definition=f"{said}, median over deep blocks")
        for name, said in MEASURED.items()
    },
}


Array = NDArray[np.float64]


def measured_steps(run: StockRun) -> list[int]:
    """Steps that are measured: the first, and every `every`-th."""
    return [step for step in range(1, run.steps + 1) if step == 1 or step % run.every == 0]


def check_buildable(runs: Sequence[StockRun]) -> None:
    """Build the shallowest model of every family among the runs.

    Raises:
        ModuleNotFoundError: a library that defines one of them is missing.
    """
    with torch.random.fork_rng(devices=()):
        for run in {run.family: run for run in runs}.values():
            stock_model(dataclasses.replace(run, depth=1, merge="as built"))


def stock_trained(run: StockRun, seed: int) -> dict[str, Array]:
    """Variables of a run: `OUTCOME` and `SERIES`.

    Args:
        run: the run.
        seed: seed of the weights and the data.
    """
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "alarm at step")  # they are in the outcome
        torch.manual_seed(seed)
        return _followed(run, seed, stock_model(run))


def _followed(run: StockRun, seed: int, trained: Trained) -> dict[str, Array]:
    model = trained.model
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), run.rate)
    values = {name: np.full(run.steps, np.nan) for name in ("loss", "grad_norm")}
    steps = measured_steps(run)
    values |= {name: np.full(len(steps), np.nan) for name in MEASURED}
    watch = Watch(model, every=run.every, names=list(MEASURED), sink=lambda step, scalars: None)
    for step in range(1, run.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = run.rate_at(step)
        disturbed = step >= run.disturbed_step
        with watch.step(step):
            loss = trained.loss(random, run.disturbance == "data" and disturbed)
            if run.disturbance == "nan" and step == run.disturbed_step:
                loss = loss * torch.nan
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            watch.log(loss=loss, grad_norm=norm)
        values["loss"][step - 1], values["grad_norm"][step - 1] = loss.item(), norm.item()
        if step in steps:
            for name in MEASURED:
                values[name][steps.index(step)] = deep_median(watch.values[name])
        optimiser.step()
        optimiser.zero_grad()
    watch.close()
    return {**values, **_outcome(run, steps, values), **_alarms(watch)}


def _outcome(run: StockRun, steps: Sequence[int], values: dict[str, Array]) -> dict[str, Array]:
    loss = values["loss"]
    initial = initial_level(xr.Dataset({"loss": ("step", loss)}))
    final = float(np.median(loss[-LAST_STEPS:]))
    high = values["tcs"] > FRONT_COSINE
    below = np.flatnonzero(~high)
    first = below[-1] + 1 if len(below) else 0
    collapsed = final > BACK * initial and first < len(steps)
    return {
        "final_loss": np.array(final),
        "initial_loss": np.array(initial),
        "collapse_step": np.array(float(steps[first]) if collapsed else np.nan),
    }


def _alarms(watch: Watch) -> dict[str, Array]:
    found: dict[str, Array] = {name: np.full(MOST_ALARMS, np.nan) for name in ("alarm_step", "alarm_kind")}
    for number, alarm in enumerate(watch.alarms[:MOST_ALARMS]):
        found["alarm_step"][number] = alarm.step
        found["alarm_kind"][number] = KINDS_OF_ALARMS.index(alarm.kind)
    return found
