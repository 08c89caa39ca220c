"""Descriptions of the observables as variables of a store."""

from collections.abc import Mapping

from meanmode.sim.observe import observables
from meanmode.sim.observe.observable_names import BACKWARD_OBSERVABLES
from meanmode.sim.store.files import Variable


def observable_variables(dims: Mapping[str, tuple[str, ...]]) -> dict[str, Variable]:
    """Describe observables for a store.

    Args:
        dims: observable -> its dimensions, from `meanmode.sim.observe.observable_names.observable_dims`.
    """
    return {name: Variable(dims=of, definition=_definition(name)) for name, of in dims.items()}


def _definition(name: str) -> str:
    """First line of the observable's docstring, plus its segment; gradients have definitions of their own."""
    if name in BACKWARD_OBSERVABLES:
        return BACKWARD_OBSERVABLES[name][1]
    base, _, segment = name.partition("_image") if name.endswith("_image") else name.partition("_text")
    text = (getattr(observables, base).__doc__ or "").splitlines()[0]
    where = {"_image": " (image tokens)", "_text": " (text tokens)"}.get(segment or name[len(base) :], "")
    return f"{text.rstrip('.')}{where}; mean over the batch"
