"""Codecs: round trips, whitening, the bases, stored codecs, and the FLUX.2 VAE against diffusers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from meanmode.dit.data.codecs import CONSTANT, Codec, fitted_codec, stored_codec
from meanmode.dit.data.patch_bases import dct_basis

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
LINEAR = ("pixels", "dct", "pca")
PATCHES = ("dct", "pca")


def cropped(photo: str, height: int = 10_000, width: int = 10_000) -> torch.Tensor:
    """The centre of a photograph [3, H, W] in [0, 1], at most this large and with sides divisible by 16."""
    data = pytest.importorskip("skimage.data")
    pixels = torch.from_numpy(getattr(data, photo)()).permute(2, 0, 1).float() / 255
    for dim, most in ((1, height), (2, width)):
        size = min(most, pixels.shape[dim]) // 16 * 16
        pixels = pixels.narrow(dim, (pixels.shape[dim] - size) // 2, size)
    return pixels


def noise(count: int, colours: int, height: int, width: int | None = None, seed: int = 0) -> torch.Tensor:
    """Images of uniform noise, well inside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(count, colours, height, width or height, generator=generator)


def decibels(found: torch.Tensor, image: torch.Tensor) -> float:
    """Peak signal-to-noise ratio."""
    return float(-10 * (found.double() - image).square().mean().log10())


def reread(codec: Codec) -> Codec:
    """Rebuild a codec from what a store keeps: JSON, and copies of its arrays."""
    arrays = {name: values.copy() for name, values in codec.tensors().items()}
    return stored_codec(json.loads(json.dumps(codec.document())), arrays)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """Four photographs of one size."""
    return torch.stack([cropped(photo, 288, 448) for photo in PHOTOS])


@pytest.fixture(scope="module")
def on_photos(photos: torch.Tensor) -> dict[str, Codec]:
    """Codecs fitted to the photographs."""
    return {spec: fitted_codec(spec, photos) for spec in LINEAR}


