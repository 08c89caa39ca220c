"""Which settings the theory covers, which it refuses, and its predictions for blends and split merges."""

import dataclasses

import numpy as np
import pytest

from meanmode.theory.meanfield.coverage import follows_gram, has_theory, why_not_covered, why_not_one_cosine
from meanmode.theory.meanfield.first_step import predict_functional_step
from meanmode.theory.meanfield.forward import MeanField
from meanmode.theory.meanfield.phase_diagram import BlockMap
from meanmode.theory.meanfield.predicted_front import deterministic_front, deterministic_fronts, predict_front
from meanmode.theory.meanfield.profile import predict_profile
from meanmode.theory.meanfield.row_moments import row_moments
from meanmode.theory.setting import MERGES, MIXERS, Setting

SMALL = Setting(tokens=16, depth=12, width=128, heads=2, weight_std=0.07)
REFUSED = [
    {"merge": "highway"},
    {"merge": "pre_norm"},
    {"input": "photo", "batch": 2},
    {"input": "photo", "tokens": 33**2},
    {"mixer": "gated", "batch": 2},
    {"merge": "hard_centering", "text_tokens": 1},
]
GRAM_ONLY = [
    {"mixer": "gated"},
    {"mixer": "state_space"},
    {"input": "clusters", "mixer": "lazy", "mixer_share": 0.0},
    {"merge": "mv_split", "text_tokens": 4},
    {"merge": "mv_split_attn", "text_tokens": 4},
    {"merge": "hard_centering", "text_tokens": 4},
    {"input": "photo"},
    {"input": "clusters"},
    {"input": "video", "frames": 4},
]
COVERED = [
    *({"mixer": mixer} for mixer in MIXERS if mixer not in ("gated", "state_space")),
    *({"merge": merge} for merge in MERGES if merge not in ("highway", "pre_norm")),
]


@pytest.mark.parametrize("fields", REFUSED, ids=str)
@pytest.mark.parametrize("ask", [predict_front, predict_profile])
def test_the_theory_refuses_what_it_does_not_cover(ask: object, fields: dict[str, object]) -> None:
    setting = dataclasses.replace(SMALL, **fields)
    assert not has_theory(setting)
    with pytest.raises(ValueError, match=r"no theory for|one sample|up to 1024|nothing of a seg") as refused:
        ask(setting)
    assert str(refused.value) == why_not_covered(setting)


@pytest.mark.parametrize("fields", GRAM_ONLY, ids=str)
def test_tokens_that_differ_are_followed_pair_by_pair(fields: dict[str, object]) -> None:
    setting = dataclasses.replace(SMALL, depth=2, **fields)
    assert follows_gram(setting) and has_theory(setting)
    assert predict_front(setting, 4).samples.shape == (4,)
    profile = predict_profile(setting, 4)
    assert {len(profile[name]) for name in ("tcs", "rho", "adjoint_tcs")} == {3}
    assert np.isfinite(profile["amplification"]).all() and profile["amplification"].shape == (2, 2)
    for one_cosine in (BlockMap, MeanField):
        with pytest.raises(ValueError, match="one cosine") as refused:
            one_cosine(setting)
        assert str(refused.value) == why_not_one_cosine(setting)


@pytest.mark.parametrize("fields", COVERED, ids=str)
def test_the_theory_covers_the_rest(fields: dict[str, object]) -> None:
    setting = dataclasses.replace(SMALL, **fields)
    assert has_theory(setting) and why_not_covered(setting) is None
    profile = predict_profile(setting, 4)
    infinite = {"mode_ratio"} if setting.mixer == "uniform" else set()  # its branch has no centered part
    assert {name for name, values in profile.items() if not np.isfinite(values).all()} == infinite


@pytest.mark.parametrize("mixer", ["lazy", "a_minus_i", "gated"])
def test_the_functional_step_is_derived_for_attention_alone(mixer: str) -> None:
    with pytest.raises(ValueError, match="derived for softmax, uniform, linear attention"):
        predict_functional_step(dataclasses.replace(SMALL, mixer=mixer))


@pytest.mark.parametrize("mixer", ["gated", "state_space", "mamba"])
def test_rows_of_another_mixer_are_refused(mixer: str) -> None:
    with pytest.raises(ValueError, match="no theory for the mixer"):
        row_moments(mixer, 16, 8)


