"""Which settings the mean-field recursion covers, and why it does not cover the others."""

from meanmode.theory.meanfield.row_moments import ATTENTIONS, attention_of
from meanmode.theory.setting import Setting

SEGMENT_MERGES = ("mv_split", "mv_split_attn", "hard_centering")
"""Merges that project each segment separately."""


UNCOVERED_MERGES = {
    "highway": "it normalises its branch token by token",
    "pre_norm": "its trunk has no norm and grows with depth",
}


UNCOVERED_MIXERS = {
    "gated": "its gates and values have no common row moments",
    "state_space": "its tokens differ by their position in the sequence",
}


def why_not_covered(setting: Setting) -> str | None:
    """Why the theory does not cover a setting; None if it does."""
    if setting.merge in UNCOVERED_MERGES:
        return f"no theory for the merge {setting.merge!r}: {UNCOVERED_MERGES[setting.merge]}"
    if attention_of(setting.mixer) not in ATTENTIONS:
        return f"no theory for the mixer {setting.mixer!r}: {UNCOVERED_MIXERS[setting.mixer]}"
    if setting.merge in SEGMENT_MERGES and setting.text_tokens:
        return f"the theory for {setting.merge} covers one segment only: set text_tokens to 0"
    return None


def has_theory(setting: Setting) -> bool:
    """Whether the recursion covers a setting, so that its front and profiles can be predicted."""
    return why_not_covered(setting) is None
