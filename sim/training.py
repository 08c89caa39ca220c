"""Training an ensemble: many runs stepped as one batched network, each with its own rate, data and end."""

# R runs, P parameters of a run, B batch

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sim.interventions import members_of
from sim.muon import Muon
from sim.stack import blocks_of

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Learning rate min(peak, slope * step) at step 1, 2, ...: a linear ramp, or a warm-up to a constant.

    Attributes:
        slope: rate gained a step; infinite for a constant rate from the first step.
        peak: where the ramp ends; infinite where it does not.
        first_rate: rate of the first steps instead, from which the ramp is then entered where it is by then.
        first_steps: how many these are.

    Raises:
        ValueError: a value that is not positive, or no finite one.
    """

    slope: float = math.inf
    peak: float = math.inf
    first_rate: float = 0.0
    first_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("slope", "peak"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a schedule must be positive, got {getattr(self, name)}")
        if math.isinf(self.slope) and math.isinf(self.peak):
            raise ValueError("a schedule needs a finite slope (a ramp), a finite peak, or both")

    def rate(self, step: int) -> float:
        """The learning rate of an update, counted from 1."""
        return self.first_rate if step <= self.first_steps else min(self.peak, self.slope * step)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """The optimiser of arXiv:2605.06169 Table 3: decay on matrices only, gradients clipped by global norm.

    Attributes:
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, of matrices; vectors (gains, biases) are not decayed.
        clip: largest global gradient norm of a run; infinite for none.
        reader_rate: rate of the readers of all branches (`sim.interventions`) over that of the others.
        gain_rate: rate of the gains of the merges over that of the others.
        muon: the matrices of the blocks take orthogonalised steps instead (`sim.muon`).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    reader_rate: float = 1.0
    gain_rate: float = 1.0
    muon: bool = False


