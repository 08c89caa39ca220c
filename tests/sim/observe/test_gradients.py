"""Observables of writer gradients against brute force and the laws G1, A1-A5, and on degenerate input."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meanmode.sim.observe import observables, writer_gradients
from meanmode.sim.observe.writer_gradients import WriterSum, coherence
from meanmode.theory.laws.all_laws import LAWS


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(seed: int, batch: int, tokens: int, read: int, written: int) -> tuple[Tensor, Tensor]:
    """Writer inputs and cotangents with some mean in both."""
    y, delta = draw(seed, batch, tokens, read), draw(seed + 1, batch, tokens, written)
    return y + 0.4 * draw(seed + 2, batch, 1, read), delta + 0.4 * draw(seed + 3, batch, 1, written)


SHAPES = [(1, 2, 3, 2), (3, 7, 5, 4), (2, 40, 12, 6), (5, 4, 1, 1)]


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def brute_pairs(y: np.ndarray, delta: np.ndarray) -> tuple[float, float, float]:
    """A, kappa and khat of one sample, token by token."""
    gradient = sum(np.outer(d, z) for d, z in zip(delta, y, strict=True))
    diagonal = sum((d @ d) * (z @ z) for d, z in zip(delta, y, strict=True))
    products = [
        cosine(y[t], y[s]) * cosine(delta[t], delta[s])
        for t in range(len(y))
        for s in range(len(y))
        if t != s
    ]
    return np.sum(gradient**2) / diagonal, float(np.mean(products)), float(np.mean(np.abs(products)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pair_observables_equal_their_definitions(shape: tuple[int, ...]) -> None:
    y, delta = pair(1, *shape)
    expected = np.array([brute_pairs(y[b].numpy(), delta[b].numpy()) for b in range(len(y))]).T
    measured = (
        observables.writer_amplification(y, delta),
        observables.kappa(y, delta),
        observables.kappa(y, delta, absolute=True),
    )
    for values, wanted in zip(measured, expected, strict=True):
        np.testing.assert_allclose(values.numpy(), wanted, rtol=1e-10, atol=1e-10)
    for values, wanted in zip(coherence(y, delta), measured, strict=True):
        assert torch.equal(values, wanted)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 3, 2)], ids=str)
def test_modes_equal_their_definitions(shape: tuple[int, ...]) -> None:
    y, delta = (x.numpy() for x in pair(5, *shape))
    samples = list(zip(delta, y, strict=True))
    coherent = sum(len(z) * np.outer(d.mean(0), z.mean(0)) for d, z in samples)
    rest = sum(d.T @ z for d, z in samples) - coherent
    expected = (np.linalg.norm(coherent), np.linalg.norm(rest), np.sum(coherent * rest))
    measured = observables.writer_modes(torch.from_numpy(y), torch.from_numpy(delta))
    np.testing.assert_allclose([float(value) for value in measured], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_modes_satisfy_the_gradient_split(shape: tuple[int, ...]) -> None:
    y, delta = pair(9, *shape)
    law = LAWS["G1"].evaluate(y.numpy(), delta.numpy())
    g_mean, g_ctr, g_inner = (float(value) for value in observables.writer_modes(y, delta))
    assert g_mean**2 == pytest.approx(law["g_mean_squared"][1], rel=1e-10)
    assert g_mean**2 + 2 * g_inner + g_ctr**2 == pytest.approx(law["norm"][0], rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_amplification_satisfies_the_pair_laws(shape: tuple[int, ...]) -> None:
    y, delta = pair(13, *shape)
    found, tokens = observables.writer_amplification(y, delta), y.shape[1]
    for b in range(len(y)):
        sample = (y[b].numpy(), delta[b].numpy())
        assert float(found[b]) - 1 == pytest.approx(LAWS["A2"].evaluate(*sample)["excess"][1], abs=1e-10)
        assert float(found[b]) == pytest.approx(LAWS["A3"].evaluate(*sample)["positive"][1], rel=1e-10)
        assert 0 <= found[b] <= tokens * (1 + 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_magnitudes_make_amplification_and_kappa_one_variable(shape: tuple[int, ...]) -> None:
    y, delta = (torch.nn.functional.normalize(x, dim=-1) for x in pair(17, *shape))
    excess = observables.writer_amplification(y, delta) - 1
    torch.testing.assert_close(excess, (shape[1] - 1) * observables.kappa(y, delta))
    bound = (shape[1] - 1) * observables.kappa(y, delta, absolute=True)
    assert (excess.abs() <= bound + 1e-12).all()
    law = LAWS["A5"].evaluate(y[0].numpy(), delta[0].numpy())["absolute"]
    assert bound[0].item() == pytest.approx(law[1], rel=1e-10, abs=1e-12)


def test_unequal_magnitudes_separate_them() -> None:
    """Negative control of A4: one long token makes A - 1 small while kappa stays."""
    y, delta = (torch.nn.functional.normalize(x, dim=-1) for x in pair(17, 1, 7, 5, 4))
    longer = torch.cat([100 * y[:, :1], y[:, 1:]], dim=1)
    torch.testing.assert_close(observables.kappa(longer, delta), observables.kappa(y, delta))
    excess = observables.writer_amplification(longer, delta) - 1
    assert not torch.allclose(excess, 6 * observables.kappa(longer, delta), atol=1e-3)


def exact_modes(y: Tensor, delta: Tensor) -> tuple[float, float]:
    """G_ctr and <DW_mu, DW_c> in rational arithmetic."""
    tokens, square, inner = y.shape[1], Fraction(0), Fraction(0)
    samples = [
        [[[Fraction(value) for value in row] for row in x[b].tolist()] for x in (y, delta)]
        for b in range(len(y))
    ]
    for a in range(delta.shape[2]):
        for b in range(y.shape[2]):
            gradient = sum(d[t][a] * z[t][b] for z, d in samples for t in range(tokens))
            coherent = sum(sum(r[a] for r in d) * sum(r[b] for r in z) / tokens for z, d in samples)
            square += (gradient - coherent) ** 2
            inner += coherent * (gradient - coherent)
    return float(square) ** 0.5, float(inner)


@pytest.mark.parametrize("spread", [1e-2, 1e-5, 1e-8])
def test_nearly_coherent_gradients_keep_their_centered_part(spread: float) -> None:
    y, delta = 1 + spread * draw(21, 2, 6, 4), -2 + spread * draw(22, 2, 6, 3)
    g_ctr, g_inner = exact_modes(y, delta)
    _, measured, inner = observables.writer_modes(y, delta)
    assert measured.item() == pytest.approx(g_ctr, rel=1e-6)
    assert inner.item() == pytest.approx(g_inner, rel=1e-6)
    assert observables.writer_amplification(y, delta).max().item() == pytest.approx(6.0, rel=10 * spread**2)


def test_equal_tokens_are_wholly_coherent() -> None:
    y, delta = torch.full((2, 5, 3), 0.7), torch.full((2, 5, 4), -0.3)
    g_mean, g_ctr, g_inner = observables.writer_modes(y, delta)
    assert g_mean.item() == pytest.approx(2 * 5 * 0.7 * 0.3 * 12**0.5, rel=1e-6)
    assert g_ctr.item() == pytest.approx(0, abs=1e-12) and g_inner.item() == pytest.approx(0, abs=1e-12)
    for values, wanted in zip(coherence(y, delta), (5, 1, 1), strict=True):
        torch.testing.assert_close(values, torch.full((2,), float(wanted)))


def test_zero_tokens_are_left_out_of_cosines_and_have_no_weight() -> None:
    y, delta = pair(25, 2, 6, 4, 3)
    y[0, 2], delta[0, 4] = 0.0, 0.0
    kept = [0, 1, 3, 5]
    expected = brute_pairs(y[0, kept].numpy(), delta[0, kept].numpy())
    for values, wanted in zip(coherence(y, delta), expected, strict=True):
        assert values[0].item() == pytest.approx(wanted, abs=1e-10)
        assert values[1].isfinite()


def test_a_gradient_that_vanishes_has_no_amplification() -> None:
    y, delta = pair(29, 2, 4, 3, 2)
    delta[0] = 0.0
    for values in coherence(y, delta):
        assert values.isnan().tolist() == [True, False]
    assert [float(value) for value in observables.writer_modes(y[:1], delta[:1])] == [0, 0, 0]


@pytest.mark.parametrize("absolute", [False, True])
def test_one_token_has_no_pairs(absolute: bool) -> None:
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        observables.kappa(torch.ones(2, 1, 3), torch.ones(2, 1, 2), absolute)
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        observables.adjoint_tcs(torch.ones(2, 1, 3))
    torch.testing.assert_close(
        observables.writer_amplification(torch.ones(2, 1, 3), torch.ones(2, 1, 2)), torch.ones(2)
    )


def test_samples_that_cancel_have_no_mean_gradient() -> None:
    """DW_mu is summed over the batch as the optimiser sees it; it is not a mean of norms."""
    y, delta = pair(33, 1, 5, 4, 3)
    modes = observables.writer_modes(torch.cat([y, y]), torch.cat([delta, -delta]))
    assert [float(value) for value in modes] == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_gradients_keep_their_scale(scale: float) -> None:
    y, delta = (x.float() for x in pair(37, 2, 6, 4, 3))
    for values, wanted in zip(coherence(y, scale * delta), coherence(y, delta), strict=True):
        torch.testing.assert_close(values, wanted)
    g_mean, g_ctr, _ = observables.writer_modes(y, scale * delta)
    expected = observables.writer_modes(y, delta)
    assert [g_mean.item() / scale, g_ctr.item() / scale] == pytest.approx([v.item() for v in expected[:2]])


def test_nan_stays_nan() -> None:
    y, delta = pair(41, 1, 4, 3, 2)
    delta[0, 0, 0] = torch.nan
    assert all(value.isnan().all() for value in (*coherence(y, delta), *observables.writer_modes(y, delta)))


@given(seed=st.integers(0, 10_000), tokens=st.integers(2, 20))
@settings(max_examples=30, deadline=None)
def test_token_order_and_rotations_change_nothing(seed: int, tokens: int) -> None:
    y, delta = pair(seed, 2, tokens, 4, 3)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    turned = torch.linalg.qr(draw(seed + 9, 4, 4)).Q, torch.linalg.qr(draw(seed + 8, 3, 3)).Q
    other = (y[:, order] @ turned[0], delta[:, order] @ turned[1])
    for values, wanted in zip(
        (*coherence(*other), *observables.writer_modes(*other)),
        (*coherence(y, delta), *observables.writer_modes(y, delta)),
        strict=True,
    ):
        torch.testing.assert_close(values, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("apart", [1e-1, 1e-3, 1e-5])
def test_samples_that_nearly_cancel_keep_their_mean_part(apart: float) -> None:
    generator = torch.Generator().manual_seed(0)
    y, delta = (torch.randn(1, 6, size, generator=generator) + 1 for size in (5, 4))
    y, delta = y.repeat(2, 1, 1), torch.cat([delta, -(1 + apart) * delta])
    exact = observables.writer_modes(y.double(), delta.double())[0].item()
    assert observables.writer_modes(y, delta)[0].item() == pytest.approx(exact, rel=0.05)


def test_short_tokens_against_long_cotangents_keep_their_amplification() -> None:
    sizes = torch.tensor([1.0, 1.0, 1e-25, 1e-25])[None, :, None]
    found = coherence(torch.ones(1, 4, 3) * sizes, torch.ones(1, 4, 2) * sizes.flip(1))
    assert found.amplification.item() == pytest.approx(4.0)


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("shared", [0.0, 10.0, 1e3, 1e6])
def test_modes_from_gradients_stay_accurate(shared: float, passes: int) -> None:
    """If the gradient is nearly coherent, the centered part is computed separately."""
    generator = torch.Generator().manual_seed(4)
    y, delta = (torch.randn(6, 50, size, generator=generator) for size in (24, 16))
    y, delta = y + shared**0.5, delta + shared**0.5
    summed = WriterSum()
    for pair in zip(y.chunk(passes), delta.chunk(passes), strict=True):
        summed.add_gradient(torch.einsum("btm,btn->mn", *pair[::-1]), [pair])
    expected = observables.writer_modes(y.double(), delta.double())
    for name in ("g_mean", "g_ctr"):
        assert getattr(summed.modes(), name).item() == pytest.approx(getattr(expected, name).item(), rel=3e-5)
    gradient = torch.einsum("btm,btn->mn", delta.double(), y.double())
    torch.testing.assert_close(summed.total().double(), gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max())


@pytest.mark.parametrize("first", ["gradient", "products", "tiny products"])
def test_gradients_and_products_add_up(first: str) -> None:
    generator = torch.Generator().manual_seed(5)
    y, delta = (torch.randn(2, 3, 20, size, generator=generator) for size in (7, 5))
    scale = 1e-25 if first == "tiny products" else 1.0
    pairs = [(y[0] * scale, delta[0] * scale), (y[1], delta[1])]
    summed = WriterSum()
    for number, pair in enumerate(pairs):
        if (first == "gradient") == (number == 0):
            summed.add_gradient(torch.einsum("btm,btn->mn", *pair[::-1]), [pair])
        else:
            summed.add(*pair)
    expected = observables.writer_modes(*(torch.cat(sides).double() for sides in zip(*pairs, strict=True)))
    for found, wanted in zip(summed.modes(), expected, strict=True):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("entries", [10, 700, 10**6])
@pytest.mark.parametrize("scale", [1.0, 1e-13, 1e13])
def test_pairs_formed_a_band_at_a_time_are_all_counted(
    monkeypatch: pytest.MonkeyPatch, entries: int, scale: float
) -> None:
    for limit in (writer_gradients.MATRIX_ENTRIES, writer_gradients.BATCH_ENTRIES):
        monkeypatch.setitem(limit, "cpu", entries)
    monkeypatch.setattr(writer_gradients, "LEAST_BAND", 1)
    generator = torch.Generator().manual_seed(6)
    y, delta = (torch.randn(3, 23, size, generator=generator) + 0.3 for size in (8, 5))
    found = coherence(scale * y, delta)
    y, delta = y.double(), delta.double()
    gradient = torch.einsum("btm,btn->bmn", delta, y).square().sum((1, 2))
    own = (y.square().sum(-1) * delta.square().sum(-1)).sum(-1)
    torch.testing.assert_close(found.amplification.double(), gradient / own, rtol=1e-5, atol=1e-5)
    for name, absolute in (("kappa", False), ("kappa_abs", True)):
        units = [part / part.norm(dim=-1, keepdim=True) for part in (y, delta)]
        pairs = (units[0] @ units[0].mT) * (units[1] @ units[1].mT)
        pairs = (pairs.abs() if absolute else pairs) * (1 - torch.eye(23))
        torch.testing.assert_close(
            getattr(found, name).double(), pairs.sum((1, 2)) / (23 * 22), rtol=1e-5, atol=1e-6
        )
