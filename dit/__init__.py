"""The diffusion transformer: the trunk of `sim` with its ends, rectified flow, training and sampling."""

from dit.model import DiT

__all__ = ["DiT"]
