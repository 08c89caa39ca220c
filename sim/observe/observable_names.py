"""Names, dimensions and definitions of the observables; no torch."""

from meanmode.theory.setting import Setting

WRITERS = ("attn", "ffn")


STATE_OBSERVABLES = ("tcs", "rho")


BRANCH_OBSERVABLES = ("r_tr", "var_gain")


OPERATOR_OBSERVABLES = ("mu_eff", "row_div", "retention", "leakage")


GRADIENT_MODES = ("g_mean", "g_ctr", "g_inner")


COHERENCE_OBSERVABLES = ("amplification", "kappa", "kappa_abs")


GRADIENT_SIZES = {"grad_rms_q": "q_proj", "grad_rms_k": "k_proj"}
"""Observable -> the mixer's projection whose gradient it measures (root mean square)."""


ROOTS = ("grad_rms_q", "grad_rms_k", "grad_rms_v", "weight_rms", "update_rms")
"""Observables that are a root mean square: what is averaged is the mean square."""


LARGEST = ("max_logit",)
"""Observables that are the largest value of a step."""


BACKWARD_OBSERVABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "g_mean": (("block", "writer"), "Frobenius norm of the mean-coherent part of a writer's gradient (G1)"),
    "g_ctr": (("block", "writer"), "Frobenius norm of the centered part of a writer's gradient (G1)"),
    "g_inner": (("block", "writer"), "Inner product of the two parts of a writer's gradient (G1)"),
    "amplification": (("block", "writer"), "A, squared gradient over its diagonal sum (A2), batch mean"),
    "kappa": (("block", "writer"), "Mean over token pairs of cos(y) cos(delta) (A4), batch mean"),
    "kappa_abs": (("block", "writer"), "Mean over token pairs of |cos(y)||cos(delta)| (A5), batch mean"),
    "grad_rms_q": (("block",), "Root mean square of the gradient of the query projection"),
    "grad_rms_k": (("block",), "Root mean square of the gradient of the key projection"),
    "adjoint_tcs": (("block",), "Mean cosine similarity of the loss adjoints dL/dX_l, batch mean"),
}
"""Observable -> dimensions and definition; gradients are summed over the batch as an optimiser sees them."""

SUFFIXES = ("_image", "_text")
"""Suffixes of the state and branch observables of one segment, in settings with text."""


OBSERVABLES = (*STATE_OBSERVABLES, *BRANCH_OBSERVABLES, *OPERATOR_OBSERVABLES, *BACKWARD_OBSERVABLES)
"""All observables of blocks, without suffixes."""


def without_suffix(name: str) -> str:
    """The observable that a name with or without the suffix of a segment stands for."""
    base, _, segment = name.rpartition("_")
    return base if f"_{segment}" in SUFFIXES else name


def observable_dims(setting: Setting, *, backward: bool = False) -> dict[str, tuple[str, ...]]:
    """Observables recorded for a setting and their dimensions.

    Settings with text add the suffixes `_image` and `_text` to state and branch observables, those with
    frames the TCS within them.
    """
    suffixes = ("", *SUFFIXES) if setting.text_tokens else ("",)
    dims: dict[str, tuple[str, ...]] = {}
    for suffix in suffixes:
        dims |= {f"{name}{suffix}": ("block",) for name in STATE_OBSERVABLES}
        dims |= {f"{name}{suffix}": ("block", "writer") for name in BRANCH_OBSERVABLES}
    if 1 < setting.frames < setting.tokens:
        dims["tcs_frame"] = ("block",)
    dims |= {name: ("block",) for name in OPERATOR_OBSERVABLES}
    return dims | ({name: of for name, (of, _) in BACKWARD_OBSERVABLES.items()} if backward else {})
