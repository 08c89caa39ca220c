"""Residual merges: R1-R2 and N1 on mean and centered part, segments, and the gains they report."""

import pytest
import torch
from torch.nn.functional import rms_norm

from meanmode.sim.simulate import simulate, stream
from meanmode.sim.trunk.merges import Highway, MVSplit, make_merge
from meanmode.sim.trunk.segments import segment_mean
from meanmode.sim.trunk.stack import Block, Stack, synthetic_input
from meanmode.theory.setting import MERGES, Setting


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TRUNK, BRANCH = draw(1, 2, 7, 6), draw(2, 2, 7, 6)


WITH_GAINS = [name for name in MERGES if name not in ("mv_split_attn", "highway", "pre_norm")]


@pytest.mark.parametrize("name", WITH_GAINS)
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


def test_mv_split_treats_each_segment_separately() -> None:
    """With alpha = 0 no mean is written into either segment."""
    merge = MVSplit(6, alpha=0.0, beta=0.5).double()
    merged = merge.combine(TRUNK, BRANCH, (4, 3))
    torch.testing.assert_close(segment_mean(merged, (4, 3)), segment_mean(TRUNK, (4, 3)))
    whole = merge.combine(TRUNK, BRANCH, (7, 0))
    assert not torch.allclose(merged, whole)


@pytest.mark.parametrize("name", ["mv_split", "hard_centering"])
def test_with_frames_every_frame_of_the_image_is_a_segment(name: str) -> None:
    merge = make_merge(name, 6, alpha=0.3, beta=0.7, frames=3).double()
    whole = make_merge(name, 6, alpha=0.3, beta=0.7).double()
    framed = merge(TRUNK, BRANCH, (6, 1))
    assert torch.equal(framed, whole(TRUNK, BRANCH, (2, 2, 2, 1)))
    assert not torch.allclose(framed, whole(TRUNK, BRANCH, (6, 1)))
    with pytest.raises(ValueError, match="3 frames of equal size do not add up to 7 tokens"):
        merge(TRUNK, BRANCH, (7, 0))


def test_an_empty_segment_changes_nothing() -> None:
    merge = MVSplit(6, alpha=0.2, beta=0.5).double()
    assert torch.equal(merge(TRUNK, BRANCH, (7, 0)), merge(TRUNK, BRANCH, (0, 7)))


def test_segments_must_cover_the_tokens() -> None:
    with pytest.raises(ValueError, match=r"segments \(4, 4\) hold 8 tokens, the trunk has 7"):
        segment_mean(TRUNK, (4, 4))


def test_unknown_merge_is_named() -> None:
    with pytest.raises(ValueError, match="unknown merge 'sum': choose one of plain"):
        make_merge("sum", 4)


def test_hard_centering_leaves_no_mean_before_the_norm_but_one_after_it() -> None:
    """N1, segment by segment: J Z = 0, while J RMSNorm(Z) is not."""
    merge = make_merge("hard_centering", 6).double()
    merged = merge.combine(TRUNK, BRANCH, (4, 3))
    assert segment_mean(merged, (4, 3)).abs().max() < 1e-14
    assert segment_mean(merge(TRUNK, BRANCH, (4, 3)), (4, 3)).abs().max() > 1e-2


def test_hard_centering_gives_its_writer_no_mean_coherent_gradient() -> None:
    """N1: dL/dF = P G."""
    branch = BRANCH.clone().requires_grad_()
    merge = make_merge("hard_centering", 6).double()
    (merge(TRUNK, branch, (4, 3)) * draw(3, 2, 7, 6)).sum().backward()
    assert segment_mean(branch.grad, (4, 3)).abs().max() < 1e-14 < branch.grad.abs().max()


def test_attention_only_mv_split_has_a_plain_merge_after_the_ffn() -> None:
    """N7: the block equals that of `mv_split` up to the FFN's merge, which is that of `plain`."""
    setting = Setting(width=16, heads=2, merge="mv_split_attn", alpha=0.3, beta=0.7)
    block = Block(setting)
    assert isinstance(block.merge_attn, MVSplit) and not isinstance(block.merge_ffn, MVSplit)
    assert vars_of(block.merge_attn.gains()) == pytest.approx([0.7, 0.3, 1, 0.7])
    assert vars_of(block.merge_ffn.gains()) == pytest.approx([1, 1, 1, 1])
    expected = [vars_of(gains) for gains in setting.writer_gains]
    assert [vars_of(merge.gains()) for merge in (block.merge_attn, block.merge_ffn)] == [
        pytest.approx(gains, abs=1e-6) for gains in expected
    ]
    with pytest.raises(ValueError, match="merges attention and FFN differently"):
        setting.gains  # noqa: B018


def test_highway_normalises_the_branch_so_that_its_size_does_not_matter() -> None:
    merge = Highway(6, 3.0, eps=0.0).double()
    expected = rms_norm(3.0 * TRUNK + rms_norm(BRANCH, (6,)), (6,))
    torch.testing.assert_close(merge(TRUNK, BRANCH, (7, 0)), expected)
    torch.testing.assert_close(merge(TRUNK, 100 * BRANCH, (7, 0)), expected)
    plain = make_merge("plain", 6, eps=0.0).double()
    assert not torch.allclose(plain(TRUNK, 100 * BRANCH, (7, 0)), plain(TRUNK, BRANCH, (7, 0)))


def test_a_highway_with_zero_writers_is_the_identity() -> None:
    merge = Highway(6, 3.0).double()
    trunk = rms_norm(TRUNK, (6,))
    torch.testing.assert_close(merge(trunk, torch.zeros_like(trunk), (7, 0)), trunk, rtol=1e-5, atol=1e-5)


def test_pre_norm_reads_a_normalised_trunk_and_adds_to_the_trunk_itself() -> None:
    setting = Setting(tokens=7, width=16, heads=2, weight_std=0.3, merge="pre_norm")
    block = Block(setting).double()
    x = 3 * draw(5, 2, 7, 16)
    read = rms_norm(x, (16,), eps=1e-5)
    between = x + block.operator(read, (7, 0))
    expected = between + block.ffn(rms_norm(between, (16,), eps=1e-5))
    torch.testing.assert_close(block(x, (7, 0)), expected)


@pytest.mark.parametrize("name", [name for name in MERGES if name not in ("pre_norm", "mv_split_attn")])
def test_other_merges_read_the_trunk_itself(name: str) -> None:
    assert make_merge(name, 6).read(TRUNK) is TRUNK


@pytest.mark.parametrize(("name", "least", "most"), [("plain", 0.999, 1.001), ("pre_norm", 2.0, 50.0)])
def test_only_the_trunk_of_pre_norm_grows(name: str, least: float, most: float) -> None:
    setting = Setting(depth=20, tokens=9, width=32, heads=2, weight_std=0.15, merge=name)
    stack = Stack(setting)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, 0, index))
    with torch.no_grad():
        energy = stack(synthetic_input(setting, stream(setting, 0, 0))).square().mean().item()
    assert least <= energy <= most


@pytest.mark.parametrize("name", ["highway", "pre_norm"])
def test_merges_without_gains_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"no theory of the merge '{name}'"):
        make_merge(name, 6).gains()


@pytest.mark.parametrize("name", MERGES)
def test_every_merge_is_simulated_forward_and_backward(name: str) -> None:
    setting = Setting(depth=3, tokens=9, text_tokens=2, width=16, heads=2, weight_std=0.3, merge=name)
    for key, values in simulate(setting, 0, backward=True).items():
        assert torch.from_numpy(values[1:]).isfinite().all(), key
