"""The modes of a gradient that processes have averaged: how exact they are, and when they are not known."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from meanmode.sim.observe.shared_writers import SharedWriterSum, shared_modes
from meanmode.sim.observe.writer_gradients import WriterModes, WriterSum, writer_modes

GLOO = dist.is_available() and dist.is_gloo_available()
pytestmark = pytest.mark.skipif(not GLOO, reason="torch was built without gloo")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """A group of one process, which takes the same way as several do."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def products(ratio: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and cotangents of a gradient with G_mean / G_ctr of about 8 times `ratio`."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for features, scale in ((48, 1.0), (40, 1e-3)):
        own = torch.randn(4, 64, features, generator=generator)
        shared = torch.randn(4, 1, features, generator=generator)
        sides.append((scale * (own + ratio**0.5 * shared)).to(dtype))
    return sides[0], sides[1]


def found(y: Tensor, delta: Tensor, gradient: Tensor | None, kept: Tensor | None = None) -> WriterModes:
    """The modes from two passes and the gradient of both."""
    summed = SharedWriterSum()
    masks = (None, None) if kept is None else kept.chunk(2)
    for *pair, mask in zip(y.chunk(2), delta.chunk(2), masks, strict=True):
        summed.add(*pair, mask)
    summed.read(gradient)
    modes, unknown = shared_modes({(1, 0): summed}, dist.group.WORLD, torch.device("cpu"))
    assert (unknown == [(1, 0)]) == bool(modes[1, 0].g_ctr.isnan())
    return modes[1, 0]


def gradient_of(y: Tensor, delta: Tensor) -> Tensor:
    return delta.flatten(0, 1).mT @ y.flatten(0, 1)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_they_are_those_of_the_whole_batch(ratio: float) -> None:
    y, delta = products(ratio)
    expected = writer_modes(y.double(), delta.double())
    for value, wanted in zip(found(y, delta, gradient_of(y, delta)), expected, strict=True):
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-5 * expected.g_ctr.item() ** 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("dtype", "known", "lost"), [(torch.float32, 1e4, 3e6), (torch.bfloat16, 5.0, 1e3)], ids=str
)
def test_they_are_right_or_not_known(dtype: torch.dtype, known: float, lost: float, seed: int) -> None:
    """Where the gradient has too few digits beside its mean part, the centered part is NaN, never wrong."""
    for ratio in torch.logspace(-1, 7, 17).tolist():
        y, delta = products(ratio, dtype, seed)
        modes = found(y, delta, gradient_of(y, delta).float())
        exact = writer_modes(y.double(), delta.double())
        assert modes.g_mean.item() == pytest.approx(exact.g_mean.item(), rel=1e-6)
        if ratio <= known or not modes.g_ctr.isnan():
            assert modes.g_ctr.item() == pytest.approx(exact.g_ctr.item(), rel=0.025), ratio
        if ratio >= lost:
            assert modes.g_ctr.isnan() and modes.g_inner.isnan()


@pytest.mark.parametrize("change", ["clipped", "mean part deleted", "accumulated", "none"])
def test_another_gradient_than_that_of_the_products_is_noticed(change: str) -> None:
    y, delta = products(1.0)
    gradient = gradient_of(y, delta)
    changed = {
        "clipped": 0.9 * gradient,
        "mean part deleted": gradient - 64 * delta.mean(1).mT @ y.mean(1),
        "accumulated": gradient + gradient_of(*products(1.0, seed=1)),
        "none": None,
    }[change]
    modes = found(y, delta, changed)
    assert modes.g_ctr.isnan() and modes.g_inner.isnan()
    assert modes.g_mean.item() == pytest.approx(writer_modes(y, delta).g_mean.item(), rel=1e-5)


@pytest.mark.parametrize("leaks", [False, True])
def test_tokens_that_are_left_out_have_no_gradient_or_are_noticed(leaks: bool) -> None:
    y, delta = products(1.0)
    kept = torch.ones(4, 64, 1, dtype=torch.bool)
    kept[1:3, 40:] = False
    gradient = gradient_of(y, delta if leaks else delta * kept)
    modes = found(y * kept, delta * kept, gradient, kept)
    assert bool(modes.g_ctr.isnan()) == leaks
    alone = WriterSum()
    alone.add(y * kept, delta * kept, kept)
    assert modes.g_mean.item() == pytest.approx(alone.modes().g_mean.item(), rel=1e-5)
    if not leaks:
        assert modes.g_ctr.item() == pytest.approx(alone.modes().g_ctr.item(), rel=1e-5)
