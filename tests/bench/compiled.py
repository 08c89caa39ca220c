"""Training steps with compiled blocks, alone and as an ensemble; part of `make bench`.

A step is compared with that of a plain eager implementation with fused AdamW (`training_step.py`), and a step
of an ensemble, its data and token cosines included, with the same step uncompiled. Ratios are of medians, of
`REPEATS` steps in alternation or of all steps of `REPEATS` trainings in alternation, in CPU time; what
compiling takes is printed beside them.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from simulator import REPEATS
from training_step import MODELS, TRAINING, PlainDiT, decayed, our_step, plain_step, same_weights

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.model.network import DiT
from meanmode.dit.train.ensemble_measurements import EnsembleMeasurements
from meanmode.dit.train.ensemble_runs import train_runs
from meanmode.dit.train.optimiser import Optimiser
from meanmode.sim.train.allocator import keep_freed_memory

MERGES = ("plain", "mv_split")
ALONE = {
    **{f"{merge}, L = 64, D = 256, T = 64 + 8, B = 4": (MODELS[merge], 4) for merge in MERGES},
    **{
        f"{merge}, L = 16, D = 32, T = 16 + 4, B = 64": (
            DiTConfig(depth=16, width=32, heads=2, text_width=16, side=8, merge=merge, writer_std=None),
            64,
        )
        for merge in MERGES
    },
}
TOGETHER = {
    f"16 runs, {merge}, L = 16, D = 16, T = 16 + 4, B = 4": [
        RunConfig(
            model=DiTConfig(depth=16, width=16, heads=1, text_width=16, side=8, merge=merge),
            training=TrainingConfig(batch=4, rate=1e-3, seed=seed, data_seed=seed),
        )
        for seed in range(16)
    ]
    for merge in MERGES
}
FIRST, TIMED = 4, 40
"""Number of first steps of an ensemble that do not count, and of those that do."""


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def alone(config: DiTConfig, batch: int) -> dict[str, float]:
    """Speed of our step, eager and compiled, relative to the plain one; seconds to compile."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, batch, config.channels, config.side, config.side, generator=generator)
    text = torch.randn(batch, config.text_tokens, config.text_width, generator=generator)
    sample = [(clean + noise) / 2, text, clean, noise]
    networks = {"eager": DiT(config), "compiled": DiT(config)}
    for block in networks["compiled"].blocks:
        block.compile()
    plain = PlainDiT(config)
    same_weights(plain, networks["eager"])
    adamw = torch.optim.AdamW(decayed(plain), lr=TRAINING.rate, fused=True)
    steps: dict[str, Callable[[], object]] = {"plain": lambda: plain_step(plain, adamw, sample)}
    for name, network in networks.items():
        torch.testing.assert_close(network(*sample[:2]), plain(*sample[:2]), rtol=1e-4, atol=1e-4)
        optimiser = Optimiser(network, TRAINING)
        steps[name] = lambda network=network, optimiser=optimiser: our_step(network, optimiser, sample)
    first = {name: cpu_seconds(step) for name, step in steps.items()}
    times = alternating(steps)
    print(f"the first compiled step took {first['compiled']:.1f} s of CPU time", flush=True)
    return {f"{name} over plain": times["plain"] / times[name] for name in networks}


def alternating(work: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU seconds of each, in rotating order."""
    times: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for repeat in range(REPEATS):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(cpu_seconds(work[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def together(runs: list[RunConfig]) -> float:
    """Speed of the steps of an ensemble with compiled blocks relative to the same one without."""
    kinds = {compiled: [run.with_fields({"compile": compiled}) for run in runs] for compiled in (False, True)}
    times: dict[bool, list[float]] = {compiled: [] for compiled in kinds}
    for repeat in range(1 + REPEATS):
        for compiled in sorted(kinds, reverse=repeat % 2 == 1):
            found = step_times(kinds[compiled])
            times[compiled] += found if repeat else []  # the first training compiles
    return statistics.median(times[False]) / statistics.median(times[True])


def step_times(runs: list[RunConfig]) -> list[float]:
    """CPU seconds of the steps of a training, all that is measured included, after the first few."""
    ends: list[float] = []
    updated = EnsembleMeasurements.updated

    def noted(measurements: EnsembleMeasurements, step: int, running: Sequence[int]) -> None:
        updated(measurements, step, running)
        ends.append(time.process_time())

    with mock.patch.object(EnsembleMeasurements, "updated", noted):
        train_runs([run.with_fields({"steps": FIRST + TIMED}) for run in runs])
    return [end - start for start, end in itertools.pairwise(ends)][FIRST - 1 :]


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as `mms` does
    results = {f"speed of a step, {name}": alone(*of) for name, of in ALONE.items()}
    for name, runs in TOGETHER.items():
        results[f"speed of a step, {name}"] = {"compiled over eager": together(runs)}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
