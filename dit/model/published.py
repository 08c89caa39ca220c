"""The published checkpoint: from weights under its names to a network, and back."""

# D width, C channels of a latent, P side of a patch

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.presets import PRESETS
from meanmode.dit.model.network import DiT, new_block
from meanmode.sim.store.files import reason

HEAD_WIDTH = 128
"""Of the published networks; no shape tells it."""


PATCHES, CONTEXT = "patch_embed.patch_proj.weight", "context_proj.weight"


INPUT_NORMS = ("norm_img_input.weight", "norm_text_input.weight")
"""Buffers of ones: the norms of the embedded tokens learn no scale."""


MERGES = {"merge_attn": "fused_mvsplit_norm1", "merge_ffn": "fused_mvsplit_norm2"}
"""Published names of the merges, whose parameters are alpha and beta. The gains of the other learned merges,
which nobody published, keep our names: blocks.{i}.merge_{attn,ffn}.gain."""


WRAPPED, PREFIXES = ("model", "state_dict"), ("module.", "_orig_mod.")
"""What a state dict may lie under, and what data parallelism and the compiler put before every name."""


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


SAFETENSORS, TORCH = ".safetensors", ".pt"


NAMED = 8
"""As many names an error lists."""


def load_published(
    source: str | Path | Mapping[str, Any],
    config: DiTConfig | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
) -> DiT:
    """The network of a checkpoint under the published names (arXiv:2605.06169, released `model.pt`).

    Nothing but what is listed there is accepted: no other name, shape or missing tensor, no NaN or infinity.
    A name may stand behind `module.` or `_orig_mod.` where all do. Tensors of a file are adopted as they are
    mapped into memory, one by one, so that there is never more than one copy of them beside the converted
    ones; the file must stay as it is while the network lives (`export_published` puts a new one in its
    place). Tensors of a state dict are copied.

    Args:
        source: a `.safetensors` file, any other file of `torch.save`, or a state dict; it may lie under
            `model` or `state_dict`.
        config: of the network, for what no shape tells; what shapes tell must agree. None takes the published
            values: MV-Split, heads of 128 features, latents of side 16.
        dtype: of the network; None leaves every tensor as stored, which for half precision takes autocast to
            compute with.

    Raises:
        ValueError: a file that is missing or damaged, or a checkpoint that does not fit.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"weights are of a floating dtype of 16 bits or more, got {dtype}")
    in_memory = isinstance(source, Mapping)
    where = "the state dict" if in_memory else str(source)
    tensors = _flat(source if isinstance(source, Mapping) else _read(Path(source)), where)
    network = _unfilled(_config_of(tensors, config, where))
    expected = _expected(network)
    _check(tensors, expected, where, guessed=config is None)
    own, adopted, places, infinite = network.state_dict(), {}, set(), []
    for name, ours in _names(network).items():
        tensor = tensors.pop(name).detach().contiguous()
        # one stored tensor may have two names; parameters share no memory
        apart = in_memory or tensor.data_ptr() in places
        tensor = tensor.to(tensor.dtype if dtype is None else dtype, copy=apart).view(own[ours].shape)
        places.add(tensor.data_ptr())
        adopted[ours] = tensor
        if not all(bound.isfinite() for bound in tensor.aminmax()):
            infinite.append(name)
    if infinite:
        raise ValueError(f"{where} holds values that are not finite in {_listed(infinite)}")
    scaled = [name for name in INPUT_NORMS if (tensors[name] != 1).any()]
    if scaled:
        raise ValueError(
            f"{where} has scales other than 1 in {_listed(scaled)}: the norms of the network have none"
        )
    network.load_state_dict(adopted, assign=True)
    return network


def export_published(model: DiT, path: str | Path | None = None) -> dict[str, Tensor]:
    """A network's weights under the published names, not copied; written to a file, where one is named.

    Args:
        model: of any merge and mixer; those that were not published keep our names.
        path: `.safetensors` or `.pt`. It is written beside its place and renamed when it is whole.

    Raises:
        ValueError: another suffix, a place that cannot be written to, an ensemble, or no weights.
    """
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise ValueError("this network has no weights yet: it is on the meta device")
    if model.final_proj.weight.ndim != 2:
        raise ValueError(
            "this network is an ensemble: export its members (meanmode.sim.trunk.ensemble.unstack_member)"
        )
    expected = _expected(model)
    state = {name: own[ours].view(expected[name]) for name, ours in _names(model).items()}
    norms = {name: own["final_proj.bias"].new_ones(expected[name]) for name in INPUT_NORMS}
    if path is not None:
        _write({**state, **norms}, Path(path))
    return {**state, **norms}


def _names(network: DiT) -> dict[str, str]:
    """Published name -> ours, of all that is learned."""
    return {_published(name): name for name in network.state_dict()}


def _published(ours: str) -> str:
    *above, merge, gain = ours.split(".")
    return ".".join([*above, MERGES[merge], gain]) if gain in ("alpha", "beta") else ours


def _expected(network: DiT) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a checkpoint."""
    config, own = network.config, network.state_dict()
    shapes = {name: tuple(own[ours].shape) for name, ours in _names(network).items()}
    convolution = (config.width, config.channels, config.patch, config.patch)
    return {**shapes, PATCHES: convolution, **dict.fromkeys(INPUT_NORMS, (config.width,))}


