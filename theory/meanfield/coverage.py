"""Which settings and inputs the recursions cover, how well they have done there, and why not the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meanmode.theory.meanfield.row_moments import ATTENTIONS, attention_of
from meanmode.theory.setting import Setting

SEGMENT_MERGES = ("mv_split", "mv_split_attn", "hard_centering")
"""Merges that project each segment separately."""


UNCOVERED_MERGES = {
    "highway": "it normalises its branch token by token",
    "pre_norm": "its trunk has no norm and grows with depth",
}


ONE_COSINE_MIXERS = {
    "gated": "its gates and values have no common row moments",
    "state_space": "its tokens differ by their position in the sequence",
}


ONE_COSINE, ALL_PAIRS = "one cosine", "all pairs"
"""The recursions: `MeanField` for exchangeable tokens, `GramField` for all others."""


MOST_TOKENS = 1024
"""Tokens up to which forecasts use the Gram recursion: its work grows faster than their square."""


def why_not_one_cosine(setting: Setting) -> str | None:
    """Why one pair cosine does not stand for all tokens of a setting; None if it does."""
    if setting.merge in UNCOVERED_MERGES:
        return f"no theory for the merge {setting.merge!r}: {UNCOVERED_MERGES[setting.merge]}"
    if attention_of(setting.mixer) not in ATTENTIONS:
        return f"one cosine does not describe the mixer {setting.mixer!r}: {ONE_COSINE_MIXERS[setting.mixer]}"
    if setting.merge in SEGMENT_MERGES and setting.text_tokens:
        return f"one cosine describes {setting.merge} with one segment only: set text_tokens to 0"
    if setting.input != "gaussian":
        return f"one cosine does not describe the input {setting.input!r}: its tokens are not exchangeable"
    return None


def why_not_gram(setting: Setting) -> str | None:
    """Why the Gram recursion does not cover a setting; None if it does."""
    for merge in setting.merges:
        if merge in UNCOVERED_MERGES:
            return f"no theory for the merge {merge!r}: {UNCOVERED_MERGES[merge]}"
    if setting.batch > 1:
        return f"the Gram recursion follows one sample: batch must be 1, got {setting.batch}"
    if "hard_centering" in setting.merges and 1 in setting.merge_segments:
        return "hard centering leaves nothing of a segment of one token"
    return None


def why_not_covered(setting: Setting) -> str | None:
    """Why no recursion forecasts a setting; None if one does."""
    if why_not_one_cosine(setting) is None:
        return None
    tokens = sum(setting.segments)
    if tokens > MOST_TOKENS:
        return (
            f"{why_not_one_cosine(setting)}; all pairs are followed up to {MOST_TOKENS} tokens, got {tokens}"
        )
    return why_not_gram(setting)


def has_theory(setting: Setting) -> bool:
    """Whether a recursion covers a setting, so that its front and profiles can be predicted."""
    return why_not_covered(setting) is None


def follows_gram(setting: Setting) -> bool:
    """Whether forecasts follow all pairs of tokens (`GramField`), as one cosine does not stand for them."""
    return why_not_one_cosine(setting) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well a recursion forecast one quantity, on seeds that it had not seen.

    Attributes:
        quantity: what was forecast.
        cases: settings that were scored.
        typical: mean |relative error| of a front; median |ln(predicted / measured)| of A.
        largest: the largest of them over the cases.
        stores: names of the committed stores that show it.
    """

    quantity: str
    cases: int
    typical: float
    largest: float
    stores: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a recursion was scored on: its scores, and the range of every field (low, high) or its values."""

    scores: tuple[Score, ...]
    ranges: Mapping[str, tuple[float, float]]
    values: Mapping[str, tuple[Any, ...]]


MEASURED = {
    ONE_COSINE: Measured(
        scores=(
            Score(
                quantity="front",
                cases=63,
                typical=0.020,
                largest=0.070,
                stores=(
                    *("collapse_front", "front_settings", "front_settings_large", "mixers"),
                    "structured_fronts",
                ),
            ),
            Score(
                quantity="amplification",
                cases=17,
                typical=0.020,
                largest=0.095,
                stores=("depth_profiles", "token_law", "structured_gradients"),
            ),
        ),
        ranges={"width": (64, 1024), "tokens": (16, 1024), "ffn_ratio": (0.5, 8), "batch": (1, 1)},
        values={
            "merge": ("plain", "layerscale", "rezero", "deepnorm", "mv_split"),
            "mixer": ("softmax", "uniform", "linear", "lazy"),
            "rope": (False, True),
        },
    ),
    ALL_PAIRS: Measured(
        scores=(
            Score(quantity="front", cases=39, typical=0.013, largest=0.055, stores=("structured_fronts",)),
            Score(
                quantity="amplification",
                cases=24,
                typical=0.030,
                largest=0.173,
                stores=("structured_gradients",),
            ),
        ),
        ranges={"width": (64, 256), "tokens": (16, 64), "ffn_ratio": (1, 3), "text_tokens": (0, 16)},
        values={
            "merge": ("plain", "rezero", "deepnorm", "mv_split"),
            "mixer": ("softmax", "linear", "lazy", "gated", "state_space"),
            "frame_means": (False,),
        },
    ),
}
"""Recursion -> what it was scored on; `tests/docs/test_promises.py` computes the numbers from the stores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """What the theory says about a setting and its input, and how far to trust it.

    Attributes:
        recursion: `one cosine` or `all pairs`; None where there is no theory.
        reason: why there is no theory, or why one cosine does not suffice; None otherwise.
        scores: of that recursion, where it was measured.
        outside: fields of the setting beyond what was measured, in words; the scores then promise nothing.
    """

    recursion: str | None
    reason: str | None
    scores: tuple[Score, ...]
    outside: tuple[str, ...]

    def words(self) -> list[str]:
        """The score of its fronts and what was not measured, in words."""
        said = [
            f"{score.cases} such fronts were off by {score.typical:.1%} on average, at most "
            f"{score.largest:.1%}"
            for score in self.scores
            if score.quantity == "front"
        ]
        return said + [f"not measured at {field}" for field in self.outside]


def coverage(setting: Setting, recursion: str | None = None) -> Coverage:
    """Which recursion forecasts a setting with its input, its measured error, and what was not measured.

    Args:
        setting: the stack and its input.
        recursion: `all pairs` for tokens of your own; None takes the one that forecasts use.
    """
    reason = why_not_covered(setting)
    if reason is not None:
        return Coverage(recursion=None, reason=reason, scores=(), outside=())
    recursion = recursion or (ALL_PAIRS if follows_gram(setting) else ONE_COSINE)
    measured = MEASURED[recursion]
    outside = [
        f"{name} {getattr(setting, name)} (measured: {low:g} to {high:g})"
        for name, (low, high) in measured.ranges.items()
        if not low <= getattr(setting, name) <= high
    ]
    outside += [
        f"{name} {getattr(setting, name)} (measured: {', '.join(map(str, known))})"
        for name, known in measured.values.items()
        if getattr(setting, name) not in known
    ]
    return Coverage(
        recursion=recursion,
        reason=why_not_one_cosine(setting),
        scores=measured.scores,
        outside=tuple(outside),
    )
