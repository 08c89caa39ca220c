"""Token mixers: their matrices, their fast paths against the explicit ones, and their definitions."""

import pytest
import torch
from torch.nn.functional import rms_norm

from meanmode.sim.observe import observables
from meanmode.sim.observe.attention_statistics import attention_statistics
from meanmode.sim.observe.probe import Probe
from meanmode.sim.simulate import simulate, simulate_ensemble, stream
from meanmode.sim.trunk.attention import GatedAttention, LinearAttention, UniformAttention
from meanmode.sim.trunk.mixers import make_mixer
from meanmode.sim.trunk.stack import Block, Stack
from meanmode.theory.setting import MIXERS, Setting

X = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
SEGMENTS = (9, 2)


ROW_SUMS = {"a_minus_i": 0.0, "i_minus_a": 0.0}
"""Row sums other than 1; the state space, whose row sums vary, has a test of its own (`test_mixer_laws`)."""


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("name", MIXERS)
def test_the_fast_path_is_the_matrix_times_the_values(name: str, rope: bool) -> None:
    mixer = make_mixer(name, 16, 2, share=0.3, rope=rope).double()
    matrix = mixer.matrix(X, SEGMENTS)
    assert matrix.shape == (2, 2, 11, 11)
    values = mixer.v_proj(X).unflatten(-1, (2, 8)).transpose(1, 2)
    torch.testing.assert_close(mixer.mix(values, *mixer.operands(X, SEGMENTS)), matrix @ values)
    written = (matrix @ values).transpose(1, 2).flatten(2)
    if name == "gated":
        written = torch.sigmoid(X @ mixer.gate_proj.weight.T) * written
    torch.testing.assert_close(mixer(X, SEGMENTS), mixer.proj(written))


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "state_space"])
def test_rows_have_their_sums(name: str) -> None:
    matrix = make_mixer(name, 16, 2, share=0.3).double().matrix(X, SEGMENTS)
    expected = torch.full((2, 2, 11), ROW_SUMS.get(name, 1.0), dtype=torch.float64)
    torch.testing.assert_close(matrix.sum(-1), expected)
    assert (matrix > 0).all() or name in ROW_SUMS


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_lazy_attention_is_a_share_of_softmax_attention(share: float) -> None:
    lazy, softmax = make_mixer("lazy", 16, 2, share=share).double(), make_mixer("softmax", 16, 2).double()
    softmax.load_state_dict(lazy.state_dict())
    identity = lazy.proj(lazy.v_proj(X))
    expected = (1 - share) * identity + share * softmax(X, SEGMENTS)
    torch.testing.assert_close(lazy(X, SEGMENTS), expected)


def test_the_difference_mixers_are_equal_up_to_the_sign_of_the_values() -> None:
    """With W_V drawn symmetrically, their stacks are equal in distribution at initialisation."""
    low, high = make_mixer("a_minus_i", 16, 2), make_mixer("i_minus_a", 16, 2)
    high.load_state_dict(low.state_dict())
    with torch.no_grad():
        high.v_proj.weight.neg_()
    assert torch.equal(low(X.float(), SEGMENTS), high(X.float(), SEGMENTS))


