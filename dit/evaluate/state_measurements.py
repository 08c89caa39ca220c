"""Measure states of a run again, with more samples than a training batch has, and store what was measured."""

# N samples, L blocks, W writers

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from meanmode.dit.config.field_ranges import SEED
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.batches import Batch, batch_of
from meanmode.dit.data.sources import Source
from meanmode.dit.evaluate.run_states import RunStates
from meanmode.dit.model.flow import flow_losses
from meanmode.dit.model.network import DiT
from meanmode.dit.train.checkpoints import load_network
from meanmode.dit.train.scheduled_interventions import ScheduledInterventions
from meanmode.dit.train.telemetry import LAWS
from meanmode.sim.observe.observable_names import WRITERS, observable_dims
from meanmode.sim.observe.probe import Probe
from meanmode.sim.onset.deep_blocks import deep_median
from meanmode.sim.onset.training_onset import initial_level
from meanmode.sim.store.files import StoreError, Variable, partial_path, reason
from meanmode.sim.store.observable_variables import observable_variables
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.run_reader import TELEMETRY, open_run
from meanmode.sim.store.sparse_run import write_sparse_run

FRESH = SEED + 1
"""Added to the data seed of a run: larger than any seed of a run, so no training has seen these samples."""

SCALARS = {
    "loss": Variable(definition="Loss, mean over the samples"),
    "grad_norm": Variable(definition="Global norm of the gradient of the mean loss"),
}
"""Variables of a state besides the observables."""

Values = dict[str, NDArray[Any]]
"""What was measured of a state, by name: scalars [], observables [L + 1] or [L + 1, W]."""


def fresh_batches(source: Source, run: RunConfig, samples: int, batch: int) -> Iterator[Batch]:
    """Yield samples of a run's data with the times, noise and dropped texts of its training, all drawn anew.

    They depend on the data seed of the run and on their own number alone: not on `batch`, nor on how many
    follow. The images come in a random order without repetition, until all have been drawn.

    Args:
        source: data of the run.
        run: configuration of the run.
        samples: number of samples.
        batch: samples per batch; the last may have fewer.

    Raises:
        ValueError: a sample contains NaN or infinities.
    """
    single = dataclasses.replace(run.training, batch=1, accumulation=1, data_steps=0)
    alone, seed = dataclasses.replace(run, training=single), run.training.data_seed + FRESH
    for first in range(1, samples + 1, batch):
        numbers = range(first, min(first + batch, samples + 1))
        parts = [batch_of(source, alone, number, seed=seed) for number in numbers]
        noisy, texts, clean, noise = (torch.cat(part) for part in zip(*parts, strict=True))
        yield noisy, texts, clean, noise


def measure_state(
    network: DiT,
    run: RunConfig,
    step: int,
    batches: Iterable[Batch],
    *,
    passes: int,
    samples: int,
    batch_done: Callable[[], object] = lambda: None,
) -> Values:
    """Measure the gradient of the mean loss and all observables of a state, as training measures a step.

    The weights stay as they are. The interventions of the run act that its next step would be trained with,
    and products are computed in its precision.

    Args:
        network: the network of the state, on the device that computes.
        run: configuration of the run.
        step: number of steps that the state has been trained.
        batches: samples, in batches that fit the memory one at a time.
        passes: number of batches.
        samples: number of samples in all batches.
        batch_done: called after every batch.

    Returns:
        `SCALARS` and the observables of every block.
    """
    device = next(network.parameters()).device
    network.recompute = (run.training.recompute, run.training.recompute_of)
    losses = torch.zeros((), dtype=torch.float64)
    with closing(ScheduledInterventions(network, run.training.interventions)) as interventions:
        interventions.begin_step(step + 1)
        with Probe(network, passes=passes) as probe:
            for batch in batches:
                noisy, texts, clean, noise = (part.to(device) for part in batch)
                with torch.autocast(device.type, torch.bfloat16, enabled=run.training.precision == "bf16"):
                    velocity = network(noisy, texts)
                found = flow_losses(velocity, clean, noise)
                (found.sum() / samples).backward()
                losses += found.detach().double().sum().cpu()
                batch_done()
            values: Values = dict(probe.values())
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients)) if gradients else torch.zeros(1)
    network.zero_grad(set_to_none=True)
    scalars = {"loss": losses / samples, "grad_norm": norms.double().square().sum().sqrt()}
    return {name: value.cpu().numpy() for name, value in scalars.items()} | values


