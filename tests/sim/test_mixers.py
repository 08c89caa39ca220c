"""Token mixers: row-stochastic matrices, the fast path against the explicit one, and their definitions."""

import pytest
import torch
from torch.nn.functional import rms_norm

from sim import observables
from sim.attention import LinearAttention, UniformAttention, make_mixer
from sim.simulate import simulate, stream
from sim.stack import Block
from theory import Setting
from theory.setting import MIXERS

X = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
SEGMENTS = (9, 2)


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("name", MIXERS)
def test_rows_sum_to_one_and_the_fast_path_agrees(name: str, rope: bool) -> None:
    mixer = make_mixer(name, 16, 2, rope=rope).double()
    matrix = mixer.matrix(X, SEGMENTS)
    assert matrix.shape == (2, 2, 11, 11) and (matrix > 0).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 2, 11, dtype=torch.float64))
    values = mixer.v_proj(X).unflatten(-1, (2, 8)).transpose(1, 2)
    output = mixer.proj((matrix @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, mixer(X, SEGMENTS))


def test_uniform_attention_writes_the_mean() -> None:
    mixer = UniformAttention(16, 2).double()
    expected = mixer.proj(mixer.v_proj(X)).mean(1, keepdim=True).expand_as(X)
    torch.testing.assert_close(mixer(X, SEGMENTS), expected)
    assert {name for name, _ in mixer.named_parameters()} == {"v_proj.weight", "proj.weight"}
    matrix = mixer.matrix(X, SEGMENTS)
    assert observables.mu_eff(matrix).max().item() == pytest.approx(0, abs=1e-12)


def test_linear_attention_follows_its_definition() -> None:
    mixer = LinearAttention(16, 2).double()
    matrix = mixer.matrix(X, SEGMENTS)
    for head in range(2):
        cut = slice(8 * head, 8 * head + 8)
        q, k = (
            rms_norm((X[0] @ layer.weight.T)[:, cut], (8,), eps=1e-6)
            for layer in (mixer.q_proj, mixer.k_proj)
        )
        phi_q, phi_k = (torch.where(v > 0, v + 1, v.exp()) for v in (q, k))
        weights = torch.stack([torch.stack([a @ b for b in phi_k]) for a in phi_q])
        torch.testing.assert_close(matrix[0, head], weights / weights.sum(1, keepdim=True))


def test_linear_attention_stays_positive_where_features_are_extreme() -> None:
    """QK-Norm bounds an entry by sqrt(head width), so that no row of products can vanish in float32."""
    mixer = LinearAttention(128, 1)
    x = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(5)) * 1e4
    assert (mixer.matrix(x, (6, 0)) > 0).all() and mixer(x, (6, 0)).isfinite().all()


@pytest.mark.parametrize("name", MIXERS)
def test_weights_of_a_block_are_drawn_for_every_mixer(name: str) -> None:
    setting = Setting(width=64, heads=2, tokens=9, depth=2, weight_std=0.2, mixer=name, rope=True)
    block = Block(setting)
    block.reset_parameters(stream(setting, 0, 1))
    for key, weight in block.named_parameters():
        assert weight.std().item() == pytest.approx(0.2, rel=0.05), key
    recorded = simulate(setting, 0)
    assert all(torch.from_numpy(values[1:]).isfinite().all() for values in recorded.values())


def test_unknown_mixer_is_named() -> None:
    with pytest.raises(ValueError, match="unknown mixer 'mamba': choose one of softmax, uniform, linear"):
        make_mixer("mamba", 16, 2)
