"""The architecture of the diffusion transformer: sizes, merge, mixer and initialisation."""

import math
from dataclasses import dataclass
from typing import Annotated

from meanmode.dit.config.field_ranges import NOT_NEGATIVE, POSITIVE, Range, check_fields, one_of
from meanmode.sim.trunk.constants import MERGE_EPS, QK_EPS
from meanmode.theory.setting import Setting

PUBLISHED_STD = 0.02
"""Standard deviation of the weights in the published runs (arXiv:2605.06169 Table 3)."""


PUBLISHED_WIDTH = 1024
"""Width of the published networks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """A single-stream diffusion transformer: patch embedding, the trunk of `sim`, projection to velocities.

    Attributes:
        depth: number of blocks, each with attention and a SwiGLU FFN and a residual merge after each of them.
        width: features per token.
        heads: attention heads per block.
        ffn_ratio: hidden width of SwiGLU, as a multiple of `width`.
        channels: channels of the latents.
        side: height and width of the latents.
        patch: side of the square patch of a latent that becomes one image token.
        text_tokens: maximum number of text tokens per sample.
        text_width: features per text token; if it differs from `width`, a learned projection adapts it.
        copies: number of copies of each token in the sequence, all at the same position (law X1: 2 copies
            change nothing that is learned); the velocity is read from the first copy.
        merge, residual_gain, alpha, beta: as in `meanmode.Setting`; learned gains start from these values.
        mixer, mixer_share, rope: as in `meanmode.Setting`.
        initialisation: distribution of the initial weights of the embeddings and blocks. `published`:
            N(0, 0.02^2) at every width; `width_matched`: N(0, (0.64 / sqrt(width))^2), identical at the
            published width 1024, which gives narrow networks the same gain per layer (with a standard
            deviation of 0.02, a network of width 16 is almost linear).
        writer_std: initial standard deviation of the residual writers; 0 as published, None to initialise
            them like the other weights.
        head_std: initial standard deviation of the final projection; its bias starts at zero.
        merge_eps: epsilon of the norms in the merges (as in the released checkpoint; Table 3 says 1e-6).
        qk_eps: epsilon of QK-Norm.
        input_eps: epsilon of the norms of the embedded image and text tokens.

    Raises:
        ValueError: a value is out of range, or sizes are incompatible.
    """

    depth: Annotated[int, Range(0, 2**16)] = 16
    width: Annotated[int, Range(1, 2**20)] = 16
    heads: Annotated[int, Range(1, 2**20)] = 1
    ffn_ratio: Annotated[float, Range(0, 1024, above=True)] = 3.0
    channels: Annotated[int, Range(1, 2**16)] = 1
    side: Annotated[int, Range(1, 2**13)] = 8
    patch: Annotated[int, Range(1, 2**13)] = 2
    text_tokens: Annotated[int, Range(0, 2**20)] = 4
    text_width: Annotated[int, Range(1, 2**20)] = 16
    copies: Annotated[int, Range(1, 64)] = 1
    merge: str = "plain"
    residual_gain: Annotated[float, POSITIVE] = 1.0
    alpha: float = 0.0
    beta: float = 1.0
    mixer: str = "softmax"
    mixer_share: float = 0.5
    rope: bool = True
    initialisation: str = "width_matched"
    writer_std: float | None = 0.0
    head_std: Annotated[float, NOT_NEGATIVE] = 0.02
    merge_eps: Annotated[float, NOT_NEGATIVE] = MERGE_EPS
    qk_eps: Annotated[float, NOT_NEGATIVE] = QK_EPS
    input_eps: Annotated[float, NOT_NEGATIVE] = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.side % self.patch:
            raise ValueError(f"patches of side {self.patch} do not tile a latent of side {self.side}")
        one_of("initialisation", self.initialisation, ("published", "width_matched"))
        self.setting()

    @property
    def image_tokens(self) -> int:
        """Image tokens per latent, T_img."""
        return (self.side // self.patch) ** 2

    @property
    def patch_features(self) -> int:
        """Values per patch, over all channels."""
        return self.channels * self.patch**2

    @property
    def weight_std(self) -> float:
        """Initial standard deviation of all weights except the writers and the final projection."""
        return PUBLISHED_STD * (
            1 if self.initialisation == "published" else math.sqrt(PUBLISHED_WIDTH / self.width)
        )

    def setting(self, batch: int = 1) -> Setting:
        """Return the trunk at initialisation, with one copy of the tokens, in the terms of the theory."""
        return Setting(
            depth=self.depth,
            tokens=self.image_tokens,
            text_tokens=self.text_tokens,
            batch=batch,
            width=self.width,
            heads=self.heads,
            ffn_ratio=self.ffn_ratio,
            weight_std=self.weight_std,
            writer_std=self.writer_std,
            merge=self.merge,
            residual_gain=self.residual_gain,
            alpha=self.alpha,
            beta=self.beta,
            mixer=self.mixer,
            mixer_share=self.mixer_share,
            rope=self.rope,
        )
