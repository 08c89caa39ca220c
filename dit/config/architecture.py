"""The architecture of the diffusion transformer: sizes, merge, mixer and initialisation; no torch."""

import math
from dataclasses import dataclass

from meanmode.dit.config.training_config import at_least, one_of
from meanmode.sim.trunk.constants import MERGE_EPS, QK_EPS
from meanmode.theory.setting import Setting

PUBLISHED_STD = 0.02
"""Standard deviation of the weights of the published runs, at width 1024 (arXiv:2605.06169 Table 3)."""


PUBLISHED_WIDTH = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """A single-stream diffusion transformer: patch embedding, the trunk of `sim`, projection to velocities.

    Attributes:
        depth: blocks, each of attention and SwiGLU with a residual merge behind either.
        width: features of a token.
        heads: attention heads.
        ffn_ratio: SwiGLU hidden width over width.
        channels: of a latent.
        side: height and width of a latent.
        patch: side of the square patch that makes an image token.
        text_tokens: text tokens of a sample, at most.
        text_width: features of a text token; where it is not `width`, a projection joins them.
        copies: how often every token stands in the sequence, at one position (law X1: 2 changes nothing that
            is learned); the velocity is read off the first copy.
        merge, residual_gain, alpha, beta: as in `theory.Setting`; the gains are where learned ones begin.
        mixer, mixer_share, rope: as in `theory.Setting`.
        initialisation: `published`, N(0, 0.02^2) at every width; or `width_matched`,
            N(0, (0.64 / sqrt(width))^2), which is the same at the published width 1024 and gives narrow
            networks the same gain per layer (with 0.02 a network of width 16 is all but linear). It holds for
            the embeddings and the blocks.
        writer_std: of the residual writers, at first; 0 as published, None for that of the other weights.
        head_std: of the final projection, whose bias is zero.
        merge_eps: of the norms of the merges (the released checkpoint's; Table 3 says 1e-6).
        qk_eps: of QK-Norm.
        input_eps: of the norms of embedded image and text tokens.

    Raises:
        ValueError: a value outside its range, or sizes that do not go together.
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
        """Tokens of a latent, T_img."""
        return (self.side // self.patch) ** 2

    @property
    def patch_features(self) -> int:
        """Numbers in a patch."""
        return self.channels * self.patch**2

    @property
    def weight_std(self) -> float:
        """Standard deviation of the weights at first, but for writers and final projection."""
        return PUBLISHED_STD * (
            1 if self.initialisation == "published" else math.sqrt(PUBLISHED_WIDTH / self.width)
        )

    def setting(self, batch: int = 1) -> Setting:
        """The trunk at initialisation, as the theory and the blocks know it; of one copy of the tokens."""
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
