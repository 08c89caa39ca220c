"""Times decoded from states: found where they are present, and never leaked through the image."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.data.sources import Source
from meanmode.dit.evaluate.timestep_probe import FOLDS, TimestepProbe, decoded_times, probe_timestep
from meanmode.dit.model.network import DiT

IMAGES, EACH = 64, 8


def of(side: int = 8, **options: object) -> DiTConfig:
    return DiTConfig(depth=2, writer_std=None, side=side, **options)


class Synthetic:
    """Latents with a given mean and standard deviation, and frozen random texts."""

    size = 100

    def __init__(self, mean: float | Tensor, std: float, side: int = 8, channels: int = 1) -> None:
        generator = torch.Generator().manual_seed(1)
        self._latents = mean + std * torch.randn(self.size, channels, side, side, generator=generator)
        self._texts = torch.randn(self.size, 4, 16, generator=generator)
        self.empty_text = torch.zeros(4, 16)

    def latents(self, indices: np.ndarray) -> Tensor:
        return self._latents[torch.from_numpy(indices)]

    def texts(self, indices: np.ndarray) -> Tensor:
        return self._texts[torch.from_numpy(indices)]


def probed(source: Source, network: DiT | None = None, **options: object) -> TimestepProbe:
    given = {"images": IMAGES, "times_each": EACH, **options}
    return probe_timestep(network or DiT(of()), source, **given)


def r2(found: TimestepProbe, block: int, feature: str) -> float:
    (row,) = (row for row in found.rows if (row.block, row.feature) == (block, feature))
    return row.r2


@pytest.fixture(scope="module")
def decodable() -> TimestepProbe:
    """Clean latents have a mean and noise has none, so the size of the token mean encodes the time."""
    return probed(Synthetic(1.0, 0.5, side=32), DiT(of(side=32)), images=100)


@pytest.fixture(scope="module")
def hidden() -> TimestepProbe:
    """Clean latents are noise themselves, and normalising the tokens removes their size."""
    return probed(Synthetic(0.0, 1.0, side=16), DiT(of(side=16)), images=100)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_time_that_is_there_is_decoded(decodable: TimestepProbe, block: int) -> None:
    assert r2(decodable, block, "image_mean") > (0.95 if block else 0.9)
    assert r2(decodable, block, "image_centered_rms") > 0.95


def test_a_time_that_is_not_there_is_not_decoded(hidden: TimestepProbe) -> None:
    assert abs(r2(hidden, 0, "image_mean")) < 0.05
    assert abs(r2(hidden, 0, "image_centered_rms")) < 0.05


def test_the_input_statistics_are_a_control_of_their_own(
    decodable: TimestepProbe, hidden: TimestepProbe
) -> None:
    """The mean of the latents is 1 - t up to noise; for noise in noise the spread is smallest at 1/2."""
    assert r2(decodable, 0, "input_statistics") > 0.98
    assert abs(r2(hidden, 0, "input_statistics")) < 0.05


def test_texts_know_the_time_only_after_a_block(decodable: TimestepProbe) -> None:
    assert abs(r2(decodable, 0, "text_mean")) < 0.05
    assert r2(decodable, 1, "text_mean") > 0.2


def test_shuffled_times_are_not_decoded(decodable: TimestepProbe) -> None:
    assert max(abs(row.shuffled_r2) for row in decodable.rows) < 0.03


def test_rows_are_of_every_state_with_a_control(decodable: TimestepProbe) -> None:
    features = ["image_mean", "image_centered_rms", "text_mean"]
    expected = [(0, name) for name in ("input_statistics", *features)]
    expected += [(block, name) for block in (1, 2) for name in features]
    assert [(row.block, row.feature) for row in decodable.rows] == expected
    document = json.loads(json.dumps(decodable.document()))
    assert document["held_out"] == 25 and document["images"] == 100 and document["times_each"] == EACH
    assert document["rows"][1] == {
        "block": 0,
        "feature": "image_mean",
        "r2": decodable.rows[1].r2,
        "mae": decodable.rows[1].mae,
        "shuffled_r2": decodable.rows[1].shuffled_r2,
    }


def test_features_are_means_and_spreads_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the states of a forward pass, where the text follows the image."""
    network, source, seen = DiT(of(copies=2)), Synthetic(1.0, 0.5), []
    monkeypatch.setattr(
        "meanmode.dit.evaluate.timestep_probe.decoded_times",
        lambda features, times, images, seed: seen.append(features) or (0.0, 0.0, 0.0),
    )
    states: list[Tensor] = []
    hook = network.blocks[1].register_forward_hook(lambda _, __, x: states.append(x.double()))
    rows = probed(source, network, blocks=[2], images=8, times_each=2, batch=5).rows
    hook.remove()
    (state,) = torch.cat(states).unsqueeze(0)
    assert [row.feature for row in rows] == [
        "input_statistics",
        "image_mean",
        "image_centered_rms",
        "text_mean",
    ]
    image, text = state[:, :32], state[:, 32:]
    expected = [image.mean(1), (image - image.mean(1, keepdim=True)).square().mean(1).sqrt(), text.mean(1)]
    for found, values in zip(seen[1:], expected, strict=True):
        np.testing.assert_allclose(found, values, atol=1e-6)


