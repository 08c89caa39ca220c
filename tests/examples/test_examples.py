"""Every example runs and leaves a run that can be read."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest

from meanmode import open_run

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"trainer": "transformers"}


@pytest.mark.parametrize("name", ["plain_loop", "trainer"])
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # the Trainer asks for it without a GPU
def test_an_example_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
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


def test_a_merge_is_converted(capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / "converted_merge.py"
    assert len(path.read_text().splitlines()) < 60
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert "24 layers as it is: homogeneous" in out and "24 layers with MV-Split: flat" in out
    assert "layers.0.merge_attn.alpha" in out
