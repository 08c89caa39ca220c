"""A setting says in one sentence what is wrong with it."""

import pytest

from theory import Setting


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 1}, "tokens must be at least 2, got 1"),
        ({"depth": -1}, "depth must be at least 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"width": 10, "heads": 4}, "heads must divide width: width 10 is no multiple of 4 heads"),
        ({"input_cosine": 1.5}, r"input_cosine must be in \[0, 1\), got 1.5"),
        ({"input_cosine": float("nan")}, "input_cosine"),
        ({"merge": "sum"}, "unknown merge 'sum': choose one of plain, layerscale"),
        ({"mixer": "mamba"}, "unknown mixer 'mamba'"),
        ({"weight_std": 0.0}, "weight_std must be positive"),
        ({"weight_std": float("nan")}, "weight_std must be positive"),
        ({"writer_std": -1.0}, "writer_std must be in"),
        ({"alpha": float("inf")}, "alpha must be finite"),
        ({"ffn_ratio": 0.001}, "must be a whole number"),
        ({"rope": True, "tokens": 15}, "tokens must be a square, got 15"),
        ({"rope": True, "width": 12, "heads": 2}, "head width divisible by 4"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setting(**fields)


@pytest.mark.parametrize(
    ("fields", "gains"),
    [
        ({"merge": "plain"}, (1, 1, 1, 1)),
        ({"merge": "layerscale", "residual_gain": 0.2}, (1, 0.2, 1, 0.2)),
        ({"merge": "rezero", "residual_gain": 0.2}, (1, 0.2, 1, 0.2)),
        ({"merge": "deepnorm", "residual_gain": 3.0}, (3, 1, 3, 1)),
        ({"merge": "mv_split", "alpha": 0.1, "beta": 0.5}, (0.9, 0.1, 1, 0.5)),
    ],
)
def test_gains_of_the_merges(fields: dict[str, object], gains: tuple[float, ...]) -> None:
    found = Setting(**fields).gains
    assert (found.mean_skip, found.mean_write, found.centered_skip, found.centered_write) == pytest.approx(
        gains
    )
