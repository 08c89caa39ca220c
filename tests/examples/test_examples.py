"""Every example runs and leaves a run that can be read."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest

from meanmode import open_run
from meanmode.sim.onset.verdict import verdict

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "plain_loop": [],
    "accelerate_loop": ["transformers", "accelerate"],
    "diffusers_dit": ["diffusers", "sklearn"],
    "lightning_trainer": ["lightning", "transformers", "sklearn"],
}


@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # the Trainer asks for it without a GPU
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*")  # of Lightning
def test_an_example_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in NEEDS[name]:
        pytest.importorskip(package)
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 60
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(tmp_path / "run"))
    run = open_run(tmp_path / "run")
    assert np.isfinite(run["loss"].dropna("step").values[-1])
    measured = run["g_ctr"].dropna("step", how="all")
    assert np.isfinite(measured.values[:, 1:]).all()
    assert "tcs" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:alarm at step:UserWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # the Trainer asks for it without a GPU
def test_a_deep_bert_collapses_and_its_shallow_twin_learns(tmp_path: Path, capsys) -> None:
    pytest.importorskip("transformers")
    path = EXAMPLES / "trainer.py"
    assert len(path.read_text().splitlines()) < 60
    spec = importlib.util.spec_from_file_location("trainer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for blocks in (4, 24):
        module.train(blocks, str(tmp_path))
    shallow, deep = (line for line in capsys.readouterr().out.splitlines() if "blocks:" in line)
    assert "no alarm" in shallow and "collapse, tcs at" in deep
    assert verdict(open_run(tmp_path / "4-blocks")).onset.kind == "none"
    assert verdict(open_run(tmp_path / "24-blocks")).onset.kind == "mean_mode"


def test_a_merge_is_converted(capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / "converted_merge.py"
    assert len(path.read_text().splitlines()) < 60
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert "24 layers as it is: homogeneous" in out and "24 layers with MV-Split: flat" in out
    assert "layers.0.merge_attn.alpha" in out
