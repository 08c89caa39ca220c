"""Triton's interpreter where it differs from a device: it truncates to bfloat16, a device rounds."""

import warnings

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter


def like_a_device() -> None:
    """Make the interpreter round to bfloat16, and overflow without a warning, as a device does."""
    convert = interpreter._convert_float

    def rounded(
        x: NDArray[np.generic], given: tl.dtype, wanted: tl.dtype, mode: object
    ) -> NDArray[np.generic]:
        if (given, wanted) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.uint16).numpy()
        if (given, wanted) == (tl.bfloat16, tl.float32):  # as the interpreter does it, in less time
            return (x.astype(np.uint32) << 16).view(np.float32)
        return convert(x, given, wanted, mode)

    interpreter._convert_float = rounded
    warnings.filterwarnings("ignore", message="overflow encountered in exp")
