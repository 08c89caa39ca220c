"""Throughput of predictions and sweeps. Run with `make bench`."""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.store_layout import lay_out
from meanmode.sweeps.named.collapse_front import COLLAPSE_FRONT
from meanmode.theory.meanfield.predicted_front import deterministic_front, predict_front
from meanmode.theory.setting import Setting

REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """Median wall time of `REPEATS` runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def predictions() -> None:
    """Time one prediction with its tables cached, and a hundred deterministic ones."""
    setting = Setting(tokens=64)
    predict_front(setting)
    print(f"predict_front, tables cached: {seconds(lambda: predict_front(setting)):.3f} s")
    settings = [dataclasses.replace(setting, weight_std=0.04 + 0.0003 * step) for step in range(100)]
    print(f"100 deterministic fronts: {seconds(lambda: [deterministic_front(s) for s in settings]):.2f} s")


def workers() -> None:
    """Speed-up of two workers over one on the same cells, with the forecast written beforehand."""
    axes = {"tokens": (256,), "weight_std": (0.0625,), "input_cosine": (0.0,), "merge": ("plain",)}
    sweep = COLLAPSE_FRONT.with_options(axes, seeds=80)
    times = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "s.zarr"
            lay_out(sweep, store)
            start = time.perf_counter()
            run_sweep(sweep, store, resume=True, workers=count)
            times[count] = time.perf_counter() - start
    print(f"80 cells: one worker {times[1]:.1f} s, two {times[2]:.1f} s")
    print(json.dumps({"throughput of two workers over that of one, 80 cells (one run)": times[1] / times[2]}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    predictions()
    workers()
