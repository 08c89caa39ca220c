"""Generated tables of single training runs: ramps, events, modes by merge, samples, the timestep probe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from meanmode.sim.onset.training_onset import training_onset
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.studies.around_onset import (
    ACTIVE,
    FAR,
    NEAR,
    WRITERS,
    coherence,
    event_step,
    factors,
    lasting_moves,
    moments,
    onset_of,
    regressions,
)
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.merge_ratios import LAYERSCALE, MV_SPLIT, Arm, arm, band_ratio
from meanmode.sweeps.studies.results.sizes import captioned, document, runs_caption, store
from meanmode.sweeps.studies.run_sizes import run_config

LOSS_STEPS = 15
"""The loss of a run is shown as a running median over this many steps."""


def ramps(data: Path, *names: str, forecast: str = "") -> str:
    """Training runs under a ramp of the learning rate: onset, rate there and loss, one line per run.

    Args:
        data: folder of the stores.
        names: runs.
        forecast: name of a forecast of onset steps, by preset.
    """
    predicted = document(data, f"{forecast}.forecast") if forecast else {}
    runs = {name: open_run(store(data, name)) for name in names}
    lines = [_ramp_line(name, run, predicted) for name, run in runs.items()]
    heads = ("run", "merge", "steps", "onset step", "rate there", "forecast of the step (90 %)")
    losses = ("lowest loss before", "loss at the end")
    table = pipe_table((*heads, "rival: rate ~ (slope / depth)^(1/2)", *losses), lines)
    sizes = runs_caption({name: [run] for name, run in runs.items()})
    return captioned(table, sizes, f"The loss is a running median of {LOSS_STEPS} steps.")


def _ramp_line(name: str, run: xr.Dataset, predicted: Mapping[str, Any]) -> list[str]:
    model, onset = run_config(run).model, training_onset(run)
    collapsed = onset.kind == "mean_mode"
    highest = float(run["lr"].max())
    loss = run["loss"].rolling(step=LOSS_STEPS).median()
    before = loss.where(run["step"] < onset.step) if collapsed else loss
    merge = "plain" if model.merge == "plain" else f"{model.merge}, beta {model.beta:g}"
    preset = name.replace("_", "-").replace("-beta1", "").replace("-long", "")
    stated = predicted.get("forecast", {}).get(preset)
    shown = "-"
    if stated:
        step, ends = stated["onset_step"], stated.get("interval_90")
        shown = "none" if step is None else f"{step} ({ends[0]} to {ends[1]})"
    rival = [
        steps.get(preset, "-")
        for title, steps in predicted.get("rivals_onset_step", {}).items()
        if "(slope / depth)^(1/2)" in title
    ]
    return [
        f"`{name}`, {model.depth} blocks",
        merge,
        str(run.sizes["step"]),
        str(onset.step) if collapsed else "none",
        f"{float(run['lr'].sel(step=onset.step)):#.3g}" if collapsed else f"up to {highest:.3g}",
        shown,
        str(rival[0]) if rival else "-",
        f"{float(before.min()):.2f} (step {int(before.idxmin())})",
        f"{float(loss[-1]):.2f}",
    ]


def event_moves(data: Path, *names: str) -> str:
    """When each signal left its baseline for good around the onset of excerpts of runs."""
    runs = {name: open_run(store(data, name)) for name in names}
    lines = []
    for name, run in runs.items():
        moves = [
            f"{row['signal']} {'none' if row['delay'] is None else format(row['delay'], '+d')}"
            for row in lasting_moves(run)
        ]
        lines.append([f"`{name}`", str(onset_of(run)["step"]), str(event_step(run)), ", ".join(moves)])
    heads = ("run", "onset step", "event step", "first lasting move (steps after the onset)")
    return captioned(pipe_table(heads, lines), runs_caption({name: [run] for name, run in runs.items()}))


def event_factors(data: Path, name: str) -> str:
    """How far the modes and the gradients of queries and keys moved at the event and after it."""
    run = open_run(store(data, name))
    lines = [
        [
            f"`{row['signal']}`" + (f", {row['writer']} writer" if row["writer"] else ""),
            f"x{row['at_event']:.2g}",
            f"x{row['after']:.2g}",
        ]
        for row in factors(run)
    ]
    heads = ("signal", f"at the event (step {event_step(run)})", f"{NEAR} to {FAR} steps after the event")
    statistics = f"Median over the deeper half, over that of the steps {NEAR} to {FAR} before the event."
    return captioned(pipe_table(heads, lines), runs_caption({name: [run]}), statistics)


def regression_lines(data: Path, *names: str) -> str:
    """A - 1 on (T - 1) kappa_abs over active blocks, before the event and at it."""
    runs = {name: open_run(store(data, name)) for name in names}
    lines = []
    for name, run in runs.items():
        found, steps = regressions(run), moments(run)
        model = run_config(run).model
        tokens = model.image_tokens + model.text_tokens
        for writer in WRITERS:
            cells = []
            for moment, step in steps.items():
                line = found[moment, writer]
                active = int((coherence(run, step, writer)["excess"] > ACTIVE).sum())
                cells.append(
                    f"too few active, {active}"
                    if line is None
                    else f"{line.slope:.3f}, {line.r_squared:.3f}, {line.points}"
                )
            largest = float(coherence(run, steps["event"], writer)["excess"].max())
            label = f"`{name}`, {model.depth} blocks, T = {tokens}, {writer} writer"
            lines.append([label, *cells, f"{largest:.1f} of {tokens - 1}"])
    heads = ("run, writer", "before: slope, R^2, n", "event: slope, R^2, n")
    table = pipe_table((*heads, "largest A - 1 at the event, of T - 1"), lines)
    statistics = (
        f"Least squares of A - 1 on (T - 1) kappa_abs, with intercept, over the n blocks with A - 1 > "
        f"{ACTIVE:g}; "
        "one point per block, mean over the batch, all tokens."
    )
    return captioned(table, runs_caption({name: [run] for name, run in runs.items()}), statistics)


def mode_ratios(data: Path, *names: str) -> str:
    """How many times larger a mode of MV-Split is than that of the other arms, by writer.

    Args:
        data: folder of the stores.
        names: folders of runs, one run per arm and seed.
    """
    lines, shown = [], {}
    for name in names:
        runs: dict[str, dict[int, xr.Dataset]] = {}
        for path in sorted((data / name).glob("*.zarr")):
            run = open_run(path)
            runs.setdefault(arm(run), {})[run_config(run).training.seed] = run
        split: Arm = runs.pop(MV_SPLIT)
        for mode in ("g_ctr", "g_mean"):
            for other in sorted(runs, key=lambda title: title != LAYERSCALE):
                ratios = [str(band_ratio(split, runs[other], mode, writer)) for writer in WRITERS]
                lines.append([f"`{name}`", f"`{mode}`", other, *ratios])
        shown[name] = list(split.values())
    heads = ("runs", "mode", "MV-Split over", *(f"{writer} writer (90 %)" for writer in WRITERS))
    statistics = (
        "Level of a run: median over blocks and over the regular rows of the second half of its steps; "
        "ratios of "
        "geometric means over seeds, bootstrap over pairs of runs of the same seed."
    )
    return captioned(pipe_table(heads, lines), runs_caption(shown), statistics)


def sample_metrics(data: Path, name: str) -> str:
    """Metrics of samples beside those of real and decoded images, from a document of `mms evaluate`."""
    held = document(data, name)
    lines = [
        [
            row["name"],
            f"{row['value']:.4g}",
            "-" if row["standard_error"] is None else f"{row['standard_error']:.2g}",
        ]
        for row in held["rows"]
    ]
    table = pipe_table(("metric", "value", "standard error"), lines)
    return captioned(table, f"All sets {held['said']}; n images per set.")


def timestep_scores(data: Path, name: str) -> str:
    """R^2 of the time, decoded from states of a network, by block, from a document of `mms evaluate`."""
    held = document(data, name)
    found = {(row["network"], row["feature"], row["block"]): row["r2"] for row in held["rows"]}
    pairs = list(dict.fromkeys((network, feature) for network, feature, _ in found))
    blocks = sorted({block for *_, block in found})
    lines = [
        [
            network,
            feature,
            *(
                f"{found[network, feature, at]:.3f}" if (network, feature, at) in found else "-"
                for at in blocks
            ),
        ]
        for network, feature in pairs
    ]
    table = pipe_table(("network", "feature", *(f"block {block}" for block in blocks)), lines)
    shuffled = np.abs([row["shuffled_r2"] for row in held["rows"]]).max()
    return captioned(table, f"R^2 of {held['said']}; with shuffled times |R^2| is at most {shuffled:.4f}.")
