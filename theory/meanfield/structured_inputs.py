"""Inputs with structure for the Gram recursion: patches of an image, and clusters."""

# T tokens, D features

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


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


def clustered_cosines(tokens: int, clusters: int = 4, within: float = 0.8) -> Array:
    """Cosines of tokens that belong to orthogonal clusters in turn, `within` inside each cluster [T, T].

    The matrix itself, not a draw from it: no noise of a finite width.
    """
    owner = np.arange(tokens) % clusters
    return (1 - within) * np.eye(tokens) + within * (owner[:, None] == owner)
