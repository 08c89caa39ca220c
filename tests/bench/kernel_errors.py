"""Errors of the kernels for a GPU and of plain torch in the same precision, both against float64.

Used by `gpu.py` on a device and by the tests in Triton's interpreter. The layers around the kernels have the
identity for their weights, which is exact in every precision.
"""

# R runs of an ensemble, B batch, T tokens, D width

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from meanmode.sim.kernels.choice import plain_torch
from meanmode.sim.trunk.attention import SoftmaxAttention
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.merges import FUSED, make_merge
from meanmode.sim.trunk.segments import Segments
from meanmode.sim.trunk.stack import SwiGLU

MERGES = ("mv_split", "plain", "layerscale", "rezero", "deepnorm")
TYPES = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "float32 trunk, bfloat16 branch": (torch.float32, torch.bfloat16),
}
"""Types of trunk and branch; the last are those under autocast."""

EXACT = 1e-10
"""Largest error in float64, relative to the largest number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes and values of an input.

    Attributes:
        segments: token counts of image and text.
        width: D.
        lead: sizes of the leading axes; the first of two is that of runs.
        heads: number of heads.
        rope: whether image tokens are rotated.
        values: `normal`, `alike` (a common vector and a thousandth of noise), `zeros`, or `large`.
    """

    segments: Segments
    width: int = 8
    lead: tuple[int, ...] = (2,)
    heads: int = 2
    rope: bool = False
    values: str = "normal"

    def draw(self, seed: int, width: int, dtype: torch.dtype, device: str) -> Tensor:
        """An input [*lead, T, D], rounded to a type."""
        generator = torch.Generator().manual_seed(seed)
        shape = (*self.lead, sum(self.segments), width)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.values == "alike":
            x = torch.randn(width, generator=generator, dtype=torch.float64) + 1e-3 * x
        elif self.values == "zeros":
            x[..., ::2, :] = 0
        elif self.values == "large":
            x = 40 * x
        return x.to(dtype).to(device)


TOKENS = {
    "two segments": Case(segments=(4, 3), width=24, rope=True, heads=3),
    "one token": Case(segments=(1,), lead=(1,), heads=1),
    "a segment of one token": Case(segments=(4, 1), rope=True),
    "no text": Case(segments=(4, 0), lead=(1,), rope=True),
    "sizes that fill no block": Case(segments=(67, 3), width=33, lead=(2, 1), heads=3),
    "wide": Case(segments=(4, 3), width=1100, lead=(1,), heads=1, rope=True),
    "tokens of zero": Case(segments=(3, 2), lead=(1,), values="zeros"),
    "tokens alike": Case(segments=(3, 2), lead=(1,), values="alike"),
    "large": Case(segments=(3, 2), lead=(1,), values="large"),
    "no samples": Case(segments=(5, 2), lead=(0,)),
    "an axis of runs": Case(segments=(3, 2), lead=(2, 2), heads=1),
    "many runs": Case(segments=(3, 2), lead=(12, 1), width=24),
}
"""Inputs of merges, heads and gates."""

SHORT = ("two segments", "tokens alike")
"""Those for single precision and bfloat16 in the interpreter."""

FEW = ("two segments", "an axis of runs")
"""Those of merges without means in the interpreter."""

SCALAR = ("many runs",)
"""Those of a merge whose gain is one number: its error in one run is a matter of luck."""

Work = tuple[nn.Module, Callable[[nn.Module, list[Tensor]], Tensor], list[Tensor]]
"""A module, how it is called with inputs, and the inputs."""


def kernel_errors(device: str) -> list[dict[str, object]]:
    """One row per kernel, input, type and quantity: errors, and their ratio to what is allowed.

    Errors are root mean squares over a tensor, since the largest one is a matter of luck. Allowed are twice
    the error of plain torch and half a unit in the last place; in float64 the largest error is compared with
    `EXACT`. A row also says whether a kernel was in use.
    """
    return [row for kernel in (*MERGES, "heads", "gate") for row in _rows(kernel, device)]


def _rows(kernel: str, device: str) -> Iterator[dict[str, object]]:
    for name, types in TYPES.items():
        if types[0] != types[1] and kernel not in MERGES:
            continue
        for case in _cases(kernel, name, device):
            found = _compared(kernel, TOKENS[case], types, device)
            yield from ({"kernel": kernel, "case": case, "type": name} | row for row in found)


def _cases(kernel: str, name: str, device: str) -> Iterable[str]:
    """Inputs for a kernel: all on a device.

    In the interpreter, which is slow, all in double precision, a few in other types, and fewest for merges
    without means.
    """
    if torch.device(device).type != "cpu":
        return [case for case in TOKENS if case not in SCALAR or kernel == "rezero"]
    if kernel in MERGES[1:]:
        if name == "float16" or (name == "float32" and kernel in ("layerscale", "deepnorm")):
            return ()
        return SCALAR if kernel == "rezero" else FEW
    if name != "float64":
        return SHORT if name in ("float32", "bfloat16") else SHORT[:1]
    return [case for case in TOKENS if case not in SCALAR and (case != "wide" or kernel not in MERGES)]


