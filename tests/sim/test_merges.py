"""Residual merges: R1-R2 on mean and centered part, segments, and the gains they report."""

import pytest
import torch
from torch.nn.functional import rms_norm

from sim.merges import MVSplit, make_merge, segment_mean
from theory import MERGES, Setting


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TRUNK, BRANCH = draw(1, 2, 7, 6), draw(2, 2, 7, 6)


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("segments", [(7, 0), (4, 3), (0, 7)])
def test_mean_and_centered_part_are_multiplied_by_the_gains(name: str, segments: tuple[int, int]) -> None:
    setting = Setting(width=6, heads=1, merge=name, residual_gain=0.4, alpha=0.3, beta=0.7)
    merge = make_merge(name, 6, residual_gain=0.4, alpha=0.3, beta=0.7).double()
    merged = merge.combine(TRUNK, BRANCH, segments)
    mean = [segment_mean(x, segments) for x in (TRUNK, BRANCH, merged)]
    gains = setting.gains
    torch.testing.assert_close(mean[2], gains.mean_skip * mean[0] + gains.mean_write * mean[1])
    part = [x - average for x, average in zip((TRUNK, BRANCH, merged), mean, strict=True)]
    torch.testing.assert_close(part[2], gains.centered_skip * part[0] + gains.centered_write * part[1])
    torch.testing.assert_close(merge(TRUNK, BRANCH, segments), rms_norm(merged, (6,), eps=1e-5))
    assert vars_of(merge.gains()) == pytest.approx(vars_of(gains), abs=1e-6)


def vars_of(gains: object) -> list[float]:
    return [getattr(gains, name) for name in ("mean_skip", "mean_write", "centered_skip", "centered_write")]


def test_mv_split_treats_each_segment_by_itself() -> None:
    """With alpha = 0 no mean is written into either segment."""
    merge = MVSplit(6, alpha=0.0, beta=0.5).double()
    merged = merge.combine(TRUNK, BRANCH, (4, 3))
    torch.testing.assert_close(segment_mean(merged, (4, 3)), segment_mean(TRUNK, (4, 3)))
    whole = merge.combine(TRUNK, BRANCH, (7, 0))
    assert not torch.allclose(merged, whole)


def test_an_empty_segment_changes_nothing() -> None:
    merge = MVSplit(6, alpha=0.2, beta=0.5).double()
    assert torch.equal(merge(TRUNK, BRANCH, (7, 0)), merge(TRUNK, BRANCH, (0, 7)))


def test_segments_must_cover_the_tokens() -> None:
    with pytest.raises(ValueError, match=r"segments \(4, 4\) hold 8 tokens, the trunk has 7"):
        segment_mean(TRUNK, (4, 4))


def test_unknown_merge_is_named() -> None:
    with pytest.raises(ValueError, match="unknown merge 'sum': choose one of plain"):
        make_merge("sum", 4)
