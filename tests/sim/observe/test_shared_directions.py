"""The dynamic front: what current weights share, measured, and the front that follows from it."""

import dataclasses

import numpy as np
import pytest
import torch

from meanmode.sim.observe import observables
from meanmode.sim.observe.shared_directions import block_overlaps, shared_directions, writer_alignment
from meanmode.sim.onset.measured_front import collapse_front
from meanmode.sim.simulate import stream
from meanmode.sim.trunk.stack import Block, synthetic_input
from meanmode.theory.meanfield.dynamic_front import BlockOverlaps, Coherence, Overlap, dynamic_front
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.setting import Setting

SETTING = Setting(depth=48, tokens=16, width=48, heads=2, weight_std=0.12, input_cosine=0.1)


def tokens(use: int, count: int = 4) -> torch.Tensor:
    """Samples whose tokens have a pair cosine of about 0.1, within samples and between them."""
    drawn = [synthetic_input(SETTING, stream(SETTING, use, 2**31 + n)) for n in range(count)]
    common = torch.randn(SETTING.width, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.rms_norm(torch.cat(drawn) + common / 3, (SETTING.width,))


@torch.no_grad()
def fresh_blocks(seed: int = 0) -> list[Block]:
    blocks = [Block(SETTING) for _ in range(SETTING.depth)]
    for number, block in enumerate(blocks, start=1):
        block.reset_parameters(stream(SETTING, seed, number))
    return blocks


@torch.no_grad()
def coherent_blocks(kick: float) -> list[Block]:
    """Fresh blocks, each trained as little as this: attention answers the trunk's mean e with kick e more."""
    blocks, x = fresh_blocks(), tokens(0)
    for block in blocks:
        unit = torch.nn.functional.normalize(x.mean((0, 1)), dim=0)
        read = block.operator.v_proj.weight @ unit
        block.operator.proj.weight += kick * torch.outer(unit, read) / read.square().sum()
        x = block(x, SETTING.segments)
    return blocks


@torch.no_grad()
def spiked_blocks(spike: float) -> list[Block]:
    """Fresh blocks, whose writers all have a spike along the first feature."""
    blocks = fresh_blocks()
    for block in blocks:
        for writer in (block.operator.proj.weight, block.ffn.w2.weight):
            writer[0] += spike * torch.nn.functional.normalize(writer[1].flip(0), dim=0)
    return blocks


@torch.no_grad()
def rotated(blocks: list[Block]) -> list[Block]:
    """The same blocks, each in a random orientation of its own towards the trunk."""
    generator = torch.Generator().manual_seed(1)
    for block in blocks:
        turn = torch.linalg.qr(torch.randn(SETTING.width, SETTING.width, generator=generator))[0]
        for reader in (*block.operator.readers, block.ffn.w13):
            reader.weight.copy_(reader.weight @ turn.T)
        for writer in (block.operator.proj, block.ffn.w2):
            writer.weight.copy_(turn @ writer.weight)
    return blocks


@torch.no_grad()
def measured(blocks: list[Block]) -> float:
    x = tokens(2, 8)
    profile = [float(observables.tcs(x).mean())]
    for block in blocks:
        x = block(x, SETTING.segments)
        profile.append(float(observables.tcs(x).mean()))
    front = collapse_front(profile)
    assert front is not None
    return front


def predicted(overlaps: list[BlockOverlaps]) -> float:
    front = dynamic_front(SETTING, overlaps, tokens(1).double().numpy(), 3).front
    assert front is not None
    return front


def sizes_alone(overlaps: list[BlockOverlaps]) -> list[BlockOverlaps]:
    return [dataclasses.replace(block, attention=None, ffn=None) for block in overlaps]


def test_fresh_weights_share_nothing() -> None:
    blocks = fresh_blocks()
    found = writer_alignment(blocks)
    assert found.shared.shape == (48, 0)
    assert found.energy.mean() == pytest.approx(1)
    columns = SETTING.depth * (SETTING.width + SETTING.ffn_width)
    assert found.energy[0] < 1.1 * (1 + (SETTING.width / columns) ** 0.5) ** 2
    distinct = found.alignment[~np.eye(96, dtype=bool)]
    assert distinct.mean() == pytest.approx((2 / (np.pi * 48)) ** 0.5, rel=0.05)
    overlaps = block_overlaps(blocks, tokens(0), SETTING.segments)
    coherence = np.array([[block.attention.mean, block.ffn.mean] for block in overlaps])
    assert abs(coherence.mean()) < 4 * coherence.std() / 96**0.5


def test_at_initialisation_the_dynamic_front_is_the_front() -> None:
    sizes = sizes_alone(block_overlaps(fresh_blocks(), tokens(0), SETTING.segments))
    found, forecast = dynamic_front(SETTING, sizes, tokens(1).double().numpy(), 8), predict_front(SETTING)
    assert found.front == pytest.approx(forecast.front, abs=4 * forecast.front_std / 8**0.5)


def test_coherence_moves_the_front_and_sizes_do_not() -> None:
    blocks = coherent_blocks(0.3)
    overlaps, front = block_overlaps(blocks, tokens(3), SETTING.segments), measured(blocks)
    assert predicted(overlaps) == pytest.approx(front, rel=0.2)
    assert predicted(sizes_alone(overlaps)) > 1.6 * front
    turned = rotated(blocks)
    assert measured(turned) > 1.6 * front, "the same ranks and sizes, without coherence between blocks"
    assert predicted(block_overlaps(turned, tokens(3), SETTING.segments)) > 1.6 * front


def test_a_spike_that_all_writers_share_is_found() -> None:
    found = writer_alignment(spiked_blocks(8.0))
    assert np.abs(found.shared).T == pytest.approx(np.eye(48)[:1], abs=0.05)
    assert found.alignment.min() > 0.9 and found.stable_rank.max() < 4
    assert found.reading == pytest.approx(np.ones((48, 2)), abs=1)


@pytest.mark.parametrize("directions", [0, 3])
def test_an_overlap_keeps_products_and_size(directions: int) -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((200, 48))
    basis = np.linalg.qr(random.standard_normal((48, directions)))[0]
    drawn = Overlap.of(matrix, basis).drawn(random)
    np.testing.assert_allclose(drawn @ basis, matrix @ basis, atol=1e-12)
    assert np.square(drawn).sum() == pytest.approx(np.square(matrix).sum(), rel=0.06)
    assert np.abs(drawn - matrix).max() > 1


def test_a_coherence_is_imposed_outside_the_shared_directions() -> None:
    random = np.random.default_rng(0)
    trunk, branch = random.standard_normal((2, 3, 16, 48))
    basis = np.eye(48)[:, :2]
    wanted = Coherence(mean=0.3, centered=-0.1, gain=0.5)
    changed = wanted.imposed(trunk, branch, basis)
    found = Coherence.of(trunk, changed, basis)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(wanted))
    np.testing.assert_allclose(changed @ basis, branch @ basis)


def test_a_front_that_cannot_be_predicted_is_refused() -> None:
    overlaps = block_overlaps(fresh_blocks()[:1], tokens(0), SETTING.segments)
    inputs = tokens(1).double().numpy()
    with pytest.raises(ValueError, match="overlaps of at least one block"):
        dynamic_front(SETTING, [], inputs)
    with pytest.raises(ValueError, match=r"tokens must be \[samples, 16, 48\], got \[4, 16, 40\]"):
        dynamic_front(SETTING, overlaps, inputs[..., :40])
    with pytest.raises(ValueError, match="does not cover the mixer 'gated'"):
        dynamic_front(dataclasses.replace(SETTING, mixer="gated"), overlaps, inputs)


def test_the_spikes_direction_needs_no_forward_pass() -> None:
    assert shared_directions(spiked_blocks(8.0)).shape == (48, 1)
    assert shared_directions(spiked_blocks(0.2)).shape == (48, 0)
