"""Changed parts of a gradient: random turns, and the accuracy of a small centered part."""

import pytest
import torch

from meanmode.sim.intervene.part_changes import GradientChange, PartChange, Turn
from meanmode.sim.observe.writer_gradients import centered_gradient, mean_coherent
from meanmode.sim.trunk.linear import Linear


def test_a_small_centered_part_is_accurate_next_to_a_large_mean() -> None:
    """For nearly equal tokens, subtracting the mean part from a float32 gradient leaves mostly rounding."""
    generator = torch.Generator().manual_seed(1)
    y, delta = (
        torch.randn(1, 1, 8, generator=generator) + 1e-4 * torch.randn(1, 64, 8, generator=generator)
        for _ in range(2)
    )
    exact = centered_gradient(y.double(), delta.double())
    layer, turn = Linear(8, 8), Turn((0,), 2)
    remove = PartChange(part=0, factor=0.0, control=False, replacement=turn, direction=turn)
    change = GradientChange(layer, [remove], None)
    layer(y).backward(delta)
    error = (layer.weight.grad - exact).norm() / exact.norm()
    change.remove()
    layer.weight.grad = None
    layer(y).backward(delta)
    subtracted = (layer.weight.grad - mean_coherent(y, delta) - exact).norm() / exact.norm()
    assert error < 1e-5 < 1e-3 < subtracted


@pytest.mark.parametrize("sides", [1, 2])
def test_a_turn_is_orthogonal_and_a_function_of_its_key(sides: int) -> None:
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = Turn((3, 1), sides)(x)
    assert torch.equal(turned, Turn((3, 1), sides)(x))
    assert not any(torch.equal(turned, Turn(key, sides)(x)) for key in ((4, 1), (3, 2), (3, 1, 0)))
    torch.testing.assert_close(torch.linalg.svdvals(turned), torch.linalg.svdvals(x), rtol=1e-9, atol=1e-9)
    assert torch.equal(turned.abs().sort(-1).values, x.abs().sort(-1).values) is (sides == 1)
    float32 = x.float()
    norms = [torch.linalg.matrix_norm(matrix) for matrix in (Turn((3, 1), sides)(float32), float32)]
    assert torch.allclose(*norms, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rank", [1, 6])
def test_turned_matrices_have_the_cosines_of_random_ones(rank: int) -> None:
    """Mean 0 and mean square 1 / (M N), within 4 standard errors over 4000 keys."""
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in (12, 6))
    matrix = left @ right.T
    found = torch.stack([(Turn((seed,), 2)(matrix) * matrix).sum() for seed in range(4000)])
    cosines = found / matrix.square().sum()
    for moment, expected in ((cosines, 0.0), (cosines.square(), 1 / 72)):
        assert abs(moment.mean() - expected) < 4 * moment.std() / 4000**0.5