def _flat(found: Any, where: str) -> dict[str, Any]:
    """The state dict itself, without what may stand before every name."""
    if isinstance(found, Mapping):
        found = next((found[key] for key in WRAPPED if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} holds a {type(found).__name__}, not a state dict")
    flat = {str(name): value for name, value in found.items()}
    while flat and (
        common := [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in flat)]
    ):
        flat = {name.removeprefix(common[0]): value for name, value in flat.items()}
    return flat


def _config_of(tensors: Mapping[str, Any], config: DiTConfig | None, where: str) -> DiTConfig:
    """The configuration that the shapes tell, completed by one that agrees or by the published one."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    # the numbers are counted: of a block that is not next to the others the names will be unknown
    found: dict[str, Any] = {
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    }
    patches, context, writer = (shapes.get(name) for name in (PATCHES, CONTEXT, "blocks.0.ffn.w2.weight"))
    if patches is not None:
        if len(patches) != 4 or 0 in patches:
            raise ValueError(
                f"{PATCHES} of {where} must be [D, C, P, P], as of a Conv2d, got {list(patches)}"
            )
        found |= {"width": patches[0], "channels": patches[1], "patch": patches[2]}
        found["text_width"] = patches[0]
        if writer is not None and len(writer) == 2:
            found["ffn_ratio"] = writer[1] / patches[0]
    if context is not None and len(context) == 2:
        found["text_width"] = context[1]
    if config is not None:
        differing = [name for name, value in found.items() if abs(getattr(config, name) - value) > 1e-9]
        if differing:
            sides = (f"{name} {found[name]:g} instead of {getattr(config, name):g}" for name in differing)
            raise ValueError(f"{where} is of another configuration: {_listed(sides)}")
        return config
    width = found.get("width", HEAD_WIDTH)
    if width % HEAD_WIDTH:
        raise ValueError(
            f"{where} is {width} wide, no multiple of the published head width {HEAD_WIDTH}: "
            "pass the configuration, which says how many heads it has"
        )
    published = PRESETS["dit-1000l-mvsplit"].model
    try:
        return dataclasses.replace(published, **found, heads=width // HEAD_WIDTH)
    except ValueError as error:
        raise ValueError(
            f"the shapes of {where} fit no published network, pass its configuration: {error}"
        ) from error


def _check(
    tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], where: str, *, guessed: bool
) -> None:
    """Refuse other names, shapes or types than expected."""
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        parts += [f"holds unknown {_listed(unknown)}"] if unknown else []
        hint = ": another merge or mixer than the published needs its configuration" if guessed else ""
        raise ValueError(f"{where} {' and '.join(parts)}{hint}")
    wrong = []
    for name, shape in expected.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor):
            wrong.append(f"{name} (a {type(tensor).__name__})")
        elif tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            kind = str(tensor.dtype).removeprefix("torch.")
            layout = "" if tensor.layout == torch.strided else f", {tensor.layout}".replace("torch.", "")
            wrong.append(f"{name} ({kind}{layout}{' without data' if tensor.is_meta else ''})")
        elif tuple(tensor.shape) != shape:
            wrong.append(f"{name} ({list(tensor.shape)}, not {list(shape)})")
    if wrong:
        raise ValueError(f"{where} holds tensors of a wrong shape or type: {_listed(wrong)}")


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    rest = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + rest


def _unfilled(config: DiTConfig) -> DiT:
    """A network without weights, but with the constants that are in no checkpoint."""
    with torch.device("meta"):
        network = DiT(config)
    if any(buffer.is_meta for buffer in network.buffers()):
        constants = dict(new_block(config).named_buffers())
        for block in network.blocks:
            for name, value in constants.items():
                owner, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(owner), leaf, value.clone())
    return network


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ValueError("a .safetensors file takes safetensors: pip install '.[train]'") from error
    return safetensors.torch


def _read(path: Path) -> Any:
    """What a file holds, mapped into memory.

    Raises:
        ValueError: no file, or one that cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} is a folder: name the file" if path.is_dir() else f"{path} does not exist")
    try:
        if path.suffix == SAFETENSORS:
            return _safetensors().load_file(path)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"{path} cannot be read: it is damaged or holds more than tensors ({_why(error)})"
        ) from error


def _why(error: Exception) -> str:
    """The first sentence of an error; torch goes on to advise against its own safeguards."""
    text = reason(error) if isinstance(error, OSError) else str(error)
    return text.strip().partition("\n")[0].partition(". ")[0] or type(error).__name__


def _write(state: Mapping[str, Tensor], path: Path) -> None:
    if path.suffix not in (SAFETENSORS, TORCH):
        raise ValueError(f"a checkpoint is a {SAFETENSORS} or {TORCH} file, got {path.name!r}")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: {path.parent} is no folder")
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == SAFETENSORS:
            _safetensors().save_file(dict(state), partial, metadata={"format": "pt"})
        else:
            torch.save(dict(state), partial)
        os.replace(partial, path)
    except Exception as error:  # of a full disk, each format says so by its own
        raise ValueError(f"{path} cannot be written: {_why(error)}") from error
    finally:
        partial.unlink(missing_ok=True)
