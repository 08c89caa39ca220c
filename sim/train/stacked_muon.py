"""Muon for the stacked matrices of an ensemble: orthogonalised momentum (arXiv:2605.06169 App. J, law C2)."""

# R runs, M features written, N features read

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
"""Decay of the momentum, as in torch.optim.Muon."""


COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of p(x) = a x + b x^3 + c x^5, as in torch.optim.Muon: a few iterations bring all singular
values close to 1."""


ITERATIONS = 5
"""Newton-Schulz iterations per update, as in torch.optim.Muon."""


EPS = 1e-7
"""Smallest norm by which a matrix is divided."""


UPDATE_RMS = 0.2
"""Root mean square of an update over the learning rate, about that of AdamW, so that rates are comparable."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """Normalise matrices [..., M, N] and apply p `ITERATIONS` times to their singular values (law C2)."""
    first, third, fifth = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """torch.optim.Muon on stacked matrices: Nesterov momentum, updates with the root mean square of AdamW's.

    Args:
        matrices: the matrices to update, each [R, M, N].
        weight_decay: decoupled weight decay.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self._momenta = {weight: torch.zeros_like(weight) for weight in matrices}

    @torch.no_grad()
    def step(
        self, before: Mapping[int, Tensor], gradients: Mapping[int, Tensor], rates: Sequence[float]
    ) -> None:
        """Set every matrix to the result of a step from its value in `before`, whatever its current value.

        Args:
            before: values before the step, by the `id` of the parameter.
            gradients: gradients, by the `id` of the parameter.
            rates: learning rate of every run [R].
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
        """Keep the momenta of these runs only, in this order."""
        self._momenta = {weight: momentum[runs] for weight, momentum in self._momenta.items()}
