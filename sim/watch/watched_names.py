"""Names, dimensions and definitions of what a watched run records; no torch."""

from meanmode.sim.observe.observable_names import BACKWARD_OBSERVABLES

BLOCK, WRITER = ("block",), ("block", "writer")


SCALARS = {
    "loss": "Loss as the training script logged it",
    "lr": "Learning rate as the training script logged it",
    "grad_norm": "Global gradient norm as the training script logged it",
}


FORWARD = {
    "tcs": (BLOCK, "Mean cosine similarity over pairs of distinct tokens of the trunk (TCS), batch mean"),
    "rho": (BLOCK, "|mu(X)|_F / |c(X)|_F of the trunk, batch mean"),
    "r_tr": (WRITER, "|U(X)|_F / |X|_F, the output of a writer against the trunk, batch mean"),
    "max_logit": (BLOCK, "Largest attention logit that is not masked"),
    "attention_entropy": (BLOCK, "Entropy of the attention rows in nats, mean over queries, heads and batch"),
}
"""Observables of the forward pass: dimensions and definition."""


BACKWARD = {
    **{name: BACKWARD_OBSERVABLES[name] for name in ("g_mean", "g_ctr", "g_inner", "amplification", "kappa")},
    **{name: BACKWARD_OBSERVABLES[name] for name in ("adjoint_tcs", "grad_rms_q", "grad_rms_k")},
    "grad_rms_v": (BLOCK, "Root mean square of the gradient of the value projection"),
}
"""Observables of the backward pass: dimensions and definition."""


WEIGHTS = {
    "weight_rms": (WRITER, "Root mean square of a writer's weight before the update"),
    "update_rms": (WRITER, "Root mean square of the change of a writer's weight by the update"),
}
"""Observables of the weights: dimensions and definition."""


WATCHED: dict[str, tuple[tuple[str, ...], str]] = {**FORWARD, **BACKWARD, **WEIGHTS}
"""Everything that is measured."""


SUFFIXED = ("tcs", "rho", "r_tr", "adjoint_tcs")
"""Observables that are also measured on segments or on the streams of a block, with a suffix."""


SHOWN = ("tcs", "rho", "g_mean", "g_ctr", "amplification", "grad_rms_q", "grad_rms_k")
"""Observables whose medians over the deeper half of the blocks go to a sink."""


def chosen(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The observables to measure.

    Raises:
        ValueError: one of them is unknown.
    """
    if names is None:
        return tuple(WATCHED)
    for name in names:
        if name not in WATCHED:
            raise ValueError(f"unknown observable {name!r}: choose from {', '.join(WATCHED)}")
    return tuple(name for name in WATCHED if name in names)


def described(name: str, suffixes: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Dimensions and definition of an observable with or without a suffix."""
    for suffix in suffixes:
        base = name.removesuffix(f"_{suffix}")
        if suffix and base != name and base in SUFFIXED:
            dims, definition = WATCHED[base]
            return dims, f"{definition} ({suffix} tokens)"
    return WATCHED[name]
