"""The trunk: blocks of a token mixer and a SwiGLU, each joined to the trunk by its own residual merge."""

# B batch, T tokens, D width, H heads

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from meanmode.sim.kernels.choice import fused
from meanmode.sim.kernels.gate_operator import swiglu
from meanmode.sim.trunk.attention import rotation, token_rotation
from meanmode.sim.trunk.constants import MERGE_EPS, QK_EPS
from meanmode.sim.trunk.linear import Linear
from meanmode.sim.trunk.merges import make_merge
from meanmode.sim.trunk.mixers import make_mixer
from meanmode.sim.trunk.segments import Segments
from meanmode.theory.meanfield.structured_inputs import cosine_factors, factor_roots
from meanmode.theory.setting import Setting


class SwiGLU(nn.Module):
    """F = W2 (SiLU(g) * v) with [g, v] = W13 x, no biases (arXiv:2605.06169)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w13 = Linear(width, 2 * hidden)
        self.w2 = Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B T D"]:
        """The branch output."""
        read = self.w13(x)
        if fused(read):
            return self.w2(swiglu(read))
        gate, value = read.chunk(2, dim=-1)
        return self.w2(silu(gate) * value)


class Block(nn.Module):
    """One block: X <- merge(X, mixer(X)), then X <- merge(X, SwiGLU(X)).

    Every branch reads `merge.read(X)`: the trunk itself, unless the merge leaves it unnormalised (pre-norm).

    Sub-module names follow the published checkpoint (`operator.{q,k,v}_proj`, `operator.proj`, `ffn.w13`,
    `ffn.w2`). The residual writers are `operator.proj` (label `attn`) and `ffn.w2` (label `ffn`).

    Args:
        setting: sizes, mixer, merges and standard deviations of the weights.
        merge_eps: added to the mean square in the norms of the merges.
        qk_eps: added to the mean square in QK-Norm.

    Attributes:
        compiled: what computes the block in passes that are differentiated, after `compile`.
    """

    compiled: Callable[["Block", Tensor, Segments], Tensor] | None = None

    def __init__(self, setting: Setting, *, merge_eps: float = MERGE_EPS, qk_eps: float = QK_EPS) -> None:
        super().__init__()
        self.setting = setting
        self.operator = make_mixer(
            setting.mixer,
            setting.width,
            setting.heads,
            share=setting.mixer_share,
            rope=setting.rope,
            eps=qk_eps,
        )
        self.ffn = SwiGLU(setting.width, setting.ffn_width)
        self.merge_attn, self.merge_ffn = (
            make_merge(
                merge,
                setting.width,
                residual_gain=setting.residual_gain,
                alpha=setting.alpha,
                beta=setting.beta,
                eps=merge_eps,
                frames=setting.frames if setting.frame_means else 1,
            )
            for merge in setting.merges
        )

    def reset_parameters(
        self, generator: torch.Generator, *, setting: Setting | None = None, run: int | None = None
    ) -> None:
        """Draw all weights again, in a fixed order: N(0, weight_std^2), the writers N(0, writer_std^2).

        Args:
            generator: source of the draws, on any device.
            setting: supplies the standard deviations; None uses the block's own setting.
            run: in an ensemble, the member whose weights are drawn.
        """
        setting = self.setting if setting is None else setting
        writer_std = setting.weight_std if setting.writer_std is None else setting.writer_std
        readers = (*self.operator.readers, self.ffn.w13)
        for layers, std in (
            (readers, setting.weight_std),
            ((self.operator.proj, self.ffn.w2), writer_std),
        ):
            for layer in layers:
                weight = layer.weight.detach() if run is None else layer.weight.detach()[run]
                drawn = torch.randn(weight.shape, generator=generator, device=generator.device)
                weight.copy_(drawn.mul_(std))

    def compile(self, **options: Any) -> None:
        """Compile what the block computes in passes that are differentiated; all blocks of a shape share it.

        Hooks on the block itself stay outside of the compiled code. As long as there is a hook on a part of
        the block, the block runs uncompiled. Copies of the block are not compiled.

        Args:
            options: those of `torch.compile`.
        """
        for constant in (rotation, token_rotation):  # marks them: angles are not computed in every pass
            torch.compiler.assume_constant_result(constant)
        self.compiled = torch.compile(Block._merged, dynamic=False, **options)

    def forward(self, x: Float[Tensor, "*B T D"], segments: Segments) -> Float[Tensor, "*B T D"]:
        """The trunk after the block."""
        if self.compiled is None or not torch.is_grad_enabled() or self._is_looked_into():
            return self._merged(x, segments)
        return self.compiled(self, x, segments)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "compiled": None}  # type: ignore[no-untyped-call]

    def _is_looked_into(self) -> bool:
        """Whether a part of the block has a hook, which compiled code would skip."""
        return any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
            for part in self.modules()
            if part is not self
        )

    def _merged(self, x: Tensor, segments: Segments) -> Tensor:
        x = self.merge_attn(x, self.operator(self.merge_attn.read(x), segments), segments)
        return self.merge_ffn(x, self.ffn(self.merge_ffn.read(x)), segments)


def blocks_of(model: nn.Module) -> list[Block]:
    """The blocks of a model, in order.

    Raises:
        ValueError: the model has none.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        raise ValueError("the model has no meanmode.sim.trunk.stack.Block")
    return blocks


