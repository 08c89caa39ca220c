"""Tables of stacks whose inputs have structure."""

import json
from pathlib import Path

from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.results.structure_tables import (
    gram_cases,
    gram_exact,
    structured_fronts,
    structured_gradients,
)
from meanmode.theory.setting import INPUTS


def test_fronts_and_amplification_have_a_column_per_input(tiny_structured: Path) -> None:
    fronts, gradients = (
        table(tiny_structured, name)
        for table, name in (
            (structured_fronts, "structured_fronts"),
            (structured_gradients, "structured_gradients"),
        )
    )
    for table in (fronts, gradients):
        head, _, line, *_ = table.splitlines()
        assert head == f"| setting | {' | '.join(INPUTS)} |" and line.startswith(
            "| width 16, T = 4, std 0.3 |"
        )
        assert "3 seeds" in table
    (photo,) = (
        row
        for row in compare([tiny_structured / "structured_fronts.zarr"])["rows"]
        if row["input"] == "photo" and "spread_ratio" in row
    )
    assert f"{photo['predicted']:.1f} / {photo['measured']:.1f} (" in fronts
    rows = compare([tiny_structured / "structured_gradients.zarr"])["rows"]
    logs = [row["median_log_error"] for row in rows if "median_log_error" in row]
    assert len(logs) == 8 and f"largest {max(logs):.3f}" in gradients


def test_the_chain_is_scored_against_the_fronts(tiny_structured: Path, tmp_path: Path) -> None:
    store = tiny_structured / "structured_fronts.zarr"
    means = {
        name: float(open_cells(store)["front"].values[3 * place : 3 * place + 3].mean())
        for place, name in enumerate(INPUTS)
    }
    frames = {"video": 4}
    chain = [
        {
            "input": name,
            "frames": frames.get(name, 1),
            "depth": 12,
            "front": front + 1,
            "front_std": 0.0,
            "n": 4,
        }
        for name, front in means.items()
    ]
    profile = {"tcs": [[0.1, 0.2], [0.3, 0.5]]}
    cases = {"both": {"predicted": {**profile, "front": 3.0}, "measured": {**profile, "fronts": [2.0, 4.0]}}}
    (tmp_path / "gram_chain.json").write_text(json.dumps({"exact": chain, "cases": cases}))
    (tmp_path / "structured_fronts.zarr").symlink_to(store)
    table = gram_exact(tmp_path, "gram_chain", "structured_fronts")
    assert f"{means['photo'] + 1:.1f} ({1 / means['photo']:+.1%}, z +" in table and "of 4." in table
    assert "| both | 0.000, 0.000 | 3.0 | 3.0 +- 1.0 |" in gram_cases(tmp_path, "gram_chain")
