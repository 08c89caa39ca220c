"""Depth profiles of any model at initialisation: one forward pass, or one with a backward pass."""

# B batch, T tokens, D width, L blocks

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from meanmode.sim.anatomy.anatomy import Anatomy
from meanmode.sim.anatomy.discovery import discover
from meanmode.sim.anatomy.traced_pass import called
from meanmode.sim.anatomy.untouched import untouched
from meanmode.sim.trunk.precision import single
from meanmode.sim.trunk.stack import Block
from meanmode.sim.watch.watch import Watch
from meanmode.sim.watch.watch_plan import WatchPlan
from meanmode.theory.meanfield.coverage import why_not_one_cosine
from meanmode.theory.setting import Setting

FORWARD, BACKWARD = ("tcs", "rho"), ("g_mean", "g_ctr", "amplification")

STD_ERROR = 0.05
"""Largest relative deviation of the standard deviation of the weights from that of the setting."""


@dataclass(frozen=True, kw_only=True)
class DepthProfile:
    """Observables against depth of one trunk.

    Attributes:
        trunk: name of its stream; streams that blocks share or join are one trunk, joined by plus signs.
        blocks: numbers of its blocks in the anatomy, without those that write to some of its streams only;
            the first trunk starts with 0, its input.
        tcs: token cosine (TCS) after each block, batch mean; NaN where it was not measured.
        rho: |mu(X)|_F / |c(X)|_F after each block, batch mean.
        writers: "name label" of a gradient observable of a writer -> its values; empty without `backward`.
        setting: setting whose front the theory predicts; None where it does not cover the model.
    """

    trunk: str
    blocks: tuple[int, ...]
    tcs: NDArray[np.float64]
    rho: NDArray[np.float64]
    writers: dict[str, NDArray[np.float64]]
    setting: Setting | None


def depth_profiles(model: nn.Module, run: Any, *, backward: bool = False) -> tuple[DepthProfile, ...]:
    """Measure one pass in evaluation mode; afterwards the model is bitwise as it was, gradients included.

    Padding is left out where the batch has a two-dimensional attention mask.

    Args:
        model: any transformer.
        run: a batch, or a callable that runs one pass, as `discover` takes it.
        backward: whether to measure gradients too: of the loss that the pass returns or, if it returns none,
            of the mean square of the last states against standard normal targets, the same in every call.

    Raises:
        ValueError: the pass has no residual additions, could not be measured, or has no loss and no last
            state.
    """
    names = (*FORWARD, *(BACKWARD if backward else ()))
    with untouched(model), _no_gradients(model):
        anatomy = discover(model, run)
        watch = Watch(model, every=1, anatomy=anatomy, names=names)
        with watch.step(1), _last_states(model, anatomy) as states:
            returned = called(model, run)
            if backward:
                _loss(returned, [x for of in states.values() for x in of]).backward()
    if not watch.values:
        raise ValueError(
            f"the forward pass of {type(model).__name__} could not be measured: a warning says why"
        )
    labels = WatchPlan(model, anatomy, blocks=None, names=names, segments={}).labels
    profiles = []
    for number, (trunk, blocks) in enumerate(trunks(anatomy).items()):
        written = [_streams(anatomy, block) for block in blocks]
        whole = [block for block, of in zip(blocks, written, strict=True) if of == set().union(*written)]
        found = np.array([*(() if number else (0,)), *(whole or blocks)])
        values = {name: of[found] for name, of in watch.values.items() if name in names}
        writers = {
            f"{name} {label}": values[name][:, column]
            for column, label in enumerate(labels)
            for name in names[len(FORWARD) :]
            if np.isfinite(values[name][:, column]).any()
        }
        profiles.append(
            DepthProfile(
                trunk=trunk,
                blocks=tuple(found.tolist()),
                tcs=values["tcs"],
                rho=values["rho"],
                writers=writers,
                setting=covered_setting(model, states.get(trunk, []), float(values["tcs"][0])),
            )
        )
    return tuple(profiles)


