"""Sources of images with classes: digits, Fashion-MNIST, photographs and folders of images."""

# N images, K colours (1 grey, 3 RGB), H height, W width of an image

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from meanmode.dit.data.bounds import BOUNDS
from meanmode.dit.data.held_out import part_of
from meanmode.dit.data.idx_files import read_idx
from meanmode.dit.data.image_folder import ImageFolder

FASHION_CLASSES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


FASHION_FILES = {False: "train", True: "t10k"}


LARGEST_PIXELS, LARGEST_LABELS = 3 * 2**28, 2**24
"""Largest numbers of grey values and labels read from an idx file; EMNIST has 550 million and 700 000."""


PHOTOS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
"""The colour photographs that scikit-image ships inside its package."""


CROP_STEPS = 4
"""Adjacent crops of a photograph are shifted by their side divided by this number."""


SIDES = {"photos": 128, "imagefolder": 256}
"""Default side per source; other sources use the side of their own images."""


@runtime_checkable
class Images(Protocol):
    """An ordered set of square images of one size.

    Attributes:
        size: number of images.
        side: height and width in pixels.
        colours: 1 for grey, 3 for RGB.
        classes: class names; empty if the images have no classes.
    """

    size: int
    side: int
    colours: int
    classes: tuple[str, ...]

    def image(self, index: int) -> Float[Tensor, "K H W"]:
        """Return an image with values in [0, 1]."""
        ...

    def label(self, index: int) -> int | None:
        """Return the index in `classes` of an image's class; None without classes."""
        ...

    def name(self, index: int) -> str:
        """Return the name of an image in the source and in caption files."""
        ...

    def document(self) -> dict[str, Any]:
        """Describe the source as JSON, with a `digest` of its contents."""
        ...


def batch(images: Images, indices: Sequence[int] | NDArray[np.int64]) -> Float[Tensor, "N K H W"]:
    """Stack the images at `indices`."""
    return torch.stack([images.image(int(index)) for index in indices])


class ArrayImages:
    """Grey images held in memory: scikit-learn's digits or Fashion-MNIST.

    Args:
        pixels: grey values [N, H, W].
        largest: pixel value of white.
        labels: class index of every image.
        classes: class names.
        prefix: first part of the image names.
        numbers: number of every image in the source, the last part of its name.
        side: side that images are resized to, bilinearly.
        document: description of the source, as JSON.
    """

    colours = 1

    def __init__(
        self,
        pixels: NDArray[Any],
        *,
        largest: float,
        labels: NDArray[np.int64],
        classes: tuple[str, ...],
        prefix: str,
        numbers: Sequence[int],
        side: int,
        document: dict[str, Any],
    ) -> None:
        self._pixels, self._largest, self._labels, self._prefix = pixels, largest, labels, prefix
        self._numbers = numbers
        self._document = document
        self.size, self.side, self.classes = len(pixels), side, classes

    def image(self, index: int) -> Float[Tensor, "K H W"]:
        found = torch.from_numpy(self._pixels[index].astype(np.float32))[None] / self._largest
        return _resized(found, self.side)

    def label(self, index: int) -> int | None:
        return int(self._labels[index])

    def name(self, index: int) -> str:
        return f"{self._prefix}/{self._numbers[index]:05d}"

    def document(self) -> dict[str, Any]:
        return self._document


