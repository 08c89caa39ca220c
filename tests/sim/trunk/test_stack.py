"""The trunk against the published equations in numpy, and the simulation that streams it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import meanmode.sim.simulate
from meanmode.sim.intervene.grammar import Intervention
from meanmode.sim.intervene.interventions import Interventions
from meanmode.sim.observe import observables
from meanmode.sim.observe.observable_names import observable_dims
from meanmode.sim.observe.probe import Probe
from meanmode.sim.onset.measured_front import collapse_front
from meanmode.sim.simulate import simulate, simulate_ensemble, stream
from meanmode.sim.trunk.attention import SoftmaxAttention, rope_angles
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.stack import Block, Stack, synthetic_input
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.setting import MERGES, Setting

SMALL = Setting(
    depth=3, tokens=9, text_tokens=2, batch=2, width=16, heads=2, weight_std=0.3, input_cosine=0.2
)


def rms(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def reference_block(block: Block, x: np.ndarray, setting: Setting) -> np.ndarray:
    """One plain block in float64, token by token and head by head."""
    weights = {name: p.detach().double().numpy() for name, p in block.named_parameters()}
    size, tokens = setting.head_width, x.shape[0]

    def rotated(v: np.ndarray, token: int) -> np.ndarray:
        if not setting.rope or token >= setting.tokens:
            return v
        side, pairs = math.isqrt(setting.tokens), size // 2
        angles = [
            place * 10000 ** (-2 * k / pairs) for place in divmod(token, side) for k in range(pairs // 2)
        ]
        out = v.copy()
        for k, angle in enumerate(angles):
            first, second = v[k], v[k + pairs]
            out[k] = first * math.cos(angle) + second * math.sin(angle)
            out[k + pairs] = -first * math.sin(angle) + second * math.cos(angle)
        return out

    q, k, v = (x @ weights[f"operator.{name}_proj.weight"].T for name in "qkv")
    heads = []
    for head in range(setting.heads):
        cut = slice(head * size, (head + 1) * size)
        queries = [rms(rotated(q[t, cut], t), 1e-6) for t in range(tokens)]
        keys = [rms(rotated(k[t, cut], t), 1e-6) for t in range(tokens)]
        logits = np.array([[a @ b / math.sqrt(size) for b in keys] for a in queries])
        attention = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        heads.append(attention @ v[:, cut])
    x = rms(x + np.concatenate(heads, -1) @ weights["operator.proj.weight"].T, 1e-5)
    gate, value = np.split(x @ weights["ffn.w13.weight"].T, 2, axis=-1)
    hidden = gate / (1 + np.exp(-gate)) * value
    return rms(x + hidden @ weights["ffn.w2.weight"].T, 1e-5)


@pytest.mark.parametrize("rope", [False, True])
def test_block_follows_the_reference_equations(rope: bool) -> None:
    setting = dataclasses.replace(SMALL, rope=rope)
    block = Block(setting)
    block.reset_parameters(stream(setting, 1, 1))
    x = synthetic_input(setting, stream(setting, 1, 0))
    output = block(x, setting.segments).detach()
    for sample in range(setting.batch):
        expected = reference_block(block, x[sample].double().numpy(), setting)
        assert np.abs(output[sample].numpy() - expected).max() < 1e-5


def test_fused_and_explicit_attention_agree() -> None:
    mixer = SoftmaxAttention(16, 2, rope=True)
    x = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(3))
    matrix = mixer.matrix(x, (9, 2))
    values = mixer.v_proj(x).unflatten(-1, (2, 8)).transpose(1, 2)
    output = mixer.proj((matrix @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, mixer(x, (9, 2)))
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 2, 11))


def test_text_tokens_are_not_rotated() -> None:
    angles = rope_angles((9, 2), 8)
    assert angles.shape == (11, 4) and not angles[9:].any() and not angles[0].any()
    with pytest.raises(ValueError, match="square number of image tokens, got 8"):
        rope_angles((8, 0), 8)


@pytest.mark.parametrize("merge", MERGES)
def test_streamed_simulation_measures_the_resident_stack(merge: str) -> None:
    setting = dataclasses.replace(SMALL, merge=merge, residual_gain=0.5)
    stack = Stack(setting)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, 5, index))
    with torch.no_grad():
        final = stack(synthetic_input(setting, stream(setting, 5, 0)))
    recorded = simulate(setting, 5)
    assert recorded["tcs"][-1] == pytest.approx(float(observables.tcs(final).mean()), abs=1e-5)
    assert recorded["tcs_image"][-1] == pytest.approx(float(observables.tcs(final[:, :9]).mean()), abs=1e-5)
    assert set(recorded) == set(observable_dims(setting))


def test_weights_have_the_standard_deviations_of_the_setting() -> None:
    setting = Setting(width=128, heads=2, weight_std=0.3, writer_std=0.05)
    block = Block(setting)
    block.reset_parameters(stream(setting, 0, 1))
    for name, weight in block.named_parameters():
        expected = 0.05 if name in ("operator.proj.weight", "ffn.w2.weight") else 0.3
        assert weight.std().item() == pytest.approx(expected, rel=0.03)


def test_synthetic_input_has_its_cosine_and_fresh_samples() -> None:
    setting = Setting(tokens=64, batch=64, input_cosine=0.3)
    x = synthetic_input(setting, stream(setting, 0, 0))
    cosines = observables.tcs(x)
    assert abs(cosines.mean().item() - 0.3) < 4 * cosines.std().item() / 8
    assert x.square().mean(-1).sub(1).abs().max() < 1e-4
    between = torch.nn.functional.cosine_similarity(x[0].mean(0), x[1].mean(0), dim=0)
    assert between.abs() < 0.3


def test_a_deep_run_begins_with_the_shallow_one() -> None:
    shallow, deep = (simulate(dataclasses.replace(SMALL, depth=depth), 2) for depth in (2, 5))
    for name, values in shallow.items():
        np.testing.assert_array_equal(deep[name][:3], values)


def test_seeds_and_settings_have_their_own_streams() -> None:
    other = dataclasses.replace(SMALL, tokens=16)
    draws = [stream(setting, seed, 1).initial_seed() for setting in (SMALL, other) for seed in (0, 1)]
    assert len(set(draws)) == 4
    assert stream(dataclasses.replace(SMALL, depth=50), 0, 1).initial_seed() == draws[0]


def test_a_trunk_that_overflows_is_recorded_as_nan() -> None:
    setting = Setting(depth=4, tokens=4, width=8, heads=1, weight_std=1e12)
    recorded = simulate(setting, 0)
    assert np.isfinite(recorded["tcs"][0]) and np.isnan(recorded["tcs"][-1])


def test_front_of_a_profile() -> None:
    assert collapse_front([0.1, 0.8, 1.0]) == pytest.approx(1.5)
    assert collapse_front([0.1, 0.2, np.nan]) is None
    assert collapse_front([0.95, 0.99]) == 0.0
    with pytest.raises(ValueError, match="tcs must be one profile over blocks"):
        collapse_front([])


FRONT_SETTING = Setting(depth=60, tokens=8, width=64, heads=2, weight_std=0.125, input_cosine=0.1)


def profiles_of(setting: Setting, seeds: int) -> np.ndarray:
    """TCS of every seed after every block."""
    return simulate_ensemble([(setting, seed) for seed in range(seeds)])["tcs"]


@pytest.mark.parametrize("mixer", ["uniform", "linear"])
def test_predicted_front_of_the_other_mixers_agrees_with_simulation(mixer: str) -> None:
    setting = dataclasses.replace(FRONT_SETTING, mixer=mixer)
    fronts = [collapse_front(profile) for profile in profiles_of(setting, 32)]
    assert None not in fronts
    error = np.std(fronts, ddof=1) / math.sqrt(len(fronts))
    assert abs(np.mean(fronts) - predict_front(setting).front) < 4 * error


def test_clustered_tokens_break_the_assumption_of_one_pair_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: two tight clusters do not agree with the prediction from their mean pair cosine."""

    def clustered(setting: Setting, generator: torch.Generator) -> torch.Tensor:
        centers = torch.randn(1, 2, setting.width, generator=generator)
        own = torch.randn(1, setting.tokens, setting.width, generator=generator)
        mixed = 0.98**0.5 * centers[:, torch.arange(setting.tokens) % 2] + 0.02**0.5 * own
        return torch.nn.functional.rms_norm(mixed, (setting.width,))

    monkeypatch.setattr(meanmode.sim.simulate, "synthetic_input", clustered)
    profiles = profiles_of(FRONT_SETTING, 32)
    fronts = np.array([collapse_front(profile) or FRONT_SETTING.depth for profile in profiles])
    cosine = float(np.mean([profile[0] for profile in profiles]))
    predicted = predict_front(dataclasses.replace(FRONT_SETTING, input_cosine=cosine)).front
    assert abs(fronts.mean() - predicted) > 4 * fronts.std(ddof=1) / math.sqrt(len(fronts))