@pytest.mark.parametrize("spec", PATCHES)
@pytest.mark.parametrize("photo", PHOTOS)
def test_photographs_come_back_at_28_decibels(on_photos: dict[str, Codec], spec: str, photo: str) -> None:
    image = cropped(photo)[None]
    codec = on_photos[spec]
    latents = codec.encode(image)
    assert latents.shape == (1, 128, image.shape[2] // 16, image.shape[3] // 16)
    assert 28 <= decibels(codec.decode(latents), image) <= 45


def test_pixels_come_back() -> None:
    images = noise(3, 1, 9, 5)
    codec = fitted_codec("pixels", images)
    latents = codec.encode(images)
    assert (codec.channels, codec.factor, latents.shape) == (1, 1, images.shape)
    torch.testing.assert_close(codec.decode(latents), images, rtol=0, atol=1e-7)


@pytest.mark.parametrize("spec", LINEAR)
def test_latents_are_white_over_the_images_of_the_fit(
    on_photos: dict[str, Codec], photos: torch.Tensor, spec: str
) -> None:
    """The pixel codec over all values, the others per channel."""
    latents = on_photos[spec].encode(photos)
    assert latents.dtype == torch.float32
    values = latents.double().flatten()[None] if spec == "pixels" else latents.double().movedim(1, 0)
    values = values.flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(len(values)).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        values.var(1, correction=0), torch.ones(len(values)).double(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("spec", PATCHES)
def test_bases_are_orthonormal(on_photos: dict[str, Codec], spec: str) -> None:
    basis = on_photos[spec].tensors()["basis"]
    assert basis.shape == (192, 32)
    np.testing.assert_allclose(basis.T @ basis, np.eye(32), atol=1e-12)


@pytest.mark.parametrize("spec", PATCHES)
@pytest.mark.parametrize("colours", [1, 3])
def test_what_the_basis_spans_comes_back_exactly(spec: str, colours: int) -> None:
    """Encoding is a projection: the second round trip loses nothing."""
    codec = fitted_codec(spec, noise(4, colours, 32, 48))
    once = codec.decode(codec.encode(noise(2, colours, 48, 32, seed=1) / 2 + 0.25))
    assert 0 < once.min() and once.max() < 1 and once.shape == (2, colours, 48, 32)
    torch.testing.assert_close(codec.decode(codec.encode(once)), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("coefficient", "colour", "u", "v"),
    [(0, 0, 0, 0), (1, 0, 0, 1), (2, 0, 1, 0), (3, 0, 1, 1), (26, 1, 0, 0), (28, 1, 1, 0), (31, 2, 0, 1)],
)
def test_channels_of_dct_are_cosines_of_patches(coefficient: int, colour: int, u: int, v: int) -> None:
    """Channel 4 q + 2 y + x, against scipy's two-dimensional transform of one patch."""
    images = noise(2, 3, 32)
    codec = fitted_codec("dct", images)
    parts = {name: torch.from_numpy(values) for name, values in codec.tensors().items()}
    latents = codec.encode(images) * parts["std"][:, None, None] + parts["mean"][:, None, None]
    rotation = [[3**-0.5] * 3, [2**-0.5, 0, -(2**-0.5)], [6**-0.5, -2 * 6**-0.5, 6**-0.5]][colour]
    y, x = 1, 0
    patch = images[1, :, 16 + 8 * y : 24 + 8 * y, 8 * x : 8 * x + 8].double()
    patch = patch - parts["centre"].reshape(3, 8, 8)
    wave = dctn(np.einsum("k,kyx->yx", rotation, patch), norm="ortho")[u, v]
    assert float(latents[1, 4 * coefficient + 2 * y + x, 1, 0]) == pytest.approx(wave, abs=1e-6)


def test_dct_keeps_more_of_luma_than_of_colour() -> None:
    """26 waves of luma, then 4 and 2 of the other colour axes, which contain no luma."""
    luma = np.abs(dct_basis().reshape(3, 64, 32).sum(0)).max(0) > 1e-12
    assert luma.tolist() == [True] * 26 + [False] * 6


def test_principal_components_are_those_of_the_patches(photos: torch.Tensor) -> None:
    crops = photos[:, :, :96, :96]
    basis = fitted_codec("pca", crops).tensors()["basis"]
    patches = (
        crops.double().unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 192).numpy()
    )
    rows = np.linalg.svd(patches - patches.mean(0), full_matrices=False)[2][:32]
    np.testing.assert_allclose(np.abs(rows @ basis), np.eye(32), atol=1e-6)
    largest = basis[np.abs(basis).round(6).argmax(0), np.arange(32)]
    assert (largest > 0).all()


@pytest.mark.parametrize(("spec", "varying"), [("dct", 4 * 26), ("pca", 128)])
def test_channels_that_are_constant_over_the_fit_are_not_scaled(spec: str, varying: int) -> None:
    """Colour channels of grey images are 0 up to rounding, and must not be divided by that rounding."""
    images = noise(5, 1, 32)
    codec = fitted_codec(spec, images)
    latents, std = codec.encode(images).double(), codec.tensors()["std"]
    assert (std[varying:] == 1).all() and (std[:varying] > CONSTANT).all()
    assert latents[:, varying:].square().sum() < 1e-20
    variances = latents[:, :varying].var((0, 2, 3), correction=0)
    torch.testing.assert_close(variances, torch.ones_like(variances), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", LINEAR)
@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
def test_images_that_are_constant_come_back(spec: str, value: float) -> None:
    images = torch.full((2, 3, 16, 16), value)
    codec = fitted_codec(spec, images)
    latents = codec.encode(images)
    assert latents.abs().max() < 1e-12
    torch.testing.assert_close(codec.decode(latents), images, rtol=0, atol=1e-7)


@pytest.mark.parametrize("spec", LINEAR)
def test_images_stay_in_their_range(spec: str) -> None:
    codec = fitted_codec(spec, noise(3, 3, 32))
    images = codec.decode(
        50 * torch.randn(2, codec.channels, 2, 2, generator=torch.Generator().manual_seed(1))
    )
    assert images.min() == 0 and images.max() == 1 and images.dtype == torch.float32


@pytest.mark.parametrize("spec", [*LINEAR, "flux2"])
@pytest.mark.parametrize("colours", [1, 3])
def test_a_sample_depends_on_no_other(spec: str, colours: int, vae: Path) -> None:
    """Bitwise, in batches of any size and order, for encoding and decoding."""
    images = noise(7, colours, 48)
    codec = fitted_codec(f"flux2:{vae}" if spec == "flux2" else spec, images)
    latents = codec.encode(images)
    assert torch.equal(codec.encode(images[4:5].clone()), latents[4:5])
    assert torch.equal(codec.encode(images[[6, 4, 4]]), latents[[6, 4, 4]])
    assert torch.equal(codec.decode(latents)[[5]], codec.decode(latents[[5]].clone()))


@pytest.mark.parametrize("spec", [*LINEAR, "flux2"])
@pytest.mark.parametrize("colours", [1, 3])
def test_a_stored_codec_is_the_same(spec: str, colours: int, vae: Path) -> None:
    images = noise(3, colours, 32)
    codec = fitted_codec(f"flux2:{vae}" if spec == "flux2" else spec, images)
    again = reread(codec)
    assert isinstance(codec, Codec) and isinstance(again, Codec)
    assert again.document() == codec.document() and codec.document()["name"] == spec
    assert (again.name, again.channels, again.factor, again.colours) == (
        spec,
        codec.channels,
        codec.factor,
        colours,
    )
    latents = codec.encode(images)
    assert torch.equal(again.encode(images), latents)
    assert torch.equal(again.decode(latents), codec.decode(latents))


@pytest.mark.parametrize("spec", LINEAR)
def test_a_digest_is_of_the_parameters(spec: str) -> None:
    images = noise(3, 3, 32)
    digests = [
        fitted_codec(spec, found).document()["digest"] for found in (images, images.clone(), images / 2)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert len({fitted_codec(name, images).document()["digest"] for name in LINEAR}) == 3


@pytest.mark.parametrize("spec", LINEAR)
@pytest.mark.parametrize("change", ["std", "colours", "digest"])
def test_parameters_of_another_codec_are_refused(spec: str, change: str) -> None:
    codec = fitted_codec(spec, noise(3, 3, 32))
    document, tensors = codec.document(), codec.tensors()
    if change == "std":
        tensors["std"][-1] *= 1 + 1e-15
    else:
        document[change] = {"colours": 1, "digest": "0"}[change]
    with pytest.raises(ValueError, match=f"parameters of the codec {spec} do not match its document"):
        stored_codec(document, tensors)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {},
            "or store:PATH of a latent store, got the document of None",
        ),
        ({"name": "jpeg"}, "got the document of 'jpeg'"),
        ({"name": "dct", "colours": 3}, "the document of the codec dct lacks digest"),
        ({"name": "flux2", "colours": 3, "digest": ""}, "the document of the codec flux2 lacks path"),
        (
            {"name": "dct", "colours": 3, "digest": ""},
            "dct has the parameters basis, centre, mean, std, got mean",
        ),
    ],
)
def test_other_documents_are_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stored_codec(document, {"mean": np.zeros(1)})


