"""Exponents that stores show: the adjoint's energy against backpropagation, and exponents over depth."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from meanmode.sim.simulate import ADJOINT_STREAM, simulate, stream
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sim.trunk.stack import Stack, synthetic_adjoint, synthetic_input
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.studies.exponents.depth_exponents import rate_exponents, size_exponents
from meanmode.sweeps.studies.exponents.stack_exponents import exponent_rows, measured_energies
from meanmode.sweeps.studies.forecast_files import read_forecast
from meanmode.theory.setting import Setting

DATA = Path(__file__).parents[3] / "paper_figs" / "data"


def backpropagated(setting: Setting, seed: int) -> dict[str, np.ndarray]:
    """1 - c, and the energies of both parts of dL/dX after every block, by autograd in double precision."""
    stack = Stack(setting)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, seed, index))
    stack.double()
    states = [synthetic_input(setting, stream(setting, seed, 0)).double().requires_grad_()]
    for block in stack.blocks:
        states.append(block(states[-1], setting.segments))
        states[-1].retain_grad()
    states[-1].backward(synthetic_adjoint(setting, stream(setting, seed, ADJOINT_STREAM)).double())
    parts = []
    for state in states:
        assert state.grad is not None
        mean = state.grad.mean(-2, keepdim=True)
        unit = torch.nn.functional.normalize(state.detach(), dim=-1)[0]
        distance = 1 - (unit @ unit.T).fill_diagonal_(0).sum() / (len(unit) * (len(unit) - 1))
        centered = (state.grad - mean).square().sum()
        parts.append([distance, mean.square().sum() * setting.tokens, centered])
    logs = np.log(np.array(parts)).T
    return dict(zip(("forward", "backward_mean", "backward_centered"), logs, strict=True))


@pytest.mark.parametrize(
    ("scale", "fields"), [(1.1, {}), (0.9, {"merge": "mv_split", "alpha": 0.03, "beta": 0.3})], ids=str
)
def test_slopes_read_off_writers_are_those_of_the_adjoint(scale: float, fields: dict[str, object]) -> None:
    """Up to the fluctuations of a writer's input, which do not add up over blocks."""
    sizes = {"depth": 8, "tokens": 16, "width": 64, "heads": 2, "weight_std": scale / 8}
    setting = Setting(**sizes, input_cosine=0.99999, adjoint_cosine=0.2, **fields)
    slopes: dict[str, list[tuple[float, float]]] = {}
    for seed in range(8):
        values = simulate(setting, seed, backward=True)
        dims = ("cell", "block", "writer")
        cells = xr.Dataset({name: (dims[: value.ndim + 1], value[None]) for name, value in values.items()})
        measured, direct = measured_energies(cells, setting), backpropagated(setting, seed)
        for quantity, of in direct.items():
            both = (measured[quantity][0], of)
            slopes.setdefault(quantity, []).append(tuple((logs[8] - logs[2]) / 6 for logs in both))
    for quantity, found in slopes.items():
        off = np.diff(np.array(found))
        assert abs(off.mean()) < 4 * off.std() / len(off) ** 0.5 + 1e-3, quantity
        assert off.std() < 0.15, quantity


def test_rows_refuse_the_forecast_of_another_sweep() -> None:
    data, document = (
        open_cells(DATA / "trainability.zarr"),
        read_forecast(DATA / "trainability.forecast.json"),
    )
    rows = exponent_rows(data, document)
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in document["rows"]]
    with pytest.raises(ValueError, match="a forecast of 'other' says nothing about trainability"):
        exponent_rows(data, {**document, "study": "other"})


def test_functional_steps_become_less_coherent() -> None:
    """The exponent of every pair of depths falls within twenty steps, and lies between 1/2 and 1."""
    for row in size_exponents(OpenedStudy.open(DATA / "critical_rate_depth.zarr"), 0.0068):
        first, _, later, _ = row["measured"]
        assert 0.5 < row["fitted"] < later < first < row["first_step"] <= 1


def test_an_open_end_of_a_half_rate_leaves_the_exponent_open() -> None:
    rates = [
        {"depth": depth, "value": depth**-0.7, "low": low and low * depth**-0.7, "high": 1.1 * depth**-0.7}
        for depth, low in ((8, 0.9), (32, 0.9), (128, None), (400, 0.9))
    ]
    rows = rate_exponents(rates, 1.0, 0.0)
    assert [row["measured"] for row in rows] == pytest.approx([-0.7] * 3)
    assert [row["fitted"] for row in rows] == pytest.approx([-0.5] * 3)
    assert [row["first_step"] for row in rows] == pytest.approx([-1.0] * 3)
    assert rows[0]["low"] < -0.7 < rows[0]["high"] and rows[1]["low"] is None and rows[2]["high"] is None
