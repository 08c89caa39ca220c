"""Settings: range checks with clear messages, gains of the merges, blends of the mixers."""

import pytest

from meanmode.theory.setting import MERGES, Setting, identity_blend


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 1}, "tokens must be at least 2, got 1"),
        ({"depth": -1}, "depth must be at least 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"width": 10, "heads": 4}, "heads must divide width: width 10 is not a multiple of 4 heads"),
        ({"input_cosine": 1.5}, r"input_cosine must be in \[0, 1\), got 1.5"),
        ({"input_cosine": float("nan")}, "input_cosine"),
        ({"merge": "sum"}, "unknown merge 'sum': choose one of plain, layerscale"),
        ({"mixer": "mamba"}, "unknown mixer 'mamba'"),
        ({"weight_std": 0.0}, "weight_std must be positive"),
        ({"weight_std": float("nan")}, "weight_std must be positive"),
        ({"writer_std": -1.0}, "writer_std must be in"),
        ({"alpha": float("inf")}, "alpha must be finite"),
        ({"mixer_share": 1.1}, r"mixer_share must be in \[0, 1\], got 1.1"),
        ({"mixer_share": float("nan")}, "mixer_share must be in"),
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
        ({"merge": "hard_centering"}, (0, 0, 1, 1)),
    ],
)
def test_gains_of_the_merges(fields: dict[str, object], gains: tuple[float, ...]) -> None:
    found = Setting(**fields).gains
    assert (found.mean_skip, found.mean_write, found.centered_skip, found.centered_write) == pytest.approx(
        gains
    )


def test_the_attention_only_split_has_separate_gains_for_each_writer() -> None:
    attention, ffn = Setting(merge="mv_split_attn", alpha=0.1, beta=0.5).writer_gains
    assert attention == Setting(merge="mv_split", alpha=0.1, beta=0.5).gains
    assert ffn == Setting().gains


@pytest.mark.parametrize("merge", MERGES)
def test_both_writers_have_a_known_merge(merge: str) -> None:
    assert set(Setting(merge=merge).merges) <= set(MERGES) - {"mv_split_attn"}


@pytest.mark.parametrize("merge", ["highway", "pre_norm"])
def test_merges_without_gains_are_refused_by_name(merge: str) -> None:
    with pytest.raises(ValueError, match=f"no theory for the merge '{merge}'"):
        Setting(merge=merge).gains  # noqa: B018


@pytest.mark.parametrize(
    ("mixer", "blend"),
    [
        ("softmax", (0, 1)),
        ("gated", (0, 1)),
        ("lazy", (0.7, 0.3)),
        ("a_minus_i", (-1, 1)),
        ("i_minus_a", (1, -1)),
    ],
)
def test_blends_with_the_identity(mixer: str, blend: tuple[float, float]) -> None:
    assert identity_blend(mixer, 0.3) == pytest.approx(blend)