def measure_states(
    states: RunStates,
    source: Source,
    *,
    samples: int,
    batch: int,
    device: str = "cpu",
    ema: bool = False,
    batch_done: Callable[[], object] = lambda: None,
) -> dict[int, Values]:
    """Measure states one after the other, all on the same samples.

    Args:
        states: the states.
        source: data of their run.
        samples: number of samples.
        batch: samples computed together.
        device: torch device that computes.
        ema: measure the moving averages of the weights instead of the trained weights.
        batch_done: called after every batch of every state.

    Returns:
        Step -> what was measured.

    Raises:
        StoreError: a state is gone or damaged, or the data are.
    """
    found = {}
    for step, checkpoint in states.by_step.items():
        _, network = load_network(checkpoint, ema=ema)
        found[step] = measure_state(
            network.to(device),
            states.run,
            step,
            fresh_batches(source, states.run, samples, batch),
            passes=-(-samples // batch),
            samples=samples,
            batch_done=batch_done,
        )
    return found


def over_blocks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Root of the sum of squares of an observable over all blocks [W]; NaN where it was measured in none."""
    squares = np.square(values.astype(np.float64))
    found: NDArray[np.float64] = np.sqrt(np.nansum(squares, axis=0))
    return np.where(np.isnan(squares).all(0), np.nan, found)


def table_rows(found: Mapping[int, Values]) -> list[dict[str, float]]:
    """Return one row per state: loss, TCS, G_mean and G_ctr of both writers over all blocks and deep, and A.

    G is the root of the sum of squares over all blocks, or with `_deep` the median over the deeper half of
    them, as are TCS (of the image tokens, if there is text) and A.
    """
    rows = []
    for step, values in found.items():
        row = {"step": step, "loss": float(values["loss"])}
        row["tcs"] = deep_median(values.get("tcs_image", values["tcs"]))
        modes = [(name, number) for name in ("g_mean", "g_ctr") for number in range(len(WRITERS))]
        for name, of in modes:
            row[f"{name}_{WRITERS[of]}"] = float(over_blocks(values[name])[of])
        for name, of in modes:
            row[f"{name}_{WRITERS[of]}_deep"] = deep_median(values[name][:, of])
        for of, writer in enumerate(WRITERS):
            row[f"A_{writer}"] = deep_median(values["amplification"][:, of])
        rows.append(row)
    return rows


def write_measurements(
    out: Path, states: RunStates, found: Mapping[int, Values], *, samples: int, ema: bool = False
) -> None:
    """Write a run store with one row per state; it appears at `out` complete or not at all.

    Args:
        out: path of the store; must not exist.
        states: the states.
        found: what was measured of them.
        samples: number of samples.
        ema: whether the moving averages of the weights were measured.

    Raises:
        StoreExistsError: something exists at `out`.
        StoreError: the disk is full, or another error of the file system.
    """
    run = states.run
    dims = observable_dims(run.model.setting(), backward=True)
    described = SCALARS | observable_variables(dims)
    columns = {name: np.stack([values[name] for values in found.values()]) for name in described}
    measured = {"samples": samples, "ema": ema, "data_seed": run.training.data_seed + FRESH}
    partial = partial_path(out)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        write_sparse_run(
            partial,
            steps=np.array(list(found), np.int64),
            sizes={"block": range(run.model.depth + 1), "writer": WRITERS},
            variables={name: (of, _rows(columns[name])) for name, of in described.items()},
            logged_nan={name: mask for name in SCALARS if (mask := np.isnan(columns[name])).any()},
            attributes={
                "configuration": json.dumps(run.document()),
                "laws": json.dumps([*LAWS, *(["R1"] if "mv_split" in run.model.setting().merges else [])]),
                "measured": json.dumps(measured),
                "states": json.dumps({step: str(of) for step, of in states.by_step.items()}),
                **_initial_loss(states.folder),
                **provenance(),
            },
        )
        partial.rename(out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(f"{out} could not be written ({reason(error)}): nothing was written") from error
        raise


def _rows(values: NDArray[Any]) -> Callable[[int, int], NDArray[np.float64]]:
    return lambda first, stop: values[first:stop].astype(np.float64)


def _initial_loss(folder: Path | None) -> dict[str, float]:
    """Loss of a run before training, as its telemetry has it: measured states may all come later."""
    if folder is None or not (folder / TELEMETRY).exists():
        return {}
    level = initial_level(open_run(folder))
    return {"initial_loss": level} if np.isfinite(level) else {}
