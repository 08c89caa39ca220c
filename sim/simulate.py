"""Run one synthetic stack at initialisation and measure every observable at every block."""

# B batch, T tokens, D width, H heads, L blocks

import dataclasses
import hashlib
import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sim import observables
from sim.backward import BlockBackward, backward_block
from sim.gradients import coherence
from sim.stack import Block, synthetic_adjoint, synthetic_input
from theory import Setting

Array = NDArray[np.float32]

WRITERS = ("attn", "ffn")
STATE_OBSERVABLES = ("tcs", "rho")
BRANCH_OBSERVABLES = ("r_tr", "var_gain")
OPERATOR_OBSERVABLES = ("mu_eff", "row_div", "retention", "leakage")


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

ADJOINT_STREAM = 2**32 - 1
"""The stream of the synthetic loss adjoint, beyond the blocks of any stack."""


def observable_dims(setting: Setting, *, backward: bool = False) -> dict[str, tuple[str, ...]]:
    """Names and dimensions of what is recorded of this setting; with text, forward segments get a suffix."""
    suffixes = ("", "_image", "_text") if setting.text_tokens else ("",)
    dims: dict[str, tuple[str, ...]] = {}
    for suffix in suffixes:
        dims |= {f"{name}{suffix}": ("block",) for name in STATE_OBSERVABLES}
        dims |= {f"{name}{suffix}": ("block", "writer") for name in BRANCH_OBSERVABLES}
    dims |= {name: ("block",) for name in OPERATOR_OBSERVABLES}
    return dims | ({name: of for name, (of, _) in BACKWARD_OBSERVABLES.items()} if backward else {})


def stream(setting: Setting, seed: int, name: int) -> torch.Generator:
    """The random stream `name` of a seed: 0 for the input, l for the weights of block l, or `ADJOINT_STREAM`.

    It depends on every field of the setting but the depth and the adjoint cosine, so settings are independent
    of each other while a deep stack begins with exactly the blocks of a shallower one and the forward pass is
    that of any adjoint. Fields at their default do not enter: a field added later leaves old results as they
    were.
    """
    fields = {
        field.name: getattr(setting, field.name)
        for field in dataclasses.fields(setting)
        if field.name not in ("depth", "adjoint_cosine") and getattr(setting, field.name) != field.default
    }
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()
    sequence = np.random.SeedSequence([seed, *np.frombuffer(digest, np.uint32).tolist()], spawn_key=(name,))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


class _Recorder:
    """Batch means of the observables, collected block by block."""

    def __init__(self, setting: Setting, *, backward: bool) -> None:
        self.segments = {"": slice(None)}
        if setting.text_tokens:
            self.segments |= {"_image": slice(setting.tokens), "_text": slice(setting.tokens, None)}
        sizes = {"block": setting.depth + 1, "writer": len(WRITERS)}
        self.values = {
            name: np.full([sizes[dim] for dim in dims], np.nan, np.float32)
            for name, dims in observable_dims(setting, backward=backward).items()
        }

    def state(self, block: int, x: Tensor) -> None:
        for suffix, tokens in self.segments.items():
            part = x[:, tokens]
            if part.shape[1] > 1:  # a segment of one token has no pairs and no centered part
                self.values[f"tcs{suffix}"][block] = float(observables.tcs(part).mean())
                self.values[f"rho{suffix}"][block] = float(observables.rho(part).mean())

    def branch(self, block: int, writer: int, trunk: Tensor, output: Tensor) -> None:
        for suffix, tokens in self.segments.items():
            if trunk[:, tokens].shape[1] < 2:
                continue
            for name in BRANCH_OBSERVABLES:
                measure = getattr(observables, name)
                value = measure(trunk[:, tokens], output[:, tokens]).mean()
                self.values[f"{name}{suffix}"][block, writer] = float(value)

    def operator(self, block: int, matrix: Tensor, x: Tensor) -> None:
        self.values["mu_eff"][block] = float(observables.mu_eff(matrix).mean())
        self.values["row_div"][block] = float(observables.row_div(matrix).mean())
        self.values["retention"][block] = float(observables.retention(matrix, x).mean())
        self.values["leakage"][block] = float(observables.leakage(matrix, x).mean())

    def adjoint(self, block: int, adjoint: Tensor) -> None:
        self.values["adjoint_tcs"][block] = float(observables.adjoint_tcs(adjoint).mean())

    def gradients(self, block: int, found: BlockBackward) -> None:
        for name, gradient in (("grad_rms_q", found.queries), ("grad_rms_k", found.keys)):
            if gradient is not None:
                size = gradient.numel() ** 0.5
                self.values[name][block] = float(torch.linalg.vector_norm(gradient)) / size
        for writer, (y, delta) in enumerate(found.writers):
            modes = observables.writer_modes(y, delta)
            for name, value in zip(("g_mean", "g_ctr", "g_inner"), modes, strict=True):
                self.values[name][block, writer] = float(value)
            pairs = coherence(y, delta)
            for name, values in zip(("amplification", "kappa", "kappa_abs"), pairs, strict=True):
                self.values[name][block, writer] = float(values.mean())