def test_a_gate_depends_on_token_and_feature() -> None:
    """Constant gates give scaled softmax attention; identical tokens have identical gates (N4)."""
    gated, softmax = GatedAttention(16, 2).double(), make_mixer("softmax", 16, 2).double()
    softmax.load_state_dict({k: v for k, v in gated.state_dict().items() if k != "gate_proj.weight"})
    torch.nn.init.zeros_(gated.gate_proj.weight)
    torch.testing.assert_close(gated(X, SEGMENTS), 0.5 * softmax(X, SEGMENTS))
    torch.nn.init.normal_(gated.gate_proj.weight, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(gated(X, SEGMENTS), 0.5 * softmax(X, SEGMENTS), atol=0.01)
    same = gated(X[:, :1].expand(-1, 11, -1), SEGMENTS)
    torch.testing.assert_close(same, same[:, :1].expand_as(same))


@pytest.mark.parametrize("name", MIXERS)
def test_statistics_are_those_of_the_matrix(name: str) -> None:
    """For gated attention they describe A, before the gate."""
    mixer = make_mixer(name, 16, 2, share=0.3).double()
    found = attention_statistics(mixer, mixer.operands(X, SEGMENTS), X)
    matrix = mixer.matrix(X, SEGMENTS)
    torch.testing.assert_close(found.mu_eff, observables.mu_eff(matrix))
    torch.testing.assert_close(found.retention, observables.retention(matrix, X))
    torch.testing.assert_close(found.leakage, observables.leakage(matrix, X))
    torch.testing.assert_close(found.row_div, observables.row_div(matrix))


@pytest.mark.parametrize("name", MIXERS)
def test_only_the_state_space_sees_the_order_of_the_tokens(name: str) -> None:
    """Shuffled and repeated tokens: X1 assumes a mixer that does not depend on their order."""
    mixer = make_mixer(name, 16, 2, share=0.3).double()
    expected = mixer(X, SEGMENTS)
    changed = {
        "shuffled": (mixer(X.roll(1, 1), SEGMENTS), expected.roll(1, 1)),
        "repeated": (mixer(X.repeat(1, 3, 1), (27, 6)), expected.repeat(1, 3, 1)),
    }
    same = {key for key, (found, wanted) in changed.items() if torch.allclose(found, wanted, atol=1e-9)}
    assert same == (set() if name == "state_space" else set(changed))


@pytest.mark.parametrize("name", MIXERS)
def test_an_ensemble_computes_what_its_members_do(name: str) -> None:
    setting = Setting(
        depth=2, tokens=9, text_tokens=2, batch=2, width=16, heads=2, weight_std=0.3, mixer=name
    )
    together = simulate_ensemble([(setting, 0), (setting, 1)], backward=True)
    for run in range(2):
        for key, values in simulate(setting, run, backward=True).items():
            torch.testing.assert_close(
                torch.from_numpy(together[key][run]),
                torch.from_numpy(values),
                rtol=1e-3,
                atol=1e-4,
                equal_nan=True,
            )


@pytest.mark.parametrize("name", MIXERS)
def test_a_probe_measures_and_changes_nothing(name: str) -> None:
    setting = Setting(depth=2, tokens=9, width=16, heads=2, weight_std=0.3, mixer=name)
    stack = Stack(setting)
    x = X[:, :9].float()
    alone = stack(x)
    with Probe(stack) as probe:
        watched = stack(x)
        watched.sum().backward()
    assert torch.equal(alone, watched)
    values = probe.values()
    assert all(torch.from_numpy(values[key][1:]).isfinite().all() for key in ("leakage", "g_ctr", "kappa"))


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


def test_linear_attention_stays_positive_for_extreme_features() -> None:
    """QK-Norm bounds entries by sqrt(head width), so no row of products can vanish in float32."""
    mixer = LinearAttention(128, 1)
    x = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(5)) * 1e4
    assert (mixer.matrix(x, (6, 0)) > 0).all() and mixer(x, (6, 0)).isfinite().all()


@pytest.mark.parametrize("name", MIXERS)
def test_weights_of_a_block_are_drawn_for_every_mixer(name: str) -> None:
    setting = Setting(width=64, heads=2, tokens=9, depth=2, weight_std=0.2, mixer=name, rope=True)
    block = Block(setting)
    block.reset_parameters(stream(setting, 0, 1))
    for key, weight in block.named_parameters():
        assert weight.std().item() == pytest.approx(0.2, rel=4 / (2 * weight.numel()) ** 0.5), key
    recorded = simulate(setting, 0)
    assert all(torch.from_numpy(values[1:]).isfinite().all() for values in recorded.values())


def test_unknown_mixer_is_named() -> None:
    with pytest.raises(
        ValueError, match="unknown mixer 'mamba': choose one of softmax, uniform, linear, lazy"
    ):
        make_mixer("mamba", 16, 2)
