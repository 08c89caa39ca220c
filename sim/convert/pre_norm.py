"""Post-norm encoders of torch turned into pre-norm ones, by the order that their layers know themselves."""

import copy
from typing import Any

from torch import nn


def to_pre_norm(model: nn.Module) -> nn.Module:
    """Move the norms of every `nn.TransformerEncoder` in a model before its branches; in place.

    The trunk has no norm of its own any more, so an encoder without a final norm gets one: the keys
    `norm.weight` and `norm.bias` of its state dict are new, all others stay.

    Raises:
        ValueError: there is no such encoder, or its layers are pre-norm already.
    """
    encoders = [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
    if not encoders:
        raise ValueError(
            f"pre_norm is known of nn.TransformerEncoder alone, whose layers have both orders, not of "
            f"{type(model).__name__}: take the pre-norm relative of the model in its library"
        )
    layers: list[Any] = [layer for encoder in encoders for layer in encoder.layers]
    for layer in layers:
        if not isinstance(layer, nn.TransformerEncoderLayer):
            raise ValueError(
                f"pre_norm is known of nn.TransformerEncoderLayer, not of {type(layer).__name__}"
            )
        if layer.norm_first:
            raise ValueError("the layers are pre-norm already: norm_first is True")
    for layer in layers:
        layer.norm_first = True
    for encoder in encoders:
        encoder.use_nested_tensor = False  # torch's nested fast path is for post-norm layers only
        if encoder.norm is None:
            norm = copy.deepcopy(layers[-1].norm2)
            norm.reset_parameters()
            encoder.norm = norm
    return model
