"""AdamW as published, or Muon: gradient norms of every parameter, clipping, the step, averaged weights."""

# P parameters

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from meanmode.dit.config.training_config import TrainingConfig
from meanmode.sim.trunk.parameter_groups import members_of
from meanmode.sim.trunk.stack import blocks_of

RATE_GROUPS = {"readers": "readers", "gains": "gates"}
"""Groups of `meanmode.sim.intervene.interventions` that have learning rates of their own, by the name these have here."""


REST = "rest"
"""All other parameters."""


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds; a tensor that is whole as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Optimiser:
    """torch.optim.AdamW, decay on matrices only, every parameter's gradient norm known before a step.

    With `optimiser=muon` torch.optim.Muon has the matrices of the blocks, at the same rate and decay; the
    root mean square of its updates is about that of AdamW's.

    Moments are there from the start, so that a checkpoint is loaded into them; a parameter without a gradient
    stands still, as do its moments.

    Args:
        network: plain, or sharded by FSDP2.
        config: of the training.

    Attributes:
        inner: the optimisers, AdamW first.
        steps: that every parameter has made under AdamW [P].
        names: of the parameters, in the order of the network.
        factors: what the rates of `readers`, `gains` and `rest` are multiplied by at present, beside those
            of the configuration.
        average: moving average of the weights by name, if there is one.
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
        """AdamW, and Muon where it is asked for, with moments of zero."""
        config, blocks = self.config, blocks_of(network)
        rates = {
            id(weight): name
            for name, group in RATE_GROUPS.items()
            for block in blocks
            for weight in members_of(block, group)
        }
        inside = {id(weight) for block in blocks for weight in block.parameters()}
        groups: dict[tuple[bool, str, bool], list[Tensor]] = {}
        for weight in self.parameters.values():
            muon = config.optimiser == "muon" and weight.ndim == 2 and id(weight) in inside
            key = (muon, rates.get(id(weight), REST), weight.ndim >= 2)
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
        """What the optimiser remembers of a parameter, by name."""
        weight = self.parameters[name]
        held = next(inner.state[weight] for inner in self.inner if weight in inner.state)
        return {moment: value for moment, value in held.items() if moment != "step"}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for inner in self.inner:
            inner.zero_grad(set_to_none=True)

    @torch.no_grad()
    def gradient_norms(self) -> tuple[Float[Tensor, " P"], float]:
        """Frobenius norm of every parameter's gradient, NaN where it has none, and of all of them."""
        found = [local(weight.grad) for weight in self.parameters.values() if weight.grad is not None]
        norms = torch.stack(torch._foreach_norm(found)).double() if found else torch.empty(0)
        if self.sharded:
            squares = norms.square()
            dist.all_reduce(squares)
            norms = squares.sqrt()
        total = norms.square().sum().sqrt().item()
        if len(found) == len(self.names):
            return norms, total
        place = [weight.grad is not None for weight in self.parameters.values()]
        every = torch.full((len(place),), torch.nan, dtype=torch.float64, device=norms.device)
        every[torch.tensor(place, device=norms.device)] = norms
        return every, total

    @torch.no_grad()
    def clip(self, total: float) -> float:
        """Scale all gradients so that their global norm is at most that of the configuration (law C1).

        Args:
            total: the global norm before.

        Returns:
            The norm after.
        """
        if self.config.clip is None:
            return total
        # 1e-6 as in torch.nn.utils.clip_grad_norm_, and as there NaN is handed on
        scale = self.config.clip / (total + 1e-6)
        if scale >= 1:
            return total
        torch._foreach_mul_(
            [local(weight.grad) for weight in self.parameters.values() if weight.grad is not None], scale
        )
        return total * scale

    def lower(self, groups: Iterable[str], factor: float) -> None:
        """Multiply the rates of these groups from now on."""
        for group in groups:
            self.factors[group] *= factor

    def step(self, rate: float) -> float:
        """Update the weights with the gradients as they are; the rate of those that have none of their own.

        Args:
            rate: of the schedule.
        """
        own = {"readers": self.config.reader_rate, "gains": self.config.gain_rate, REST: 1.0}
        for inner in self.inner:
            for group in inner.param_groups:
                group["lr"] = rate * own[group["rate"]] * self.factors[group["rate"]]
            inner.step()
        return rate * self.factors[REST]

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average of the weights towards them."""
        if self.average:
            weights = [local(weight.detach()) for weight in self.parameters.values()]
            torch._foreach_lerp_(
                [local(tensor) for tensor in self.average.values()], weights, 1 - self.config.ema
            )

    def state(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name, as the tensors themselves: loading writes into them."""
        found: dict[str, Tensor] = {"steps": self.steps}
        for name, weight in self.parameters.items():
            found[f"weight.{name}"] = weight.detach()
            found |= {f"{moment}.{name}": value for moment, value in self.moments(name).items()}
        return found | {f"ema.{name}": tensor for name, tensor in self.average.items()}


def families(names: Iterable[str]) -> Mapping[str, list[int]]:
    """Places of the parameters of every family: the same matrix or gain in all blocks (App. F).

    `blocks.3.operator.q_proj.weight` is of the family `operator.q_proj`, `patch_embed.patch_proj.bias` of
    `patch_embed`.
    """
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(family(name), []).append(place)
    return found


def family(name: str) -> str:
    """The family of a parameter."""
    words = name.split(".")
    return ".".join(words[2:4]) if words[0] == "blocks" else words[0]
