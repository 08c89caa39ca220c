"""Large float32 products on a CPU, by oneDNN where that is faster than torch's own product.

oneDNN has AVX-512 kernels for every vendor's processors, MKL only for Intel's: up to twice as fast, forward
and backward. Compilers see the product as one opaque operator.
"""

# N features read, M features written, T tokens

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

ONEDNN_MULTIPLICATIONS = 2**22
"""Smallest product for which oneDNN repays its call overhead of about 10 us, forward and backward."""


ONEDNN_LENGTH = 16
"""Smallest dimension for which oneDNN is used."""


def by_onednn(a: Float[Tensor, "*T N"], b: Float[Tensor, "M N"]) -> bool:
    """Whether a b^T goes to oneDNN; depends on shapes and processor only, so a resumed run decides alike.

    Whenever something other than a compiler inspects or rewrites the operations (a function transform, a
    dispatch mode, autocast, a tensor subclass), torch's own product is used.
    """
    return (
        IS_FASTER
        and a.numel() * b.shape[0] >= ONEDNN_MULTIPLICATIONS
        and min(a.numel() // b.shape[1], *b.shape) >= ONEDNN_LENGTH
        and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (a, b))
        and not torch.is_autocast_enabled("cpu")
        and (torch.compiler.is_compiling() or _is_undisturbed(a, b))
    )


def _is_undisturbed(*given: Tensor) -> bool:
    """Whether nothing inspects or rewrites operations on these tensors, and oneDNN is not switched off."""
    return (
        all(type(x) in (Tensor, nn.Parameter) and unpack_dual(x).tangent is None for x in given)
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and bool(torch.backends.mkldnn.enabled)
    )


def _has_idle_avx512() -> bool:
    """Whether oneDNN can use AVX-512 where MKL does not: on processors other than Intel's."""
    # older versions of torch do not name the processor
    known: dict[str, object] = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "Intel" not in str(known.get("cpu_name"))
    )


IS_FASTER = _has_idle_avx512()
"""Whether oneDNN is the faster one on this processor."""


def onednn_product(a: Float[Tensor, "*T N"], b: Float[Tensor, "M N"]) -> Float[Tensor, "*T M"]:
    """a b^T, differentiable to any order: its gradients are again such products."""
    if torch.compiler.is_compiling():
        return _operator(a, b)
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        product: Tensor = _Product.apply(a, b)  # type: ignore[no-untyped-call]
        return product
    return _computed(a, b)


def _computed(a: Tensor, b: Tensor) -> Tensor:
    # contiguous matrices and their transposes are passed as they are; any other strides would send oneDNN
    # down a path a thousand times slower
    dense = b if b.is_contiguous() or b.mT.is_contiguous() else b.contiguous()
    rows = torch.ops.mkldnn._linear_pointwise(a.flatten(0, -2), dense, None, "none", [], "")
    # not a view: autograd refuses in-place changes to a view returned by a custom function
    written: Tensor = torch.ops.aten._unsafe_view(rows, (*a.shape[:-1], b.shape[0]))
    return written


class _Product(torch.autograd.Function):
    """The product while it is differentiated."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        for_a, for_b = ctx.needs_input_grad
        ctx.save_for_backward(a if for_b else None, b if for_a else None)
        return _computed(a, b)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        return _gradients(delta, a, b)


def _gradients(delta: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a and of b; None where the other one is not known."""
    return (
        None if b is None else onednn_product(delta, b.mT),
        None if a is None else onednn_product(delta.flatten(0, -2).mT, a.flatten(0, -2).mT),
    )


@torch.library.custom_op("meanmode::product", mutates_args=())
def _operator(a: Tensor, b: Tensor) -> Tensor:
    """The product as compilers see it, since they cannot look into that of oneDNN."""
    return _computed(a, b)


@_operator.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[0]))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    a, b = inputs
    ctx.save_for_backward(a, b)


_operator.register_autograd(_Product.backward, setup_context=_keep)
