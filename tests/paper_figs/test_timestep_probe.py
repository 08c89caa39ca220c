"""The figure of the timestep probe: every row of the document is drawn at its block and R^2."""

import json
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from meanmode.paper_figs.all_figures import draw_figures
from meanmode.paper_figs.figures.timestep_probe import BESIDE, FEATURES, PAPER_R2, draw

FEATURE_R2 = {"image_mean": 0.9, "image_centered_rms": 0.5, "text_mean": 0.1}


def document() -> dict:
    """Two blocks: R^2 of a feature falls by 0.1 per block, is half as large untrained, and 0.01 shuffled."""
    rows = [
        {"network": network, "block": block, "feature": feature, "r2": share * (r2 - 0.1 * block)}
        | {"mae": 0.1, "shuffled_r2": 0.01}
        for network, share in (("trained", 1.0), ("untrained", 0.5))
        for block in range(3)
        for feature, r2 in FEATURE_R2.items()
    ]
    rows.append({"network": "trained", "block": 0, "feature": "input_statistics", "r2": 0.4})
    sizes = {"depth": 2, "width": 8, "merge": "plain", "side": 8, "patch": 2, "text_tokens": 4}
    sizes["writer_std"] = 0.0
    probe = {"images": 40, "times_each": 8, "held_out": 10}
    return {
        "rows": rows,
        "probe": probe,
        "step": 7,
        "run": {"model": sizes, "training": {"batch": 4, "seed": 5}},
    }


def marks(panel: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = (line for line in panel.lines if line.get_label() == label)
    return [(round(float(x), 6), round(float(y), 6)) for x, y in zip(*line.get_data(), strict=True)]


@pytest.mark.parametrize(("panel", "share"), [(0, 1.0), (1, 0.5)])
@pytest.mark.parametrize("style", range(3))
def test_every_feature_is_drawn_by_block(panel: int, share: float, style: int) -> None:
    feature = list(FEATURES)[style]
    expected = [
        (round(block + BESIDE * (style - 1), 6), round(share * (FEATURE_R2[feature] - 0.1 * block), 6))
        for block in range(3)
    ]
    assert marks(draw(document()).axes[panel], FEATURES[feature]) == expected


def test_the_controls_and_the_papers_number_are_drawn() -> None:
    figure = draw(document())
    assert marks(figure.axes[0], "mean and std of the noisy latent") == [(0.0, 0.4)]
    assert any(line.get_ydata()[0] == PAPER_R2 for line in figure.axes[0].lines)
    shuffled = [line for line in figure.axes[1].lines if set(line.get_ydata()) == {0.01}]
    assert len(shuffled) == 3
    said = " ".join(text.get_text() for text in figure.texts)
    assert "16 + 4 tokens" in " ".join(said.split()) and "10 held out" in " ".join(said.split())


def test_it_is_drawn_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "timestep_probe.json").write_text(json.dumps(document()))
    assert [path.name for path in draw_figures((), tmp_path, tmp_path / "out")] == ["timestep_probe.png"]
