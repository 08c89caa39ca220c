"""Long contexts: exponents between token counts, and the tables and figures of tiny stores."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from meanmode.paper_figs.all_figures import STUDY_FIGURES
from meanmode.paper_figs.figures.stacks.frame_means import draw as draw_frame_means
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.named.all_sweeps import SWEEPS
from meanmode.sweeps.named.structure.frame_means import FRAME_MEANS
from meanmode.sweeps.named.structure.long_contexts import LONG_CONTEXTS, LONG_CONTEXTS_LARGEST
from meanmode.sweeps.studies.results.long_context_tables import frame_means, long_exponents, long_fronts
from meanmode.sweeps.studies.token_exponents import local_exponents


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small stores of both sizes of `long_contexts`, the larger of one seed, and of `frame_means`."""
    path = tmp_path_factory.mktemp("long")
    base = dataclasses.replace(LONG_CONTEXTS.base, width=16, weight_std=0.35, depth=13)
    few = {"tokens": (16, 144), "adjoint_cosine": (0.0, 0.1)}
    run_sweep(dataclasses.replace(LONG_CONTEXTS, base=base, axes=few, seeds=2), path / "long_contexts.zarr")
    most = {"tokens": (196,), "adjoint_cosine": (0.0,)}
    largest = dataclasses.replace(LONG_CONTEXTS_LARGEST, base=base, axes=most, seeds=1)
    run_sweep(largest, path / "long_contexts_largest.zarr")
    base = dataclasses.replace(FRAME_MEANS.base, width=16, tokens=16, frames=4, weight_std=0.3)
    cases = [{**case, "depth": 4} for case in FRAME_MEANS.cases[:3]]
    run_sweep(
        dataclasses.replace(FRAME_MEANS, base=base, cases=tuple(cases), seeds=2), path / "frame_means.zarr"
    )
    return path


NAMES = ("long_contexts", "long_contexts_largest")


def test_the_exponent_between_two_counts_is_the_slope_of_the_means(folder: Path) -> None:
    sweeps = [open_cells(folder / f"{name}.zarr") for name in NAMES]
    rows = local_exponents(sweeps, 3)
    assert [(row["adjoint_cosine"], row["fewer"], row["more"], row["n"]) for row in rows] == [
        (0.0, 16, 144, 2),
        (0.0, 144, 196, 1),
        (0.1, 16, 144, 2),
    ]
    of = sweeps[0].sel(writer="attn").isel(block=-3)
    means = [
        float(of["amplification"].values[(of["adjoint_cosine"] == 0.1) & (of["tokens"] == count)].mean()) - 1
        for count in (16, 144)
    ]
    assert rows[2]["measured"] == pytest.approx(np.log(means[1] / means[0]) / np.log(9), rel=1e-5)
    assert all(row["measured_sem"] > 0 for row in rows)


def test_the_tables_of_small_stores_hold_every_count_and_merge(folder: Path) -> None:
    fronts = long_fronts(folder, *NAMES).splitlines()
    assert [line.split(" | ")[0] for line in fronts[2:6]] == ["| 16", "| 144", "| 196", "| 1,000,000"]
    assert "Bound on the error at a million tokens" in "\n".join(fronts)
    exponents = long_exponents(folder, *NAMES)
    assert "16 to 144" in exponents and exponents.count("+-") >= 14
    merges = [line.split(" | ")[1] for line in frame_means(folder, "frame_means").splitlines()[2:5]]
    assert merges == ["plain", "MV-Split 0.1, 1, global", "MV-Split 0.1, 1, frames"]


def test_the_figures_draw_small_stores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meanmode.paper_figs.figures.stacks.long_contexts.COUNTS", (16, 144, 4096))
    draw = STUDY_FIGURES["long_contexts"][1]
    figure = draw({name: open_cells(folder / f"{name}.zarr") for name in NAMES})
    assert [len(panel.containers) for panel in figure.axes] == [3, 12, 8]  # points with error bars
    figure = draw_frame_means(open_cells(folder / "frame_means.zarr"))
    assert len(figure.axes) == 1 and len(figure.axes[0].containers) == 4


def test_the_sweeps_span_what_was_asked() -> None:
    tokens = {cell.setting.tokens for name in NAMES for cell in SWEEPS[name].cells}
    assert tokens == {64, 256, 1024, 4096, 16384}
    framed = {(cell.setting.frame_means, cell.setting.frames) for cell in SWEEPS["frame_means"].cells}
    assert framed == {(False, 16), (True, 16)} and SWEEPS["frame_means"].seeds >= 8
