"""Where the theory speaks: which settings the mean-field recursion covers, and why not the others."""

from meanmode.theory.meanfield.row_moments import ATTENTIONS, attention_of
from meanmode.theory.setting import Setting

SEGMENT_MERGES = ("mv_split", "mv_split_attn", "hard_centering")
"""Merges that project each segment by itself."""


SILENT_MERGES = {
    "highway": "its branch is normed token by token",
    "pre_norm": "its trunk has no norm and grows",
}


SILENT_MIXERS = {
    "gated": "its gates and values have no common row moments",
    "state_space": "its tokens differ by their place in the sequence",
}


def silence(setting: Setting) -> str | None:
    """Why the theory has nothing to say of a setting; None where it speaks."""
    if setting.merge in SILENT_MERGES:
        return f"no theory of the merge {setting.merge!r}: {SILENT_MERGES[setting.merge]}"
    if attention_of(setting.mixer) not in ATTENTIONS:
        return f"no theory of the mixer {setting.mixer!r}: {SILENT_MIXERS[setting.mixer]}"
    if setting.merge in SEGMENT_MERGES and setting.text_tokens:
        return f"the theory of {setting.merge} speaks of one segment: set text_tokens to 0"
    return None


def has_theory(setting: Setting) -> bool:
    """Whether the recursion covers a setting, so that fronts and profiles of it can be predicted."""
    return silence(setting) is None
