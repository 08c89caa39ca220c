"""The predicted amplification against simulation, and what happens when its assumptions are broken."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import meanmode.sim.simulate
from meanmode.sim.simulate import simulate_ensemble
from meanmode.theory.meanfield.profile import predict_profile
from meanmode.theory.setting import Setting

SETTING = Setting(depth=16, tokens=16, width=64, heads=2, weight_std=0.1, adjoint_cosine=0.1)
BLOCK, SEEDS = 12, 40


def measured(setting: Setting = SETTING) -> np.ndarray:
    """A of both writers in one block, one row per seed."""
    runs = simulate_ensemble([(setting, seed) for seed in range(SEEDS)], backward=True)
    return runs["amplification"][:, BLOCK].astype(float)


def distance(samples: np.ndarray, setting: Setting = SETTING) -> np.ndarray:
    """Measured mean minus prediction, in standard errors, for both writers."""
    predicted = predict_profile(setting, 600)["amplification"][BLOCK - 1]
    return (samples.mean(0) - predicted) / (samples.std(0, ddof=1) / math.sqrt(SEEDS))


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return measured()


def test_amplification_agrees_with_simulation(samples: np.ndarray) -> None:
    assert np.abs(distance(samples)).max() < 4


@pytest.mark.parametrize(
    "fields",
    [{"adjoint_cosine": 0.5}, {"weight_std": 0.07}, {"merge": "layerscale", "residual_gain": 0.6}],
    ids=str,
)
def test_the_amplification_of_another_stack_is_rejected(
    fields: dict[str, object], samples: np.ndarray
) -> None:
    assert np.abs(distance(samples, dataclasses.replace(SETTING, **fields))).max() > 4


def test_repeated_weights_are_not_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: every block has the weights of the first."""
    fresh = meanmode.sim.simulate.stream

    def repeated(setting: Setting, seed: int, name: int) -> torch.Generator:
        return fresh(setting, seed, min(name, 1) if name != meanmode.sim.simulate.ADJOINT_STREAM else name)

    monkeypatch.setattr(meanmode.sim.simulate, "stream", repeated)
    assert np.abs(distance(measured())).max() > 4


def test_an_adjoint_that_depends_on_the_trunk_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: dL/dX_L is X_L shifted by one token; the last norm removes their shared mean mode."""
    setting = dataclasses.replace(SETTING, input_cosine=0.3)
    kept: list[torch.Tensor] = []
    down = meanmode.sim.simulate._Walk._down

    def remembering(walk: object) -> torch.Tensor:
        trunks = down(walk)
        kept[:] = trunks[-1].clone().roll(1, dims=-2)
        return trunks

    monkeypatch.setattr(meanmode.sim.simulate._Walk, "_down", remembering)
    monkeypatch.setattr(meanmode.sim.simulate, "synthetic_adjoint", lambda *given: kept.pop(0))
    runs = simulate_ensemble([(setting, seed) for seed in range(SEEDS)], backward=True)
    cosine = float(np.mean(runs["adjoint_tcs"][:, -1]))
    samples = runs["amplification"][:, -1].astype(float)
    predicted = predict_profile(dataclasses.replace(setting, adjoint_cosine=cosine), 600)["amplification"][-1]
    assert np.abs((samples.mean(0) - predicted) / (samples.std(0, ddof=1) / math.sqrt(SEEDS))).max() > 4
