"""What a watch writes is a run store: read, resumed, with alarms, and light until it is needed."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from meanmode import open_run
from meanmode.sim.onset.training_onset import training_onset
from meanmode.sim.watch.watch import Watch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def train(model: nn.Module, watch: Watch, steps: range, **logged: float) -> list[float]:
    """Train on noise; returns the losses."""
    optimiser = torch.optim.SGD(model.parameters(), 1e-2)
    losses = []
    for step in steps:
        with watch.step(step):
            loss = model(torch.randn(4, 6, 16)).square().mean()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            watch.log(loss=loss, grad_norm=norm, **logged)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_a_store_holds_every_loss_and_the_measured_steps(tmp_path: Path) -> None:
    model, seen = encoder(), []
    with Watch(model, every=4, out=tmp_path / "run", sink=lambda *row: seen.append(row)) as watch:
        losses = train(model, watch, range(1, 71), lr=1e-2)
    run = open_run(tmp_path / "run")
    assert run["loss"].values == pytest.approx(losses)
    measured = np.flatnonzero(run["tcs"].notnull().any("block").values) + 1
    assert measured.tolist() == [1, *range(4, 71, 4)] == [step for step, _ in seen]
    assert run["writer"].values.tolist() == ["attn", "ffn"]
    assert training_onset(run).step is None
    step, scalars = seen[-1]
    row = run.sel(step=step)
    assert scalars["tcs"] == pytest.approx(float(row["tcs"].sel(block=[2, 3]).median()), rel=1e-6)
    change = run["update_rms"].sel(step=4).values[1:] / run["weight_rms"].sel(step=4).values[1:]
    assert ((change > 1e-6) & (change < 1e-1)).all()


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    model = encoder()
    with Watch(model, every=5, out=tmp_path / "run") as watch:
        train(model, watch, range(1, 21))
    with Watch(model, every=5, out=tmp_path / "run") as watch:
        again = train(model, watch, range(16, 26))
    run = open_run(tmp_path / "run")
    assert run["loss"].values[15:] == pytest.approx(again)
    with Watch(model, every=5, out=tmp_path / "run") as watch:
        with pytest.warns(UserWarning, match="already holds a run: pass another `out`"):
            train(model, watch, range(1, 3))
    assert open_run(tmp_path / "run").sizes["step"] == 25


def test_a_collapse_raises_an_alarm(tmp_path: Path) -> None:
    model, seen = encoder(), []
    watch = Watch(model, every=1, out=tmp_path / "run", names=("tcs",), sink=lambda *row: seen.append(row))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(1, 81):
            alike = step > 50
            with watch.step(step):
                x = torch.randn(4, 1 if alike else 6, 16).expand(4, 6, 16)
                model(x).sum().backward()
                watch.log(loss=3.0 if alike else 0.5 + 2.5 * 0.9**step)
        watch.close()
    assert [alarm.kind for alarm in watch.alarms] == ["collapse"]
    assert 51 <= watch.alarms[0].step <= 60
    assert [step for step, row in seen if "alarm/collapse" in row] == [watch.alarms[0].step]
    assert '"kind": "collapse"' in open_run(tmp_path / "run").attrs["events"]


def test_nothing_heavy_is_imported_before_a_row_is_written() -> None:
    code = (
        "import sys, torch; from torch import nn; from meanmode import Watch\n"
        "layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)\n"
        "model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)\n"
        "watch = Watch(model, every=1)\n"
        "for step in (1, 2):\n"
        "    with watch.step(step): model(torch.randn(2, 4, 8)).sum().backward()\n"
        "assert watch.latest['tcs'] < 1, watch.latest\n"
        "assert not {'zarr', 'xarray', 'pandas', 'transformers', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)