def simulate(
    setting: Setting, seed: int, *, backward: bool = False, device: str | torch.device = "cpu"
) -> dict[str, Array]:
    """Observables of one synthetic stack, mean over the batch, in float32.

    Blocks are drawn, passed and dropped one after the other, so memory does not grow with depth; the backward
    pass keeps the trunk before every block, draws each block again and recomputes it on the way down.

    Args:
        setting: the stack.
        seed: of weights, input and adjoint; equal seeds of one setting give equal results on one machine.
        backward: measure the writer gradients of the synthetic loss adjoint too; the forward observables are
            the same to the bit.
        device: where to compute; the random numbers are the same on every device.

    Returns:
        `tcs` and `rho` [L + 1], after block l (block 0 is the input); `r_tr` and `var_gain` [L + 1, 2] per
        writer and `mu_eff`, `row_div`, `retention`, `leakage` [L + 1] of block l, NaN at block 0. From a
        trunk that overflowed on, all are NaN. With `backward` also `BACKWARD_OBSERVABLES`: those of
        block l, NaN at block 0, but `adjoint_tcs`, which is of dL/dX_l. Where the trunk does not stay finite
        all of them are NaN; from an adjoint that does not on, those below.
    """
    recorder = _Recorder(setting, backward=backward)
    trunks = _forward(recorder, setting, seed, torch.device(device), keep=backward)
    if backward and len(trunks) == setting.depth + 1:
        _backward(recorder, setting, seed, trunks)
    return recorder.values


@torch.inference_mode()
def _forward(
    recorder: _Recorder, setting: Setting, seed: int, device: torch.device, *, keep: bool
) -> list[Tensor]:
    """Record the forward observables; the finite trunks after blocks 0, 1, ... where they are to be kept."""
    x = synthetic_input(setting, stream(setting, seed, 0)).to(device)
    recorder.state(0, x)
    trunks = [x] if keep else []
    block, segments = Block(setting).to(device), setting.segments
    for index in range(1, setting.depth + 1):
        block.reset_parameters(stream(setting, seed, index))
        output, matrix = block.operator.forward_with_matrix(x, segments)
        recorder.operator(index, matrix, x)
        recorder.branch(index, 0, x, output)
        x = block.merge_attn(x, output, segments)
        output = block.ffn(x)
        recorder.branch(index, 1, x, output)
        x = block.merge_ffn(x, output, segments)
        # a norm whose squares overflow returns zeros, which are finite and no result
        if not bool(torch.isfinite(x).all()) or not bool(x.any()):
            break
        recorder.state(index, x)
        if keep:
            trunks.append(x)
    return trunks


def _backward(recorder: _Recorder, setting: Setting, seed: int, trunks: list[Tensor]) -> None:
    """Record the backward observables from the last block down to the input."""
    device = trunks[0].device
    adjoint = synthetic_adjoint(setting, stream(setting, seed, ADJOINT_STREAM)).to(device)
    recorder.adjoint(setting.depth, adjoint)
    block = Block(setting).to(device)
    for index in range(setting.depth, 0, -1):
        block.reset_parameters(stream(setting, seed, index))
        # a clone, since autograd saves no tensor made in inference mode
        found = backward_block(block, trunks[index - 1].clone(), adjoint, setting.segments)
        adjoint = found.adjoint
        if not bool(torch.isfinite(adjoint).all()):
            break
        recorder.gradients(index, found)
        recorder.adjoint(index - 1, adjoint)
