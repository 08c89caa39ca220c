"""The published checkpoint format: load weights stored under its names, and export them."""

# D width, C channels of a latent, P side of a patch

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.presets import PRESETS
from meanmode.dit.model.network import DiT, new_block
from meanmode.sim.store.files import partial_path, reason
from meanmode.sim.store.regular_files import open_regular

HEAD_WIDTH = 128
"""Features per head of the published networks; it cannot be inferred from the shapes."""


PATCHES, CONTEXT = "patch_embed.patch_proj.weight", "context_proj.weight"


INPUT_NORMS = ("norm_img_input.weight", "norm_text_input.weight")
"""Buffers of ones, because the norms of the embedded tokens have no learned scale."""


ONES = re.compile(r"blocks\.\d+\.(.+\.qk_norm\.(query|key)_norm|fused_mvsplit_norm[12])\.weight")
"""Further weights, which checkpoints hold that were saved without Triton: its norms have none, and those that
take their place start from ones and were trained as well."""


MERGES = {"merge_attn": "fused_mvsplit_norm1", "merge_ffn": "fused_mvsplit_norm2"}
"""Our names of the MV-Split merges -> the published ones. The gains of other learned merges were never
published and keep our names: blocks.{i}.merge_{attn,ffn}.gain."""


WRAPPED, PREFIXES = ("model", "state_dict"), ("module.", "_orig_mod.")
"""Keys that may wrap a state dict, and prefixes that data parallelism and the compiler add to every name."""


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


SAFETENSORS, TORCH = ".safetensors", ".pt"


NAMED = 8
"""Largest number of names listed in an error message."""


def load_published(
    source: str | Path | Mapping[str, Any],
    config: DiTConfig | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
) -> DiT:
    """Load a checkpoint stored under the published names (arXiv:2605.06169, released `model.pt`).

    Missing or unknown names, wrong shapes, NaN and infinities are refused. The prefixes `module.` and
    `_orig_mod.` are accepted if every name has them. Tensors of a file are memory-mapped and adopted one by
    one, so that there is never more than one copy besides the converted tensors; the file must not be
    modified while the network is in use (`export_published` replaces it by a new file). Tensors of a state
    dict are copied.

    Args:
        source: a `.safetensors` file, any other file written by `torch.save`, or a state dict, possibly
            nested under `model` or `state_dict`.
        config: supplies what cannot be inferred from the shapes and must agree with what can. None takes the
            published values: MV-Split, heads of 128 features, latents of side 16.
        dtype: dtype of the network. None keeps the stored dtypes; half precision then needs autocast.

    Raises:
        ValueError: the file is missing or damaged, or the checkpoint does not fit the network.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be a floating type of at least 16 bits, got {dtype}")
    in_memory = isinstance(source, Mapping)
    where = "the state dict" if in_memory else str(source)
    stored = source if isinstance(source, Mapping) else _read(Path(source))
    tensors = _without_ones(_flat(stored, where), where)
    network = _unfilled(_config_of(tensors, config, where))
    expected = _expected(network)
    _check(tensors, expected, where, guessed=config is None)
    own, adopted, addresses, infinite = network.state_dict(), {}, set(), []
    for name, ours in _names(network).items():
        tensor = tensors.pop(name).detach().contiguous()
        # two names may refer to one stored tensor, but parameters must not share memory
        apart = in_memory or tensor.data_ptr() in addresses
        tensor = tensor.to(tensor.dtype if dtype is None else dtype, copy=apart).view(own[ours].shape)
        addresses.add(tensor.data_ptr())
        adopted[ours] = tensor
        if not all(bound.isfinite() for bound in tensor.aminmax()):
            infinite.append(name)
    if infinite:
        raise ValueError(f"{where} contains non-finite values in {_listed(infinite)}")
    scaled = [name for name in INPUT_NORMS if (tensors[name] != 1).any()]
    if scaled:
        raise ValueError(
            f"{where} has scales other than 1 in {_listed(scaled)}: the norms of this network have no scale"
        )
    network.load_state_dict(adopted, assign=True)
    return network


def export_published(model: DiT, path: str | Path | None = None) -> dict[str, Tensor]:
    """Return the weights of a network under the published names, without copying, and optionally save them.

    Args:
        model: network with any merge and mixer; parameters that were never published keep our names.
        path: `.safetensors` or `.pt` file; it is written under a temporary name and renamed once complete.

    Raises:
        ValueError: unsupported suffix, unwritable path, an ensemble, or a network without weights.
    """
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise ValueError("this network has no weights: it is on the meta device")
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
    """Map the published name of every learned tensor to ours."""
    return {_published(name): name for name in network.state_dict()}


def _published(ours: str) -> str:
    *above, merge, gain = ours.split(".")
    return ".".join([*above, MERGES[merge], gain]) if gain in ("alpha", "beta") else ours


def _expected(network: DiT) -> dict[str, tuple[int, ...]]:
    """Return the expected shape of every tensor of a checkpoint."""
    config, own = network.config, network.state_dict()
    shapes = {name: tuple(own[ours].shape) for name, ours in _names(network).items()}
    convolution = (config.width, config.channels, config.patch, config.patch)
    return {**shapes, PATCHES: convolution, **dict.fromkeys(INPUT_NORMS, (config.width,))}


def _flat(found: Any, where: str) -> dict[str, Any]:
    """Unwrap a state dict and strip the prefixes that all names share."""
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


def _without_ones(tensors: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Drop the weights of norms that the published network does not have; ones change nothing.

    Raises:
        ValueError: such a weight is not all ones, so that the network is another function.
    """
    extra = {name: tensor for name, tensor in tensors.items() if ONES.fullmatch(name)}
    scaled = [
        name for name, tensor in extra.items() if not isinstance(tensor, Tensor) or not _is_ones(tensor)
    ]
    if scaled:
        raise ValueError(
            f"{where} was saved where Triton was absent, and training has changed the scales of its norms in "
            f"{_listed(scaled)}: the norms of this network have no scale and cannot compute the same function"
        )
    return {name: tensor for name, tensor in tensors.items() if name not in extra}


