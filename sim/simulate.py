"""Simulate synthetic stacks at initialisation, singly or as an ensemble, and measure all observables."""

# R runs of an ensemble, B batch, T tokens, D width, L blocks

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.sim.intervene.grammar import FIELDS, Intervention
from meanmode.sim.intervene.interventions import Interventions
from meanmode.sim.observe.block_probe import BlockProbe
from meanmode.sim.observe.deferred import Queue
from meanmode.sim.observe.measurement import Measurement
from meanmode.sim.observe.observable_names import BACKWARD_OBSERVABLES, observable_dims
from meanmode.sim.observe.record import Array, Record
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.stack import Block, synthetic_adjoint, synthetic_input
from meanmode.theory.setting import Setting

ADJOINT_STREAM = 2**32 - 1
"""Name of the random stream of the synthetic loss adjoint, above the block numbers of any stack."""


DRAWN = ("weight_std", "writer_std", "input_cosine", "adjoint_cosine", "residual_gain", "alpha", "beta")
"""Fields of a setting in which the members of an ensemble may differ, since they change no shape."""


def stream(setting: Setting, seed: int, name: int) -> torch.Generator:
    """Return the random stream `name`: 0 for the input, l for the weights of block l, or `ADJOINT_STREAM`.

    The stream depends on all fields of the setting except the depth and the adjoint cosine. Different
    settings are thus independent, but a deep stack starts with exactly the blocks of a shallower one, and the
    adjoint does not affect the forward pass. Fields with their default value are left out, so that adding a
    field leaves old results unchanged.
    """
    fields = {
        field.name: getattr(setting, field.name)
        for field in dataclasses.fields(setting)
        if field.name not in ("depth", "adjoint_cosine") and getattr(setting, field.name) != field.default
    }
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()
    sequence = np.random.SeedSequence([seed, *np.frombuffer(digest, np.uint32).tolist()], spawn_key=(name,))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def simulate(
    setting: Setting,
    seed: int,
    *,
    backward: bool = False,
    device: str | torch.device = "cpu",
    interventions: Sequence[Intervention] = (),
) -> dict[str, Array]:
    """Measure the observables of one synthetic stack: mean over the batch, in float32.

    Each block is drawn, applied and dropped before the next one, so memory does not grow with depth. The
    backward pass keeps the trunk before every block and draws and recomputes each block once more.

    Args:
        setting: the stack.
        seed: seed of weights, input and adjoint; one seed gives the same results every time on one machine.
        backward: whether to also measure the writer gradients of the synthetic loss adjoint; the forward
            observables are bitwise the same either way.
        device: torch device that computes; the random numbers are the same on every device.
        interventions: changes to the branch or trunk of any blocks (`meanmode.sim.intervene.interventions`).

    Returns:
        `tcs` and `rho` [L + 1] after block l (block 0 is the input); `r_tr` and `var_gain` [L + 1, 2] per
        writer and `mu_eff`, `row_div`, `retention`, `leakage` [L + 1] of block l, NaN at block 0. From
        the block on at which the trunk overflows, all are NaN. With `backward` also `BACKWARD_OBSERVABLES` of
        block l, NaN at block 0, except `adjoint_tcs`, which describes dL/dX_l. These are all NaN if the trunk
        overflows, and NaN from the last block whose adjoint overflows down to the input.

    Raises:
        ValueError: an intervention changes gradients or parameters, which a simulation does not use, or a
            block that the stack does not have.
    """
    values = _Walk([(setting, seed)], torch.device(device), interventions, backward=backward).values()
    return {name: value[0] for name, value in values.items()}


def simulate_ensemble(
    runs: Sequence[tuple[Setting, int]],
    *,
    backward: bool = False,
    device: str | torch.device = "cpu",
    interventions: Sequence[Intervention] = (),
) -> dict[str, Array]:
    """Measure many synthetic stacks of one shape as one batched network; see `simulate`.

    Every run draws the same random numbers as alone, and the results are the same up to rounding.

    Args:
        runs: setting and seed of each run; settings may differ only in the fields `DRAWN`.
        backward: as in `simulate`.
        device: as in `simulate`.
        interventions: as in `simulate`.

    Returns:
        The observables of `simulate`, with a leading axis of runs.

    Raises:
        ValueError: there are no runs, settings differ in shape, or see `simulate`.
    """
    if not runs:
        raise ValueError("an ensemble needs at least one run")
    first = runs[0][0]
    for setting, _ in runs:
        for field in dataclasses.fields(setting):
            here, there = getattr(setting, field.name), getattr(first, field.name)
            if field.name not in DRAWN and here != there:
                raise ValueError(
                    f"all runs of an ensemble must share their {field.name}, got {there} and {here}"
                )
    return _Walk(runs, torch.device(device), interventions, backward=backward).values()


def _of_fields(interventions: Sequence[Intervention], depth: int) -> Sequence[Intervention]:
    """Return the interventions after checking that they change fields and name existing blocks."""
    for asked in interventions:
        if asked.target not in FIELDS:
            raise ValueError(
                f"{asked}: a simulation trains nothing, so only {' and '.join(FIELDS)} can change"
            )
        if asked.blocks is not None and asked.blocks[-1] > depth:
            raise ValueError(f"{asked}: the stack has blocks 1 to {depth}")
    return interventions


