"""The named sweeps, one per claim."""

from sweeps.collapse_front import COLLAPSE_FRONT
from sweeps.depth_profiles import DEPTH_PROFILES
from sweeps.front_settings import FRONT_SETTINGS, FRONT_SETTINGS_LARGE
from sweeps.mixers import MIXERS_AND_MERGES
from sweeps.sweep import Sweep
from sweeps.token_law import TOKEN_LAW

SWEEPS: dict[str, Sweep] = {
    sweep.name: sweep
    for sweep in (
        COLLAPSE_FRONT,
        FRONT_SETTINGS,
        FRONT_SETTINGS_LARGE,
        DEPTH_PROFILES,
        TOKEN_LAW,
        MIXERS_AND_MERGES,
    )
}


def named_sweep(name: str) -> Sweep:
    """The sweep of a name.

    Raises:
        ValueError: no sweep has this name.
    """
    if name not in SWEEPS:
        raise ValueError(f"unknown sweep {name!r}: choose one of {', '.join(SWEEPS)}")
    return SWEEPS[name]
