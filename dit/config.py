"""What a run is: the diffusion transformer, its training and its data, and the presets by name."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit.training_config import TrainingConfig, at_least, one_of
from sim.attention import QK_EPS
from sim.merges import MERGE_EPS
from theory import Setting

PUBLISHED_STD = 0.02
"""Standard deviation of the weights of the published runs, at width 1024 (arXiv:2605.06169 Table 3)."""

PUBLISHED_WIDTH = 1024

DATA = ("data", "data_digest")
"""Fields of a run that are of no part of it."""

PUBLISHED_RATE = 1e-3 / (0.2 * math.sqrt(PUBLISHED_WIDTH))
"""Of the published runs, 1.5625e-4 (Table 3)."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A run: the network, its training and its data.

    Attributes:
        model: the network.
        training: of it.
        data: the source of latents and texts: `digits`; `latents:PATH`, a store of `mms encode`; or `none`,
            of presets whose data are yours to name.
        data_digest: of the store that is meant; empty for whichever is there.

    Raises:
        ValueError: another source.
    """

    model: DiTConfig = field(default_factory=DiTConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: str = "digits"
    data_digest: str = ""

    def __post_init__(self) -> None:
        if self.latents is None:
            one_of("data", self.data, ("digits", "none", "latents:PATH"))

    @property
    def latents(self) -> Path | None:
        """The latent store that it is trained on, where it is one."""
        kind, _, path = self.data.partition(":")
        return Path(path) if kind == "latents" and path else None

    def field(self, name: str) -> Any:
        """The value of a field of its parts.

        Raises:
            ValueError: an unknown field.
        """
        for part in (self, self.model, self.training):
            if name in _types(type(part)):
                return getattr(part, name)
        raise ValueError(_unknown(name))

    def with_fields(self, values: Mapping[str, Any]) -> "RunConfig":
        """The run with fields of its parts set.

        Raises:
            ValueError: an unknown field, or a value out of range.
        """
        for name in values:
            self.field(name)
        changed = {}
        for part in ("model", "training"):
            known = _types(type(getattr(self, part)))
            of = {name: value for name, value in values.items() if name in known}
            changed[part] = dataclasses.replace(getattr(self, part), **of)
        rest = {name: value for name, value in values.items() if name in DATA}
        return dataclasses.replace(self, **changed, **rest)

    def with_options(self, options: Mapping[str, str]) -> "RunConfig":
        """The run with fields of its parts set from text, as of `--set name=value`.

        Raises:
            ValueError: an unknown field, or a value that is none of its type.
        """
        kinds = {**_types(DiTConfig), **_types(TrainingConfig), **dict.fromkeys(DATA, str)}
        for name in options:
            if name not in kinds:
                raise ValueError(_unknown(name))
        return self.with_fields({name: _parsed(name, text, kinds[name]) for name, text in options.items()})

    def document(self) -> dict[str, Any]:
        """As a JSON document."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> "RunConfig":
        """The run of a `document`.

        Raises:
            ValueError: a document of another version.
        """
        try:
            return cls(
                model=DiTConfig(**document["model"]),
                training=TrainingConfig(**document["training"]),
                data=document["data"],
                data_digest=document.get("data_digest", ""),
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"this configuration was written by another version: {error}") from error


def _unknown(name: str) -> str:
    known = [*_types(DiTConfig), *_types(TrainingConfig), *DATA]
    return f"unknown option {name!r}: choose from {', '.join(known)}"


def _types(of: type) -> dict[str, Any]:
    return typing.get_type_hints(of)


def _parsed(name: str, text: str, kind: Any) -> Any:
    """A field's value from text."""
    if typing.get_origin(kind) is types.UnionType:
        if text.lower() == "none":
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(kind) is tuple:
            return tuple(json.loads(text))
        return kind(text)
    except (ValueError, KeyError, TypeError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ValueError(f"{name} must be {words.get(kind, 'a JSON list')}, got {text!r}") from None


def _published(training: Mapping[str, Any], **model: Any) -> RunConfig:
    """A run of arXiv:2605.06169 Table 3: ImageNet latents of 16 x 16 x 128, texts of width 1024."""
    sizes: dict[str, Any] = {"width": 1024, "heads": 8, "channels": 128, "side": 16, "patch": 1}
    text: dict[str, Any] = {"text_tokens": 256, "text_width": 1024, "initialisation": "published"}
    large = {"sharding": "full", "recompute": 1, "telemetry_blocks": 16, "checkpoint_every": 1000}
    schedule = {"steps": 50_000, "batch": 1024, "rate": PUBLISHED_RATE, "warmup": 1000, "precision": "bf16"}
    return RunConfig(
        model=DiTConfig(**{**sizes, **text, **model}),
        training=TrainingConfig(**{**large, **schedule, **training}),
        data="none",
    )


def _ramp(depth: int, **model: Any) -> RunConfig:
    """A narrow network on digits under a ramp of the learning rate, up to the plain merge's collapse."""
    watch: dict[str, Any] = {"telemetry_every": 5, "watch_every": 1, "checkpoint_every": 100}
    if depth > 64:
        watch["telemetry_blocks"] = 32
    return RunConfig(
        model=DiTConfig(depth=depth, **model),
        training=TrainingConfig(
            schedule="depth_ramp", rate=None, steps=500, time_shift=1.0, stop_on="collapse", **watch
        ),
    )


MV_SPLIT = {"merge": "mv_split", "alpha": 0.0}


def _samples(patch: int) -> RunConfig:
    """A small network to look at samples of, on a latent store, which says its sizes."""
    return RunConfig(
        model=DiTConfig(depth=6, width=96, heads=6, patch=patch, **MV_SPLIT),
        training=TrainingConfig(steps=1500, batch=32, rate=3e-3, warmup=100, ema=0.998, telemetry_every=100),
        data="none",
    )


PRESETS: dict[str, RunConfig] = {
    "dit-400l-baseline": _published({}, depth=400),
    "dit-400l-baseline-half": _published({"rate": PUBLISHED_RATE / 2}, depth=400),
    "dit-400l-layerscale": _published({}, depth=400, merge="layerscale", residual_gain=1e-2, writer_std=None),
    "dit-400l-mvsplit": _published({}, depth=400, **MV_SPLIT, beta=1.0),
    "dit-1000l-mvsplit": _published({}, depth=1000, **MV_SPLIT, beta=0.03),
    **{f"digits-{depth}l": _ramp(depth) for depth in (16, 64, 128, 400, 1000)},
    **{f"digits-{depth}l-mvsplit": _ramp(depth, **MV_SPLIT, beta=1.0) for depth in (16, 64, 128, 400)},
    "digits-1000l-mvsplit": _ramp(1000, **MV_SPLIT, beta=0.03),
    "digits-samples": RunConfig(
        model=DiTConfig(depth=6, width=96, heads=6, side=16, patch=4, text_width=96, **MV_SPLIT),
        training=TrainingConfig(
            steps=2400, batch=32, rate=3e-3, warmup=100, ema=0.998, time_shift=1.0, telemetry_every=100
        ),
    ),
    **{f"{kind}-samples": _samples(patch) for kind, patch in (("pixels", 4), ("latents", 1))},
}
"""By name: the runs of arXiv:2605.06169 Table 3; ramps on digits, 16 to 1000 blocks; three to look at."""
