"""Single precision whatever autocast says."""

from torch import Tensor


def single(x: Tensor) -> Tensor:
    """The tensor in float32 or better: half-precision trunks are measured in single precision."""
    return x.float() if x.dtype.itemsize < 4 else x
