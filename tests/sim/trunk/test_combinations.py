"""Combinations alone: the parts of R1, padding, segments by name, layouts, half precision."""

import pytest
import torch
from torch import Tensor

from meanmode.sim.trunk.combinations import MVSplitCombination, make_combination
from meanmode.sim.trunk.merges import make_merge
from meanmode.sim.trunk.segments import segment_mean

NAMES = ("plain", "layerscale", "rezero", "deepnorm", "mv_split")
GAINS = {"alpha": 0.3, "beta": 0.7}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TRUNK, BRANCH = draw(1, 2, 7, 6), draw(2, 2, 7, 6)
KEPT = torch.arange(7) < torch.tensor([[7], [4]])


@pytest.mark.parametrize("name", NAMES)
def test_a_combination_is_a_merge_without_its_norm(name: str) -> None:
    alone = make_combination(name, 6, gain=0.4, **GAINS).double()
    merge = make_merge(name, 6, residual_gain=0.4, **GAINS).double()
    assert torch.equal(alone(TRUNK, BRANCH, (4, 3)), merge.combine(TRUNK, BRANCH, (4, 3)))
    assert alone.gains() == merge.gains() and alone.state_dict().keys() == merge.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
def test_both_layouts_and_both_ways_to_name_segments_agree(name: str) -> None:
    expected = make_combination(name, 6, **GAINS, segments=(4, 3)).double()(TRUNK, BRANCH, kept=KEPT)
    first = make_combination(name, 6, **GAINS, segments={"a": 4, "b": 3}, layout="TBD").double()
    found = first(TRUNK.transpose(0, 1), BRANCH.transpose(0, 1), kept=KEPT)
    torch.testing.assert_close(found.transpose(0, 1), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_padding_has_no_influence_and_gets_the_same_formula(name: str) -> None:
    """The kept tokens are those of the sequence without padding; padding joins with their means."""
    combination = make_combination(name, 6, **GAINS).double()
    trunk, branch = (x.masked_fill(~KEPT[..., None], torch.inf) for x in (TRUNK, BRANCH))
    found = combination(trunk, branch, kept=KEPT)
    short = combination(TRUNK[1:, :4], BRANCH[1:, :4])
    torch.testing.assert_close(found[1:, :4], short)
    torch.testing.assert_close(found[:1], combination(TRUNK[:1], BRANCH[:1]))
    if name == "mv_split":
        means = [x[1, :4].mean(0) for x in (TRUNK, BRANCH)]
        padded = combination(TRUNK, BRANCH, kept=KEPT)[1, 4:]
        shift = 0.3 * (means[1] - means[0])
        expected = TRUNK[1, 4:] + 0.7 * (BRANCH[1, 4:] - means[1]) + shift
        torch.testing.assert_close(padded, expected)


def test_a_segment_of_padding_alone_has_the_mean_zero() -> None:
    none = torch.zeros(2, 7, dtype=torch.bool)
    assert torch.equal(segment_mean(TRUNK, (7,), none), torch.zeros_like(TRUNK))


@pytest.mark.parametrize(("trunk", "branch"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_forms_its_means_in_single(name: str, trunk: str, branch: str) -> None:
    """The result has the type of a plain addition and is that of single precision, rounded once."""
    x, f = (draw(seed, 2, 300, 6).to(getattr(torch, of)) for seed, of in ((3, trunk), (4, branch)))
    combination = make_combination(name, 6, **GAINS)
    found = combination(x, f)
    assert found.dtype == (x + f).dtype
    assert torch.equal(found, combination(x.float(), f.float()).to(found.dtype))


def test_a_frozen_alpha_asks_for_no_gradient_but_is_saved() -> None:
    frozen = make_combination("mv_split", 6, frozen_alpha=True)
    assert isinstance(frozen, MVSplitCombination)
    assert not frozen.alpha.requires_grad and frozen.beta.requires_grad and "alpha" in frozen.state_dict()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="layout must be BTD or TBD, got 'BDT'"):
        make_combination("plain", 6, layout="BDT")
    with pytest.raises(ValueError, match="unknown combination 'sum': choose one of plain"):
        make_combination("sum", 6)
    combination = make_combination("mv_split", 6, segments={"cls": 1, "image": 7}).double()
    with pytest.raises(ValueError, match="hold 8 tokens, the trunk has 7"):
        combination(TRUNK, BRANCH)
    with pytest.raises(ValueError, match="kept marks 5 tokens, the trunk has 7"):
        combination(TRUNK, BRANCH, (7,), KEPT[:, :5])
