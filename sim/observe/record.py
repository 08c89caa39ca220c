"""What is measured of a pass through the blocks: names, dimensions, and the values as they come in."""

# R runs of an ensemble, B batch, L blocks, W writers

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.theory.setting import Setting

Array = NDArray[np.float32]


WRITERS = ("attn", "ffn")


STATE_OBSERVABLES = ("tcs", "rho")


BRANCH_OBSERVABLES = ("r_tr", "var_gain")


OPERATOR_OBSERVABLES = ("mu_eff", "row_div", "retention", "leakage")


GRADIENT_MODES = ("g_mean", "g_ctr", "g_inner")


COHERENCE_OBSERVABLES = ("amplification", "kappa", "kappa_abs")


GRADIENT_SIZES = {"grad_rms_q": "q_proj", "grad_rms_k": "k_proj"}
"""Name -> the projection of the operator whose gradient it is the root mean square of."""


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
"""Name -> dimensions and definition; gradients are summed over the batch as an optimiser sees them."""


def observable_dims(setting: Setting, *, backward: bool = False) -> dict[str, tuple[str, ...]]:
    """Names and dimensions of what is recorded of this setting; with text, forward segments get a suffix."""
    suffixes = ("", "_image", "_text") if setting.text_tokens else ("",)
    dims: dict[str, tuple[str, ...]] = {}
    for suffix in suffixes:
        dims |= {f"{name}{suffix}": ("block",) for name in STATE_OBSERVABLES}
        dims |= {f"{name}{suffix}": ("block", "writer") for name in BRANCH_OBSERVABLES}
    dims |= {name: ("block",) for name in OPERATOR_OBSERVABLES}
    return dims | ({name: of for name, (of, _) in BACKWARD_OBSERVABLES.items()} if backward else {})


class Record:
    """Values of observables at blocks and writers.

    On a GPU they are kept where they were computed until they are asked for, so that none waits for another;
    on a CPU they are taken down at once, since thousands of small tensors would splinter the memory.

    Args:
        dims: name -> dimensions, of `observable_dims`; other names are not recorded.
        depth: blocks.
        runs: members of an ensemble, which every value then has as its first axis; None for a single run.
    """

    def __init__(self, dims: Mapping[str, tuple[str, ...]], depth: int, *, runs: int | None = None) -> None:
        self.dims = dict(dims)
        self.lead = () if runs is None else (runs,)
        sizes = {"block": depth + 1, "writer": len(WRITERS)}
        self._taken = {
            name: np.full([*self.lead, *(sizes[dim] for dim in of)], np.nan, np.float32)
            for name, of in dims.items()
        }
        self._waiting: dict[str, list[tuple[tuple[int, ...], Tensor]]] = {name: [] for name in dims}

    def wants(self, *names: str) -> bool:
        """Whether any of the names is recorded."""
        return any(name in self.dims for name in names)

    def put(self, name: str, place: tuple[int, ...], values: Tensor, counted: Tensor | None = None) -> None:
        """Values per sample, or one of the whole batch, at (block,) or (block, writer).

        Args:
            name: of the observable.
            place: of the values.
            values: in place of those that came before.
            counted: which samples the mean is taken over, as booleans; None for all.

        Raises:
            ValueError: another number of runs than the record's.
        """
        if name not in self.dims:
            return
        values = values.detach()
        if values.shape[: len(self.lead)] != self.lead:
            raise ValueError(f"{name} of {tuple(values.shape[:1])} runs does not fit a record of {self.lead}")
        self._put(name, place, values, counted)

    def _put(self, name: str, place: tuple[int, ...], values: Tensor, counted: Tensor | None) -> None:
        if values.ndim > len(self.lead):
            if counted is None:
                values = values.mean(-1)
            else:
                values = torch.where(counted, values, 0.0).sum(-1) / counted.sum(-1)
        if values.device.type == "cpu":
            self._take(name, place, values.numpy())
        else:
            self._waiting[name].append((place, values))

    def _take(self, name: str, place: tuple[int, ...], value: NDArray[Any]) -> None:
        self._taken[name][(slice(None),) * len(self.lead) + place] = value

    def values(self) -> dict[str, Array]:
        """Batch means [L + 1] or [L + 1, W], behind an axis of runs in an ensemble; NaN where none came."""
        for name, entries in self._waiting.items():
            if entries:
                measured = torch.stack([value for _, value in entries]).cpu().numpy()
                for (place, _), value in zip(entries, measured, strict=True):
                    self._take(name, place, value)
                entries.clear()
        return {name: taken.copy() for name, taken in self._taken.items()}