def test_a_full_share_of_attention_is_softmax_attention() -> None:
    lazy = dataclasses.replace(SMALL, mixer="lazy", mixer_share=1.0)
    assert deterministic_front(lazy) == deterministic_front(SMALL)


def test_settings_of_all_mixers_can_be_followed_at_once() -> None:
    cases = [dataclasses.replace(SMALL, **fields) for fields in COVERED]
    assert deterministic_fronts(cases, 60) == [deterministic_fronts([case], 60)[0] for case in cases]


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(
    ("mixer", "share"), [("lazy", 0.0), ("lazy", 0.3), ("a_minus_i", 0.5), ("i_minus_a", 0.5)]
)
def test_rows_of_a_blend_are_those_of_sampled_attention(mixer: str, share: float, cosine: float) -> None:
    """S_d and S_o of e I + l A against sampled rows: softmax of Gaussian logits with their correlations."""
    field = MeanField(dataclasses.replace(SMALL, heads=1, width=4096, mixer=mixer, mixer_share=share))
    identity, weight = float(field.identity[0, 0]), float(field.share[0, 0])
    random, count, tokens = np.random.default_rng(2), 20_000, 16
    row, both = random.standard_normal((count, 2, tokens)), random.standard_normal((count, 1, tokens))
    logits = np.sqrt(1 - cosine) * (np.sqrt(cosine) * both + np.sqrt(1 - cosine) * row)
    attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mixed = weight * attention + identity * np.eye(tokens)[:2]
    rows = field.rows(np.full((1, 1), cosine))
    samples = {"square": (mixed**2).sum(-1).mean(-1), "overlap": (mixed[:, 0] * mixed[:, 1]).sum(-1)}
    for name, sample in samples.items():
        error = sample.std() / np.sqrt(count)
        assert abs(getattr(rows, name)[0, 0] - sample.mean()) < 4 * error + 2e-4, name


def test_tokens_that_are_not_mixed_never_agree_and_differences_forget() -> None:
    """The odds bound of the block map is 1 without mixing; for A - I it is below 1, so the odds fall."""
    still = BlockMap(dataclasses.replace(SMALL, mixer="lazy", mixer_share=0.0))
    difference = BlockMap(dataclasses.replace(SMALL, mixer="a_minus_i"))
    assert still.odds_bound() == pytest.approx(1) and difference.odds_bound() < 0.8
    assert still.threshold() == difference.threshold() == np.inf
    cosines = np.linspace(0.01, 0.99, 50)
    after = difference(cosines)
    assert (after / (1 - after) <= difference.odds_bound() * cosines / (1 - cosines)).all()


def test_more_mixing_collapses_earlier() -> None:
    shares = (1.0, 0.9, 0.75, 0.6)
    fronts = deterministic_fronts([dataclasses.replace(SMALL, mixer="lazy", mixer_share=s) for s in shares])
    assert None not in fronts and fronts == sorted(fronts)


def test_a_removed_mean_stays_removed() -> None:
    block = BlockMap(dataclasses.replace(SMALL, merge="hard_centering"))
    assert block.odds_bound() == 0 and block.decay() == np.inf and block.threshold() == np.inf
    profile = predict_profile(dataclasses.replace(SMALL, merge="hard_centering", input_cosine=0.5), 20)
    assert profile["tcs"][0] == pytest.approx(0.5, abs=0.05)
    assert profile["tcs"][1:] == pytest.approx(-1 / 15, abs=2e-3)


def test_a_split_after_attention_only_combines_both_merges() -> None:
    """Its attention merge equals that of `mv_split`, its FFN merge that of `plain`, from the same state."""
    fields = {"alpha": 0.3, "beta": 0.7}
    mixed, split, plain = (
        MeanField(dataclasses.replace(SMALL, merge=merge, **fields))
        for merge in ("mv_split_attn", "mv_split", "plain")
    )
    state = mixed.start((1, 1), None)
    after = mixed.merge(state, mixed.attention(state)).state
    assert after == split.merge(state, split.attention(state)).state
    assert after != plain.merge(state, plain.attention(state)).state
    final = mixed.merge(after, mixed.ffn(after)).state
    assert final == plain.merge(after, plain.ffn(after)).state
    assert final != split.merge(after, split.ffn(after)).state
