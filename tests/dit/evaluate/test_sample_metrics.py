"""FID, KID and Inception Score against closed forms and their own spread, and the table of all three."""

import sys

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from meanmode.dit.evaluate.features import Features
from meanmode.dit.evaluate.sample_metrics import Reference, compare, inception_score, metric_name

WIDTH, COUNT = 6, 400


def gaussian(seed: int, mean: np.ndarray, covariance: np.ndarray, count: int = COUNT) -> np.ndarray:
    """Samples with exactly this sample mean and covariance, up to rounding."""
    drawn = np.random.default_rng(seed).normal(size=(count, len(mean)))
    drawn -= drawn.mean(0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def covariance(seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(WIDTH, 2 * WIDTH))
    return root @ root.T / (2 * WIDTH)


def normal(seed: int, count: int, width: int = 4, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


def test_fid_is_the_distance_of_gaussians() -> None:
    """Computed from the principal root of the product, which the implementation avoids."""
    means, covariances = (np.zeros(WIDTH), np.linspace(-1, 2, WIDTH)), (covariance(1), covariance(2))
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    one, other = (gaussian(seed, *of) for seed, of in enumerate(zip(means, covariances, strict=True)))
    assert Reference(one).frechet_distance(other) == pytest.approx(expected, rel=1e-9)
    assert Reference(other).frechet_distance(one) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("count", "width", "share"), [(COUNT, WIDTH, 1e-12), (50, 200, 1e-6)], ids=["full rank", "N < F"]
)
def test_fid_of_a_set_to_itself_is_zero(count: int, width: int, share: float) -> None:
    features = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    reference = Reference(features)
    assert abs(reference.frechet_distance(features)) < share * width
    assert abs(reference.frechet_distance(features + 1) - width) < 1e-5 * width
    assert abs(reference.frechet_distance(features)) < share * width, "the reference has changed"


def test_fid_of_equal_distributions_falls_with_their_number() -> None:
    """This bias makes FIDs of different numbers of images incomparable; for N <= F it is far from zero."""
    reference = Reference(normal(0, 4000, 32))
    few, more, many = (reference.frechet_distance(normal(1, count, 32)) for count in (30, 300, 3000))
    assert few > 4 * more > 4 * 4 * many > 0


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD, pair by pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / len(a) + 1) ** 3

    same = [
        np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)
    ]
    return sum(same) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def jackknife(x: np.ndarray, y: np.ndarray) -> float:
    lefts = [
        np.array([mmd(np.delete(x, at, 0), y) for at in range(len(x))]),
        np.array([mmd(x, np.delete(y, at, 0)) for at in range(len(y))]),
    ]
    return sum((len(left) - 1) * left.var() for left in lefts) ** 0.5


