"""`StockRun`: one training run of a model of another library, with everything that determines its numbers."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from meanmode.theory.setting import Setting

FAMILIES = (
    *("bert", "bert_pre_norm", "gpt2", "vit", "dit"),
    *("vit_encoder", "vit_encoder_pre_norm", "bert_text", "bert_text_pre_norm"),
)
"""BERT that reverses a sequence, BERT with norms before its branches (`RobertaPreLayerNorm`), GPT-2 that
continues a sequence with its reverse, ViT that tells digits apart, and a diffusion transformer (DiT) that
denoises them; a ViT of `nn.TransformerEncoder`, post-norm and pre-norm, that tells digits apart; BERT and
`RobertaPreLayerNorm` that fill in masked letters of a text."""


DISTURBANCES = ("none", "data", "restart", "nan")
"""Nothing; other data from a step on; a cosine decay of the rate that starts anew; one loss that is NaN."""


MERGES = ("as built", "mv_split", "mv_split frozen", "layerscale", "deepnorm", "highway")
"""The residual merge of the library, or the one that the model is converted to: MV-Split with a learned alpha
or with one frozen at 0, LayerScale at .1, DeepNorm with the initial weights that belong to it, and a highway,
lambda X + RMSNorm(F) with a constant lambda = sqrt(2 L), L blocks, before the norm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StockRun:
    """A run: AdamW, gradients clipped to a norm of 1, a linear warm-up and then a constant rate.

    Attributes:
        family: one of `FAMILIES`.
        depth: number of blocks.
        merge: one of `MERGES`.
        rate: learning rate after the warm-up.
        warmup: steps of the linear warm-up.
        steps: number of steps.
        batch: samples per step.
        width: features per token.
        disturbance: one of `DISTURBANCES`.
        disturbed_step: step from which, or at which, the disturbance acts.
        every: steps between measurements.

    Raises:
        ValueError: a value out of range.
    """

    family: str = "bert"
    depth: int = 4
    merge: str = "as built"
    rate: float = 1e-3
    warmup: int = 100
    steps: int = 400
    batch: int = 16
    width: int = 32
    disturbance: str = "none"
    disturbed_step: int = 250
    every: int = 10

    def __post_init__(self) -> None:
        for name, known in (("family", FAMILIES), ("disturbance", DISTURBANCES), ("merge", MERGES)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(known)}")
        for name in ("depth", "warmup", "steps", "batch", "width", "disturbed_step", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be positive and finite, got {self.rate}")

    def document(self) -> dict[str, Any]:
        """The fields, JSON-serialisable."""
        return dataclasses.asdict(self)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, from 1."""
        shape = min(1.0, step / self.warmup)
        if self.disturbance == "restart" and step < self.disturbed_step:
            shape *= (1 + math.cos(math.pi * step / self.disturbed_step)) / 2
        return self.rate * shape

    def setting(self) -> Setting:
        """A synthetic stack of the same size, by which the cost is estimated."""
        return Setting(depth=self.depth, width=self.width, tokens=16, batch=self.batch, ffn_ratio=3.0)
