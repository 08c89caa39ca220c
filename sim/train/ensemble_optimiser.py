"""AdamW and Muon for an ensemble: one batched network, every run with its own learning rate and clipping."""

# R runs, P parameters of a run

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meanmode.sim.train.parameter_rules import clip_factor, is_matrix, muon_matrices, rate_group_of
from meanmode.sim.train.stacked_muon import Muon


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """The optimiser of arXiv:2605.06169 Table 3: decay on matrices only, gradients clipped by global norm.

    Attributes:
        betas: decay rates of the two moments.
        eps: constant added to the root of the second moment.
        weight_decay: decoupled weight decay of the matrices; vectors (gains, biases) are not decayed.
        clip: largest global gradient norm of a run; infinite disables clipping.
        reader_rate: learning rate of the readers of all branches, relative to the other parameters.
        gain_rate: learning rate of the merge gains, relative to the other parameters.
        muon: whether Muon updates the matrices of the blocks (`meanmode.sim.train.stacked_muon`).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    reader_rate: float = 1.0
    gain_rate: float = 1.0
    muon: bool = False


class EnsembleOptimiser:
    """torch.optim.AdamW on stacked parameters (`meanmode.sim.trunk.ensemble`), with a learning rate per run.

    All parameters become views of one buffer [R, P], matrices before vectors. The inner optimiser holds two
    rows per run, its matrices and its vectors, and steps all runs of one learning rate together. A parameter
    without a gradient keeps its value and its moments, but the step count, that of the run, advances.

    Args:
        network: network with stacked parameters; those that require no gradient are left alone.
        options: options of the optimiser.

    Attributes:
        inner: the torch optimiser; for every learning rate of a step, a group of matrices and one of vectors.
        gradient_norms: global gradient norm of each run before clipping, at the last step [R].

    Raises:
        ValueError: nothing requires a gradient, or the parameters have no common axis of runs.
    """

    def __init__(self, network: nn.Module, options: AdamW) -> None:
        self.options = options
        self.network = network
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        runs = {weight.shape[0] for weight in trained}
        if len(runs) != 1 or any(weight.ndim not in (3, 4) for weight in trained):
            raise ValueError(
                "an ensemble needs stacked parameters: use meanmode.sim.trunk.ensemble.stack_members"
            )
        self.parameters = sorted(trained, key=lambda weight: weight.ndim)
        self.matrix_entries = sum(weight[0].numel() for weight in trained if is_matrix(weight, stacked=True))
        values = torch.cat([weight.detach().flatten(1) for weight in self.parameters], dim=1)
        self.gradient_norms = values.new_zeros(len(values))
        self._rows = [tuple(map(nn.Parameter, self._halves(row))) for row in values]
        groups = [
            {"params": list(rows), "weight_decay": decay}
            for rows, decay in zip(zip(*self._rows, strict=True), (options.weight_decay, 0.0), strict=True)
        ]
        self.inner = torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, fused=True)
        self._adopt(values)
        self._relative = self._relative_rates()
        chosen = muon_matrices(network, stacked=True) if options.muon else set()
        matrices = [weight for weight in self.parameters if id(weight) in chosen]
        self._muon = Muon(matrices, options.weight_decay) if options.muon else None

    def _relative_rates(self) -> Tensor | None:
        """Learning rate of every entry of a run [P], relative to that of the step; None if all are equal."""
        factors = {"readers": self.options.reader_rate, "gains": self.options.gain_rate}
        if all(factor == 1 for factor in factors.values()):
            return None
        own = {weight: factors[group] for weight, group in rate_group_of(self.network).items()}
        sizes = [weight[0].numel() for weight in self.parameters]
        found = [
            self.values.new_full((size,), own.get(id(weight), 1.0))
            for weight, size in zip(self.parameters, sizes, strict=True)
        ]
        return torch.cat(found)

    def _halves(self, row: Tensor) -> tuple[Tensor, Tensor]:
        return row[: self.matrix_entries], row[self.matrix_entries :]

    def _adopt(self, values: Tensor) -> None:
        """Make the parameters of the network and of the inner optimiser views of `values`."""
        start = 0
        for weight in self.parameters:
            end = start + weight[0].numel()
            weight.data = values[:, start:end].view(len(values), *weight.shape[1:])
            weight.grad = None
            start = end
        for rows, row in zip(self._rows, values, strict=True):
            for own, half in zip(rows, self._halves(row), strict=True):
                own.data = half
        self.values = values
        self._gradients = torch.empty_like(values)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for weight in self.parameters:
            weight.grad = None

    @torch.no_grad()
    def gradients(self) -> Tensor:
        """Return all gradients [R, P], zero for parameters without one, in memory that the next call uses."""
        found = (
            torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.parameters
        )
        return torch.cat([gradient.flatten(1) for gradient in found], dim=1, out=self._gradients)

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """Clip the gradient of each run by its global norm, and update the run at its learning rate."""
        gradients = self.gradients()
        self.gradient_norms = torch.linalg.vector_norm(gradients, dim=1)
        gradients *= clip_factor(self.gradient_norms, self.options.clip).clamp_max(1.0)[:, None]
        still = self._still()
        for rows, row in zip(self._rows, gradients, strict=True):
            for own, half in zip(rows, self._halves(row), strict=True):
                own.grad = half
        self._group_by(rates)
        if self._muon is None and self._relative is None:
            self.inner.step()
        else:
            self._changed_step(gradients, rates)
        for tensor, value in still:
            tensor.copy_(value)

    def _group_by(self, rates: Sequence[float]) -> None:
        """Give the inner optimiser one group of matrices and one of vectors for every distinct rate."""
        together: dict[float, list[tuple[nn.Parameter, ...]]] = {}
        for rate, rows in zip(rates, self._rows, strict=True):
            together.setdefault(rate, []).append(rows)
        options = self.inner.param_groups[:2]
        self.inner.param_groups = [
            {**group, "lr": rate, "params": list(params)}
            for rate, runs in together.items()
            for group, params in zip(options, zip(*runs, strict=True), strict=True)
        ]

    def _changed_step(self, gradients: Tensor, rates: Sequence[float]) -> None:
        """Step with Muon for its matrices, with relative learning rates, or with both."""
        before = self.values.clone()
        self.inner.step()
        if self._muon is not None:
            self._muon.step(self._seen(before), self._seen(gradients), rates)
        if self._relative is not None:
            # updates of AdamW and Muon, including decay, are proportional to the learning rate
            self.values.copy_(torch.lerp(before, self.values, self._relative))

    def _seen(self, rows: Tensor) -> dict[int, Tensor]:
        """Split rows [R, P] into views of the shape of each parameter, by the `id` of the parameter."""
        sizes = [weight[0].numel() for weight in self.parameters]
        parts = rows.split(sizes, dim=1)
        return {
            id(weight): part.view(len(rows), *weight.shape[1:])
            for weight, part in zip(self.parameters, parts, strict=True)
        }

    def state(self, run: int) -> dict[str, Tensor]:
        """Copy the weights and moments of a run, for `restore`.

        Raises:
            ValueError: no step has been made, or Muon is in use, whose momenta are not copied.
        """
        if self._muon is not None or not self.inner.state:
            raise ValueError(
                "the state of a run can be copied only after its first step, and only without Muon"
            )
        found = {"values": self.values[run].clone()}
        for half, name in enumerate(("matrices", "vectors")):
            own = self.inner.state[self._rows[run][half]]
            found |= {f"{name}.{moment}": value.clone() for moment, value in own.items()}
        return found

    @torch.no_grad()
    def restore(self, run: int, state: Mapping[str, Tensor]) -> None:
        """Set a run to the `state` of a run of an ensemble with the same shapes."""
        self.values[run] = state["values"]
        for half, name in enumerate(("matrices", "vectors")):
            self.inner.state[self._rows[run][half]] = {
                moment: state[f"{name}.{moment}"].clone() for moment in ("step", "exp_avg", "exp_avg_sq")
            }

    def _still(self) -> list[tuple[Tensor, Tensor]]:
        """Copies of the parameters without a gradient and of their moments, which a step must not change."""
        found = []
        start = 0
        for weight in self.parameters:
            end = start + weight[0].numel()
            if weight.grad is None:
                found += [(part, part.clone()) for part in self._entries(start, end)]
            start = end
        return found

    def _entries(self, start: int, end: int) -> Iterator[Tensor]:
        """Views of these columns of the parameters and moments of every run."""
        half = int(end > self.matrix_entries)
        offset = half * self.matrix_entries
        for rows in self._rows:
            row = rows[half]
            state = self.inner.state.get(row, {})
            moments = (state[name] for name in ("exp_avg", "exp_avg_sq") if name in state)
            yield from (tensor.detach()[start - offset : end - offset] for tensor in (row, *moments))

    def keep(self, runs: Sequence[int]) -> None:
        """Continue with these runs only, in this order; the network becomes an ensemble of them.

        Drop the graphs of earlier forward passes first, because the shapes of the parameters change.
        """
        self._rows = [self._rows[run] for run in runs]
        alive = {row for rows in self._rows for row in rows}
        for weight in [weight for weight in self.inner.state if weight not in alive]:
            del self.inner.state[weight]
        chosen = torch.as_tensor(runs, device=self.values.device)
        own = {id(weight) for weight in self.parameters}
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            if id(tensor) not in own:
                tensor.data = tensor.data[chosen]
        self._adopt(self.values[chosen])
        if self._muon is not None:
            self._muon.keep(chosen)
        self.gradient_norms = self.gradient_norms[chosen]