@pytest.mark.parametrize("sizes", [(9, 9), (7, 12), (12, 7)])
def test_kid_is_the_unbiased_mmd_of_all_pairs(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = normal(1, sizes[0]), normal(2, sizes[1], shift=0.5)
    monkeypatch.setattr("meanmode.dit.evaluate.sample_metrics.ROWS_AT_ONCE", 5)
    value, error = Reference(y).kernel_distance(x)
    assert value == pytest.approx(mmd(x, y), rel=1e-10)
    assert error == pytest.approx(jackknife(x, y), rel=1e-9)


def kids(shift: float, runs: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors over draws of both sets."""
    generator = np.random.default_rng(5)
    found = [
        Reference(generator.normal(size=(60, 4))).kernel_distance(generator.normal(size=(40, 4)) + shift)
        for _ in range(runs)
    ]
    values, errors = np.array(found).T
    return values, errors


def test_kid_of_one_distribution_is_zero_on_average() -> None:
    """The biased estimate, which includes pairs of an image with itself, is always positive."""
    values, errors = kids(0.0)
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert values.min() < 0
    assert 1.2 < np.square(errors).mean() / values.var() < 3, "of a degenerate statistic: about 2"


def test_the_error_of_kid_is_its_spread() -> None:
    values, errors = kids(0.5)
    assert np.square(errors).mean() / values.var() == pytest.approx(1, abs=0.4)
    assert values.mean() > 2 * values.std()


def test_inception_score_of_the_extremes() -> None:
    uniform, certain = np.full((20, 5), 0.2), np.eye(5)[np.arange(20) % 5]
    assert inception_score(uniform) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(certain) == pytest.approx((5, 0), abs=1e-12)
    # all of one class: certain, but without variety
    assert inception_score(certain[[0, 0, 0]])[0] == pytest.approx(1, abs=1e-12)


def test_inception_score_is_the_exponent_of_the_mean_divergence() -> None:
    """exp of the entropy of the mean minus the mean entropy."""
    p = np.random.default_rng(0).dirichlet(np.ones(5) / 2, size=50)

    def entropy(q: np.ndarray) -> float:
        return -(q * np.log(q)).sum(-1)

    assert inception_score(p)[0] == pytest.approx(np.exp(entropy(p.mean(0)) - entropy(p).mean()), rel=1e-12)


def test_the_error_of_the_inception_score_is_its_spread() -> None:
    generator = np.random.default_rng(1)
    scores, errors = np.array(
        [inception_score(generator.dirichlet(np.ones(5) / 2, size=200)) for _ in range(400)]
    ).T
    assert np.square(errors).mean() / scores.var() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"nfe": 25, "cfg": 2.0}, "FID-EffNetLite0(n=1000, nfe=25, cfg=2)"),
        ({"nfe": 4, "cfg": 1.5}, "FID-EffNetLite0(n=1000, nfe=4, cfg=1.5)"),
        ({"images": "real"}, "FID-EffNetLite0(n=1000, real)"),
        ({"images": "untrained", "nfe": 25, "cfg": 1}, "FID-EffNetLite0(n=1000, untrained, nfe=25, cfg=1)"),
    ],
)
def test_names_say_what_a_number_depends_on(options: dict, name: str) -> None:
    assert metric_name("FID", "EffNetLite0", 1000, **options) == name


def features(seed: int, count: int = 40, shift: float = 0.0) -> Features:
    p = np.random.default_rng(seed).dirichlet(np.ones(3), size=count)
    return Features(
        values=normal(seed, count, shift=shift).astype(np.float32), probabilities=p.astype(np.float32)
    )


def test_a_table_has_the_floors_beside_the_samples() -> None:
    sets = {"held_out": features(1), "decoded": features(2, shift=0.3), "untrained": features(3, shift=3)}
    state = torch.random.get_rng_state()
    real, samples = features(4, 90), features(5, shift=0.6)
    rows = compare(samples, real, **sets, extractor="E", nfe=25, cfg=2.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [row.name for row in rows[::3]] == [
        "FID-E(n=40, nfe=25, cfg=2)",
        "FID-E(n=40, real)",
        "FID-E(n=40, decoded)",
        "FID-E(n=40, untrained, nfe=25, cfg=2)",
    ]
    assert [row.name.split("-")[0] for row in rows] == ["FID", "KID", "IS"] * 4
    assert all(row.n == 40 for row in rows)
    assert [row.standard_error is None for row in rows] == [True, False, False] * 4
    fids, kids = [row.value for row in rows[::3]], [row.value for row in rows[1::3]]
    assert fids[1] < fids[2] < fids[0] < fids[3] and kids[1] < kids[2] < kids[0] < kids[3]
    # each is the same as if computed alone
    assert fids[3] == pytest.approx(Reference(real.values).frechet_distance(sets["untrained"].values))
    assert kids[3] == pytest.approx(mmd(sets["untrained"].values, real.values), rel=1e-5)
    assert rows[5].value == inception_score(sets["held_out"].probabilities)[0]


def test_a_table_without_options_has_two_sets() -> None:
    rows = compare(features(1), features(2, 90), features(3), extractor="E", nfe=5, cfg=1)
    assert [row.name for row in rows[::3]] == ["FID-E(n=40, nfe=5, cfg=1)", "FID-E(n=40, real)"]


def test_what_does_not_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 40 samples but 39 images in `real`"):
        compare(features(1), features(2), features(3, 39), extractor="E", nfe=5, cfg=1)
    with pytest.raises(ValueError, match="at least 3 images, got 2"):
        Reference(normal(0, 9)).kernel_distance(normal(1, 2))
    with pytest.raises(ValueError, match="at least 3 images, got 1"):
        Reference(normal(0, 1))
    with pytest.raises(ValueError, match="have 3 features, the real ones 4: use the same extractor for both"):
        Reference(normal(0, 9)).frechet_distance(normal(1, 9, 3))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        inception_score(np.ones((1, 3)) / 3)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ValueError, match=r"need torchmetrics: pip install '\.\[eval\]'"):
        Reference(normal(0, 9))