class EnsembleOptimiser:
    """torch.optim.AdamW on stacked parameters (`sim.ensemble`), every run with its own rate and norm.

    All parameters are moved into one buffer [R, P], matrices before vectors, of which they become views; the
    rows of a run are two parameters of the optimiser, in a group of their own each. A parameter without a
    gradient stands still, as do its moments; the count of steps is that of the run.

    Args:
        network: with stacked parameters; what does not require a gradient is left alone.
        options: of the optimiser.

    Attributes:
        inner: the optimiser; its groups 2 r and 2 r + 1 are the matrices and the vectors of run r.
        gradient_norms: of every run before clipping [R], of the last step.

    Raises:
        ValueError: nothing to train, or parameters without a common axis of runs.
    """

    def __init__(self, network: nn.Module, options: AdamW) -> None:
        self.options = options
        self.network = network
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        runs = {weight.shape[0] for weight in trained}
        if len(runs) != 1 or any(weight.ndim not in (3, 4) for weight in trained):
            raise ValueError("an ensemble is trained by stacked parameters: see sim.ensemble.stack_members")
        self.parameters = sorted(trained, key=lambda weight: weight.ndim)
        self.matrix_entries = sum(weight[0].numel() for weight in trained if weight.ndim == 3)
        values = torch.cat([weight.detach().flatten(1) for weight in self.parameters], dim=1)
        self.gradient_norms = values.new_zeros(len(values))
        groups = [
            {"params": [nn.Parameter(part)], "weight_decay": decay}
            for row in values
            for part, decay in zip(self._halves(row), (options.weight_decay, 0.0), strict=True)
        ]
        self.inner = torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, fused=True)
        self._adopt(values)
        self._relative = self._relative_rates()
        self._muon = Muon(self._block_matrices(), options.weight_decay) if options.muon else None

    def _relative_rates(self) -> Tensor | None:
        """Of every entry of a run [P], over the rate of the step; None where all have that."""
        factors = {"readers": self.options.reader_rate, "gates": self.options.gain_rate}
        if all(factor == 1 for factor in factors.values()):
            return None
        own = {
            id(weight): factor
            for group, factor in factors.items()
            for block in blocks_of(self.network)
            for weight in members_of(block, group)
        }
        sizes = [weight[0].numel() for weight in self.parameters]
        found = [
            self.values.new_full((size,), own.get(id(weight), 1.0))
            for weight, size in zip(self.parameters, sizes, strict=True)
        ]
        return torch.cat(found)

    def _block_matrices(self) -> list[nn.Parameter]:
        inside = {id(weight) for block in blocks_of(self.network) for weight in block.parameters()}
        return [weight for weight in self.parameters if weight.ndim == 3 and id(weight) in inside]

    def _halves(self, row: Tensor) -> tuple[Tensor, Tensor]:
        return row[: self.matrix_entries], row[self.matrix_entries :]

    def _adopt(self, values: Tensor) -> None:
        """Make the parameters of the network and of the optimiser views of these values."""
        start = 0
        for weight in self.parameters:
            end = start + weight[0].numel()
            weight.data = values[:, start:end].view(len(values), *weight.shape[1:])
            weight.grad = None
            start = end
        halves = (half for row in values for half in self._halves(row))
        for group, half in zip(self.inner.param_groups, halves, strict=True):
            group["params"][0].data = half
        self.values = values

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for weight in self.parameters:
            weight.grad = None

    @torch.no_grad()
    def gradients(self) -> Tensor:
        """All gradients [R, P], zero where a parameter has none."""
        found = (
            torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.parameters
        )
        return torch.cat([gradient.flatten(1) for gradient in found], dim=1)

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """Clip every run's gradient by its global norm, and update it at its rate."""
        gradients = self.gradients()
        self.gradient_norms = torch.linalg.vector_norm(gradients, dim=1)
        # 1e-6 as in torch.nn.utils.clip_grad_norm_
        gradients *= (self.options.clip / (self.gradient_norms + 1e-6)).clamp_max(1.0)[:, None]
        still = self._still()
        halves = (half for row in gradients for half in self._halves(row))
        twice = (rate for rate in rates for _ in range(2))
        for group, half, rate in zip(self.inner.param_groups, halves, twice, strict=True):
            group["lr"] = rate
            group["params"][0].grad = half
        if self._muon is None and self._relative is None:
            self.inner.step()
        else:
            self._changed_step(gradients, rates)
        for tensor, value in still:
            tensor.copy_(value)

    def _changed_step(self, gradients: Tensor, rates: Sequence[float]) -> None:
        """A step whose matrices are Muon's, or whose parts have rates of their own."""
        before = self.values.clone()
        self.inner.step()
        if self._muon is not None:
            self._muon.step(self._seen(before), self._seen(gradients), rates)
        if self._relative is not None:
            # decay included, an update of AdamW and of Muon is proportional to its rate
            self.values.copy_(torch.lerp(before, self.values, self._relative))

    def _seen(self, rows: Tensor) -> dict[int, Tensor]:
        """The part of rows [R, P] that belongs to each parameter, by its identity, in its shape."""
        sizes = [weight[0].numel() for weight in self.parameters]
        parts = rows.split(sizes, dim=1)
        return {
            id(weight): part.view(len(rows), *weight.shape[1:])
            for weight, part in zip(self.parameters, parts, strict=True)
        }

    def state(self, run: int) -> dict[str, Tensor]:
        """A copy of the weights and moments of a run, after at least one step; `restore` takes it.

        Raises:
            ValueError: before the first step, or with momenta of Muon, which are not copied.
        """
        if self._muon is not None or not self.inner.state:
            raise ValueError("the state of a run is copied after its first step, under AdamW alone")
        found = {"values": self.values[run].clone()}
        for half, name in enumerate(("matrices", "vectors")):
            own = self.inner.state[self.inner.param_groups[2 * run + half]["params"][0]]
            found |= {f"{name}.{moment}": value.clone() for moment, value in own.items()}
        return found

    @torch.no_grad()
    def restore(self, run: int, state: Mapping[str, Tensor]) -> None:
        """Have a run go on from the `state` of one of an ensemble of the same shape."""
        self.values[run] = state["values"]
        for half, name in enumerate(("matrices", "vectors")):
            row = self.inner.param_groups[2 * run + half]["params"][0]
            self.inner.state[row] = {
                moment: state[f"{name}.{moment}"].clone() for moment in ("step", "exp_avg", "exp_avg_sq")
            }

    def _still(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters without a gradient and their moments, which a step must leave as they are."""
        found = []
        start = 0
        for weight in self.parameters:
            end = start + weight[0].numel()
            if weight.grad is None:
                found += [(part, part.clone()) for part in self._entries(start, end)]
            start = end
        return found

    def _entries(self, start: int, end: int) -> Iterator[Tensor]:
        """These columns of the parameters and of the moments of every run."""
        matrices = end <= self.matrix_entries
        offset = 0 if matrices else self.matrix_entries
        for group in self.inner.param_groups[0 if matrices else 1 :: 2]:
            row = group["params"][0]
            state = self.inner.state.get(row, {})
            moments = (state[name] for name in ("exp_avg", "exp_avg_sq") if name in state)
            yield from (tensor.detach()[start - offset : end - offset] for tensor in (row, *moments))

    def keep(self, runs: Sequence[int]) -> None:
        """Go on with some of the runs, in this order; the network then is an ensemble of these.

        No graph of an earlier forward pass may be alive: it knows the parameters by their old shape.
        """
        groups = self.inner.param_groups
        kept = [groups[2 * run + half] for run in runs for half in range(2)]
        alive = {group["params"][0] for group in kept}
        for weight in [weight for weight in self.inner.state if weight not in alive]:
            del self.inner.state[weight]
        self.inner.param_groups = kept
        chosen = torch.as_tensor(runs, device=self.values.device)
        own = {id(weight) for weight in self.parameters}
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            if id(tensor) not in own:
                tensor.data = tensor.data[chosen]
        self._adopt(self.values[chosen])
        if self._muon is not None:
            self._muon.keep(chosen)
        self.gradient_norms = self.gradient_norms[chosen]


def data_order(seed: int, step: int, size: int, batch: int) -> NDArray[np.int64]:
    """Which samples make the batch of a step: a function of seed and step alone, epoch by epoch.

    Every epoch is a fresh permutation; a batch that would cross its end takes the rest of it and the head of
    the next.

    Args:
        seed: of the run.
        step: from 1.
        size: samples of the data set.
        batch: samples of a step.

    Raises:
        ValueError: a batch larger than the data.
    """
    if batch > size:
        raise ValueError(f"a batch of {batch} is larger than the data, {size} samples")
    first = (step - 1) * batch
    epochs = range(first // size, (first + batch - 1) // size + 1)
    start = first - epochs[0] * size
    return np.concatenate([_epoch(seed, epoch, size) for epoch in epochs])[start : start + batch]


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of an epoch; kept, since that of a large data set takes longer than reading a batch."""
    return np.random.default_rng([seed, epoch]).permutation(size)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What an ensemble went through.

    Attributes:
        losses: [R, N], before each update; NaN after a run has ended.
        rates: [R, N], of each update; NaN after a run has ended.
        gradient_norms: [R, N], before clipping; NaN after a run has ended.
        steps: [R], the last update made; 0 for none.
    """

    losses: NDArray[np.float64]
    rates: NDArray[np.float64]
    gradient_norms: NDArray[np.float64]
    steps: NDArray[np.int64]


def train_ensemble(
    optimiser: EnsembleOptimiser,
    loss: Callable[[nn.Module, Batch], Tensor],
    batches: Callable[[int, Sequence[int]], Batch],
    schedules: Sequence[Schedule],
    *,
    steps: int,
    first: int = 1,
    ended: Callable[[int, Sequence[int], Tensor], Iterable[int]] | None = None,
    updated: Callable[[int, Sequence[int]], object] | None = None,
) -> Training:
    """Train all members of an ensemble at once.

    Args:
        optimiser: of stacked members (`sim.ensemble.stack_members`); left with the runs that did not end.
        loss: losses [R] of the runs in the network on a batch.
        batches: the batch of a step, from 1, for the runs that go on, in this order; its tensors have an axis
            of runs. Samples of a run should be those of `data_order` with its own seed; a step at which a run
            ends is asked for again, for the others.
        schedules: of the learning rate, one a run.
        steps: the last step.
        first: the step it begins with.
        ended: given the step, the runs that go on and their losses, before the update: which of them end
            there. A run whose loss is not finite always ends.
        updated: told the step and the runs that made it, after the update.

    Returns:
        Steps 1 to `steps`, of which those before `first` are NaN.

    Raises:
        ValueError: not one schedule a run.
    """
    network, members = optimiser.network, len(optimiser.values)
    if len(schedules) != members:
        raise ValueError(f"{members} runs need as many schedules, got {len(schedules)}")
    losses, rates, norms = (np.full((members, steps), np.nan) for _ in range(3))
    made = np.zeros(members, np.int64)
    running = list(range(members))
    for step in range(first, steps + 1):
        optimiser.zero_grad()
        found = loss(network, batches(step, running))
        values = found.detach().double().cpu().numpy()
        losses[running, step - 1] = values
        gone = {run for run, value in zip(running, values, strict=True) if not math.isfinite(value)}
        gone |= set(ended(step, running, found.detach())) if ended else set()
        if gone:
            kept = [place for place, run in enumerate(running) if run not in gone]
            running = [running[place] for place in kept]
            if not running:
                break
            del found
            optimiser.keep(kept)
            found = loss(network, batches(step, running))
        found.sum().backward()
        now = [schedules[run].rate(step) for run in running]
        optimiser.step(now)
        rates[running, step - 1] = now
        norms[running, step - 1] = optimiser.gradient_norms.double().cpu().numpy()
        made[running] = step
        if updated is not None:
            updated(step, running)
    return Training(losses=losses, rates=rates, gradient_norms=norms, steps=made)
