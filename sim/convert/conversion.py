"""`convert`: another residual merge in the blocks of somebody else's model, its weights kept."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from meanmode.sim.anatomy.anatomy import Anatomy
from meanmode.sim.anatomy.discovery import discover
from meanmode.sim.anatomy.traced_pass import called, tensors_in
from meanmode.sim.anatomy.untouched import untouched
from meanmode.sim.convert.forward_additions import Site, merging_class, subclass
from meanmode.sim.convert.kept_tokens import HOLDER, KeptTokens, telling
from meanmode.sim.convert.located_additions import LocatedAddition, located_additions, sees_later
from meanmode.sim.convert.pre_norm import to_pre_norm
from meanmode.sim.trunk.combinations import LAYOUTS, Combination, make_combination
from meanmode.sim.trunk.segments import Division

CONVERTED = ("plain", "layerscale", "rezero", "deepnorm", "mv_split", "pre_norm")
"""Merges that a model can be converted to."""

START = {"layerscale": 0.1, "rezero": 0.0}
"""Initial gains of the branch where none is given."""


def convert(
    model: nn.Module,
    merge: str,
    run: Any,
    *,
    anatomy: Anatomy | None = None,
    segments: Division = None,
    gain: float | None = None,
    alpha: float = 0.0,
    beta: float = 1.0,
    frozen_alpha: bool = False,
) -> nn.Module:
    """Replace the residual additions of a model by another combination of trunk and branch; in place.

    Every module that adds gets a subclass of its class, whose methods have the same code but for the
    addition, and a module `merge_attn`, `merge_ffn`, ... that combines. The old keys of the state dict stay;
    new are the parameters of the merges, such as `encoder.layer.0.output.merge_ffn.alpha`: load an old state
    dict with `strict=False`.

    Args:
        model: a transformer of any attention; for `mv_split` not of causal attention.
        merge: `plain` (the original), `layerscale`, `rezero`, `deepnorm` (weights are not rescaled),
            `mv_split`, or, of `nn.TransformerEncoder` alone, `pre_norm`.
        run: a batch or a callable that runs one forward pass, as `discover` takes it.
        anatomy: only additions of the writers it names are replaced; None discovers all.
        segments: token counts in order, or name -> count; mv_split takes means in each.
        gain: initial lambda of layerscale (None: 0.1) and rezero (0); a of deepnorm ((2 N)^(1/4), N blocks).
        alpha: initial gain of mv_split on the mean.
        beta: its initial gain on the centered part.
        frozen_alpha: whether alpha asks for no gradient.

    Returns:
        The model.

    Raises:
        ValueError: an unknown merge, or one that does not suit the model; causal attention with mv_split; an
            addition that is not in readable Python code. The model is then as it was.
    """
    if merge not in CONVERTED:
        raise ValueError(f"unknown merge {merge!r}: choose one of {', '.join(CONVERTED)}")
    if hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled: convert it before torch.compile")
    if merge == "pre_norm":
        return to_pre_norm(model)
    anatomy = discover(model, run) if anatomy is None else anatomy
    anatomy.check(model)
    options = {"alpha": alpha, "beta": beta, "frozen_alpha": frozen_alpha, "segments": segments}
    _replace(model, merge, run, anatomy, gain, options)
    return model


def _replace(
    model: nn.Module, merge: str, run: Any, anatomy: Anatomy, gain: float | None, options: dict[str, Any]
) -> None:
    with untouched(model):
        found = located_additions(model, run, anatomy)
        if merge == "mv_split":
            _check_token_means(model, anatomy, found)
        if merge == "deepnorm":
            gain = _deepnorm_gain(anatomy, found, gain)
        swaps = _swaps(model, anatomy, found)
        _check_plain(model, run, _Conversion(model, swaps, _plain), len(found))

    def make(at: LocatedAddition) -> Combination:
        layout = anatomy.stream(at.writer.stream).layout
        made = make_combination(
            merge,
            at.sum.shape[-1],
            gain=START.get(merge, 1.0) if gain is None else gain,
            layout=layout if layout in LAYOUTS else "BTD",
            **options,
        )
        weight = model.get_parameter(at.writer.parameter)
        real = weight.dtype.is_floating_point and weight.dtype.itemsize > 1
        return made.to(weight.device, weight.dtype if real else torch.float32)

    conversion = _Conversion(model, swaps, make)
    conversion.apply()
    try:
        with untouched(model), torch.no_grad():
            called(model, run)
    except Exception:
        conversion.undo()
        raise


def _plain(at: LocatedAddition) -> Combination:
    return Combination(at.sum.shape[-1])


def _check_token_means(model: nn.Module, anatomy: Anatomy, found: list[LocatedAddition]) -> None:
    """Refuse what a mean over tokens has no place in: causal attention, grids, chunks of tokens."""
    for module in model.modules():
        if getattr(module, "chunk_size_feed_forward", 0):
            raise ValueError(
                f"{type(module).__name__} feeds its tokens forward in chunks, of which mv_split would take "
                "means: set chunk_size_feed_forward=0"
            )
    for name in dict.fromkeys(at.writer.stream for at in found):
        layout = anatomy.stream(name).layout
        if layout not in LAYOUTS:
            raise ValueError(
                f"mv_split needs states of the layout {' or '.join(LAYOUTS)}, those of the stream {name!r} "
                f"have {layout}"
            )
        own = [at for at in found if at.writer.stream == name]
        shapes = {tuple(at.sum.shape) for at in own}
        tokens = own[0].sum.shape[layout.index("T")] if own[0].sum.ndim == 3 else 0
        if len(shapes) > 1 or tokens < 2:
            raise ValueError(
                f"mv_split needs states of one shape with two tokens or more, those of the stream {name!r} "
                f"have {' and '.join(map(str, sorted(shapes)))}: give another batch, or an anatomy without "
                "the writers of the stream"
            )
        if not sees_later(own[0].trunk, own[-1].sum, layout):
            raise ValueError(
                f"no token of the stream {name!r} of {type(model).__name__} sees a later one: its attention "
                "is causal, and the token means of mv_split would leak the future; use layerscale, rezero or "
                "deepnorm"
            )


def _deepnorm_gain(anatomy: Anatomy, found: list[LocatedAddition], gain: float | None) -> float:
    """a of DeepNorm for N blocks of one stream, (2 N)^(1/4), as arXiv:2203.00555 has it."""
    for at in found:
        if not at.writer.norms.after:
            raise ValueError(
                f"deepnorm needs a norm after every addition, {at.writer.parameter} has the placement "
                f"{at.writer.norms.placement}"
            )
    if gain is not None:
        return gain
    streams = {at.writer.stream for at in found}
    if len(streams) > 1:
        raise ValueError(f"deepnorm has a rule for one stream, got {', '.join(sorted(streams))}: pass gain")
    return (2 * len({at.writer.block for at in found})) ** 0.25


@dataclass(slots=True)
class _Swap:
    """A module that adds or is told of padding: its additions by the name of their merge, and its block."""

    additions: dict[str, LocatedAddition]
    block: str | None
    tells: bool = False


def _swaps(model: nn.Module, anatomy: Anatomy, found: list[LocatedAddition]) -> dict[str, _Swap]:
    """Name of a module -> what becomes of it."""
    # the name of the model itself is empty, and so is that of no module
    blocks = {block.index: block.module for block in anatomy.blocks if block.module or block.outputs}
    swaps: dict[str, _Swap] = {}
    sites: dict[tuple[str, Site], str] = {}
    for at in found:
        swap = swaps.setdefault(at.home, _Swap({}, blocks.get(at.writer.block)))
        if (at.home, at.site) in sites:
            continue
        name = f"merge_{at.writer.label or at.writer.kind}".replace("-", "_")
        name = f"{name}_{at.writer.stream}".replace(".", "_") if name in swap.additions else name
        sites[at.home, at.site] = name
        swap.additions[name] = at
    for home, swap in list(swaps.items()):
        if swap.block == "" or (swap.block and f"{home}.".startswith(f"{swap.block}.")):
            swaps.setdefault(swap.block, _Swap({}, swap.block)).tells = True
    for home, swap in swaps.items():
        taken = [name for name in (*swap.additions, HOLDER) if hasattr(model.get_submodule(home), name)]
        if taken:
            raise ValueError(
                f"{home or type(model).__name__} has a {taken[0]!r} already: convert a model once"
            )
    return swaps


class _Conversion:
    """Swaps classes and adds merges, and takes both back.

    Args:
        model: the model.
        swaps: name of a module -> what becomes of it.
        make: gives the combination for an addition.

    Attributes:
        merges: the combinations.
    """

    def __init__(
        self, model: nn.Module, swaps: dict[str, _Swap], make: Callable[[LocatedAddition], Combination]
    ) -> None:
        self.model, self.swaps = model, swaps
        self.kinds = {home: type(model.get_submodule(home)) for home in swaps}
        self.parts = {
            home: {name: make(at) for name, at in swap.additions.items()} for home, swap in swaps.items()
        }
        self.merges = [merge for parts in self.parts.values() for merge in parts.values()]
        self._fast: list[tuple[nn.Module, str, Any]] = []

    def apply(self) -> None:
        """Convert the modules."""
        kept: dict[str, KeptTokens] = {}
        classes: dict[Any, type] = {}
        for home, swap in self.swaps.items():
            module = self.model.get_submodule(home)
            sites = {at.site: (name, at.trunk_first) for name, at in swap.additions.items()}
            key = (type(module), tuple(sites.items()), swap.tells)
            if key not in classes:
                classes[key] = _converted_class(type(module), sites, swap.tells)
            module.__class__ = classes[key]
            setattr(module, HOLDER, kept.setdefault(home if swap.block is None else swap.block, KeptTokens()))
            for name, merge in self.parts[home].items():
                module.add_module(name, merge.train(module.training))
        for module in self.model.modules():
            self._switch_off_fast_path(module)

    def _switch_off_fast_path(self, module: nn.Module) -> None:
        """The fused layers of torch would go round the merges, and nested tensors have no token axis."""
        name = ""
        if isinstance(module, nn.TransformerEncoderLayer) and hasattr(module, HOLDER):
            name, value = "activation_relu_or_gelu", 0
        elif isinstance(module, nn.TransformerEncoder) and any(hasattr(of, HOLDER) for of in module.layers):
            name, value = "use_nested_tensor", False
        if name:
            self._fast.append((module, name, getattr(module, name)))
            setattr(module, name, value)

    def undo(self) -> None:
        """Take the conversion back."""
        for module, name, value in self._fast:
            setattr(module, name, value)
        self._fast.clear()
        for home, kind in self.kinds.items():
            module = self.model.get_submodule(home)
            for name in (*self.parts[home], HOLDER):
                delattr(module, name)
            module.__class__ = kind


def _converted_class(kind: type, sites: dict[Site, tuple[str, bool]], tells: bool) -> type:
    found: Any = merging_class(kind, sites, HOLDER) if sites else kind
    told = telling(found.forward) if tells else None
    return subclass(found, {"forward": told}) if told else found


def _check_plain(model: nn.Module, run: Any, conversion: _Conversion, count: int) -> None:
    """Run a plain conversion with and without gradients: it must reproduce the pass, through every merge."""
    expected = _outputs(model, run)
    conversion.apply()
    try:
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients), _counted(conversion.merges) as calls:
                found = _outputs(model, run)
            if len(calls) != count:
                raise ValueError(
                    f"{type(model).__name__} went through {len(calls)} of {count} residual additions "
                    f"{'with' if gradients else 'without'} gradients: some are made elsewhere"
                )
        for before, after in zip(expected, found, strict=True):
            if not torch.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True):
                raise ValueError(
                    f"a plain conversion of {type(model).__name__} does not reproduce its output"
                )
    finally:
        conversion.undo()


def _outputs(model: nn.Module, run: Any) -> list[Tensor]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        return [tensor.detach() for _, tensor in tensors_in(called(model, run))]


@contextlib.contextmanager
def _counted(merges: list[Combination]) -> Iterator[list[nn.Module]]:
    """The calls of some modules, seen by a global hook: hooks of modules switch fast paths off."""
    own, calls = {id(merge) for merge in merges}, []

    def note(module: nn.Module, *_: Any) -> None:
        if id(module) in own:
            calls.append(module)

    handle = global_hooks.register_module_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()
