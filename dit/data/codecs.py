"""Codecs between images and latents: the pixels themselves, linear patch codecs, and the FLUX.2 VAE."""

# B batch, N images, K colours, H height, W width of an image, C channels, h height, w width of a latent
# P values of a patch (3 x 8 x 8), Q coefficients of a patch

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from meanmode.dit.data.flux2_vae import Flux2VAE
from meanmode.dit.data.patch_bases import COEFFICIENTS, PATCH, dct_basis, principal_components

MERGED = 2
"""Patches per position along each side, as in the FLUX.2 VAE."""


CONSTANT = 1e-6
"""Standard deviations up to this are rounding: that of the lowest of 8 bits is a thousand times larger."""


SHAPES = {"basis": (3 * PATCH**2, COEFFICIENTS), "centre": (3 * PATCH**2,), "mean": (128,), "std": (128,)}
"""Shapes of the parameters of a patch codec."""


SPECS = "pixels, dct, pca, flux2:PATH, or store:PATH of a latent store"


@runtime_checkable
class Codec(Protocol):
    """An image encoder with its decoder.

    A latent depends on its own image alone, bit for bit: images are encoded and decoded one at a time on
    their own device, since matrix products round differently for other batch sizes.

    Attributes:
        name: pixels, dct, pca or flux2.
        channels: channels of a latent.
        factor: pixels per latent position along each side.
        colours: 1 for grey images, 3 for RGB.
    """

    name: str
    channels: int
    factor: int
    colours: int

    def encode(self, images: Float[Tensor, "B K H W"]) -> Float[Tensor, "B C h w"]:
        """Encode images in [0, 1] as float32 latents, with mean 0 and variance 1 over the fitted images.

        Raises:
            ValueError: no images, a wrong number of colours, a side that is not a multiple of `factor`, or
                values that are non-finite or outside [0, 1].
        """
        ...

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        """Decode latents to float32 images, clamped to [0, 1].

        Raises:
            ValueError: no latents, or a wrong number of channels.
        """
        ...

    def document(self) -> dict[str, Any]:
        """Describe the codec as JSON for `stored_codec`; `digest` is the SHA-256 of all parameters."""
        ...

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the fitted parameters in float64; empty for a codec that is read from a folder."""
        ...


class _Codec:
    """Checks, and encoding and decoding one image at a time, shared by all codecs."""

    name: str
    channels: int
    factor: int
    colours: int
    digest: str

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B K H W"]) -> Float[Tensor, "B C h w"]:
        _check_images(images, self.name, self.colours, self.factor)
        return torch.cat([self._encode(image).float() for image in images.split(1)])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        count, channels = latents.shape[:2]
        if not count:
            raise ValueError("there are no latents to decode: pass at least one")
        if channels != self.channels:
            raise ValueError(
                f"latents of the codec {self.name} need {self.channels} channels, got {channels}"
            )
        return torch.cat([self._decode(latent).clamp(0, 1).float() for latent in latents.split(1)])

    def document(self) -> dict[str, Any]:
        fields = ("name", "colours", "channels", "factor", "digest")
        return {field: getattr(self, field) for field in fields}

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {}

    def _encode(self, image: Float[Tensor, "1 K H W"]) -> Float[Tensor, "1 C h w"]:
        raise NotImplementedError

    def _decode(self, latent: Float[Tensor, "1 C h w"]) -> Float[Tensor, "1 K H W"]:
        raise NotImplementedError


class _FittedCodec(_Codec):
    """A codec with a few arrays as parameters; computed in float64, so that float32 results are exact.

    Args:
        name: name of the codec.
        colours: colours of its images, 1 or 3.
        tensors: the fitted arrays, named as in `parameters`.

    Raises:
        ValueError: the names and shapes of the arrays are not those in `parameters`, or they are not finite.
    """

    parameters: ClassVar[Mapping[str, tuple[int, ...]]]

    def __init__(self, name: str, colours: int, tensors: Mapping[str, NDArray[Any]]) -> None:
        if set(tensors) != set(self.parameters):
            raise ValueError(
                f"the codec {name} has the parameters {', '.join(self.parameters)}, "
                f"got {', '.join(sorted(tensors)) or 'none'}"
            )
        self.name, self.colours = name, colours
        _check_colours(colours)
        for part, shape in self.parameters.items():
            values = tensors[part]
            if values.shape != shape or values.dtype.kind != "f" or not np.isfinite(values).all():
                raise ValueError(f"the parameter {part} of the codec {name} is damaged: encode again")
        self._tensors = {part: np.array(tensors[part], np.float64) for part in self.parameters}
        self.digest = _digest({"name": name, "colours": colours}, self._tensors)

    @classmethod
    def fitted(cls, name: str, images: Float[Tensor, "N K H W"]) -> "_FittedCodec":
        """Fit the codec to images that have been checked."""
        raise NotImplementedError

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {name: values.copy() for name, values in self._tensors.items()}

    def _on(self, device: torch.device) -> list[Tensor]:
        """Return the parameters on a device, with vectors as columns [C, 1, 1]."""
        found = (torch.from_numpy(values).to(device) for values in self._tensors.values())
        return [values if values.ndim == 2 else values[:, None, None] for values in found]


class PixelCodec(_FittedCodec):
    """The pixels, normalised by a single mean and standard deviation (1 if all pixels are equal)."""

    parameters = dict.fromkeys(("mean", "std"), (1,))
    factor = 1

    def __init__(self, name: str, colours: int, tensors: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(name, colours, tensors)
        self.channels = colours

    @classmethod
    def fitted(cls, name: str, images: Float[Tensor, "N K H W"]) -> "_FittedCodec":
        mean = torch.stack([image.double().mean() for image in images]).mean()
        variance = torch.stack([(image.double() - mean).square().mean() for image in images]).mean()
        found = {"mean": mean[None], "std": _divisors(variance[None].sqrt())}
        return cls(name, images.shape[1], {part: tensor.cpu().numpy() for part, tensor in found.items()})

    def _encode(self, image: Float[Tensor, "1 K H W"]) -> Float[Tensor, "1 C h w"]:
        mean, std = self._on(image.device)
        return (image.double() - mean) / std

    def _decode(self, latent: Float[Tensor, "1 C h w"]) -> Float[Tensor, "1 K H W"]:
        mean, std = self._on(latent.device)
        return latent.double() * std + mean


class PatchCodec(_FittedCodec):
    """Patch coefficients in an orthonormal basis, in the geometry of the FLUX.2 VAE: 128 channels, factor 16.

    The mean patch is subtracted from every 8 x 8 RGB patch, 32 of the 192 coefficients are kept, and those of
    2 x 2 patches form one position: channel 4 q + 2 y + x is coefficient q of the patch at (y, x). Every
    channel is standardised over the fitted images; a constant one, such as the colour channels of grey
    images, is centred but not scaled. A grey image is encoded as RGB and decoded to the mean of the three.

    The basis is `dct_basis` for the name dct, and the principal components of the patches for pca.
    """

    channels = COEFFICIENTS * MERGED**2
    factor = PATCH * MERGED
    parameters: ClassVar = SHAPES

    @classmethod
    def fitted(cls, name: str, images: Float[Tensor, "N K H W"]) -> "_FittedCodec":
        split = images.split(1)
        centre = torch.stack([_patches(image).mean((0, 2, 3)) for image in split]).mean(0)[:, None, None]
        if name == "pca":
            apart = ((_patches(image) - centre)[0].flatten(1) for image in split)
            basis = principal_components(sum(patches @ patches.mT for patches in apart))
        else:
            basis = torch.from_numpy(dct_basis()).to(images.device)
        values = torch.cat([_coefficients(image, basis, centre) for image in split])
        mean, std = values.mean((0, 2, 3)), _divisors(values.std((0, 2, 3), correction=0))
        found = {"basis": basis, "centre": centre.flatten(), "mean": mean, "std": std}
        return cls(name, images.shape[1], {part: tensor.cpu().numpy() for part, tensor in found.items()})

    def _encode(self, image: Float[Tensor, "1 K H W"]) -> Float[Tensor, "1 C h w"]:
        basis, centre, mean, std = self._on(image.device)
        return (_coefficients(image, basis, centre) - mean) / std

    def _decode(self, latent: Float[Tensor, "1 C h w"]) -> Float[Tensor, "1 K H W"]:
        basis, centre, mean, std = self._on(latent.device)
        coefficients = pixel_shuffle(latent.double() * std + mean, MERGED)
        patches = torch.einsum("bqyx,pq->bpyx", coefficients, basis) + centre
        return _in_colours(pixel_shuffle(patches, PATCH), self.colours)


class Flux2Codec(_Codec):
    """The frozen FLUX.2 VAE, which is not fitted but read from a folder (`meanmode.dit.data.flux2_vae`).

    Latents have mean 0 and variance 1 over the data that the VAE was trained on. A grey image is encoded as
    RGB and decoded to the mean of the three.

    Args:
        path: folder of the VAE.
        colours: colours of the images, 1 or 3.

    Raises:
        ValueError: diffusers is not installed, or the folder has no complete VAE.
    """

    name = "flux2"

    def __init__(self, path: str | Path, colours: int) -> None:
        self.path, self.colours = Path(path).resolve(), colours
        self._vae = Flux2VAE(self.path)
        self.channels, self.factor = self._vae.channels, self._vae.factor
        self.digest = _digest({"config": self._vae.config, "files": self._vae.files}, {})

    def document(self) -> dict[str, Any]:
        return {**super().document(), "path": str(self.path), "files": self._vae.files}

    def _encode(self, image: Float[Tensor, "1 K H W"]) -> Float[Tensor, "1 C h w"]:
        return self._vae.encode(image.expand(-1, 3, -1, -1))

    def _decode(self, latent: Float[Tensor, "1 C h w"]) -> Float[Tensor, "1 K H W"]:
        return _in_colours(self._vae.decode(latent), self.colours)


FITTED: dict[str, type[_FittedCodec]] = {"pixels": PixelCodec, "dct": PatchCodec, "pca": PatchCodec}


def fitted_codec(spec: str, images: Float[Tensor, "N K H W"]) -> Codec:
    """Fit a codec to images in [0, 1].

    Args:
        spec: `pixels`, `dct`, `pca`, or `flux2:` and the folder of the VAE, which takes only the number of
            colours from the images.
        images: all images that the codec is fitted to, of one size.

    Raises:
        ValueError: the codec is unknown, cannot encode these images, or has no readable VAE.
    """
    name, _, path = spec.partition(":")
    if spec not in FITTED and not (name == Flux2Codec.name and path):
        raise ValueError(f"codec must be one of {SPECS}, got {spec!r}")
    colours = images.shape[1]
    _check_colours(colours)
    if spec in FITTED:
        _check_images(images, spec, colours, FITTED[spec].factor)
        return FITTED[spec].fitted(spec, images)
    codec = Flux2Codec(path, colours)
    _check_images(images, name, colours, codec.factor)
    return codec


def stored_codec(document: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Codec:
    """Rebuild a stored codec exactly.

    Args:
        document: result of `Codec.document`.
        tensors: result of `Codec.tensors`.

    Raises:
        ValueError: the document is not that of a codec, the parameters do not match it, or the VAE cannot be
            read.
    """
    name = document.get("name")
    if name not in (*FITTED, Flux2Codec.name):
        raise ValueError(f"codec must be one of {SPECS}, got the document of {name!r}")
    needed = ("colours", "digest", "path") if name == Flux2Codec.name else ("colours", "digest")
    lacking = [field for field in needed if field not in document]
    if lacking:
        raise ValueError(f"the document of the codec {name} lacks {', '.join(lacking)}: encode again")
    codec: _Codec
    if name == Flux2Codec.name:
        codec = Flux2Codec(document["path"], document["colours"])
        problem = f"the VAE in {document['path']} has changed: restore the original one"
    else:
        codec = FITTED[name](name, document["colours"], tensors)
        problem = f"the parameters of the codec {name} do not match its document: encode again"
    if codec.digest != document["digest"]:
        raise ValueError(problem)
    return codec


def _patches(image: Float[Tensor, "1 K H W"]) -> Float[Tensor, "1 P h w"]:
    """Split an image into patches of 8 x 8 RGB pixels, in float64."""
    return pixel_unshuffle(image.double().expand(-1, 3, -1, -1), PATCH)


def _coefficients(
    image: Float[Tensor, "1 K H W"], basis: Float[Tensor, "P Q"], centre: Float[Tensor, "P 1 1"]
) -> Float[Tensor, "1 C h w"]:
    """Coefficients of the patches of an image, with those of 2 x 2 patches stacked as channels."""
    return pixel_unshuffle(torch.einsum("bpyx,pq->bqyx", _patches(image) - centre, basis), MERGED)


def _in_colours(image: Float[Tensor, "1 3 H W"], colours: int) -> Float[Tensor, "1 K H W"]:
    return image if colours == 3 else image.mean(1, keepdim=True)


def _check_colours(colours: int) -> None:
    if colours not in (1, 3):
        raise ValueError(f"images must have 1 colour (grey) or 3 (RGB), got {colours}")


def _divisors(std: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Replace the standard deviation of constant channels by 1."""
    return torch.where(std > CONSTANT, std, 1.0)


def _check_images(images: Float[Tensor, "B K H W"], name: str, colours: int, factor: int) -> None:
    """Refuse images that a codec cannot encode; see `Codec.encode`."""
    count, found, *sides = images.shape
    if not count:
        raise ValueError("there are no images to encode: pass at least one")
    if found != colours:
        raise ValueError(f"this codec {name} was fitted to images of {colours} colours, got {found}")
    for side, pixels in zip(("height", "width"), sides, strict=True):
        if not pixels or pixels % factor:
            raise ValueError(
                f"the {side} of images must be a multiple of {factor} for the codec {name}, "
                f"got {pixels}: crop or resize them"
            )
    low, high = (bound.item() for bound in images.aminmax())
    if not (0 <= low and high <= 1):
        values = f"{low:g} to {high:g}" if images.isfinite().all() else "non-finite ones"
        raise ValueError(f"the values of images must be in [0, 1], got {values}")


def _digest(fields: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of a codec's description and parameters."""
    hashed = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        hashed.update(f"{name} {values.dtype.str} {list(values.shape)}".encode())
        hashed.update(values.tobytes())
    return hashed.hexdigest()
