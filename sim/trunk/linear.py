"""Matrix products of the trunk: linear layers, single or stacked as an ensemble, and a b^T.

Large float32 products on a CPU go to oneDNN: it has AVX-512 kernels for every vendor's processors, MKL only
for Intel's. That is up to twice as fast, forward and backward.
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
"""Smallest product for which oneDNN repays its call overhead of about 10 us, forward and backward."""


ONEDNN_LENGTH = 16
"""Smallest dimension for which oneDNN is used."""


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
            product = _product(x, weight)
        else:
            return linear(x, weight, bias)
        return product if bias is None else product + bias


def dot_products(a: Float[Tensor, "*N T F"], b: Float[Tensor, "*N S F"]) -> Float[Tensor, "*N T S"]:
    """a b^T; single matrices take the same path as the linear layer."""
    if a.shape[:-2].numel() == 1:
        columns = b.reshape(b.shape[-2:])
        if by_onednn(a, columns):
            return _product(a, columns)
    return a @ b.mT


def matrix_times(matrix: Float[Tensor, "N T S"], vector: Float[Tensor, "N S"]) -> Float[Tensor, "N T"]:
    """Each matrix times its vector; no batched product on a CPU or for one matrix, where it is slow."""
    if matrix.shape[0] == 1:
        return matrix[0].mv(vector[0])[None]
    if matrix.device.type == "cpu":
        return (matrix * vector[:, None]).sum(-1)
    return (matrix @ vector[..., None])[..., 0]


def by_onednn(a: Float[Tensor, "*T N"], b: Float[Tensor, "M N"]) -> bool:
    """Whether a b^T goes to oneDNN; depends on shapes and processor only, so a resumed run decides alike.

    Whenever something inspects or rewrites the operations (a compiler, a function transform, a dispatch mode,
    autocast, a tensor subclass), torch's own product is used.
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
    """Whether a tensor is float32 on a CPU, not a subclass, and has no forward-mode tangent."""
    kind = x.dtype == torch.float32 and x.is_cpu and type(x) in (Tensor, nn.Parameter)
    return kind and unpack_dual(x).tangent is None


@functools.cache
def _has_idle_avx512() -> bool:
    """Whether oneDNN can use AVX-512 where MKL does not: on processors other than Intel's."""
    # older versions of torch do not name the processor
    known: dict[str, object] = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "Intel" not in str(known.get("cpu_name"))
    )


class _Product(torch.autograd.Function):
    """a b^T by oneDNN, differentiable to any order: its gradients are again such products."""

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
    # contiguous matrices and their transposes are passed as they are; any other strides would send oneDNN
    # down a path a thousand times slower
    dense = b if b.is_contiguous() or b.mT.is_contiguous() else b.contiguous()
    rows = torch.ops.mkldnn._linear_pointwise(a.flatten(0, -2), dense, None, "none", [], "")
    # not a view: autograd refuses in-place changes to a view returned by a custom function
    written: Tensor = torch.ops.aten._unsafe_view(rows, (*a.shape[:-1], b.shape[0]))
    return written
