"""The products of the trunk: a linear layer, also one per member of an ensemble, and a b^T.

Large float32 products on a CPU go to oneDNN, which has AVX-512 kernels for every vendor's processors where
MKL has them only for one's: up to twice the speed, forward and backward.
"""

# R runs (members of an ensemble), N features read, M features written, T and S tokens

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn.functional import linear

ONEDNN_MULTIPLICATIONS = 2**22
"""Where oneDNN wins, forward and backward together, over the 10 us that each of its calls takes to start."""


ONEDNN_LENGTH = 16
"""Each dimension must be at least this."""


class Linear(nn.Linear):
    """y = W x + b on the last axis; b only where asked for.

    The weight is [M, N]; stacked to [R, M, N] (`meanmode.sim.trunk.ensemble`), the first axis of x runs over the members
    and each is multiplied by its own weight; the bias then is [R, 1, 1, M], for x [R, B, T, N].

    Args:
        features_read: N.
        features_written: M.
        bias: whether there is one.
    """

    def __init__(self, features_read: int, features_written: int, *, bias: bool = False) -> None:
        super().__init__(features_read, features_written, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """W x + b for x [..., N], or x [R, ..., N] where the weight is stacked."""
        weight, bias = self.weight, self.bias
        if weight.ndim > 2:
            product = (x.flatten(1, -2) @ weight.mT).unflatten(1, x.shape[1:-1])
        elif by_onednn(x, weight):
            product = _product(x, weight)
        else:
            return linear(x, weight, bias)
        return product if bias is None else product + bias


def dot_products(a: Float[Tensor, "*N T F"], b: Float[Tensor, "*N S F"]) -> Float[Tensor, "*N T S"]:
    """a b^T; of single matrices as the linear layer does it."""
    if a.shape[:-2].numel() == 1:
        columns = b.reshape(b.shape[-2:])
        if by_onednn(a, columns):
            return _product(a, columns)
    return a @ b.mT


def matrix_times(matrix: Float[Tensor, "N T S"], vector: Float[Tensor, "N S"]) -> Float[Tensor, "N T"]:
    """Each matrix times its vector; a batch of one, for which the batched product is slow, by itself."""
    if matrix.shape[0] == 1:
        return matrix[0].mv(vector[0])[None]
    return (matrix @ vector[..., None])[..., 0]


def by_onednn(a: Float[Tensor, "*T N"], b: Float[Tensor, "M N"]) -> bool:
    """Whether a b^T goes to oneDNN: a rule of shapes and processor, so that a resumed run finds the same.

    Where somebody looks at the operations or rewrites them (a compiler, a function transform, a dispatch
    mode, autocast, a tensor of another kind), they are torch's own.
    """
    return (
        not torch.compiler.is_compiling()
        and a.numel() * b.shape[0] >= ONEDNN_MULTIPLICATIONS
        and min(a.numel() // b.shape[1], *b.shape) >= ONEDNN_LENGTH
        and all(_is_plain(x) for x in (a, b))
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and bool(torch.backends.mkldnn.enabled)
        and _has_idle_avx512()
    )


def _is_plain(x: Tensor) -> bool:
    """Float32 on a CPU, of no subclass, without a forward-mode tangent."""
    kind = x.dtype == torch.float32 and x.is_cpu and type(x) in (Tensor, nn.Parameter)
    return kind and unpack_dual(x).tangent is None


@functools.cache
def _has_idle_avx512() -> bool:
    """Whether oneDNN has vector instructions that MKL leaves idle: on a processor that is not Intel's."""
    # an older torch does not name the processor
    known: dict[str, object] = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "Intel" not in str(known.get("cpu_name"))
    )


class _Product(torch.autograd.Function):
    """a b^T by oneDNN; its gradients are such products again, to any order."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        for_a, for_b = ctx.needs_input_grad
        ctx.save_for_backward(a if for_b else None, b if for_a else None)
        return _product(a, b)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        for_a, for_b = ctx.needs_input_grad
        return (
            _product(delta, b.mT) if for_a else None,
            _product(delta.flatten(0, -2).mT, a.flatten(0, -2).mT) if for_b else None,
        )


def _product(a: Float[Tensor, "*T N"], b: Float[Tensor, "M N"]) -> Float[Tensor, "*T M"]:
    """a b^T by oneDNN."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        product: Tensor = _Product.apply(a, b)  # type: ignore[no-untyped-call]
        return product
    # a matrix or its transpose as they are; of other strides it would take a path a thousand times slower
    dense = b if b.is_contiguous() or b.mT.is_contiguous() else b.contiguous()
    rows = torch.ops.mkldnn._linear_pointwise(a.flatten(0, -2), dense, None, "none", [], "")
    # no view, whose change in place autograd refuses behind a custom function
    written: Tensor = torch.ops.aten._unsafe_view(rows, (*a.shape[:-1], b.shape[0]))
    return written
