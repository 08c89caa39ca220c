"""Run one synthetic stack at initialisation and measure every forward observable at every block."""

# B batch, T tokens, D width, H heads, L blocks

import dataclasses
import hashlib
import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sim import observables
from sim.stack import Block, synthetic_input
from theory import Setting

Array = NDArray[np.float32]

WRITERS = ("attn", "ffn")
STATE_OBSERVABLES = ("tcs", "rho")
BRANCH_OBSERVABLES = ("r_tr", "var_gain")
OPERATOR_OBSERVABLES = ("mu_eff", "row_div", "retention", "leakage")


def observable_dims(setting: Setting) -> dict[str, tuple[str, ...]]:
    """Names and dimensions of what is recorded of this setting; with text, segments get a suffix."""
    suffixes = ("", "_image", "_text") if setting.text_tokens else ("",)
    dims: dict[str, tuple[str, ...]] = {}
    for suffix in suffixes:
        dims |= {f"{name}{suffix}": ("block",) for name in STATE_OBSERVABLES}
        dims |= {f"{name}{suffix}": ("block", "writer") for name in BRANCH_OBSERVABLES}
    return dims | {name: ("block",) for name in OPERATOR_OBSERVABLES}


def stream(setting: Setting, seed: int, name: int) -> torch.Generator:
    """The random stream `name` of a seed: 0 for the input, l for the weights of block l.

    It depends on every field of the setting but the depth, so settings are independent of each other while a
    deep stack begins with exactly the blocks of a shallower one. Fields at their default do not enter: a
    field added later leaves old results as they were.
    """
    fields = {
        field.name: getattr(setting, field.name)
        for field in dataclasses.fields(setting)
        if field.name != "depth" and getattr(setting, field.name) != field.default
    }
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()
    sequence = np.random.SeedSequence([seed, *np.frombuffer(digest, np.uint32).tolist()], spawn_key=(name,))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


class _Recorder:
    """Batch means of the observables, collected block by block."""

    def __init__(self, setting: Setting) -> None:
        self.segments = {"": slice(None)}
        if setting.text_tokens:
            self.segments |= {"_image": slice(setting.tokens), "_text": slice(setting.tokens, None)}
        sizes = {"block": setting.depth + 1, "writer": len(WRITERS)}
        self.values = {
            name: np.full([sizes[dim] for dim in dims], np.nan, np.float32)
            for name, dims in observable_dims(setting).items()
        }

    def state(self, block: int, x: Tensor) -> None:
        for suffix, tokens in self.segments.items():
            part = x[:, tokens]
            if part.shape[1] > 1:
                self.values[f"tcs{suffix}"][block] = float(observables.tcs(part).mean())
            self.values[f"rho{suffix}"][block] = float(observables.rho(part).mean())

    def branch(self, block: int, writer: int, trunk: Tensor, output: Tensor) -> None:
        for suffix, tokens in self.segments.items():
            for name in BRANCH_OBSERVABLES:
                measure = getattr(observables, name)
                value = measure(trunk[:, tokens], output[:, tokens]).mean()
                self.values[f"{name}{suffix}"][block, writer] = float(value)

    def operator(self, block: int, matrix: Tensor, x: Tensor) -> None:
        self.values["mu_eff"][block] = float(observables.mu_eff(matrix).mean())
        self.values["row_div"][block] = float(observables.row_div(matrix).mean())
        self.values["retention"][block] = float(observables.retention(matrix, x).mean())
        self.values["leakage"][block] = float(observables.leakage(matrix, x).mean())


@torch.inference_mode()
def simulate(setting: Setting, seed: int, *, device: str | torch.device = "cpu") -> dict[str, Array]:
    """Forward observables of one synthetic stack, mean over the batch, in float32.

    Blocks are drawn, passed and dropped one after the other, so memory does not grow with depth.

    Args:
        setting: the stack.
        seed: of weights and input; equal seeds of one setting give equal results on one machine.
        device: where to compute; the random numbers are the same on every device.

    Returns:
        `tcs` and `rho` [L + 1], after block l (block 0 is the input); `r_tr` and `var_gain` [L + 1, 2] per
        writer and `mu_eff`, `row_div`, `retention`, `leakage` [L + 1] of block l, NaN at block 0. From a
        trunk that is no longer finite on, all are NaN.
    """
    recorder = _Recorder(setting)
    x = synthetic_input(setting, stream(setting, seed, 0)).to(device)
    recorder.state(0, x)
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
        if not bool(torch.isfinite(x).all()):
            break
        recorder.state(index, x)
    return recorder.values