def test_statistics_of_channels_stand_beside_those_of_all() -> None:
    """If one channel rises as the other falls, their mean is constant and their spread smallest at 1/2."""
    source = Synthetic(torch.tensor([1.0, -1.0])[:, None, None], 0.0, channels=2)
    found = probed(source, DiT(of(channels=2)), blocks=[0])
    assert r2(found, 0, "input_channel_statistics") > 0.9
    assert abs(r2(found, 0, "input_statistics")) < 0.1


def test_times_are_of_image_and_draw_alone() -> None:
    """The same for any batch size, and different for another seed."""
    source = Synthetic(3.0, 0.0)
    one, other = (probed(source, blocks=[1], batch=batch) for batch in (3, 1000))
    for row, again in zip(one.rows, other.rows, strict=True):
        assert row.r2 == pytest.approx(again.r2, abs=1e-4)
    assert probed(source, blocks=[1], seed=1).rows != one.rows


def rows_of(seed: int, images: int = IMAGES) -> SimpleNamespace:
    generator = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(images), EACH)
    return SimpleNamespace(
        numbers=numbers, times=generator.uniform(size=len(numbers)), normal=generator.normal
    )


def test_a_linear_time_is_decoded_to_its_noise() -> None:
    rows = rows_of(0)
    features = np.stack(
        [rows.times + rows.normal(size=len(rows.times)) * 0.01, rows.normal(size=512)], axis=1
    )
    found, error, shuffled = decoded_times(features, rows.times, rows.numbers)
    assert found > 0.99 and abs(shuffled) < 0.03
    assert error == pytest.approx(0.01 * (2 / np.pi) ** 0.5, rel=0.2)
    # neither the scale nor the origin of a feature matters
    assert decoded_times(1e6 + 1e-3 * features, rows.times, rows.numbers)[0] == pytest.approx(found, abs=1e-3)


def test_features_without_time_are_worth_a_constant() -> None:
    rows = rows_of(1)
    found, error, _ = decoded_times(rows.normal(size=(512, 40)), rows.times, rows.numbers)
    assert abs(found) < 0.05 and error == pytest.approx(0.25, abs=0.03)
    constant, _, _ = decoded_times(np.ones((512, 3)), rows.times, rows.numbers)
    assert -0.05 < constant <= 0


def test_a_feature_that_names_the_image_decodes_nothing() -> None:
    """If every image has one time and features that identify it, a split by row would leak.

    It would also leak into the choice of the ridge parameter, and a fit to identities is not constant.
    """
    rows = rows_of(2, images=256)
    names = rows.normal(size=(256, 400))[rows.numbers]
    times = np.repeat(rows.times[:256], EACH)
    found, _, _ = decoded_times(names, times, rows.numbers)
    assert abs(found) < 0.05
    by_row, _, _ = decoded_times(names, times, np.random.default_rng(0).permutation(len(times)))
    assert by_row > 0.95


def test_the_ridge_parameter_is_chosen_without_the_held_out_images() -> None:
    rows = rows_of(3)
    features = rows.times[:, None] + rows.normal(size=(512, 5))
    held_out = rows.numbers % FOLDS == FOLDS - 1
    _, error, _ = decoded_times(features, rows.times, rows.numbers)
    moved = np.where(held_out, rows.times + 7, rows.times)
    assert decoded_times(features, moved, rows.numbers)[1] == pytest.approx(7, abs=0.05)
    assert error < 0.25


def test_states_that_are_not_finite_have_no_result() -> None:
    rows = rows_of(4)
    features = rows.normal(size=(512, 2))
    features[5, 1] = np.inf
    assert np.isnan(decoded_times(features, rows.times, rows.numbers)).all()


def test_a_diverged_network_is_recorded() -> None:
    network = DiT(of())
    with torch.no_grad():
        network.blocks[0].ffn.w2.weight.fill_(torch.nan)
    found = probed(Synthetic(3.0, 0.0), network, images=8)
    assert np.isnan(r2(found, 1, "image_mean")) and np.isfinite(r2(found, 0, "image_mean"))
    assert json.loads(json.dumps(found.document(), allow_nan=False))["rows"][-1]["r2"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 7}, "images must be at least 8 and at most the 100 in the data, got 7"),
        ({"images": 101}, "at most the 100 in the data, got 101"),
        ({"times_each": 0}, "must be at least 1, got 0"),
        ({"blocks": [0, 3]}, r"numbered 0 \(the input\) to 2, got 3"),
    ],
)
def test_what_cannot_be_probed_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probed(Synthetic(3.0, 0.0), **options)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    rows = rows_of(5)
    with pytest.raises(ValueError, match=r"needs scikit-learn: pip install '\.\[train\]'"):
        decoded_times(rows.normal(size=(512, 2)), rows.times, rows.numbers)
