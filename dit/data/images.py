"""Images with their classes: what latents are made of."""

# N images, K colours (1 grey, 3 RGB), H height, W width of an image

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from meanmode.sim.store.files import reason

HELD_OUT_EVERY = 10
"""Of images that come without a test set of their own, every tenth is held out of training."""


FASHION_CLASSES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


FASHION_FILES = {False: "train", True: "t10k"}


PHOTOS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
"""The colour photographs that scikit-image ships inside its package."""


CROP_STEPS = 4
"""Crops of a photograph begin at every so-many-th part of their side."""


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


SIDES = {"photos": 128, "imagefolder": 256}
"""Default sides; of other sources that of their own images."""


@runtime_checkable
class Images(Protocol):
    """Images of one size, in an order of their own.

    Attributes:
        size: how many.
        side: height and width, pixels.
        colours: 1 for grey, 3 for RGB.
        classes: names of the classes; empty where there are none.
    """

    size: int
    side: int
    colours: int
    classes: tuple[str, ...]

    def image(self, index: int) -> Float[Tensor, "K H W"]:
        """An image, values in [0, 1]."""
        ...

    def label(self, index: int) -> int | None:
        """Its class, as a place in `classes`."""
        ...

    def name(self, index: int) -> str:
        """What it is called in the source and in files of captions."""
        ...

    def document(self) -> dict[str, Any]:
        """Which images these are, as JSON, with a `digest`."""
        ...


def batch(images: Images, indices: Sequence[int] | NDArray[np.int64]) -> Float[Tensor, "N K H W"]:
    """Some of the images."""
    return torch.stack([images.image(int(index)) for index in indices])


class ArrayImages:
    """Images that are in memory: those of scikit-learn's digits and of Fashion-MNIST.

    Args:
        pixels: grey values.
        largest: value that is white.
        labels: classes.
        classes: their names.
        prefix: of the names of the images.
        numbers: of the images in their source, which end their names.
        side: to which they are resized, bilinearly.
        document: what they are.
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
        raise ValueError("the images `digits` come with scikit-learn: pip install '.[train]'") from error
    found = load_digits()
    chosen = _part(len(found.images), held_out)
    return ArrayImages(
        found.images[chosen],
        largest=16,
        labels=found.target[chosen],
        classes=tuple(map(str, range(10))),
        prefix="digits",
        numbers=chosen.tolist(),
        side=side or found.images.shape[-1],
        document={"digest": _digest(found.images.tobytes(), found.target.tobytes())},
    )


def _part(size: int, held_out: bool) -> NDArray[np.int64]:
    """Places of the images that are trained on, or of those that are not."""
    places = np.arange(size)
    return places[(places % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _fashion_mnist(folder: Path, side: int | None, held_out: bool) -> Images:
    first = FASHION_FILES[held_out]
    pixels = _idx(folder / f"{first}-images-idx3-ubyte.gz", 3)
    labels = _idx(folder / f"{first}-labels-idx1-ubyte.gz", 1).astype(np.int64)
    if len(pixels) != len(labels):
        raise ValueError(f"{folder} holds {len(pixels)} {first} images, but {len(labels)} labels")
    if labels.max(initial=0) >= len(FASHION_CLASSES):
        raise ValueError(
            f"{folder} has {first} labels up to {labels.max()}, not 0 to {len(FASHION_CLASSES) - 1}"
        )
    return ArrayImages(
        pixels,
        largest=255,
        labels=labels,
        classes=FASHION_CLASSES,
        prefix=first,
        numbers=range(len(pixels)),
        side=side or pixels.shape[-1],
        document={"path": str(folder), "digest": _digest(pixels.tobytes(), labels.tobytes())},
    )


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An array of a gzipped idx file: two zero bytes, type 8, dimensions, sizes as big-endian words, bytes.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: name the folder of the gzipped idx files") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: it cannot be unpacked") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({reason(error)})") from error
    head = 4 * (1 + dimensions)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < head:
        raise ValueError(f"{path} is no idx file of bytes in {dimensions} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    if len(content) - head != np.prod(shape):
        raise ValueError(f"{path} is truncated: it says {shape}, and holds {len(content) - head} bytes")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


class Photos:
    """Square crops of the photographs that scikit-image ships, with their names for classes.

    Held-out crops lie in the right quarter of a photograph (of its width, at least one crop), the others
    left of it: they share no pixel.
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
            raise ValueError(f"no photograph has room for a crop of side {side} on either side of the cut")
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
        return {"digest": _digest(*(photo.tobytes() for photo in self._photos))}


