"""The spectral score: known spectra, its filter, its blind spot, and its invariances."""

import math

import pytest
import torch
from torch import Tensor

from meanmode.sim.observe.functional_step import block_states
from meanmode.sim.observe.koopman import koopman_share, mean_koopman_share
from meanmode.sim.trunk.stack import Stack, synthetic_input
from meanmode.theory.setting import Setting

WIDTH = 4


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(6, 30, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MIXED = tokens(7)[0, :WIDTH]
"""An invertible change of features that is not a rotation."""


def test_the_identity_and_a_network_with_zero_writers_have_share_one() -> None:
    assert koopman_share(tokens(), tokens()) == 1
    setting = Setting(depth=3, width=16, tokens=20, batch=4, writer_std=0.0)
    stack, stream = Stack(setting), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in stack.blocks:
            block.reset_parameters(stream)
        states = block_states(stack, lambda: stack(synthetic_input(setting, stream)))
    assert mean_koopman_share(states) == 1


@pytest.mark.parametrize(
    ("eigenvalues", "share"),
    [
        ((1.0, 0.91, 1.04, -1.0), 1.0),
        ((1.0, 0.95, 0.5, 2.0), 0.5),
        ((0.89, 1.06, 1.0, 0.0), 0.25),
        ((0.5, 0.6, 0.7, 2.0), 0.0),
    ],
)
def test_a_linear_block_has_the_share_of_its_eigenvalues(
    eigenvalues: tuple[float, ...], share: float
) -> None:
    block = MIXED @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ torch.linalg.inv(MIXED)
    shifted = tokens() @ block.mT + 3.0
    assert koopman_share(tokens(), shifted) == share


def test_a_rotation_has_eigenvalues_on_the_circle() -> None:
    rotation, _ = torch.linalg.qr(MIXED)
    assert koopman_share(tokens(), tokens() @ rotation) == 1
    assert koopman_share(tokens(), 1.2 * tokens() @ rotation) == 0


@pytest.mark.parametrize(("noise", "share"), [(0.02, 1.0), (0.5, 0.0)])
def test_modes_that_are_not_linear_are_dropped(noise: float, share: float) -> None:
    after = tokens() + noise * tokens(1)
    assert koopman_share(tokens(), after) == share
    assert koopman_share(tokens(), after, residual=math.inf, band=(0.5, 1.5)) == 1


def test_the_share_is_of_the_modes_that_are_kept() -> None:
    noise = torch.tensor([0.0, 0.0, 0.0, 1.0]) * tokens(1)
    slower = torch.tensor([1.0, 1.0, 0.5, 1.0])
    assert koopman_share(tokens(), tokens() * slower + noise).item() == pytest.approx(2 / 3)


def test_a_change_of_features_changes_nothing() -> None:
    after = tokens() * torch.tensor([1.0, 1.0, 0.5, 1.0]) + 0.03 * tokens(1)
    assert koopman_share(tokens() @ MIXED, after @ MIXED, eps=0.0) == koopman_share(tokens(), after)


def test_an_ensemble_has_the_shares_of_its_members() -> None:
    after = [tokens(), 0.5 * tokens()]
    assert koopman_share(torch.stack([tokens()] * 2), torch.stack(after)).tolist() == [1, 0]
    states = [torch.stack([tokens()] * 2), torch.stack(after), torch.stack([tokens(), tokens()])]
    assert mean_koopman_share(states).tolist() == [1, 0]


def test_too_few_tokens_and_no_block_are_refused() -> None:
    with pytest.raises(ValueError, match="spectrum of 4 features needs more than 4 tokens, got 4"):
        koopman_share(tokens()[:1, :4], tokens()[:1, :4])
    with pytest.raises(ValueError, match="needs at least one block, got 0"):
        mean_koopman_share([tokens()])