@pytest.mark.parametrize(
    ("spec", "images", "message"),
    [
        (
            "jpeg",
            noise(1, 3, 16),
            "codec must be one of pixels, dct, pca, flux2:PATH, or store:PATH of a latent store, got 'jpeg'",
        ),
        ("dct:x", noise(1, 3, 16), "got 'dct:x'"),
        ("flux2", noise(1, 3, 16), "got 'flux2'"),
        ("flux2:", noise(1, 3, 16), "got 'flux2:'"),
        ("pixels", noise(1, 2, 16), "1 colour .grey. or 3 .RGB., got 2"),
        ("pca", noise(0, 3, 16), "there are no images to encode"),
        (
            "dct",
            noise(1, 3, 24, 16),
            "the height of images must be a multiple of 16 for the codec dct, got 24",
        ),
        (
            "pca",
            noise(1, 3, 16, 40),
            "the width of images must be a multiple of 16 for the codec pca, got 40",
        ),
        ("pca", noise(1, 3, 16, 16) / 0, "got non-finite ones"),
        ("pixels", noise(1, 3, 16) * torch.nan, "got non-finite ones"),
        ("dct", noise(1, 3, 16) * 0 + torch.tensor([0, 255.0]).repeat(8), "in .0, 1., got 0 to 255"),
        ("pixels", torch.tensor([0.5, -0.25]).reshape(1, 1, 1, 2), "in .0, 1., got -0.25 to 0.5"),
    ],
)
def test_images_that_no_codec_can_be_fitted_to_are_refused(
    spec: str, images: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fitted_codec(spec, images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(0, 3, 16), "there are no images to encode"),
        (noise(2, 1, 16), "this codec dct was fitted to images of 3 colours, got 1"),
        (noise(2, 3, 16, 8), "the width of images must be a multiple of 16 for the codec dct, got 8"),
        (noise(2, 3, 16) * torch.nan, "got non-finite ones"),
    ],
)
def test_images_that_cannot_be_encoded_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted_codec("dct", noise(2, 3, 16)).encode(images)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((0, 128, 1, 1), "no latents to decode"), ((1, 32, 2, 2), "codec dct need 128 channels, got 32")],
)
def test_latents_that_cannot_be_decoded_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted_codec("dct", noise(2, 3, 16)).decode(torch.zeros(shape))


def test_latents_of_flux2_are_those_of_its_pipeline(vae: Path) -> None:
    """Decoded images agree with the pipeline's autoencoder as well."""
    diffusers = pytest.importorskip("diffusers")
    pipeline, network = diffusers.Flux2Pipeline, diffusers.AutoencoderKLFlux2.from_pretrained(vae).eval()
    images = noise(2, 3, 32, 48)
    codec = fitted_codec(f"flux2:{vae}", images)
    latents = codec.encode(images)
    assert (codec.channels, codec.factor, latents.shape) == (128, 16, (2, 128, 2, 3))
    parts = SimpleNamespace(vae=network, _patchify_latents=pipeline._patchify_latents)
    with torch.no_grad():
        expected = pipeline._encode_vae_image(parts, 2 * images - 1, None)
        raw = network.encode(2 * images - 1).latent_dist.mode()
        decoded = (network.decode(raw).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(latents), decoded, rtol=0, atol=1e-5)
    assert decoded.std() > 0.05 and not latents.requires_grad and torch.equal(latents, codec.encode(images))


