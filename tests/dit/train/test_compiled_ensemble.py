"""Ensembles whose blocks are compiled: the same runs, one code for any number of them.

Run as a script, this file trains them: the test run's checks of shapes cannot be compiled.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from meanmode.dit.config.presets import PRESETS
from meanmode.dit.train.ensemble_runs import train_runs
from meanmode.sim.trunk.stack import Block
from meanmode.theory.setting import MIXERS

RATES = (1e-3, 2e-3, 3e-3, 1e5, 1e12)
"""Learning rates of the runs; the weights and then the losses of the last two become infinite."""

STEPS = 8
DIVERGED = 1e3

KINDS = [(mixer, merge) for mixer in MIXERS for merge in ("layerscale", "deepnorm")]
"""More kinds of blocks than torch compiles by itself, none of which is compiled before."""

PATCHES = (1, 2, 4)
"""Sides of patches, for 64, 16 and 4 tokens."""


class Counting:
    """A compiler backend that leaves the operations as they are and counts the codes that it is given."""

    def __init__(self) -> None:
        self.codes = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        self.codes += 1
        return graph.forward


class Doubting(Counting):
    """A compiler backend whose code rounds otherwise."""

    def __call__(self, graph: torch.fx.GraphModule, given: list[Tensor]) -> Callable[..., object]:
        exact = super().__call__(graph, given)
        return lambda *of: tuple(part * (1 + 2**-20) for part in exact(*of))


def series(merge: str, *, compiled: bool) -> dict[str, list[list[float]]]:
    """Losses, token cosines, functional steps and mean-mode gradients of every run, NaN as -1."""
    base = PRESETS["digits-16l"].with_fields(
        {
            "depth": 3,
            "steps": STEPS,
            "schedule": "warmup",
            "warmup": 1,
            "rate": 1e-3,
            "merge": merge,
            "compile": compiled,
        }
    )
    runs = [
        base.with_fields({"seed": seed, "data_seed": seed, "rate": rate}) for seed, rate in enumerate(RATES)
    ]
    found = train_runs(runs, functional_every=3, signals_every=4)
    return {
        name: [np.nan_to_num(of.series[name].values, nan=-1.0).tolist() for of in found]
        for name in ("loss", "tcs_image", "functional_step", "g_mean")
    }


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    command = [sys.executable, __file__]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=600).stdout)


@pytest.mark.parametrize("merge", ["plain", "mv_split"])
def test_compiled_runs_are_the_same(found: dict[str, dict[str, object]], merge: str) -> None:
    eager, compiled = found[merge]["eager"], found[merge]["compiled"]
    for name in eager:
        for run, (own, expected) in enumerate(zip(compiled[name], eager[name], strict=True)):
            # compilers round a backward pass in their own way, and a run that diverges multiplies that
            before = sum(loss < DIVERGED for loss in eager["loss"][run])
            np.testing.assert_allclose(
                own[:before], expected[:before], rtol=2e-4, atol=1e-7, err_msg=f"{name} of run {run}"
            )
        assert [len(of) for of in compiled[name]] == [len(of) for of in eager[name]]
    lengths = [len(losses) for losses in compiled["loss"]]
    assert lengths[:3] == [STEPS] * 3 and STEPS > lengths[3] > lengths[4]


@pytest.mark.parametrize("merge", ["plain", "mv_split"])
def test_one_code_serves_any_number_of_runs(found: dict[str, dict[str, object]], merge: str) -> None:
    assert found[merge]["codes"] == 1


def test_any_number_of_kinds_is_compiled(found: dict[str, int]) -> None:
    assert found["kinds"] == len(KINDS)


def test_every_number_of_tokens_has_one_code(found: dict[str, int]) -> None:
    assert found["token counts"] == len(PATCHES)
    assert found["copies"] == 1


def test_a_step_without_an_update_does_not_move_compiled_runs(found: dict[str, list[float]]) -> None:
    assert found["moved"] == [0.0] * 3


if __name__ == "__main__":
    torch.set_num_threads(1)
    backend = Counting()
    plain_compile = Block.compile
    Block.compile = functools.partialmethod(Block.compile, backend=backend)
    report: dict[str, object] = {}
    for merge in ("plain", "mv_split"):
        before = backend.codes
        both = {name: series(merge, compiled=name == "compiled") for name in ("eager", "compiled")}
        report[merge] = {**both, "codes": backend.codes - before}
    before = backend.codes
    for mixer, merge in KINDS:
        run = PRESETS["digits-16l"].with_fields({"depth": 1, "steps": 1, "mixer": mixer, "merge": merge})
        train_runs([run.with_fields({"compile": True})] * 2)
    report["kinds"] = backend.codes - before
    before = backend.codes
    for patch in PATCHES:
        run = PRESETS["digits-16l"].with_fields({"depth": 2, "steps": 1, "patch": patch, "merge": "rezero"})
        train_runs([run.with_fields({"compile": True})] * 2)
    report["token counts"] = backend.codes - before
    before = backend.codes
    run = PRESETS["digits-16l"].with_fields({"depth": 2, "steps": 9, "copies": 2, "merge": "rezero"})
    train_runs([run.with_fields({"compile": True})] * 2)
    report["copies"] = backend.codes - before
    Block.compile = functools.partialmethod(plain_compile, backend=Doubting())
    still = {"steps": 3, "schedule": "warmup", "warmup": 1, "rate": 1e-30, "writer_std": None, "depth": 4}
    run = PRESETS["digits-16l"].with_fields({**still, "compile": True})
    (measured,) = train_runs([run], functional_every=1)
    report["moved"] = measured.series["functional_step"].values.tolist()
    print(json.dumps(report))