def _is_ones(tensor: Tensor) -> bool:
    usable = tensor.dtype in DTYPES and tensor.layout == torch.strided and not tensor.is_meta
    return usable and tensor.ndim == 1 and bool((tensor == 1).all())


def _config_of(tensors: Mapping[str, Any], config: DiTConfig | None, where: str) -> DiTConfig:
    """Infer the configuration from the shapes and complete it from `config` or the published one."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    # distinct block numbers are counted; a gap in the numbering is reported later as unknown names
    found: dict[str, Any] = {
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    }
    patches, context, writer = (shapes.get(name) for name in (PATCHES, CONTEXT, "blocks.0.ffn.w2.weight"))
    if patches is not None:
        if len(patches) != 4 or 0 in patches:
            raise ValueError(
                f"{PATCHES} of {where} must have the Conv2d shape [D, C, P, P], got {list(patches)}"
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
            raise ValueError(f"{where} does not match the configuration: {_listed(sides)}")
        return config
    width = found.get("width", HEAD_WIDTH)
    if width % HEAD_WIDTH:
        raise ValueError(
            f"{where} has width {width}, which is not a multiple of the published head width {HEAD_WIDTH}: "
            "pass a configuration that gives the number of heads"
        )
    published = PRESETS["dit-1000l-mvsplit"].model
    try:
        return dataclasses.replace(published, **found, heads=width // HEAD_WIDTH)
    except ValueError as error:
        raise ValueError(
            f"the shapes of {where} fit no published network: {error}; pass its configuration"
        ) from error


def _check(
    tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], where: str, *, guessed: bool
) -> None:
    """Refuse unexpected names, shapes and types."""
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        parts += [f"contains unknown {_listed(unknown)}"] if unknown else []
        hint = ": pass the configuration if its merge or mixer is not the published one" if guessed else ""
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
        raise ValueError(f"{where} contains tensors of the wrong shape or type: {_listed(wrong)}")


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    rest = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + rest


def _unfilled(config: DiTConfig) -> DiT:
    """Build a network without weights but with the constants that checkpoints do not contain."""
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
        raise ValueError(".safetensors files need safetensors: pip install '.[train]'") from error
    return safetensors.torch


def _read(path: Path) -> Any:
    """Read a checkpoint file, memory-mapped.

    Raises:
        ValueError: the file is missing or cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file")
    try:
        with open_regular(path):
            pass
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({reason(error)})") from error
    try:
        if path.suffix == SAFETENSORS:
            return _safetensors().load_file(path)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"{path} cannot be read: it is damaged or contains more than tensors ({_why(error)})"
        ) from error


def _why(error: Exception) -> str:
    """Return the first sentence of an error; torch's next one advises disabling its own safeguards."""
    text = reason(error) if isinstance(error, OSError) else str(error)
    return text.strip().partition("\n")[0].partition(". ")[0] or type(error).__name__


def _write(state: Mapping[str, Tensor], path: Path) -> None:
    if path.suffix not in (SAFETENSORS, TORCH):
        raise ValueError(f"a checkpoint must end in {SAFETENSORS} or {TORCH}, got {path.name!r}")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: {path.parent} is not a folder")
    partial = partial_path(path)
    try:
        if path.suffix == SAFETENSORS:
            _safetensors().save_file(dict(state), partial, metadata={"format": "pt"})
        else:
            torch.save(dict(state), partial)
        os.replace(partial, path)
    except Exception as error:  # each format reports a full disk with its own exception
        raise ValueError(f"{path} cannot be written: {_why(error)}") from error
    finally:
        partial.unlink(missing_ok=True)
