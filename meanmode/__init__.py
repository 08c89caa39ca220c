"""Mean Mode: will a very deep transformer collapse into its token mean, when, and why.

The public names are loaded when they are first used, so that `import meanmode` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanmode.sim.anatomy.anatomy import Anatomy
    from meanmode.sim.anatomy.discovery import discover
    from meanmode.sim.convert.conversion import convert
    from meanmode.sim.observe.probe import Probe
    from meanmode.sim.store.run_reader import open_run
    from meanmode.sim.store.sweep_store import open_sweep
    from meanmode.sim.watch.watch import Watch
    from meanmode.theory.laws.all_laws import LAWS
    from meanmode.theory.meanfield.predicted_front import predict_front
    from meanmode.theory.setting import Setting

__all__ = [
    "LAWS",
    "Anatomy",
    "Probe",
    "Setting",
    "Watch",
    "convert",
    "discover",
    "open_run",
    "open_sweep",
    "predict_front",
]

_HOMES = {
    "Anatomy": "meanmode.sim.anatomy.anatomy",
    "LAWS": "meanmode.theory.laws.all_laws",
    "Probe": "meanmode.sim.observe.probe",
    "Setting": "meanmode.theory.setting",
    "Watch": "meanmode.sim.watch.watch",
    "convert": "meanmode.sim.convert.conversion",
    "discover": "meanmode.sim.anatomy.discovery",
    "open_run": "meanmode.sim.store.run_reader",
    "open_sweep": "meanmode.sim.store.sweep_store",
    "predict_front": "meanmode.theory.meanfield.predicted_front",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'meanmode' has no attribute {name!r}: it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
