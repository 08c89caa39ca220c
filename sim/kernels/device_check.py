"""Before a device is given to the kernels: whether they compute there what torch computes on the CPU."""

# N samples, T tokens, D width, H heads, F features per head

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Types that are checked, and the largest error in each, relative to the largest number of a tensor."""

SEGMENTS, WIDTH, HEADS, EPS = (67, 5), 48, 2, 1e-6

Reference = Callable[..., Tensor]
Launches = Callable[..., Sequence[Tensor]]
Check = tuple[Reference, Launches, list[Tensor]]
"""Plain torch of some tensors; the kernels' result and gradients, of its gradient and them; the tensors."""

_answers: dict[torch.device, bool] = {}


def agrees(device: torch.device) -> bool:
    """Whether the kernels may be used on a device: checked once in a process, with a warning if not.

    While a CUDA graph is captured nothing can be checked: no, until it was.
    """
    if device not in _answers:
        if _capturing(device):
            return False
        reason = _disagreement(device)
        _answers[device] = not reason
        if reason:
            warnings.warn(
                f"plain torch computes on {device} in this process, because the kernels for a GPU failed "
                f"their check there: {reason}",
                stacklevel=3,
            )
    return _answers[device]


# as torch.compiler.assume_constant_result marks it, which would load the compiler in every process
vars(agrees)["_dynamo_marked_constant"] = True


def _capturing(device: torch.device) -> bool:
    """Whether the current stream of a device is being captured."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _disagreement(device: torch.device) -> str:
    """What is wrong with the kernels on a device; empty if nothing is."""
    try:
        # in a thread of its own neither modes of torch nor autocast nor the caller's stream are in force
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(_largest_error, device).result()
    except Exception as error:  # whatever a compiler, a driver or a launch raises
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _largest_error(device: torch.device) -> str:
    """The first quantity whose error is too large; references are of float64."""
    for dtype, tolerance in TOLERANCES.items():
        for name, (reference, launches, drawn) in _checks().items():
            given = [x.to(dtype) for x in drawn]
            leaves = [x.double().requires_grad_() for x in given]
            output = reference(*leaves)
            gradient = torch.linspace(-1, 1, output.numel()).reshape(output.shape).sin().to(dtype)
            wanted = [output.detach(), *torch.autograd.grad(output, leaves, gradient.double())]
            found = launches(gradient.to(device), *(x.to(device) for x in given))
            for place, (ours, right) in enumerate(zip(found, wanted, strict=True)):
                error = float((ours.cpu().double() - right).abs().max() / right.abs().max())
                if not error <= tolerance:
                    what = f"gradient {place} of {name}" if place else f"the result of {name}"
                    kind = str(dtype).removeprefix("torch.")
                    return (
                        f"{what} in {kind} is off by {error:.1g} of its largest number, not {tolerance:.0e}"
                    )
    return ""


def _checks() -> dict[str, Check]:
    """What is compared: each operator, forward and backward; a merge with and without means."""
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    shape = 2, sum(SEGMENTS), WIDTH
    angles = drawn(shape[1], WIDTH // HEADS // 2)
    return {
        "MV-Split": (_mv_split, _launch_mv_split, [drawn(*shape), drawn(*shape), drawn(WIDTH), drawn(WIDTH)]),
        "the plain merge": (_plain, _launch_plain, [drawn(*shape), drawn(*shape)]),
        "QK-Norm": (*_heads(angles.cos().float(), angles.sin().float()), [drawn(*shape)]),
        "SwiGLU": (_gate, _launch_gate, [drawn(*shape)]),
    }


def _plain(x: Tensor, branch: Tensor) -> Tensor:
    return rms_norm(x + branch, (WIDTH,), eps=EPS)


def _launch_plain(gradient: Tensor, x: Tensor, branch: Tensor) -> list[Tensor]:
    from meanmode.sim.kernels import merge_launch

    none, segments = (None, None, None), list(SEGMENTS)
    y, means = merge_launch.forward(x, branch, none, segments, EPS)
    of_both, _, _ = merge_launch.backward(gradient, x, branch, none, means, segments, EPS)
    return [y, of_both, of_both]


def _mv_split(x: Tensor, branch: Tensor, write: Tensor, alpha: Tensor) -> Tensor:
    def mean(z: Tensor) -> Tensor:
        return torch.cat([part.mean(-2, keepdim=True).expand_as(part) for part in z.split(SEGMENTS, -2)], -2)

    merged = x + write * (branch - mean(branch)) + alpha * mean(branch - x)
    return rms_norm(merged, (WIDTH,), eps=EPS)


def _launch_mv_split(
    gradient: Tensor, x: Tensor, branch: Tensor, write: Tensor, alpha: Tensor
) -> list[Tensor]:
    from meanmode.sim.kernels import merge_launch

    gains, segments = (None, write, alpha), list(SEGMENTS)
    y, means = merge_launch.forward(x, branch, gains, segments, EPS)
    of_x, of_branch, of_gains = merge_launch.backward(gradient, x, branch, gains, means, segments, EPS)
    return [y, of_x, of_branch, of_gains[1, 0], of_gains[0, 0]]


def _heads(cos: Tensor, sin: Tensor) -> tuple[Reference, Launches]:
    """Rotary positions and QK-Norm by angles [T, F / 2]."""

    def plain(x: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (HEADS, -1)).transpose(-2, -3).chunk(2, -1)
        turned = torch.cat([first * cos + second * sin, second * cos - first * sin], -1)
        return rms_norm(turned, (WIDTH // HEADS,), eps=EPS)

    def launch(gradient: Tensor, x: Tensor) -> list[Tensor]:
        from meanmode.sim.kernels import head_launch

        turn = cos.to(x.device), sin.to(x.device)
        y = head_launch.forward(x, *turn, HEADS, EPS)
        return [y, head_launch.backward(gradient, x, *turn, HEADS, EPS)]

    return plain, launch


def _gate(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return silu(gate) * value


def _launch_gate(gradient: Tensor, x: Tensor) -> list[Tensor]:
    from meanmode.sim.kernels import gate_launch

    return [gate_launch.forward(x), gate_launch.backward(gradient, x)]
