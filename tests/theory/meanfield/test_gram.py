"""The Gram recursion: its limits and invariances, its noise at finite width, and the network itself."""

import dataclasses

import numpy as np
import pytest
import torch

from meanmode.sim.trunk import attention
from meanmode.sim.trunk.stack import Block
from meanmode.theory.meanfield.forward import MeanField
from meanmode.theory.meanfield.gram import GramField
from meanmode.theory.meanfield.gram_heads import Heads, gram_root, rope_angles
from meanmode.theory.meanfield.predicted_front import Walkers, deterministic_front
from meanmode.theory.meanfield.softmax_moments import row_overlap, row_square
from meanmode.theory.meanfield.structured_inputs import clustered_cosines, image_patches, token_cosines
from meanmode.theory.setting import Setting

WIDE = 2**22
"""A width at which the one-cosine recursion has no correction left."""


def wide(**fields) -> Setting:
    """A setting of gain 0.8 without finite-width corrections, with heads of 32 features."""
    return Setting(**{"depth": 8, "width": WIDE, "heads": WIDE // 32, "weight_std": 0.8 / WIDE**0.5} | fields)


def exchangeable(tokens: int, cosine: float) -> np.ndarray:
    return (1 - cosine) * np.eye(tokens) + cosine


def clustered(tokens: int, clusters: int = 2, within: float = 0.8) -> np.ndarray:
    return clustered_cosines(tokens, clusters, within)


def one_cosine(setting: Setting) -> np.ndarray:
    return np.array([cosine.mean() for cosine in Walkers(MeanField(setting), 0).blocks(setting.depth)])


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": 16, "depth": 36},
        {"tokens": 2, "input_cosine": 0.2},
        {"tokens": 16, "input_cosine": 0.3, "merge": "mv_split", "alpha": 0.3, "beta": 0.6},
        {"tokens": 16, "input_cosine": 0.3, "merge": "deepnorm", "residual_gain": 1.5},
        {"tokens": 16, "input_cosine": 0.3, "merge": "rezero", "residual_gain": 0.5},
        {"tokens": 16, "input_cosine": 0.1, "mixer": "uniform"},
        {"tokens": 16, "input_cosine": 0.1, "mixer": "a_minus_i"},
    ],
    ids=str,
)
def test_exchangeable_tokens_follow_the_one_cosine_recursion(fields: dict[str, object]) -> None:
    setting = wide(**fields)
    found = GramField(setting, exchangeable(setting.tokens, setting.input_cosine)).map()
    assert np.abs(found.tcs - one_cosine(setting)).max() < 0.005
    if setting.depth == 36:
        assert found.front == pytest.approx(deterministic_front(setting), rel=0.01)


def test_independent_tokens_have_the_row_moments_of_the_softmax() -> None:
    heads = Heads.of(wide(tokens=24), mask=None, angles=None)
    mixed = heads.expected_gram(np.eye(24), 600, np.random.default_rng(1))
    own = np.diagonal(mixed)
    assert own.mean() == pytest.approx(row_square(24, 1.0, 32), rel=0.02)
    assert (mixed.sum() - own.sum()) / (24 * 23) == pytest.approx(row_overlap(24, 1.0, 0.0), rel=0.02)


def test_the_order_of_the_tokens_does_not_matter() -> None:
    order = np.random.default_rng(2).permutation(32)
    cosines = clustered(32, 4)
    exact = [
        GramField(wide(tokens=32, mixer="uniform"), c).map() for c in (cosines, cosines[order][:, order])
    ]
    np.testing.assert_allclose(exact[0].tcs, exact[1].tcs, atol=1e-9)
    setting = wide(tokens=32, depth=26)
    drawn = [GramField(setting, c).map() for c in (cosines, cosines[order][:, order])]
    assert drawn[0].front == pytest.approx(drawn[1].front, rel=0.01)
    swapped = [
        GramField(wide(tokens=8, merge="mv_split", mixer="uniform", alpha=0.5), c, segments=parts).map()
        for c, parts in ((clustered(8), (3, 5)), (np.roll(clustered(8), (5, 5), (0, 1)), (5, 3)))
    ]
    np.testing.assert_allclose(swapped[0].segment_tcs, swapped[1].segment_tcs[:, ::-1], atol=1e-9)


