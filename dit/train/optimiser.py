"""AdamW as published, or Muon: per-parameter gradient norms, clipping, the update, the weight average."""

# P parameters

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from meanmode.dit.config.training_config import TrainingConfig
from meanmode.sim.train.parameter_rules import (
    RATE_GROUPS,
    REST,
    clip_factor,
    is_matrix,
    muon_matrices,
    rate_group_of,
)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process holds, or an unsharded tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Optimiser:
    """torch.optim.AdamW, which decays matrices only, or torch.optim.Muon for the matrices of the blocks.

    Muon uses the learning rate and decay of AdamW, and the root mean square of its updates is about the same.
    Moments exist from the start, so that a checkpoint can be loaded into them. A parameter without a gradient
    keeps its value and its moments.

    Args:
        network: the network, plain or sharded by FSDP2.
        config: training options.

    Attributes:
        inner: the torch optimisers, AdamW first.
        parameters: all parameters by name.
        names: names of the parameters, in the order of the network.
        steps: number of AdamW steps that each parameter has made [P].
        factors: current factors on the learning rates of `readers`, `gains` and `rest`, lowered by alarms.
        average: moving average of the weights by name; empty if none is kept.
    """

    def __init__(self, network: nn.Module, config: TrainingConfig) -> None:
        self.config = config
        self.parameters = dict(network.named_parameters())
        self.names = tuple(self.parameters)
        self.sharded = any(isinstance(weight, DTensor) for weight in self.parameters.values())
        self.factors = dict.fromkeys((*RATE_GROUPS, REST), 1.0)
        device = local(next(iter(self.parameters.values()))).device
        self.steps = torch.zeros(len(self.names), device=device)
        self.inner = self._optimisers(network)
        self.average: dict[str, Tensor] = {}
        if config.ema:
            self.average = {name: weight.detach().clone() for name, weight in self.parameters.items()}

    def _optimisers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Build AdamW, and Muon if configured, with moments of zero."""
        config, rates = self.config, rate_group_of(network)
        chosen = muon_matrices(network) if config.optimiser == "muon" else set()
        groups: dict[tuple[bool, str, bool], list[Tensor]] = {}
        for weight in self.parameters.values():
            key = (id(weight) in chosen, rates.get(id(weight), REST), is_matrix(weight))
            groups.setdefault(key, []).append(weight)
        adamw, orthogonal = (
            [
                {"params": of, "rate": rate, "weight_decay": config.weight_decay if matrices else 0.0}
                for (muon, rate, matrices), of in groups.items()
                if muon is asked
            ]
            for asked in (False, True)
        )
        found: list[torch.optim.Optimizer] = []
        if adamw:
            found.append(torch.optim.AdamW(adamw, betas=config.betas, eps=config.eps, fused=True))
        if orthogonal:
            found.append(torch.optim.Muon(orthogonal, adjust_lr_fn="match_rms_adamw"))
        of_muon = {id(weight) for group in orthogonal for weight in group["params"]}
        for weight, steps in zip(self.parameters.values(), self.steps, strict=True):
            if id(weight) in of_muon:
                found[-1].state[weight] = {"momentum_buffer": torch.zeros_like(weight)}
            else:
                moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                found[0].state[weight] = {"step": steps, **moments}
        return found

    def moments(self, name: str) -> dict[str, Tensor]:
        """Return the moments of a parameter, by the name of the moment."""
        weight = self.parameters[name]
        held = next(inner.state[weight] for inner in self.inner if weight in inner.state)
        return {moment: value for moment, value in held.items() if moment != "step"}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for inner in self.inner:
            inner.zero_grad(set_to_none=True)

    @torch.no_grad()
    def gradient_norms(self) -> tuple[Float[Tensor, " P"], float]:
        """Return per-parameter gradient norms (NaN without a gradient) and the global norm."""
        found = [local(weight.grad) for weight in self.parameters.values() if weight.grad is not None]
        norms = torch.stack(torch._foreach_norm(found)).double() if found else torch.empty(0)
        if self.sharded:
            squares = norms.square()
            dist.all_reduce(squares)
            norms = squares.sqrt()
        total = norms.square().sum().sqrt().item()
        if len(found) == len(self.names):
            return norms, total
        present = [weight.grad is not None for weight in self.parameters.values()]
        every = torch.full((len(present),), torch.nan, dtype=torch.float64, device=norms.device)
        every[torch.tensor(present, device=norms.device)] = norms
        return every, total

    @torch.no_grad()
    def clip(self, total: float) -> float:
        """Scale all gradients so that their global norm is at most the configured one (law C1).

        Args:
            total: global norm before clipping.

        Returns:
            The global norm after clipping.
        """
        if self.config.clip is None:
            return total
        # NaN is passed on, as in torch.nn.utils.clip_grad_norm_
        scale = clip_factor(total, self.config.clip)
        if scale >= 1:
            return total
        torch._foreach_mul_(
            [local(weight.grad) for weight in self.parameters.values() if weight.grad is not None], scale
        )
        return total * scale

    def lower(self, groups: Iterable[str], factor: float) -> None:
        """Multiply the learning rates of these groups by a factor, from the next step on."""
        for group in groups:
            self.factors[group] *= factor

    def step(self, rate: float) -> float:
        """Apply one step and return the base learning rate.

        Args:
            rate: learning rate of the schedule, before relative rates and the factors of alarms.
        """
        own = {"readers": self.config.reader_rate, "gains": self.config.gain_rate, REST: 1.0}
        for inner in self.inner:
            for group in inner.param_groups:
                group["lr"] = rate * own[group["rate"]] * self.factors[group["rate"]]
            inner.step()
        return rate * self.factors[REST]

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average of the weights towards the current weights."""
        if self.average:
            weights = [local(weight.detach()) for weight in self.parameters.values()]
            torch._foreach_lerp_(
                [local(tensor) for tensor in self.average.values()], weights, 1 - self.config.ema
            )

    def state(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by name, not copied, so that loading writes into them."""
        found: dict[str, Tensor] = {"steps": self.steps}
        for name, weight in self.parameters.items():
            found[f"weight.{name}"] = weight.detach()
            found |= {f"{moment}.{name}": value for moment, value in self.moments(name).items()}
        return found | {f"ema.{name}": tensor for name, tensor in self.average.items()}


def families(names: Iterable[str]) -> Mapping[str, list[int]]:
    """Return the indices of the parameters in each family: one matrix or gain over all blocks (App. F).

    For example, `blocks.3.operator.q_proj.weight` is in the family `operator.q_proj`, and
    `patch_embed.patch_proj.bias` in `patch_embed`.
    """
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        found.setdefault(family(name), []).append(index)
    return found


def family(name: str) -> str:
    """Return the family of a parameter."""
    words = name.split(".")
    return ".".join(words[2:4]) if words[0] == "blocks" else words[0]