@pytest.fixture(scope="module")
def measured_fronts() -> np.ndarray:
    fronts = [collapse_front(profile) for profile in profiles_of(FRONT_SETTING, 40)]
    assert None not in fronts
    return np.array(fronts)


def test_predicted_front_agrees_with_simulation(measured_fronts: np.ndarray) -> None:
    predicted = predict_front(FRONT_SETTING)
    error = measured_fronts.std(ddof=1) / math.sqrt(len(measured_fronts))
    assert abs(measured_fronts.mean() - predicted.front) < 4 * error
    assert 0.5 < predicted.front_std / measured_fronts.std(ddof=1) < 2


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_std": 0.1},
        {"input_cosine": 0.5},
        {"tokens": 64},
        {"merge": "layerscale", "residual_gain": 0.7},
    ],
    ids=str,
)
def test_the_prediction_of_another_stack_is_rejected(
    fields: dict[str, object], measured_fronts: np.ndarray
) -> None:
    predicted = predict_front(dataclasses.replace(FRONT_SETTING, **fields))
    error = measured_fronts.std(ddof=1) / math.sqrt(len(measured_fronts))
    assert abs(measured_fronts.mean() - predicted.front) > 4 * error


def test_deleting_the_mean_of_every_branch_leaves_no_front() -> None:
    """An intervention at initialisation: the collapse comes from what the branches write into the mean."""
    seeds = [(FRONT_SETTING, seed) for seed in range(4)]
    for text, collapses in (("delete:mean:branch", False), ("scale=1.0:mean:branch", True)):
        found = simulate_ensemble(seeds, interventions=[Intervention.parse(text)])
        assert [collapse_front(profile) is not None for profile in found["tcs"]] == [collapses] * 4, text


