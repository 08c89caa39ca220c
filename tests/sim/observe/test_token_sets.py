"""Token sets leave padding out, keep packed sequences apart, and know the layouts of states."""

import pytest
import torch

from meanmode.sim.observe.observables import parts_rho, rho, tcs
from meanmode.sim.observe.token_parts import cosine
from meanmode.sim.observe.token_sets import TokenSets, groups_of

X = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_padding_and_segments() -> None:
    groups = torch.tensor([[1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1]])
    sets = TokenSets("BTD", (2, 6, 5)).masked(groups).divided({"image": 3, "text": 3})
    found = sets.measured(X.masked_fill(groups[..., None] == 0, 7.0))
    for name, columns in (("", slice(0, 6)), ("image", slice(0, 3)), ("text", slice(3, 6))):
        plain, unit = found.plain[name], found.unit[name]
        for sample in range(2):
            kept = X[sample, columns][groups[sample, columns] == 1]
            assert float(cosine(unit)[sample]) == pytest.approx(float(tcs(kept[None])), abs=1e-12)
            assert float(parts_rho(plain)[sample]) == pytest.approx(float(rho(kept[None])), rel=1e-12)


def test_packed_sequences() -> None:
    groups = groups_of({"position_ids": torch.tensor([[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 0, 1]])}, "main")
    sets = TokenSets("BTD", (2, 6, 5)).masked(groups)
    expected = [tcs(piece[None]) for piece in (X[0, :2], X[0, 2:], X[1, :4], X[1, 4:])]
    torch.testing.assert_close(cosine(sets.measured(X).unit[""]), torch.cat(expected))


@pytest.mark.parametrize("layout", ["BTD", "TBD", "BTTD", "BDTT"])
def test_layouts(layout: str) -> None:
    state = {
        "BTD": X,
        "TBD": X.transpose(0, 1),
        "BTTD": X.reshape(2, 2, 3, 5),
        "BDTT": X.reshape(2, 2, 3, 5).permute(0, 3, 1, 2),
    }[layout]
    sets = TokenSets(layout, tuple(state.shape))
    assert torch.equal(sets.state(state), X)
    flat = X.transpose(0, 1) if layout == "TBD" else X
    assert torch.equal(sets.in_order(flat.reshape(12, 5)), X)
    assert sets.in_order(torch.zeros(11, 5)) is None


def test_masks_of_other_shapes_and_streams_are_ignored() -> None:
    sets = TokenSets("BTD", (2, 6, 5))
    assert sets.masked(torch.zeros(2, 5)).groups is None
    assert sets.masked(torch.ones(2, 6, dtype=torch.long)).groups is None
    arguments = {"attention_mask": torch.zeros(2, 6), "decoder_attention_mask": torch.ones(2, 6)}
    assert bool((groups_of(arguments, "decoder") == 1).all())
    assert groups_of({"attention_mask": torch.zeros(2, 1, 6, 6)}, "main") is None
    assert bool((groups_of({"src_key_padding_mask": torch.ones(2, 6, dtype=torch.bool)}, "main") == 0).all())
