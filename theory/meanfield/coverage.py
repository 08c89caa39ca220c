"""Which settings the recursions cover, and why they do not cover the others."""

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
