"""The setting of a synthetic stack: what the theory predicts from and the simulation is built from."""

import math
from dataclasses import dataclass

MERGES = (
    *("plain", "layerscale", "rezero", "deepnorm", "mv_split"),
    *("mv_split_attn", "hard_centering", "highway", "pre_norm"),
)
"""The last four are controls: MV-Split behind attention only, a removed mean, and two other skip paths."""


MIXERS = ("softmax", "uniform", "linear", "lazy", "a_minus_i", "i_minus_a", "gated", "state_space")
"""From `lazy` on they are controls: blends of softmax attention and identity, a gate, and no attention."""


LARGEST_SIZE, LARGEST_GAIN = 2**24, 1e12
"""Beyond them no stack is meant, and double precision would overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gains:
    """What a residual merge multiplies the mean and the centered part of trunk and branch by, before its
    norm.

    The merge maps (X, F) to Z with JZ = mean_skip JX + mean_write JF and PZ = centered_skip PX +
    centered_write PF.
    """

    mean_skip: float
    mean_write: float
    centered_skip: float
    centered_write: float


def identity_blend(mixer: str, share: float) -> tuple[float, float]:
    """(e, l) of a mixer e I + l A with A its attention (N2, N3); (0, 1) for attention by itself.

    Args:
        mixer: one of `MIXERS`.
        share: l of `lazy`, (1 - l) I + l A.
    """
    blends = {"lazy": (1 - share, share), "a_minus_i": (-1.0, 1.0), "i_minus_a": (1.0, -1.0)}
    return blends.get(mixer, (0.0, 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One synthetic Post-Norm stack at initialisation; one object is predicted, simulated and compared.

    All block weights are N(0, weight_std^2), the residual writers N(0, writer_std^2) (weight_std where None).
    The input is RMSNorm(sqrt(input_cosine) 1 u^T + sqrt(1 - input_cosine) E) with u and E standard normal;
    the loss adjoint at the last block has the same form with adjoint_cosine, no norm, and draws of its own.

    Attributes:
        depth: blocks; each is an attention and a SwiGLU sub-layer with a merge of its own.
        tokens: image tokens of a sample.
        text_tokens: text tokens behind them, a second segment.
        batch: samples, each with its own input; the collapse front is read off the batch mean.
        width: features of a token.
        heads: attention heads; they divide the width.
        ffn_ratio: SwiGLU hidden width over width.
        adjoint_cosine: pair cosine of the tokens' loss adjoints dL/dX_L; no forward result depends on it.
        merge: of both sub-layers; `mv_split_attn` is `mv_split` behind attention and `plain` behind the FFN.
        residual_gain: lambda of `layerscale` and `rezero`, a of `deepnorm`; 1 makes each the plain merge.
            lambda of `highway`.
        alpha: gain of `mv_split` on the mean (a leaky integrator).
        beta: gain of `mv_split` on the centered part.
        mixer: `softmax` attention, `uniform` (every token reads the mean), `linear` attention (elu + 1);
            `lazy`, (1 - l) I + l A, `a_minus_i`, `i_minus_a` of softmax attention A; `gated`, softmax
            attention behind a gate; `state_space`, a scan of the tokens with gates, both ways.
        mixer_share: l of `lazy`, the share of attention; 0 mixes no tokens, 1 is softmax attention.
        rope: 2-D rotary positions on the image tokens, which then form a square; `uniform` and `state_space`
            read none.

    Raises:
        ValueError: a value outside its range, or a combination that no stack has.
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

    def __post_init__(self) -> None:
        for name, least in (
            ("depth", 0),
            ("tokens", 2),
            ("text_tokens", 0),
            ("batch", 1),
            ("width", 1),
            ("heads", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
            if getattr(self, name) > LARGEST_SIZE:
                raise ValueError(f"{name} must be at most {LARGEST_SIZE}, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(
                f"heads must divide width: width {self.width} is no multiple of {self.heads} heads"
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
        for name, known in (("merge", MERGES), ("mixer", MIXERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(known)}")
        for name in ("alpha", "beta"):
            if not abs(getattr(self, name)) <= LARGEST_GAIN:
                raise ValueError(
                    f"{name} must be finite and at most {LARGEST_GAIN:g}, got {getattr(self, name)}"
                )
        if self.rope and math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ValueError(
                f"rope places the image tokens on a square: tokens must be a square, got {self.tokens}"
            )
        if self.rope and self.head_width % 4:
            raise ValueError(f"2-D rope needs a head width divisible by 4, got {self.head_width}")

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
        """Tokens of the image and of the text segment."""
        return (self.tokens, self.text_tokens)

    @property
    def merges(self) -> tuple[str, str]:
        """The merges behind attention and behind the FFN."""
        return ("mv_split", "plain") if self.merge == "mv_split_attn" else (self.merge, self.merge)

    @property
    def writer_gains(self) -> tuple[Gains, Gains]:
        """The gains of both merges on mean and centered part (R1-R2, arXiv:2605.06169 Eq. 7-9 and App. D).

        Raises:
            ValueError: a merge that is not linear in trunk and branch, or has no norm behind it.
        """
        attention, ffn = self.merges
        return self._gains(attention), self._gains(ffn)

    @property
    def gains(self) -> Gains:
        """The gains of the merge, where attention and FFN have the same.

        Raises:
            ValueError: as `writer_gains`, or two different merges.
        """
        attention, ffn = self.writer_gains
        if attention != ffn:
            raise ValueError(f"{self.merge} merges attention and FFN differently: ask for writer_gains")
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
            raise ValueError(f"no theory of the merge {merge!r}: it has no gains")
        mean_skip, mean_write, skip, write = known[merge]
        return Gains(mean_skip=mean_skip, mean_write=mean_write, centered_skip=skip, centered_write=write)
