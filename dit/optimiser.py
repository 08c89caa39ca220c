"""AdamW as published: gradient norms of every parameter, clipping, the step, the average of the weights."""

# P parameters

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dit.training_config import TrainingConfig


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds; a tensor that is whole as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Optimiser:
    """torch.optim.AdamW, decay on matrices only, every parameter's gradient norm known before a step.

    Moments are there from the start, so that a checkpoint is loaded into them; a parameter without a gradient
    stands still, as do its moments.

    Args:
        network: plain, or sharded by FSDP2.
        config: of the training.

    Attributes:
        inner: the optimiser.
        steps: that every parameter has made [P].
        names: of the parameters, in the order of the network.
        average: moving average of the weights by name, if there is one.
    """

    def __init__(self, network: nn.Module, config: TrainingConfig) -> None:
        self.config = config
        self.parameters = dict(network.named_parameters())
        self.names = tuple(self.parameters)
        self.sharded = any(isinstance(weight, DTensor) for weight in self.parameters.values())
        matrices = [weight for weight in self.parameters.values() if weight.ndim >= 2]
        vectors = [weight for weight in self.parameters.values() if weight.ndim < 2]
        groups = [
            {"params": of, "weight_decay": decay}
            for of, decay in ((matrices, config.weight_decay), (vectors, 0.0))
            if of
        ]
        self.inner = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
        device = local(next(iter(self.parameters.values()))).device
        self.steps = torch.zeros(len(self.names), device=device)
        for weight, steps in zip(self.parameters.values(), self.steps, strict=True):
            self.inner.state[weight] = {
                "step": steps,
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        self.average: dict[str, Tensor] = {}
        if config.ema:
            self.average = {name: weight.detach().clone() for name, weight in self.parameters.items()}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.inner.zero_grad(set_to_none=True)

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

    def step(self, rate: float) -> None:
        """Update the weights with the gradients as they are."""
        for group in self.inner.param_groups:
            group["lr"] = rate
        self.inner.step()

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
            moments = self.inner.state[weight]
            found |= {f"{moment}.{name}": moments[moment] for moment in ("exp_avg", "exp_avg_sq")}
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