class _Walk:
    """A pass through the stack and back, with one resident block that plays every block in turn."""

    def __init__(
        self,
        runs: Sequence[tuple[Setting, int]],
        device: torch.device,
        interventions: Sequence[Intervention],
        *,
        backward: bool,
    ) -> None:
        self.interventions = _of_fields(interventions, runs[0][0].depth)
        self._changed = ExitStack()
        self.runs = runs
        self.device = device
        self.depth, self.segments = runs[0][0].depth, runs[0][0].segments
        self.backward = backward
        members = [Block(setting) for setting, _ in runs]
        self.stacked = len(runs) > 1
        self.block = (stack_members(members) if self.stacked else members[0]).to(device)
        differentiated = [self.block.operator.proj, self.block.ffn.w2, *self.block.operator.sources]
        self.block.requires_grad_(False)
        for layer in differentiated:
            layer.requires_grad_(backward)
        self.weights = [layer.weight for layer in differentiated]
        dims = observable_dims(runs[0][0], backward=backward)
        self.record = Record(dims, self.depth, runs=len(runs) if self.stacked else None)
        self.probe = BlockProbe(self.block, Measurement(self.record, Queue()), 1)
        # per run: the first block with an invalid trunk, and the last block with an invalid adjoint
        self.trunk_lost = np.full(len(runs), self.depth + 1)
        self.adjoint_lost = np.full(len(runs), -1)

    def values(self) -> dict[str, Array]:
        """Simulate the stack and return its observables, with invalid values replaced by NaN."""
        trunks = self._down()
        if self.backward and (self.trunk_lost > self.depth).any():
            self._up(trunks)
        self.probe.remove()
        self._changed.close()
        return {name: self._blanked(name, values) for name, values in self.record.values().items()}

    def _blanked(self, name: str, values: Array) -> Array:
        values = values if self.stacked else values[None]
        for run, (down, up) in enumerate(zip(self.trunk_lost, self.adjoint_lost, strict=True)):
            if name not in BACKWARD_OBSERVABLES:
                values[run, down:] = np.nan
            elif down <= self.depth:
                values[run] = np.nan
            elif up >= 0:
                values[run, : up + (name != "adjoint_tcs")] = np.nan
        return values

    def _drawn(self, draw: Callable[[Setting, torch.Generator], Tensor], name: int) -> Tensor:
        draws = [draw(setting, stream(setting, seed, name)) for setting, seed in self.runs]
        return (torch.stack(draws) if self.stacked else draws[0]).to(self.device)

    def _become(self, index: int) -> None:
        """Draw the weights of block `index`."""
        self.probe.index = index
        self._changed.close()
        acting = [
            dataclasses.replace(one, blocks=(index,)) for one in self.interventions if one.acts_on(index)
        ]
        if acting:
            self._changed.enter_context(Interventions(self.block, acting, first=index))
        for run, (setting, seed) in enumerate(self.runs):
            self.block.reset_parameters(
                stream(setting, seed, index), setting=setting, run=run if self.stacked else None
            )

    def _alive(self, x: Tensor) -> NDArray[np.bool_]:
        """Which runs have a valid trunk: finite, and not zero, as after a norm whose squares overflow."""
        tokens = x.reshape(len(self.runs), -1, x.shape[-1])
        return (torch.isfinite(tokens).all(-1) & tokens.any(-1)).all(-1).cpu().numpy()

    @torch.inference_mode()
    def _down(self) -> Tensor:
        """Record the forward observables; return the trunks after blocks 0, 1, ... for the backward pass."""
        x = self._drawn(synthetic_input, 0)
        kept = x.new_empty((self.depth + 1 if self.backward else 0, *x.shape))
        if self.backward:
            kept[0] = x
        for index in range(1, self.depth + 1):
            self._become(index)
            x = self.block(x, self.segments)
            self.trunk_lost[~self._alive(x) & (self.trunk_lost > self.depth)] = index
            if (self.trunk_lost <= self.depth).all():
                break
            if self.backward:
                kept[index] = x
        if not self.depth:
            self.probe.state(0, x, self.segments)
        return kept

    def _up(self, trunks: Tensor) -> None:
        """Record the backward observables from the last block down to the input."""
        self.probe.forward = False
        adjoint = self._drawn(synthetic_adjoint, ADJOINT_STREAM)
        if not self.depth:
            self.probe.adjoint(0, adjoint)
        for index in range(self.depth, 0, -1):
            self._become(index)
            # cloned because autograd cannot save tensors made in inference mode
            start = trunks[index - 1].clone().requires_grad_()
            end = self.block(start, self.segments)
            adjoint, *_ = torch.autograd.grad(end, [start, *self.weights], adjoint)
            self.adjoint_lost[~np.isfinite(self._sizes(adjoint)) & (self.adjoint_lost < 0)] = index
            if (self.adjoint_lost >= 0).all():
                break

    def _sizes(self, adjoint: Tensor) -> Array:
        return adjoint.reshape(len(self.runs), -1).abs().amax(1).cpu().numpy()