def _compared(
    kernel: str, case: Case, types: tuple[torch.dtype, torch.dtype], device: str
) -> list[dict[str, object]]:
    make = _merge if kernel in MERGES else {"heads": _heads, "gate": _gate}[kernel]
    module, call, inputs = make(kernel, case, types, device)
    rounded = dict(module.state_dict())
    exact, _, _ = make(kernel, case, (torch.float64, torch.float64), device)
    exact.load_state_dict(rounded)
    for name, buffer in module.named_buffers():
        exact.get_buffer(name).copy_(buffer)
    ours = _quantities(module, call, inputs)
    taken = not inputs[0].numel() or _used_a_kernel(call(module, [x.requires_grad_() for x in inputs]))
    with plain_torch():
        plain = _quantities(module, call, inputs)
        reference = _quantities(exact, call, [x.double() for x in inputs])
    return [
        {"quantity": name, "fused": taken} | _ratio(ours[name], plain[name], reference[name])
        for name in reference
    ]


def _used_a_kernel(output: Tensor) -> bool:
    """Whether one of our operators is in the graph of an output."""
    stack = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and "meanmode" in node.name():
            return True
        stack += [] if node is None else [other for other, _ in node.next_functions]
    return False


def _quantities(
    module: nn.Module, call: Callable[[nn.Module, list[Tensor]], Tensor], inputs: list[Tensor]
) -> dict[str, Tensor]:
    """The output, and the gradients of inputs and gains for a fixed gradient of the output."""
    given = [x.detach().clone().requires_grad_() for x in inputs]
    learned = {name: of for name, of in module.named_parameters() if "proj" not in name and "w" not in name}
    output = call(module, given)
    generator = torch.Generator().manual_seed(9)
    gradient = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(torch.bfloat16)
    of = {f"input {number}": x for number, x in enumerate(given)} | learned
    found = torch.autograd.grad(output, list(of.values()), gradient.to(output))
    return {
        "output": output.detach(),
        **{f"gradient of {name}": g for name, g in zip(of, found, strict=True)},
    }


def _ratio(ours: Tensor, plain: Tensor, reference: Tensor) -> dict[str, object]:
    assert ours.dtype == plain.dtype and ours.shape == plain.shape
    if not ours.numel():
        return {"error": 0.0, "plain": 0.0, "ratio": 0.0}
    if ours.dtype == torch.float64:
        error, allowed = float((ours - reference).abs().max()), EXACT * max(1.0, float(reference.abs().max()))
        return {"error": error, "plain": 0.0, "ratio": error / allowed}
    error, of_plain, size = (
        _rms(x) for x in (ours.double() - reference, plain.double() - reference, reference)
    )
    allowed = 2 * of_plain + torch.finfo(ours.dtype).eps / 2 * size
    return {"error": error, "plain": of_plain, "ratio": error / allowed if error else 0.0}


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _merge(kernel: str, case: Case, types: tuple[torch.dtype, torch.dtype], device: str) -> Work:
    generator = torch.Generator().manual_seed(3)

    def member() -> nn.Module:
        merge = make_merge(kernel, case.width, residual_gain=0.4, alpha=0.3, beta=0.7)
        assert type(merge) in FUSED
        for gain in merge.parameters():
            gain.data += 0.1 * torch.randn(gain.shape, generator=generator)
        return merge

    merge = stack_members([member() for _ in range(case.lead[0])]) if len(case.lead) > 1 else member()
    inputs = [case.draw(seed, case.width, dtype, device) for seed, dtype in enumerate(types)]
    return merge.to(types[0]).to(device), lambda of, given: of(*given, case.segments), inputs


def _heads(_: str, case: Case, types: tuple[torch.dtype, torch.dtype], device: str) -> Work:
    mixer = SoftmaxAttention(case.width, case.heads, rope=case.rope)
    for layer in (mixer.q_proj, mixer.k_proj):
        nn.init.eye_(layer.weight)
    x = case.draw(0, case.width, types[0], device)
    return mixer.to(types[0]).to(device), lambda of, given: of.operands(*given, case.segments)[0], [x]


def _gate(_: str, case: Case, types: tuple[torch.dtype, torch.dtype], device: str) -> Work:
    ffn = SwiGLU(2 * case.width, case.width)
    for layer in (ffn.w13, ffn.w2):
        nn.init.eye_(layer.weight)
    x = case.draw(0, 2 * case.width, types[0], device)
    return ffn.to(types[0]).to(device), lambda of, given: of(*given), [x]