def test_an_intervention_changes_nothing_before_its_first_block() -> None:
    texts = ("delete:mean:trunk@blocks=2-3", "replace:centered:branch@blocks=3")
    changes = [Intervention.parse(text) for text in texts]
    plain, changed = simulate(SMALL, 0), simulate(SMALL, 0, interventions=changes)
    for name in ("tcs", "rho", "mu_eff"):
        # several blocks are measured in one call, and sums are rounded by how many these are
        np.testing.assert_allclose(changed[name][:2], plain[name][:2], rtol=2e-6)
    assert (changed["tcs"][2:] != plain["tcs"][2:]).all() and changed["rho"][2] < 1e-5


def test_a_simulated_intervention_equals_that_of_the_resident_stack() -> None:
    changes = [Intervention.parse("replace:mean:branch@blocks=1,3@seed=4")]
    stack = Stack(SMALL)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(SMALL, 0, index))
    with torch.no_grad(), Interventions(stack, changes), Probe(stack) as probe:
        stack(synthetic_input(SMALL, stream(SMALL, 0, 0)))
    found = simulate(SMALL, 0, interventions=changes)
    np.testing.assert_allclose(probe.values()["tcs"], found["tcs"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("freeze:writers", "a simulation trains nothing"),
        ("delete:mean:writer-gradient", "only branch and trunk can change"),
        ("delete:mean:trunk@blocks=2-9", "the stack has blocks 1 to 3"),
    ],
)
def test_interventions_a_simulation_cannot_make_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(SMALL, 0, interventions=[Intervention.parse(text)])


def mean_cosines(x: torch.Tensor) -> np.ndarray:
    """TCS of every member of an ensemble, mean over its batch."""
    return observables.tcs(x).mean(-1).numpy()


def test_repeated_weights_break_the_assumption_of_fresh_ones() -> None:
    """Negative control: one block repeated through depth is not a stack of fresh Gaussian weights."""
    blocks = [Block(FRONT_SETTING) for _ in range(24)]
    for seed, member in enumerate(blocks):
        member.reset_parameters(stream(FRONT_SETTING, seed, 1))
    block = stack_members(blocks)
    x = torch.stack([synthetic_input(FRONT_SETTING, stream(FRONT_SETTING, seed, 0)) for seed in range(24)])
    profile = [mean_cosines(x)]
    with torch.no_grad():
        for _ in range(FRONT_SETTING.depth):
            x = block(x, FRONT_SETTING.segments)
            profile.append(mean_cosines(x))
    fronts = [collapse_front(of) or FRONT_SETTING.depth for of in np.transpose(profile)]
    predicted = predict_front(FRONT_SETTING)
    error = np.std(fronts, ddof=1) / math.sqrt(len(fronts))
    assert abs(np.mean(fronts) - predicted.front) > 4 * error