def _photographs() -> list[NDArray[np.uint8]]:
    try:
        import skimage.data
    except ImportError as error:
        raise ValueError("the images `photos` come with scikit-image: pip install '.[eval]'") from error
    return [np.ascontiguousarray(getattr(skimage.data, name)()) for name in PHOTOS]


def _crops(height: int, width: int, side: int, held_out: bool) -> Iterator[tuple[int, int]]:
    """Upper left corners of the crops on one side of the cut."""
    cut = min(width - width // 4, width - side)
    step = max(1, side // CROP_STEPS)
    columns = range(cut, width - side + 1, step) if held_out else range(0, cut - side + 1, step)
    for top in range(0, height - side + 1, step):
        for left in columns:
            yield top, left


class ImageFolder:
    """Images of a folder and its sub-folders, sorted by path, cut to a square and reduced to one side.

    Classes are the names of the sub-folders that hold images directly, where all images lie in some. The
    middle square of an image is taken, as for class-conditional ImageNet, and scaled by a bicubic filter that
    is as wide as its reduction. The digest is of paths and sizes, not of what the files hold, which would
    take longer than encoding.

    Raises:
        ValueError: no folder, or none that holds images.
    """

    colours = 3

    def __init__(self, folder: Path, side: int, held_out: bool) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder of images")
        paths = sorted(
            Path(place, name).relative_to(folder)
            for place, _, names in os.walk(folder, followlinks=True)  # folders of classes are often links
            for name in names
            if Path(name).suffix.lower() in SUFFIXES
        )
        if not paths:
            raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
        parents = [path.parent.as_posix() for path in paths]
        self.classes = () if "." in parents else tuple(sorted(set(parents)))
        places = {name: place for place, name in enumerate(self.classes)}
        chosen = _part(len(paths), held_out)
        self._folder, self.side, self.size = folder, side, len(chosen)
        self._paths = [paths[place] for place in chosen]
        self._labels = [places.get(parents[place]) for place in chosen]
        listing = [f"{path.as_posix()} {(folder / path).stat().st_size}\n".encode() for path in paths]
        self._document = {"path": str(folder), "digest": _digest(*listing)}

    def image(self, index: int) -> Float[Tensor, "K H W"]:
        from PIL import Image

        path = self._folder / self._paths[index]
        try:
            with Image.open(path) as found:
                if found.mode.startswith(("I", "F")):
                    raise ValueError(f"its values have more than 8 bits (mode {found.mode}): convert it to 8")
                picture = found.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is no readable image: {error}") from error
        short = min(picture.size)
        left, top = ((size - short) // 2 for size in picture.size)
        square = picture.crop((left, top, left + short, top + short))
        if short != self.side:
            square = square.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square, np.float32)).permute(2, 0, 1) / 255

    def label(self, index: int) -> int | None:
        return self._labels[index]

    def name(self, index: int) -> str:
        return self._paths[index].as_posix()

    def document(self) -> dict[str, Any]:
        return self._document


IMAGES = ("digits", "fashion-mnist:PATH", "photos", "imagefolder:PATH")
"""What `images_of` knows."""


def images_of(spec: str, *, side: int | None = None, held_out: bool = False) -> Images:
    """The images that are meant.

    Args:
        spec: one of `IMAGES`.
        side: in pixels; None for that of the images themselves, 128 for photos, 256 for a folder.
        held_out: those that are not trained on: Fashion-MNIST's own test set, the right of every photograph,
            every tenth image of the others.

    Raises:
        ValueError: unknown images, or none that can be read.
    """
    kind, _, path = spec.partition(":")
    if spec not in IMAGES and (f"{kind}:PATH" not in IMAGES or not path):
        raise ValueError(f"unknown images {spec!r}: choose from {', '.join(IMAGES)}")
    if side is not None and side < 1:
        raise ValueError(f"side must be at least 1, got {side}")
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
        raise ValueError(f"{spec} holds no images {'that are held out' if held_out else 'to train on'}")
    return found
