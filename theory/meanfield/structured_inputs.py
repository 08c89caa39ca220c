"""Inputs with structure: patches of a photograph, clusters, and video, as cosines of their tokens."""

# T tokens, D features

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meanmode.theory.setting import CLUSTERS, Setting

Array = NDArray[np.float64]
WITHIN = 0.8
"""Cosine of two tokens of one cluster."""

TIME, SPACE = 0.9, 0.7
"""Cosine of two tokens of a video that are one frame, or one patch, apart."""


def token_cosines(tokens: ArrayLike) -> Array:
    """Cosine of every pair of tokens [T, T], the state of the Gram recursion, from their features [T, D].

    Raises:
        ValueError: not a finite matrix of at least two tokens, or a token of zeros, which has no direction.
    """
    features = np.asarray(tokens, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
        raise ValueError(f"tokens must be a finite matrix of at least two rows, got shape {features.shape}")
    largest = np.abs(features).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(f"token {int(np.argmin(largest))} is zero and has no direction: leave it out")
    features = (
        features / largest
    )  # squares of the largest or smallest numbers would leave the range of floats
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features @ features.T)


def image_patches(pixels: ArrayLike, tokens: int) -> Array:
    """Patches of the square in the middle of an image [height, width, channels], row by row [T, D].

    Values of one byte, 0 to 255, are scaled to -1 to 1, as diffusion models read them.

    Raises:
        ValueError: the patches cannot form a square, or the image is smaller than that.
    """
    image, side = np.asarray(pixels, dtype=np.float64) / 127.5 - 1, math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"patches form a square: tokens must be a square, got {tokens}")
    patch = min(image.shape[:2]) // side
    if not patch:
        raise ValueError(f"an image of {image.shape[0]} x {image.shape[1]} pixels has no {tokens} patches")
    top, left = ((length - side * patch) // 2 for length in image.shape[:2])
    square = image[top : top + side * patch, left : left + side * patch]
    return square.reshape(side, patch, side, patch, -1).swapaxes(1, 2).reshape(tokens, -1)


@functools.lru_cache(maxsize=8)
def photograph_cosines(tokens: int) -> Array:
    """Cosines of the patches of a portrait, the sample image of matplotlib [T, T]; do not write to them."""
    from matplotlib import cbook, image

    return token_cosines(
        image_patches(image.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)), tokens)
    )


def clustered_cosines(tokens: int, clusters: int = CLUSTERS, within: float = WITHIN) -> Array:
    """Cosines of tokens that belong to orthogonal clusters in turn, `within` inside each cluster [T, T].

    The matrix itself, not a draw from it: no noise of a finite width.
    """
    owner = np.arange(tokens) % clusters
    return (1 - within) * np.eye(tokens) + within * (owner[:, None] == owner)


def _falling(count: int, cosine: float) -> Array:
    index = np.arange(count)
    return np.asarray(cosine ** np.abs(index[:, None] - index))


def cosine_factors(setting: Setting) -> tuple[Array, ...]:
    """Matrices whose Kronecker product is the cosines of the image tokens of a setting's input.

    A video is separable, TIME^(frames apart) SPACE^(rows apart + columns apart): its factors are those of
    frames, rows and columns, so that no T x T matrix is needed. Every other input has one factor [T, T].
    """
    tokens = setting.tokens
    if setting.input == "photo":
        return (photograph_cosines(tokens),)
    if setting.input == "clusters":
        return (clustered_cosines(tokens),)
    if setting.input == "video":
        side = math.isqrt(tokens // setting.frames)
        return _falling(setting.frames, TIME), _falling(side, SPACE), _falling(side, SPACE)
    return ((1 - setting.input_cosine) * np.eye(tokens) + setting.input_cosine,)


def input_cosines(setting: Setting) -> Array:
    """Cosines of all tokens of a setting's input at infinite width [T, T].

    Text tokens share the direction of Gaussian image tokens; beside an image with structure they are
    independent of it and of each other.
    """
    text, cosine = setting.text_tokens, setting.input_cosine
    if setting.input == "gaussian":
        tokens = setting.tokens + text
        return (1 - cosine) * np.eye(tokens) + cosine
    image = np.ones((1, 1))
    for factor in cosine_factors(setting):
        image = np.asarray(np.kron(image, factor), dtype=np.float64)
    whole = np.eye(setting.tokens + text)
    whole[: setting.tokens, : setting.tokens] = image
    return whole


def factor_roots(factors: Sequence[Array]) -> list[Array]:
    """A root R of each factor C, R R^T = C up to rounding."""
    roots = []
    for factor in factors:
        values, vectors = np.linalg.eigh(factor)
        roots.append(np.asarray(vectors * np.sqrt(np.maximum(values, 0))))
    return roots