def _resized(image: Float[Tensor, "K H W"], side: int) -> Float[Tensor, "K H2 W2"]:
    if image.shape[-2:] == (side, side):
        return image
    return interpolate(image[None], size=(side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _digits(side: int | None, held_out: bool) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("the images `digits` need scikit-learn: pip install '.[train]'") from error
    found = load_digits()
    chosen = part_of(len(found.images), held_out)
    return ArrayImages(
        found.images[chosen],
        largest=16,
        labels=found.target[chosen],
        classes=tuple(map(str, range(10))),
        prefix="digits",
        numbers=chosen.tolist(),
        side=side or found.images.shape[-1],
        document={"digest": _digest(found.images, found.target)},
    )


def _digest(*parts: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _fashion_mnist(folder: Path, side: int | None, held_out: bool) -> Images:
    first = FASHION_FILES[held_out]
    file = folder / f"{first}-images-idx3-ubyte.gz"
    pixels = read_idx(file, 3, LARGEST_PIXELS)
    height, width = pixels.shape[1:]
    if height != width or not height:
        raise ValueError(f"{file} has images of {height} x {width} pixels: crop or pad them to squares")
    labels = read_idx(folder / f"{first}-labels-idx1-ubyte.gz", 1, LARGEST_LABELS).astype(np.int64)
    if len(pixels) != len(labels):
        raise ValueError(f"{folder} has {len(pixels)} {first} images but {len(labels)} labels")
    if labels.max(initial=0) >= len(FASHION_CLASSES):
        raise ValueError(
            f"{first} labels in {folder} must be 0 to {len(FASHION_CLASSES) - 1}, got {labels.max()}"
        )
    return ArrayImages(
        pixels,
        largest=255,
        labels=labels,
        classes=FASHION_CLASSES,
        prefix=first,
        numbers=range(len(pixels)),
        side=side or pixels.shape[-1],
        document={"path": str(folder), "digest": _digest(pixels, labels)},
    )


class Photos:
    """Square crops of the photographs that scikit-image ships; each photograph is a class.

    Held-out crops lie in the right quarter of a photograph (at least one crop wide) and the others to the
    left of it, so that the two share no pixel.
    """

    colours = 3
    classes = PHOTOS

    def __init__(self, side: int, held_out: bool) -> None:
        self.side = side
        self._photos = _photographs()
        self._crops = [
            (label, top, left)
            for label, photo in enumerate(self._photos)
            for top, left in _crops(*photo.shape[:2], side, held_out)
        ]
        if not self._crops:
            raise ValueError(
                f"no photograph has room for crops of side {side} on both sides of the cut: reduce the side"
            )
        self.size = len(self._crops)

    def image(self, index: int) -> Float[Tensor, "K H W"]:
        label, top, left = self._crops[index]
        crop = self._photos[label][top : top + self.side, left : left + self.side]
        return torch.from_numpy(crop.astype(np.float32)).permute(2, 0, 1) / 255

    def label(self, index: int) -> int | None:
        return self._crops[index][0]

    def name(self, index: int) -> str:
        label, top, left = self._crops[index]
        return f"{PHOTOS[label]}/{top:04d}-{left:04d}"

    def document(self) -> dict[str, Any]:
        return {"digest": _digest(*self._photos)}


def _photographs() -> list[NDArray[np.uint8]]:
    try:
        import skimage.data
    except ImportError as error:
        raise ValueError("the images `photos` need scikit-image: pip install '.[eval]'") from error
    return [np.ascontiguousarray(getattr(skimage.data, name)()) for name in PHOTOS]


def _crops(height: int, width: int, side: int, held_out: bool) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners of the crops on one side of the cut."""
    cut = min(width - width // 4, width - side)
    step = max(1, side // CROP_STEPS)
    columns = range(cut, width - side + 1, step) if held_out else range(0, cut - side + 1, step)
    for top in range(0, height - side + 1, step):
        for left in columns:
            yield top, left


IMAGES = ("digits", "fashion-mnist:PATH", "photos", "imagefolder:PATH")
"""Sources that `images_of` accepts."""


def images_of(spec: str, *, side: int | None = None, held_out: bool = False) -> Images:
    """Open a source of images.

    Args:
        spec: source, one of `IMAGES`.
        side: height and width in pixels; None uses that of the images themselves, 128 for photos, 256 for a
            folder.
        held_out: open the images that are not trained on: Fashion-MNIST's test set, the right part of every
            photograph, or every tenth image of the other sources.

    Raises:
        ValueError: the source is unknown, unreadable or empty.
    """
    kind, _, path = spec.partition(":")
    if spec not in IMAGES and (f"{kind}:PATH" not in IMAGES or not path):
        raise ValueError(f"unknown images {spec!r}: choose from {', '.join(IMAGES)}")
    least, most = BOUNDS["side"]
    if side is not None and not least <= side <= most:
        raise ValueError(f"side must be from {least} to {most}, got {side}")
    match kind:
        case "digits":
            found = _digits(side, held_out)
        case "fashion-mnist":
            found = _fashion_mnist(Path(path), side, held_out)
        case "photos":
            found = Photos(side or SIDES[kind], held_out)
        case _:
            found = ImageFolder(Path(path), side or SIDES[kind], held_out)
    if not found.size:
        raise ValueError(f"{spec} has no {'held-out images' if held_out else 'images to train on'}")
    return found
