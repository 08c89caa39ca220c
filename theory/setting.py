"""The setting of a synthetic stack: the input of both the predictions and the simulation."""

import math
from dataclasses import dataclass

MERGES = (
    *("plain", "layerscale", "rezero", "deepnorm", "mv_split"),
    *("mv_split_attn", "hard_centering", "highway", "pre_norm"),
)
"""The last four are controls: MV-Split after attention only, a removed mean, and two other skip paths."""

MIXERS = ("softmax", "uniform", "linear", "lazy", "a_minus_i", "i_minus_a", "gated", "state_space")
"""`lazy` and later are controls: blends of softmax attention and identity, a gate, and no attention."""

INPUTS = ("gaussian", "photo", "clusters", "video")
"""Synthetic inputs: exchangeable tokens, and three whose tokens have cosines with structure."""

CLUSTERS = 4
"""Clusters of the input `clusters`."""

LARGEST_SIZE, LARGEST_GAIN = 2**24, 1e12
"""Upper limits of the fields; double precision would overflow beyond them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gains:
    """Gains of a residual merge, before its norm, on the mean and the centered part of trunk and branch.

    The merge maps (X, F) to Z with JZ = mean_skip JX + mean_write JF and
    PZ = centered_skip PX + centered_write PF.
    """

    mean_skip: float
    mean_write: float
    centered_skip: float
    centered_write: float


def identity_blend(mixer: str, share: float) -> tuple[float, float]:
    """(e, l) of a mixer e I + l A with attention A (laws N2, N3); (0, 1) for pure attention.

    Args:
        mixer: one of `MIXERS`.
        share: the l of `lazy`, (1 - l) I + l A; ignored by the others.
    """
    blends = {"lazy": (1 - share, share), "a_minus_i": (-1.0, 1.0), "i_minus_a": (1.0, -1.0)}
    return blends.get(mixer, (0.0, 1.0))


def framed(tokens: int, frames: int) -> tuple[int, ...]:
    """Token counts of equal frames.

    Raises:
        ValueError: the tokens do not fill the frames.
    """
    if tokens % frames:
        raise ValueError(f"{frames} frames of equal size do not add up to {tokens} tokens")
    return (tokens // frames,) * frames


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One synthetic Post-Norm stack at initialisation; the same object is predicted, simulated and compared.

    All block weights are N(0, weight_std^2), the residual writers N(0, writer_std^2) (weight_std where None).
    The input is RMSNorm(R E) with E standard normal: a random linear embedding of tokens whose cosines are
    R R^T. Gaussian tokens are RMSNorm(sqrt(input_cosine) 1 u^T + sqrt(1 - input_cosine) E) with u standard
    normal; the loss adjoint at the last block is of this form with adjoint_cosine, no norm and its own draws.

    Attributes:
        depth: number of blocks; each is an attention and a SwiGLU sub-layer, each with its own merge.
        tokens: image tokens per sample.
        text_tokens: text tokens per sample; they follow the image tokens as a second segment.
        batch: number of samples, each with its own input; the collapse front is that of the batch mean.
        width: features per token.
        heads: attention heads; must divide the width.
        ffn_ratio: SwiGLU hidden width divided by the width.
        adjoint_cosine: pair cosine of the tokens' loss adjoints dL/dX_L; forward results do not depend on it.
        merge: residual merge of both sub-layers; `mv_split_attn` is `mv_split` after attention and `plain`
            after the FFN.
        residual_gain: lambda of `layerscale`, `rezero` and `highway`, a of `deepnorm`; at 1, `layerscale`,
            `rezero` and `deepnorm` are the plain merge.
        alpha: gain of `mv_split` on the mean, which becomes a leaky integrator.
        beta: gain of `mv_split` on the centered part.
        mixer: `softmax` attention, `uniform` (every token reads the mean), `linear` attention (elu + 1);
            `lazy`, (1 - l) I + l A, `a_minus_i`, `i_minus_a` of softmax attention A; `gated`, softmax
            attention followed by a token-local gate; `state_space`, a gated scan in both directions.
        mixer_share: l of `lazy`, the share of attention; 0 mixes no tokens, 1 is softmax attention.
        rope: 2-D rotary positions on the image tokens, which must form a square; `uniform` and
            `state_space` ignore them.
        input: `gaussian`, exchangeable image tokens; `photo`, the patches of a photograph; `clusters`, four
            orthogonal ones with cosine 0.8 within; `video`, frames of patches whose cosines fall by the
            factor 0.9 per frame and 0.7 per patch. With structure, text tokens are independent of the image.
        frames: frames that the image tokens of `video` form, each a square of patches.
        frame_means: whether `mv_split`, `mv_split_attn` and `hard_centering` take the mean of every frame, a
            segment each, instead of that of the whole image.

    Raises:
        ValueError: a value outside its range, or fields that contradict each other.
    """

    depth: int = 64
    tokens: int = 64
    text_tokens: int = 0
    batch: int = 1
    width: int = 256
    heads: int = 4
    ffn_ratio: float = 3.0
    weight_std: float = 0.05
    writer_std: float | None = None
    input_cosine: float = 0.0
    adjoint_cosine: float = 0.0
    merge: str = "plain"
    residual_gain: float = 1.0
    alpha: float = 0.1
    beta: float = 1.0
    mixer: str = "softmax"
    mixer_share: float = 0.5
    rope: bool = False
    input: str = "gaussian"
    frames: int = 1
    frame_means: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("depth", 0),
            ("tokens", 2),
            ("text_tokens", 0),
            ("batch", 1),
            ("width", 1),
            ("heads", 1),
            ("frames", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
            if getattr(self, name) > LARGEST_SIZE:
                raise ValueError(f"{name} must be at most {LARGEST_SIZE}, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(
                f"heads must divide width: width {self.width} is not a multiple of {self.heads} heads"
            )
        for name in ("ffn_ratio", "weight_std", "residual_gain"):
            if not 0 < getattr(self, name) <= LARGEST_GAIN:
                raise ValueError(
                    f"{name} must be positive and at most {LARGEST_GAIN:g}, got {getattr(self, name)}"
                )
        if self.ffn_width < 1 or abs(self.ffn_width - self.ffn_ratio * self.width) > 1e-6:
            raise ValueError(f"ffn_ratio {self.ffn_ratio} times width {self.width} must be a whole number")
        if self.writer_std is not None and not 0 <= self.writer_std <= LARGEST_GAIN:
            raise ValueError(f"writer_std must be in [0, {LARGEST_GAIN:g}], got {self.writer_std}")
        for name in ("input_cosine", "adjoint_cosine"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.mixer_share <= 1:
            raise ValueError(f"mixer_share must be in [0, 1], got {self.mixer_share}")
        for name, known in (("merge", MERGES), ("mixer", MIXERS), ("input", INPUTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(known)}")
        for name in ("alpha", "beta"):
            if not abs(getattr(self, name)) <= LARGEST_GAIN:
                raise ValueError(
                    f"{name} must be finite and at most {LARGEST_GAIN:g}, got {getattr(self, name)}"
                )
        if self.rope and math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ValueError(
                f"rope arranges the image tokens in a square: tokens must be a square, got {self.tokens}"
            )
        if self.rope and self.head_width % 4:
            raise ValueError(f"2-D rope needs a head width divisible by 4, got {self.head_width}")
        self._check_input()

    def _check_input(self) -> None:
        """Refuse an input that the other fields contradict."""
        if self.input != "gaussian" and self.input_cosine:
            raise ValueError(
                f"the input {self.input} has its own cosines: input_cosine must be 0, got {self.input_cosine}"
            )
        if self.frames > 1 and self.input != "video":
            raise ValueError(f"only the input video has frames, got {self.frames} frames of {self.input}")
        if self.frame_means and self.frames == 1:
            raise ValueError("frame_means needs several frames: set frames, or leave frame_means out")
        patches = {"photo": self.tokens, "video": self.tokens / self.frames}.get(self.input, 1)
        if math.isqrt(int(patches)) ** 2 != patches:
            raise ValueError(
                f"the patches of an image form a square: {self.tokens} tokens in {self.frames} "
                f"frame{'s' if self.frames > 1 else ''} do not"
            )

    @property
    def ffn_width(self) -> int:
        """Hidden width of the SwiGLU sub-layer."""
        return round(self.ffn_ratio * self.width)

    @property
    def head_width(self) -> int:
        """Features of one attention head."""
        return self.width // self.heads

    @property
    def segments(self) -> tuple[int, int]:
        """Number of tokens in the image and in the text segment."""
        return (self.tokens, self.text_tokens)

    @property
    def merge_segments(self) -> tuple[int, ...]:
        """Number of tokens in every segment whose mean a merge takes: frames or image, and text."""
        return (*framed(self.tokens, self.frames if self.frame_means else 1), self.text_tokens)

    @property
    def merges(self) -> tuple[str, str]:
        """The merges after attention and after the FFN."""
        return ("mv_split", "plain") if self.merge == "mv_split_attn" else (self.merge, self.merge)

    @property
    def writer_gains(self) -> tuple[Gains, Gains]:
        """Gains of both merges on mean and centered part (R1-R2, arXiv:2605.06169 Eq. 7-9 and App. D).

        Raises:
            ValueError: the merge is not linear in trunk and branch, or is not followed by a norm.
        """
        attention, ffn = self.merges
        return self._gains(attention), self._gains(ffn)

    @property
    def gains(self) -> Gains:
        """Gains of the merge that attention and FFN share.

        Raises:
            ValueError: as `writer_gains`, or attention and FFN have different merges.
        """
        attention, ffn = self.writer_gains
        if attention != ffn:
            raise ValueError(f"{self.merge} merges attention and FFN differently: use writer_gains")
        return attention

    def _gains(self, merge: str) -> Gains:
        gain, alpha, beta = self.residual_gain, self.alpha, self.beta
        known = {
            "plain": (1.0, 1.0, 1.0, 1.0),
            "layerscale": (1.0, gain, 1.0, gain),
            "rezero": (1.0, gain, 1.0, gain),
            "deepnorm": (gain, 1.0, gain, 1.0),
            "mv_split": (1 - alpha, alpha, 1.0, beta),
            "hard_centering": (0.0, 0.0, 1.0, 1.0),
        }
        if merge not in known:
            raise ValueError(f"no theory for the merge {merge!r}: it has no gains")
        mean_skip, mean_write, skip, write = known[merge]
        return Gains(mean_skip=mean_skip, mean_write=mean_write, centered_skip=skip, centered_write=write)
