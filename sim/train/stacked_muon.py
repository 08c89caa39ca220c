"""Muon on the stacked matrices of an ensemble: momentum, orthogonalised (arXiv:2605.06169 App. J, law C2)."""

# R runs, K matrices of one shape, M features written, N read

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MOMENTUM = 0.95


COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of p(x) = a x + b x^3 + c x^5: torch.optim.Muon's, which sends singular values near 1 in few iterations."""


ITERATIONS = 5


EPS = 1e-7


UPDATE_RMS = 0.2
"""Root mean square of an update over the rate, about that of AdamW, so that rates can be compared."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """p applied `ITERATIONS` times to the singular values of matrices [..., M, N] of norm 1 (law C2)."""
    first, third, fifth = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """torch.optim.Muon on stacked matrices, with Nesterov momentum and the rms of its updates as AdamW's.

    Args:
        matrices: [R, M, N] each; a matrix without a gradient is not for it.
        weight_decay: decoupled.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self._momenta = {weight: torch.zeros_like(weight) for weight in matrices}

    @torch.no_grad()
    def step(
        self, before: Mapping[int, Tensor], gradients: Mapping[int, Tensor], rates: Sequence[float]
    ) -> None:
        """Set every matrix to what a step makes of its value before, whatever it holds now.

        Args:
            before: values before the step, by identity of the parameter.
            gradients: likewise.
            rates: of the runs [R].
        """
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for weight in self._momenta:
            shapes.setdefault(weight.shape, []).append(weight)
        for shape, weights in shapes.items():
            gradient = torch.stack([gradients[id(weight)] for weight in weights])
            momentum = torch.stack([self._momenta[weight] for weight in weights]).lerp_(
                gradient, 1 - MOMENTUM
            )
            update = orthogonalised(gradient.lerp(momentum, MOMENTUM)) * UPDATE_RMS * max(shape[-2:]) ** 0.5
            rate = momentum.new_tensor(rates)[:, None, None]
            for weight, new, step in zip(weights, momentum, update, strict=True):
                self._momenta[weight] = new
                weight.copy_(before[id(weight)] * (1 - rate * self.weight_decay) - rate * step)

    def keep(self, runs: Tensor) -> None:
        """Go on with some of the runs, in this order."""
        self._momenta = {weight: momentum[runs] for weight, momentum in self._momenta.items()}
