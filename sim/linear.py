"""The products of the trunk: a bias-free linear layer, also one per member of an ensemble, and a b^T."""

# R runs (members of an ensemble), N features read, M features written, T and S tokens

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


class Linear(nn.Linear):
    """y = W x on the last axis, no bias.

    The weight is [M, N]; stacked to [R, M, N] (`sim.ensemble`), the first axis of x runs over the members
    and each is multiplied by its own weight.
    """

    def __init__(self, features_read: int, features_written: int) -> None:
        super().__init__(features_read, features_written, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """W x for x [..., N], or x [R, ..., N] where the weight is stacked."""
        if self.weight.ndim == 2:
            return linear(x, self.weight)
        return (x.flatten(1, -2) @ self.weight.mT).unflatten(1, x.shape[1:-1])


def dot_products(a: Float[Tensor, "*N T F"], b: Float[Tensor, "*N S F"]) -> Float[Tensor, "*N T S"]:
    """a b^T, for observables: without a gradient, oneDNN multiplies single matrices in float32 on a CPU.

    oneDNN has AVX-512 kernels for every vendor's processors, MKL only for one's: up to twice the speed.
    """
    single = a.device.type == "cpu" and a.dtype == b.dtype == torch.float32 and a.shape[:-2].numel() == 1
    if single and torch.backends.mkldnn.is_available() and not (torch.is_grad_enabled() and a.requires_grad):
        # of strided rows it would take a path hundreds of times slower
        rows, columns = (x.reshape(x.shape[-2:]).contiguous() for x in (a, b))
        product = torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")
        return product.view(*a.shape[:-1], b.shape[-2])
    return a @ b.mT


def matrix_times(matrix: Float[Tensor, "N T S"], vector: Float[Tensor, "N S"]) -> Float[Tensor, "N T"]:
    """Each matrix times its vector; a batch of one, for which the batched product is slow, by itself."""
    if matrix.shape[0] == 1:
        return matrix[0].mv(vector[0])[None]
    return (matrix @ vector[..., None])[..., 0]
