"""Training an ensemble: many runs stepped as one batched network, each with its own rate, data and end."""

# R runs, P parameters of a run, B batch

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meanmode.sim.train.stacked_muon import Muon
from meanmode.sim.trunk.parameter_groups import members_of
from meanmode.sim.trunk.stack import blocks_of


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """The optimiser of arXiv:2605.06169 Table 3: decay on matrices only, gradients clipped by global norm.

    Attributes:
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, of matrices; vectors (gains, biases) are not decayed.
        clip: largest global gradient norm of a run; infinite for none.
        reader_rate: rate of the readers of all branches (`meanmode.sim.intervene.interventions`) over that of the others.
        gain_rate: rate of the gains of the merges over that of the others.
        muon: the matrices of the blocks take orthogonalised steps instead (`meanmode.sim.train.stacked_muon`).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    reader_rate: float = 1.0
    gain_rate: float = 1.0
    muon: bool = False


class EnsembleOptimiser:
    """torch.optim.AdamW on stacked parameters (`meanmode.sim.trunk.ensemble`), every run with its own rate and norm.

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
            raise ValueError(
                "an ensemble is trained by stacked parameters: see meanmode.sim.trunk.ensemble.stack_members"
            )
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