class Stack(nn.Module):
    """`depth` blocks in sequence, all in memory; `meanmode.sim.simulate` streams them instead."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self.blocks = nn.ModuleList(Block(setting) for _ in range(setting.depth))

    def forward(self, x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B T D"]:
        """The final trunk; later layers should read it as the branches do, through `Merge.read`."""
        for block in self.blocks:
            x = block(x, self.setting.segments)
        return x


def _aligned_tokens(setting: Setting, cosine: float, generator: torch.Generator) -> Tensor:
    """sqrt(cosine) 1 u^T + sqrt(1 - cosine) E, with u and E standard normal, drawn anew for every sample."""
    tokens = sum(setting.segments)
    common = torch.randn(setting.batch, 1, setting.width, generator=generator)
    own = torch.randn(setting.batch, tokens, setting.width, generator=generator)
    return cosine**0.5 * common + (1 - cosine) ** 0.5 * own


def _structured_tokens(setting: Setting, generator: torch.Generator) -> Tensor:
    """R E for the image, factor by factor of its cosines R R^T, and independent text; E standard normal."""
    tokens = torch.randn(setting.batch, sum(setting.segments), setting.width, generator=generator)
    roots = [torch.from_numpy(root) for root in factor_roots(cosine_factors(setting))]
    image = tokens[:, : setting.tokens].double().unflatten(1, [len(root) for root in roots])
    for axis, root in enumerate(roots, start=1):
        image = torch.tensordot(root, image, dims=([1], [axis])).movedim(0, axis)
    tokens[:, : setting.tokens] = image.flatten(1, -2).to(tokens.dtype)
    return tokens


def synthetic_input(setting: Setting, generator: torch.Generator) -> Float[Tensor, "*B T D"]:
    """X_0 = RMSNorm(R E): R R^T are the cosines of the input, E is standard normal, fresh per sample.

    Gaussian tokens are sqrt(c0) 1 u^T + sqrt(1 - c0) E before the norm: c0 is `input_cosine`, the pair cosine
    of the tokens up to O(1 / width). Text tokens, if any, share u; beside an image with structure they are
    independent.
    """
    if setting.input == "gaussian":
        tokens = _aligned_tokens(setting, setting.input_cosine, generator)
    else:
        tokens = _structured_tokens(setting, generator)
    return rms_norm(tokens, (setting.width,), eps=MERGE_EPS)


def synthetic_adjoint(setting: Setting, generator: torch.Generator) -> Float[Tensor, "*B T D"]:
    """dL/dX_L = sqrt(c_G) 1 u^T + sqrt(1 - c_G) E, as a Gaussian `synthetic_input` but without the norm.

    c_G is `adjoint_cosine`. The adjoint has its own random stream and is independent of the trunk.
    """
    return _aligned_tokens(setting, setting.adjoint_cosine, generator)