def test_flux2_reads_grey_images_as_rgb(vae: Path) -> None:
    grey = noise(2, 1, 32)
    ours, rgb = (fitted_codec(f"flux2:{vae}", images) for images in (grey, grey.expand(-1, 3, -1, -1)))
    latents = ours.encode(grey)
    assert torch.equal(latents, rgb.encode(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(ours.decode(latents), rgb.decode(latents).mean(1, keepdim=True))


@pytest.mark.parametrize(("blocks", "latent", "factor"), [(2, 4, 4), (3, 8, 8)])
def test_the_geometry_is_that_of_the_vae(
    tiny_vae: Callable[..., Path], tmp_path: Path, blocks: int, latent: int, factor: int
) -> None:
    codec = fitted_codec(f"flux2:{tiny_vae(tmp_path, blocks, latent_channels=latent)}", noise(1, 3, 32))
    assert (codec.channels, codec.factor) == (4 * latent, factor)
    shape = codec.encode(noise(1, 3, 24)).shape
    assert shape == (1, 4 * latent, 24 // factor, 24 // factor)
    with pytest.raises(
        ValueError, match=f"height of images must be a multiple of {factor} for the codec flux2"
    ):
        codec.encode(noise(1, 3, factor + 2, factor))


def weights_of(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The weight file of a VAE, and its tensors."""
    file = folder / "diffusion_pytorch_model.safetensors"
    return file, pytest.importorskip("safetensors.torch").load_file(file)


def change_weight(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Replace a tensor in the weight file, or remove it."""
    file, tensors = weights_of(folder)
    found = change(tensors.pop(name))
    kept = {} if found is None else {name: found}
    pytest.importorskip("safetensors.torch").save_file(tensors | kept, file)


def change_config(folder: Path, **entries: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_weight(folder, "bn.running_mean", lambda values: values + 1e-3),
        lambda folder: change_weight(folder, "encoder.conv_in.bias", lambda values: values * 2),
        lambda folder: change_config(folder, batch_norm_eps=1e-4),
    ],
    ids=["moments", "weights", "configuration"],
)
def test_another_vae_in_the_folder_is_refused(
    vae: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(vae, tmp_path / "vae"))
    document = fitted_codec(f"flux2:{folder}", noise(1, 3, 16)).document()
    change_config(folder, _diffusers_version="of another time")
    assert stored_codec(document, {}).document() == document
    change(folder)
    with pytest.raises(ValueError, match=f"the VAE in {folder} has changed: restore"):
        stored_codec(document, {})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "folder {} does not exist: give the folder"),
        (lambda folder: (folder / "config.json").unlink(), "{} has no config.json: give the folder"),
        (
            lambda folder: truncate(folder / "config.json", 9),
            "{} is not the folder of .*config.json is not JSON",
        ),
        (lambda folder: weights_of(folder)[0].unlink(), "{} has no weights in safetensors: give the folder"),
        (lambda folder: truncate(weights_of(folder)[0], 5000), "{} has no readable AutoencoderKLFlux2: "),
        (
            lambda folder: change_weight(folder, "bn.running_var", lambda values: None),
            "{} has no complete AutoencoderKLFlux2: bn.running_var is missing",
        ),
        (
            lambda folder: change_weight(folder, "bn.running_var", lambda values: values * torch.nan),
            "{} has no complete AutoencoderKLFlux2: bn.running_var is missing, unknown or not finite",
        ),
        (
            lambda folder: change_weight(folder, "bn.running_var", lambda values: values[:4].clone()),
            "{} has no readable AutoencoderKLFlux2: .*bn.running_var",
        ),
    ],
    ids=["absent", "no config", "half a config", "no weights", "half of them", "a gap", "NaN", "a shape"],
)
def test_absent_and_damaged_vaes_are_refused(
    vae: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = Path(shutil.copytree(vae, tmp_path / "vae"))
    document = fitted_codec(f"flux2:{folder}", noise(1, 3, 16)).document()
    damage(folder)
    with pytest.raises(ValueError, match=message.format(folder)) as refused:
        stored_codec(document, {})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("options", [{"in_channels": 1}, {"patch_size": (1, 2)}])
def test_a_vae_of_another_kind_is_refused(
    tiny_vae: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="must encode RGB and stack square groups"):
        fitted_codec(f"flux2:{tiny_vae(tmp_path, **options)}", noise(1, 3, 16))