@pytest.mark.parametrize("how", ["map", "walk", "exact"])
def test_one_repeated_token_stays_one_repeated_token(how: str) -> None:
    field = GramField(Setting(tokens=8, width=32, heads=2, weight_std=0.15, depth=5), np.ones((8, 8)))
    found = getattr(field, how)(*(() if how == "map" else (4,)))
    np.testing.assert_allclose(found.tcs, 1.0, atol=1e-8)
    assert found.front == 0.0


@pytest.mark.parametrize("how", ["walk", "exact"])
def test_the_noise_falls_with_the_root_of_the_width(how: str) -> None:
    widths = np.array([64, 256, 1024])
    cosines = clustered(12)
    mean = GramField(wide(tokens=12, depth=4), cosines).map()
    errors = []
    for width in widths:
        setting = wide(
            tokens=12, depth=4, width=int(width), heads=int(width) // 32, weight_std=0.8 / width**0.5
        )
        found = getattr(GramField(setting, cosines), how)(48)
        errors.append(np.sqrt(np.mean((found.profiles[:, -1] - mean.tcs[-1]) ** 2)))
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35


def test_structure_moves_the_front_where_the_mean_cosine_does_not() -> None:
    """Negative control: averaging the structure away, at the same TCS, moves the front."""
    setting = wide(tokens=24, depth=26)
    cosines = clustered(24, 4, within=0.95)
    mean = (cosines.sum() - 24) / (24 * 23)
    structured = GramField(setting, cosines).map()
    averaged = GramField(setting, exchangeable(24, mean)).map()
    assert structured.tcs[0] == pytest.approx(averaged.tcs[0])
    assert abs(structured.front / averaged.front - 1) > 0.1


def test_a_mask_and_angles_that_do_nothing_change_nothing() -> None:
    setting, cosines = wide(tokens=9, depth=3), clustered(9)
    plain = GramField(setting, cosines).map().tcs
    idle = GramField(setting, cosines, mask=np.ones((9, 9)), rope=np.zeros((9, 16))).map().tcs
    np.testing.assert_array_equal(plain, idle)
    causal = GramField(setting, cosines, mask=np.tri(9)).map().tcs
    assert np.abs(causal - plain)[1:].max() > 0.01
    drawn = Heads.of(setting, mask=np.tri(9, dtype=bool), angles=None).drawn(
        gram_root(cosines), 3, np.random.default_rng(0)
    )
    assert not np.triu(drawn, 1).any()
    np.testing.assert_allclose(drawn.sum(-1), 1.0)


def test_the_angles_are_those_of_the_network() -> None:
    np.testing.assert_allclose(rope_angles(16, 3, 8), attention.rope_angles((16, 3), 8).numpy(), atol=1e-12)


def measured(setting: Setting, cosines: np.ndarray, seeds: int) -> np.ndarray:
    """TCS after every block of the network itself, in the image segment [seeds, L + 1]."""
    root = np.zeros((len(cosines), setting.width))
    root[:, : len(cosines)] = gram_root(cosines) * setting.width**0.5
    block = Block(setting)
    profiles = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(7000 + seed)
        x, profile = torch.tensor(root, dtype=torch.float32)[None], []
        for _ in range(setting.depth):
            block.reset_parameters(generator)
            with torch.inference_mode():
                x = block(x, setting.segments)
            tokens = torch.nn.functional.normalize(x[0, : setting.tokens], dim=-1).numpy()
            mean = (tokens @ tokens.T).mean()
            profile.append((setting.tokens * mean - 1) / (setting.tokens - 1))
        profiles.append(profile)
    return np.array(profiles)


