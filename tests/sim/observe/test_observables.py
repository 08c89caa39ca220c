"""Forward observables against brute-force definitions, on nearly equal tokens and on degenerate input."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meanmode.sim.observe import attention_statistics, observables, singular_values
from meanmode.sim.observe.observable_names import observable_dims
from meanmode.sim.observe.token_parts import cosine
from meanmode.sim.observe.token_sets import TokenSets
from meanmode.sim.trunk.attention import SoftmaxAttention
from meanmode.theory.setting import Setting

EPS = observables.EPS
SEGMENTS = (("image", 9), ("text", 3))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_attention(seed: int, batch: int, heads: int, tokens: int) -> Tensor:
    return torch.softmax(2 * draw(seed, batch, heads, tokens, tokens), -1)


def projectors(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    mean = np.full((tokens, tokens), 1 / tokens)
    return mean, np.eye(tokens) - mean


def brute_tcs(x: np.ndarray) -> float:
    cosines = [
        x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j]))
        for i in range(len(x))
        for j in range(len(x))
        if i != j
    ]
    return float(np.mean(cosines))


def brute(name: str, x: np.ndarray, u: np.ndarray, a: np.ndarray) -> float:
    """The definition of arXiv:2605.06169 App. A, term by term, for one sample (heads averaged)."""
    mean, centered = projectors(len(x))
    norm = np.linalg.norm
    per_head = {
        "mu_eff": lambda h: norm(centered @ h @ centered, 2),
        "row_div": lambda h: norm(h - mean @ h) / norm(h),
        "retention": lambda h: norm(centered @ h @ centered @ x) / (norm(centered @ x) + EPS),
        "leakage": lambda h: norm(mean @ h @ centered @ x) / (norm(centered @ x) + EPS),
    }
    if name in per_head:
        return float(np.mean([per_head[name](head) for head in a]))
    return {
        "tcs": brute_tcs(x),
        "rho": norm(mean @ x) / (norm(centered @ x) + EPS),
        "r_tr": norm(u) / (norm(x) + EPS),
        "var_gain": norm(centered @ u) / (norm(centered @ x) + EPS),
    }[name]


def measure(name: str, x: Tensor, u: Tensor, a: Tensor) -> Tensor:
    arguments = {
        "tcs": (x,),
        "rho": (x,),
        "r_tr": (x, u),
        "var_gain": (x, u),
        "mu_eff": (a,),
        "row_div": (a,),
        "retention": (a, x),
        "leakage": (a, x),
    }[name]
    return getattr(observables, name)(*arguments)


NAMES = ["tcs", "rho", "r_tr", "var_gain", "mu_eff", "row_div", "retention", "leakage"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("batch", "heads", "tokens", "width"), [(3, 2, 7, 5), (1, 1, 2, 3), (2, 4, 40, 16)])
def test_observable_equals_its_definition(name: str, batch: int, heads: int, tokens: int, width: int) -> None:
    x, u = draw(1, batch, tokens, width) + 0.3, draw(2, batch, tokens, width)
    a = draw_attention(3, batch, heads, tokens)
    expected = [brute(name, *(part[b].numpy() for part in (x, u, a))) for b in range(batch)]
    assert measure(name, x, u, a).numpy() == pytest.approx(np.array(expected), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
def test_nearly_equal_tokens_keep_deficit_and_rho_accurate(spread: float) -> None:
    x = 1 + spread * draw(4, 1, 9, 6)
    with mpmath.workdps(60):
        rows = [[mpmath.mpf(float(value)) for value in row] for row in x[0]]
        dot = lambda p, q: mpmath.fsum(s * t for s, t in zip(p, q, strict=True))  # noqa: E731
        unit = [[value / mpmath.sqrt(dot(row, row)) for value in row] for row in rows]
        pairs = [dot(p, q) for i, p in enumerate(unit) for j, q in enumerate(unit) if i != j]
        deficit = 1 - mpmath.fsum(pairs) / len(pairs)
        mean = [mpmath.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        part = mpmath.sqrt(mpmath.fsum((v - m) ** 2 for row in rows for v, m in zip(row, mean, strict=True)))
        ratio = mpmath.sqrt(len(rows) * dot(mean, mean)) / part
    assert observables.tcs_deficit(x).item() == pytest.approx(float(deficit), rel=1e-6)
    assert observables.rho(x).item() == pytest.approx(float(ratio), rel=1e-6)


def test_near_collapse_the_deficit_is_accurate_to_twelve_digits() -> None:
    x = 1 + 1e-3 * draw(5, 1, 9, 6)
    exact = x.to(torch.float64).numpy().astype(np.longdouble)
    unit = exact[0] / np.sqrt((exact[0] ** 2).sum(-1, keepdims=True))
    spread = unit - unit.mean(0)
    assert observables.tcs_deficit(x).item() == pytest.approx(float((spread**2).sum() / 8), rel=1e-12)


@given(seed=st.integers(0, 10_000), tokens=st.integers(2, 20), scale=st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
def test_tcs_ignores_token_order_length_and_rotation(seed: int, tokens: int, scale: float) -> None:
    x = draw(seed, 1, tokens, 4)
    rotation = torch.linalg.qr(draw(seed + 1, 4, 4)).Q
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    lengths = scale * (1 + draw(seed + 2, 1, tokens, 1).abs())
    assert observables.tcs((lengths * x)[:, order] @ rotation).item() == pytest.approx(
        observables.tcs(x).item(), abs=1e-9
    )


@given(seed=st.integers(0, 10_000), tokens=st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_tcs_and_rho_are_one_variable_for_equal_lengths(seed: int, tokens: int) -> None:
    x = torch.nn.functional.normalize(draw(seed, 1, tokens, 5) + 0.5, dim=-1)
    cosine, ratio = observables.tcs(x).item(), observables.rho(x).item()
    assert ratio**2 * (tokens - 1) * (1 - cosine) == pytest.approx(1 + (tokens - 1) * cosine, abs=1e-9)


@pytest.mark.parametrize("measure_pairs", [observables.tcs, observables.tcs_deficit])
def test_one_token_is_refused(measure_pairs: object) -> None:
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        measure_pairs(torch.ones(2, 1, 3))


def test_mu_eff_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        observables.mu_eff(torch.ones(1, 1, 1, 1))


def test_equal_tokens_are_fully_homogeneous() -> None:
    x = torch.full((1, 5, 3), 0.7, dtype=torch.float64)
    assert observables.tcs(x).item() == 1.0
    assert observables.tcs_deficit(x).item() == pytest.approx(0.0, abs=1e-30)
    assert observables.rho(x).item() > 1e12
    assert observables.retention(draw_attention(1, 1, 2, 5), x).item() == pytest.approx(0.0, abs=1e-3)


def test_zero_tokens_have_no_direction_and_are_counted() -> None:
    x = draw(6, 2, 6, 4)
    x[0, 2] = 0.0
    kept = torch.cat([x[:1, :2], x[:1, 3:]], dim=1)
    assert observables.zero_tokens(x).tolist() == [1, 0]
    assert observables.tcs(x)[0].item() == pytest.approx(observables.tcs(kept).item(), abs=1e-12)
    x[0, 1:] = 0.0
    assert observables.tcs(x).isnan().tolist() == [True, False]


def test_tiny_and_huge_tokens_do_not_overflow() -> None:
    x = draw(7, 1, 5, 4).float()
    expected = observables.tcs(x).item()
    assert observables.tcs(x * 1e-30).item() == pytest.approx(expected, abs=1e-5)
    assert observables.tcs(x * 1e30).item() == pytest.approx(expected, abs=1e-5)


def test_a_trunk_with_nan_gives_nan() -> None:
    x = draw(8, 1, 5, 4)
    x[0, 0, 0] = torch.nan
    assert observables.tcs(x).isnan().all() and observables.rho(x).isnan().all()


def test_uniform_attention_keeps_no_centered_part() -> None:
    uniform = torch.full((1, 1, 6, 6), 1 / 6, dtype=torch.float64)
    x = draw(9, 1, 6, 4)
    for name in ("mu_eff", "row_div", "retention", "leakage"):
        assert measure(name, x, x, uniform).item() == pytest.approx(0.0, abs=1e-12)


def test_identity_attention_keeps_the_whole_centered_part() -> None:
    x, eye = draw(10, 1, 6, 4), torch.eye(6, dtype=torch.float64).expand(1, 1, 6, 6)
    assert observables.mu_eff(eye).item() == pytest.approx(1.0, rel=1e-12)
    assert observables.retention(eye, x).item() == pytest.approx(1.0, rel=1e-12)
    assert observables.leakage(eye, x).item() == pytest.approx(0.0, abs=1e-12)


def test_mu_eff_converges_where_singular_values_are_close() -> None:
    """Leading values that differ by 1e-3, for which power iteration of a fixed length would not suffice."""
    basis = torch.linalg.qr(draw(11, 60, 60)).Q
    values = torch.linspace(1.0, 0.94, 60, dtype=torch.float64)
    matrix = (basis * values) @ torch.linalg.qr(draw(12, 60, 60)).Q
    _, centered = projectors(60)
    expected = np.linalg.norm(centered @ matrix.numpy() @ centered, 2)
    assert observables.mu_eff(matrix[None, None]).item() == pytest.approx(expected, rel=1e-10)


def test_mu_eff_in_single_precision_is_good_to_its_resolution() -> None:
    a = draw_attention(13, 2, 3, 64)
    assert observables.mu_eff(a.float()).numpy() == pytest.approx(observables.mu_eff(a).numpy(), rel=1e-5)


def structured_attention(kind: str, tokens: int) -> Tensor:
    """Attention matrices with few distinct or symmetric rows."""
    place = torch.arange(tokens)
    if kind == "two blocks":
        same = (place[:, None] * 2 // tokens) == (place[None] * 2 // tokens)
        weights = same.double()
    elif kind == "border":
        border = ((place == 0) | (place == tokens - 1)).double()
        weights = border[:, None] * border[None] + (1 - border[:, None]) * (1 - border[None]) + 1e-9
    elif kind == "flip symmetric":
        distance = (place - (tokens - 1) / 2).abs().double()
        weights = torch.exp(-((distance[:, None] - distance[None]) ** 2))
    else:
        clusters = draw(3, 3, 4)[place % 3]
        weights = torch.exp(clusters @ draw(4, 3, 4)[place % 3].T)
    return (weights / weights.sum(-1, keepdim=True))[None, None]


@pytest.mark.parametrize("kind", ["two blocks", "border", "flip symmetric", "clusters"])
@pytest.mark.parametrize("tokens", [2, 3, 4, 8, 12, 64, 65, 100, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_mu_eff_of_structured_attention(kind: str, tokens: int, dtype: torch.dtype) -> None:
    attention = structured_attention(kind, tokens)
    _, part = projectors(tokens)
    expected = np.linalg.norm(part @ attention[0, 0].numpy() @ part, 2)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    found = observables.mu_eff(attention.to(dtype)).item()
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("kind", ["two blocks", "border", "flip symmetric", "clusters"])
@pytest.mark.parametrize("tokens", [40, 65, 300])
def test_matrices_iterated_together_agree_with_one_by_one(kind: str, tokens: int) -> None:
    """The GPU path, run on a CPU."""
    matrix = torch.cat([structured_attention(kind, tokens)[0], draw_attention(3, 1, 2, tokens)[0]])
    operator = matrix - matrix.mean(-2, keepdim=True)
    operator = operator - operator.mean(-1, keepdim=True)
    floor = 1e-15 * torch.linalg.matrix_norm(operator).square()
    found = singular_values.iterated(operator.mT @ operator, 1e-8, floor).sqrt()
    torch.testing.assert_close(found, torch.linalg.svdvals(operator)[:, 0], rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 10_000), tokens=st.integers(2, 90))
@settings(max_examples=30, deadline=None)
def test_retention_never_exceeds_mu_eff(seed: int, tokens: int) -> None:
    """Law P2 on every matrix."""
    attention, x = draw_attention(seed, 1, 2, tokens), draw(seed + 1, 1, tokens, 3)
    per_head = [observables.mu_eff(attention[:, [head]]).item() for head in range(2)]
    kept = [observables.retention(attention[:, [head]], x).item() for head in range(2)]
    assert all(low <= high * (1 + 1e-9) for low, high in zip(kept, per_head, strict=True))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e12])
def test_mu_eff_scales_with_its_matrix(scale: float) -> None:
    a = draw_attention(5, 1, 2, 100).float()
    expected = scale * observables.mu_eff(a.double())
    torch.testing.assert_close(observables.mu_eff(scale * a).double(), expected, rtol=1e-4, atol=0)


def test_broken_attention_gives_nan() -> None:
    attention = draw_attention(1, 2, 1, 70)
    attention[0, 0, 3, 4] = torch.nan
    assert observables.mu_eff(attention).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", ["rho", "var_gain", "row_div", "retention", "leakage"])
def test_a_single_token_has_no_centered_part_to_compare(name: str) -> None:
    x = torch.ones(1, 1, 3)
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        measure(name, x, x, torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_measured_in_single(name: str, dtype: torch.dtype) -> None:
    x, u, a = draw(1, 2, 9, 5).to(dtype), draw(2, 2, 9, 5).to(dtype), draw_attention(3, 2, 2, 9).to(dtype)
    expected = measure(name, x.float(), u.float(), a.float())
    found = measure(name, x, u, a)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("at_a_time", [1, 3, 100])
def test_matrices_formed_a_few_at_a_time_have_the_statistics_of_all(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    tokens, segments = 40, (40, 0)
    monkeypatch.setitem(attention_statistics.MATRIX_ENTRIES, "cpu", at_a_time * tokens**2)
    mixer = SoftmaxAttention(16, 4).double()
    x = torch.randn(3, tokens, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        for layer in mixer.sources:
            layer.weight.copy_(torch.randn(16, 16, generator=torch.Generator().manual_seed(2)))
        found = attention_statistics.attention_statistics(mixer, mixer.operands(x, segments), x)
        matrix = mixer.matrix(x, segments)
        operator = matrix - matrix.mean(-2, keepdim=True)
        operator = operator - operator.mean(-1, keepdim=True)
        part = (x - x.mean(1, keepdim=True))[:, None]
        size = torch.linalg.matrix_norm(part)
        expected = {
            "mu_eff": torch.linalg.svdvals(operator)[..., 0],
            "row_div": torch.linalg.matrix_norm(matrix - matrix.mean(-2, keepdim=True))
            / torch.linalg.matrix_norm(matrix),
            "retention": torch.linalg.matrix_norm(operator @ part) / size,
            "leakage": tokens**0.5 * (matrix @ part).mean(-2).norm(dim=-1) / size,
        }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(found, name), values.mean(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared", [0.0, 1.0, 1e3, 1e6])
def test_parts_stay_accurate_where_tokens_nearly_agree(shared: float) -> None:
    x = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(7)) + shared
    sets = TokenSets("BTD", tuple(x.shape), segments=SEGMENTS)
    found, alone = sets.measured(x), sets.measured(x, plain=False)
    for suffix, part in (("", x), ("image", x[:, :9]), ("text", x[:, 9:])):
        exact = part.double() - part.double().mean(1, keepdim=True)
        torch.testing.assert_close(
            found.plain[suffix].centered_norm.double(), exact.norm(dim=(1, 2)), rtol=2e-6, atol=1e-9
        )
        deficit = observables.tcs_deficit(part.double())
        for values in (cosine(found.unit[suffix]), cosine(alone.unit[suffix])):
            assert (1 - values.double() - deficit).abs().max() < 2e-7


def test_observables_of_segments_join_to_those_of_all_tokens() -> None:
    x = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 0.5
    x[0, 4] = 0.0
    found = TokenSets("BTD", tuple(x.shape), segments=SEGMENTS).measured(x)
    for suffix, part in (("", x), ("image", x[:, :9]), ("text", x[:, 9:])):
        torch.testing.assert_close(cosine(found.unit[suffix]), observables.tcs(part), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(observables.parts_rho(found.plain[suffix]), observables.rho(part))
    others = {(("image", 12), ("text", 0)): {"", "image"}, (("image", 11), ("text", 1)): {"", "image"}}
    for segments, names in others.items():
        assert set(TokenSets("BTD", tuple(x.shape), segments=segments).measured(x).plain) == names
    assert set(observable_dims(Setting(text_tokens=3))) >= {"tcs", "tcs_image", "tcs_text"}
