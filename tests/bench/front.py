"""Prediction and sweep throughput: `make bench`."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sim.simulate import simulate, stream
from sim.stack import Block, synthetic_input
from sweeps.collapse_front import COLLAPSE_FRONT
from sweeps.execute import lay_out, run_sweep
from theory import Setting, predict_front
from theory.front import deterministic_front

REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """Median wall time of a few runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def predictions() -> None:
    """One prediction with its tables cached, and a hundred deterministic ones."""
    setting = Setting(tokens=64)
    predict_front(setting)
    print(f"predict_front, tables cached: {seconds(lambda: predict_front(setting)):.3f} s")
    settings = [dataclasses.replace(setting, weight_std=0.04 + 0.0003 * step) for step in range(100)]
    print(f"100 deterministic fronts: {seconds(lambda: [deterministic_front(s) for s in settings]):.2f} s")


@torch.inference_mode()
def bare(setting: Setting) -> None:
    """The stack without a single observable, blocks drawn as in `simulate`."""
    x, block = synthetic_input(setting, stream(setting, 0, 0)), Block(setting)
    for index in range(1, setting.depth + 1):
        block.reset_parameters(stream(setting, 0, index))
        x = block(x, setting.segments)


def observables() -> None:
    """What complete forward observables cost over the bare stack."""
    for tokens in (64, 256):
        setting = Setting(tokens=tokens, depth=16)
        ratio = seconds(lambda s=setting: simulate(s, 0)) / seconds(lambda s=setting: bare(s))
        print(f"all forward observables / bare stack, {tokens} tokens, width 256, 16 blocks: {ratio:.2f}")


def workers() -> None:
    """Throughput of two workers over one on the same cells, the forecast laid out beforehand."""
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
    print(f"80 cells: one worker {times[1]:.1f} s, two {times[2]:.1f} s, ratio {times[1] / times[2]:.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    predictions()
    observables()
    workers()