@pytest.mark.parametrize(
    "fields",
    [
        {"merge": "mv_split", "text_tokens": 4, "alpha": 0.4, "beta": 0.8},
        {"rope": True},
        {"mixer": "gated", "merge": "deepnorm", "residual_gain": 0.6},
        {"mixer": "linear"},
        {"mixer": "state_space"},
    ],
    ids=str,
)
def test_the_chain_has_the_cosines_of_the_network(fields: dict[str, object]) -> None:
    setting = Setting(**{"tokens": 9, "width": 24, "heads": 2, "weight_std": 0.18, "depth": 5} | fields)
    cosines = clustered(sum(setting.segments), 3)
    network, chain = measured(setting, cosines, 60), GramField(setting, cosines).exact(400)
    error = network.std(0, ddof=1) * (1 / 60 + 1 / 400) ** 0.5
    theory = chain.segment_tcs[1:, 0]
    assert np.all(np.abs(network.mean(0) - theory) < 4 * error)
    erased = GramField(setting, np.eye(sum(setting.segments))).exact(100).segment_tcs[1:, 0]
    assert np.any(np.abs(network.mean(0) - erased) > 4 * error)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cosines": np.eye(3)}, r"the setting has 4 tokens"),
        ({"cosines": 2 * np.eye(4)}, r"normalise the tokens"),
        ({"cosines": np.eye(4) * 2 - 1}, r"negative eigenvalue"),
        ({"cosines": np.eye(4) + np.tri(4, k=-1)}, r"finite symmetric"),
        ({"segments": (3, 2)}, r"do not add up to the 4 tokens"),
        ({"mask": np.tri(4, k=-1)}, r"a token to attend to in every row"),
        ({"rope": np.zeros((4, 2))}, r"rope must hold 4 angles"),
        ({"setting": {"batch": 2}}, r"batch must be 1"),
        ({"setting": {"merge": "highway"}}, r"no theory for the merge 'highway'"),
        ({"setting": {"mixer": "state_space"}, "mask": np.tri(4)}, r"it takes no mask"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(given: dict[str, object], message: str) -> None:
    setting = dataclasses.replace(Setting(tokens=4, width=16, heads=2), **given.pop("setting", {}))
    with pytest.raises(ValueError, match=message):
        GramField(setting, given.pop("cosines", np.eye(4)), **given)


def test_more_independent_tokens_than_features_are_refused() -> None:
    with pytest.raises(ValueError, match="their rank is higher"):
        GramField(Setting(tokens=8, width=4, heads=1, depth=1), np.eye(8)).exact(2)
    features = np.random.default_rng(0).standard_normal((8, 4))
    found = GramField(Setting(tokens=8, width=4, heads=1, depth=3), token_cosines(features)).exact(3)
    assert np.isfinite(found.tcs).all()


@pytest.mark.parametrize("how", ["map", "walk", "exact"])
def test_silent_writers_change_nothing(how: str) -> None:
    setting = Setting(tokens=6, width=16, heads=2, depth=3, writer_std=0.0)
    found = getattr(GramField(setting, clustered(6)), how)()
    np.testing.assert_allclose(found.tcs, found.tcs[0], atol=1e-9)
    assert found.front is None and found.front_std is None


def test_a_token_that_centering_removes_is_refused() -> None:
    setting = wide(tokens=5, merge="hard_centering")
    with pytest.raises(ValueError, match="which has no direction: hard centering"):
        GramField(setting, np.eye(5), segments=(4, 1)).map()
    assert np.isfinite(GramField(setting, np.eye(5)).map().tcs).all()


@pytest.mark.parametrize("tokens", [np.zeros((3, 4)), np.ones(3), np.full((2, 2), np.nan)], ids=str)
def test_tokens_without_a_direction_are_refused(tokens: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"has no direction|must be a finite matrix"):
        token_cosines(tokens)


def test_patches_are_those_of_the_middle_row_by_row() -> None:
    pixels = np.zeros((9, 4, 3))
    pixels[2:4, 2:] = 255  # the middle square starts at row 2: this is its second patch
    patches = image_patches(pixels, 4)
    assert patches.shape == (4, 12)
    np.testing.assert_array_equal(patches.mean(1), [-1, 1, -1, -1])
    with pytest.raises(ValueError, match="must be a square"):
        image_patches(pixels, 5)


def test_cosines_of_low_rank_in_single_precision_are_taken() -> None:
    features = np.random.default_rng(1).standard_normal((24, 3)).astype(np.float32)
    rounded = token_cosines(features).astype(np.float32).astype(float)
    assert np.linalg.eigvalsh(rounded)[0] < -1e-9  # below zero by rounding
    setting = Setting(tokens=24, width=64, heads=1, depth=2)
    exact, found = (GramField(setting, cosines).map().tcs for cosines in (token_cosines(features), rounded))
    np.testing.assert_allclose(found, exact, atol=1e-5)