def trunks(anatomy: Anatomy) -> dict[str, tuple[int, ...]]:
    """Name of a trunk -> its blocks; image and context, and the stream they are joined to, are one trunk."""
    found: list[tuple[set[str], list[int]]] = []
    for block in anatomy.blocks:
        names, blocks = _streams(anatomy, block.index), [block.index]
        for other in [other for other in found if other[0] & names]:
            found.remove(other)
            names, blocks = other[0] | names, other[1] + blocks
        found.append((names, blocks))
    found.sort(key=lambda each: min(each[1]))
    return {"+".join(sorted(names)): tuple(sorted(blocks)) for names, blocks in found}


def _streams(anatomy: Anatomy, block: int) -> set[str]:
    """Streams that a block writes to; for a joint one, those it is joined from."""
    written = [anatomy.stream(name) for name in {writer.stream for writer in anatomy.of_block(block)}]
    return {
        name
        for stream in written
        for name in {part.stream for part in stream.parts if part.stream} or {stream.name}
    }


def covered_setting(model: nn.Module, states: list[Tensor], cosine: float) -> Setting | None:
    """The setting of a model of our own blocks at the measured batch and input cosine.

    None if the theory does not cover it, the weights are not drawn as the setting says, or the batch has
    another number of tokens.

    Args:
        model: any model.
        states: its last states.
        cosine: TCS of its input.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks or len(states) != 1 or states[0].ndim != 3:
        return None
    if blocks[0].setting.frame_means:
        return None
    own = dataclasses.replace(blocks[0].setting, input="gaussian", frames=1)  # the input is measured
    if why_not_one_cosine(own) is not None:
        return None
    fields = {name: getattr(own, name) for name in own.__dataclass_fields__}
    writer_std = own.weight_std if own.writer_std is None else own.writer_std
    drawn = all(
        abs(float(weight.detach().std()) - std) <= STD_ERROR * std
        for block in blocks
        for weight, std in ((block.ffn.w13.weight, own.weight_std), (block.ffn.w2.weight, writer_std))
    )
    if not drawn or len(blocks) != own.depth or sum(own.segments) != states[0].shape[1]:
        return None
    start = min(max(cosine, 0.0), 1.0) if np.isfinite(cosine) else own.input_cosine
    return Setting(**{**fields, "batch": len(states[0]), "input_cosine": start})


@contextlib.contextmanager
def _no_gradients(model: nn.Module) -> Iterator[None]:
    """Put gradients aside and back."""
    held = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in held:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient


@contextlib.contextmanager
def _last_states(model: nn.Module, anatomy: Anatomy) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the states after the last block of every trunk."""
    states: dict[str, list[Tensor]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    with contextlib.ExitStack() as stack:
        for trunk, blocks in trunks(anatomy).items():
            last = anatomy.blocks[blocks[-1] - 1]

            def keep(_: nn.Module, __: Any, output: Any, trunk: str = trunk, last: Any = last) -> None:
                states[trunk] = [_at(output, place.path) for place in last.outputs]  # of the last call

            if last.module:
                stack.callback(modules[last.module].register_forward_hook(keep).remove)
        yield states


def _at(output: Any, path: tuple[int | str, ...]) -> Tensor:
    for key in path:
        output = output[key]
    assert isinstance(output, Tensor)
    return output


def _loss(returned: Any, states: list[Tensor]) -> Tensor:
    own = returned.get("loss") if isinstance(returned, Mapping) else getattr(returned, "loss", None)
    own = returned if isinstance(returned, Tensor) and returned.ndim == 0 else own
    if isinstance(own, Tensor):
        return own.mean()
    if not states:
        raise ValueError("the pass returns no loss, and no module returns the last state: return a loss")
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(x.shape, generator=generator).to(x.device) for x in states]
    squares = [(single(x) - target).square().mean() for x, target in zip(states, targets, strict=True)]
    return torch.stack(squares).sum()
