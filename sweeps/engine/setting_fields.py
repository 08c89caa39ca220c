"""The fields of a setting, each of which can be an axis of a sweep, and their definitions."""

import dataclasses

from meanmode.theory.setting import INPUTS, MERGES, MIXERS, Setting

FIELD_DEFINITIONS = {
    "depth": "Blocks",
    "tokens": "Image tokens",
    "text_tokens": "Text tokens, a second segment",
    "batch": "Samples; the front is read off their mean",
    "width": "Features of a token",
    "heads": "Attention heads",
    "ffn_ratio": "SwiGLU hidden width over width",
    "weight_std": "Standard deviation of all block weights",
    "writer_std": "Standard deviation of the residual writers; that of the others where not given",
    "input_cosine": "Pair cosine of the input tokens, in [0, 1)",
    "adjoint_cosine": "Pair cosine of the loss adjoints at the last block, in [0, 1)",
    "merge": f"Residual merge: {', '.join(MERGES)}",
    "residual_gain": "lambda of layerscale, rezero and highway, a of deepnorm",
    "alpha": "mv_split: gain on the mean",
    "beta": "mv_split: gain on the centered part",
    "mixer": f"Token mixer: {', '.join(MIXERS)}",
    "mixer_share": "lazy: the share l of attention in (1 - l) I + l A",
    "rope": "2-D rotary positions on image tokens",
    "input": f"Input of the image tokens: {', '.join(INPUTS)}",
    "frames": "Frames that the image tokens of a video form",
    "frame_means": "Whether merges take the mean of every frame instead of that of the image",
    "seed": "Seed of weights and input",
}
"""Definition of every field of a setting, as stores and the command line show it."""


SETTING_FIELDS = tuple(entry.name for entry in dataclasses.fields(Setting))
