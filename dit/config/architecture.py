"""The architecture of the diffusion transformer: sizes, merge, mixer and initialisation."""

import math
from dataclasses import dataclass

from meanmode.dit.config.training_config import at_least, one_of
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

    depth: int = 16
    width: int = 16
    heads: int = 1
    ffn_ratio: float = 3.0
    channels: int = 1
    side: int = 8
    patch: int = 2
    text_tokens: int = 4
    text_width: int = 16
    copies: int = 1
    merge: str = "plain"
    residual_gain: float = 1.0
    alpha: float = 0.0
    beta: float = 1.0
    mixer: str = "softmax"
    mixer_share: float = 0.5
    rope: bool = True
    initialisation: str = "width_matched"
    writer_std: float | None = 0.0
    head_std: float = 0.02
    merge_eps: float = MERGE_EPS
    qk_eps: float = QK_EPS
    input_eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = {"channels": 1, "side": 1, "patch": 1, "text_width": 1, "copies": 1}
        at_least(self, {**sizes, "head_std": 0, "merge_eps": 0, "qk_eps": 0, "input_eps": 0})
        for name in ("head_std", "merge_eps", "qk_eps", "input_eps"):
            if not getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
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
