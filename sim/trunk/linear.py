"""Matrix products of the trunk: linear layers, single or stacked as an ensemble, and a b^T."""

# R runs (members of an ensemble), N features read, M features written, T and S tokens

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from meanmode.sim.trunk.onednn import by_onednn, onednn_product


class Linear(nn.Linear):
    """y = W x + b on the last axis; b is optional.

    The weight is [M, N]. Stacked to [R, M, N] (`meanmode.sim.trunk.ensemble`), each member along the first
    axis of x is multiplied by its own weight; the bias is then [R, 1, 1, M], for x [R, B, T, N].

    Args:
        features_read: N, size of the input.
        features_written: M, size of the output.
        bias: whether to add b.
    """

    def __init__(self, features_read: int, features_written: int, *, bias: bool = False) -> None:
        super().__init__(features_read, features_written, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """W x + b for x [..., N], or for x [R, ..., N] if the weight is stacked."""
        weight, bias = self.weight, self.bias
        if weight.ndim > 2:
            product = (x.flatten(1, -2) @ weight.mT).unflatten(1, x.shape[1:-1])
        elif by_onednn(x, weight):
            product = onednn_product(x, weight)
        else:
            return linear(x, weight, bias)
        return product if bias is None else product + bias


def dot_products(a: Float[Tensor, "*N T F"], b: Float[Tensor, "*N S F"]) -> Float[Tensor, "*N T S"]:
    """a b^T; single matrices take the same path as the linear layer."""
    if a.shape[:-2].numel() == 1:
        columns = b.reshape(b.shape[-2:])
        if by_onednn(a, columns):
            return onednn_product(a, columns)
    return a @ b.mT


def matrix_times(matrix: Float[Tensor, "N T S"], vector: Float[Tensor, "N S"]) -> Float[Tensor, "N T"]:
    """Each matrix times its vector; no batched product on a CPU or for one matrix, where it is slow."""
    if matrix.shape[0] == 1:
        return matrix[0].mv(vector[0])[None]
    if matrix.device.type == "cpu":
        return (matrix * vector[:, None]).sum(-1)
    return (matrix @ vector[..., None])[..., 0]
