"""The published checkpoint: its equations, recomputed independently, its names, and what is refused."""

# B batch, T image tokens

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.model.network import DiT
from meanmode.dit.model.published import export_published, load_published
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.merges import MVSplit
from meanmode.theory.laws.merge_backward import merge_norm, merge_norm_backward
from meanmode.theory.setting import MERGES, MIXERS

ROOT = Path(__file__).parents[3]

CONTEXT = DiTConfig(
    **{"depth": 3, "width": 32, "heads": 2, "channels": 3, "side": 6, "patch": 2, "text_width": 20},
    merge="mv_split",
    initialisation="published",
)
"""Patches of 2 x 2, and texts that are projected."""

PLACED = dataclasses.replace(CONTEXT, depth=2, channels=5, side=4, patch=1, text_width=32)
"""Patches of 1 x 1, as published, and texts as wide as the trunk."""

SMALL = dataclasses.replace(CONTEXT, depth=2, width=16)


def weights(config: DiTConfig, seed: int = 1) -> dict[str, Tensor]:
    """Random weights under the released names, large enough for every one of them to matter."""
    generator = torch.Generator().manual_seed(seed)
    width, hidden, patch = config.width, round(config.ffn_ratio * config.width), config.patch

    def matrix(rows: int, *columns: int) -> Tensor:
        return torch.randn(rows, *columns, generator=generator) / np.prod(columns) ** 0.5

    def vector(middle: float, size: int = width) -> Tensor:
        return middle + 0.3 * torch.randn(size, generator=generator)

    found = {
        "patch_embed.patch_proj.weight": matrix(width, config.channels, patch, patch),
        "patch_embed.patch_proj.bias": vector(0.0),
        "final_proj.weight": matrix(patch * patch * config.channels, width),
        "final_proj.bias": vector(0.0, patch * patch * config.channels),
        "norm_img_input.weight": torch.ones(width),
        "norm_text_input.weight": torch.ones(width),
    }
    if config.text_width != width:
        found["context_proj.weight"] = matrix(width, config.text_width)
    for block in range(config.depth):
        here = f"blocks.{block}"
        for name in ("q_proj", "k_proj", "v_proj", "proj"):
            found[f"{here}.operator.{name}.weight"] = matrix(width, width)
        found[f"{here}.ffn.w13.weight"] = matrix(2 * hidden, width)
        found[f"{here}.ffn.w2.weight"] = matrix(width, hidden)
        for merge in ("fused_mvsplit_norm1", "fused_mvsplit_norm2"):
            found[f"{here}.{merge}.alpha"] = vector(0.4)
            found[f"{here}.{merge}.beta"] = vector(0.8)
    return found


def inputs(config: DiTConfig, text_tokens: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(batch, config.channels, config.side, config.side, generator=generator)
    # length and mean differ from the image tokens, so that the norm of either matters
    return latents, 0.3 + 2 * torch.randn(batch, text_tokens, config.text_width, generator=generator)


def normed(x: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def angles(side: int, head: int, wrong: str) -> Tensor:
    """Angles [T, head / 2]: rows in the first half, columns in the second."""
    h = head // 2
    base = 100.0 if wrong == "rope theta" else 10000.0
    frequency = base ** (-2 * torch.arange(h // 2, dtype=torch.float64) / h)
    row = torch.arange(side, dtype=torch.float64).repeat_interleave(side)
    column = torch.arange(side, dtype=torch.float64).repeat(side)
    if wrong == "rows and columns swapped":
        row, column = column, row
    return torch.cat([torch.outer(row, frequency), torch.outer(column, frequency)], dim=1)


def turned(x: Tensor, angle: Tensor, wrong: str) -> Tensor:
    """Rotate image tokens x [..., T, head] by halves."""
    half = x.shape[-1] // 2
    cos, sin = angle.cos(), angle.sin()
    if wrong == "rope sign":
        sin = -sin
    if wrong == "rope of neighbours":
        first, second = x[..., 0::2], x[..., 1::2]
        pairs = [first * cos + second * sin, -first * sin + second * cos]
        return torch.stack(pairs, dim=-1).flatten(-2)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos + second * sin, -first * sin + second * cos], dim=-1)


def reference(
    state: dict[str, Tensor], latents: Tensor, text: Tensor, *, heads: int, wrong: str = ""
) -> Tensor:
    """The velocity from the published equations in double precision, optionally with one of them wrong."""
    state = {name: tensor.double() for name, tensor in state.items()}
    z, words = latents.double(), text.double()
    filters = state["patch_embed.patch_proj.weight"]
    width, channels, patch, _ = filters.shape
    batch, tokens, side = len(z), (z.shape[-1] // patch) ** 2, z.shape[-1] // patch
    image = torch.conv2d(z, filters, state["patch_embed.patch_proj.bias"], stride=patch)
    image = image.permute(0, 2, 3, 1).reshape(batch, tokens, width)
    if "context_proj.weight" in state:
        words = torch.einsum("bsw,dw->bsd", words, state["context_proj.weight"])
    image = image if wrong == "image not normed" else normed(image, 1e-5)
    words = words if wrong == "text not normed" else normed(words, 1e-5)
    x = torch.cat([image, words], dim=1)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    head = width // heads
    angle = angles(side, head, wrong)
    parts = (slice(0, tokens), slice(tokens, None))
    for block in range(depth):
        own = {
            name.removeprefix(f"blocks.{block}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"blocks.{block}.")
        }

        def mean(y: Tensor) -> Tensor:
            if wrong == "one mean of both segments":
                return y.mean(1, keepdim=True).expand_as(y)
            return torch.cat(
                [y[:, part].sum(1, keepdim=True) / y[:, part].shape[1] + 0 * y[:, part] for part in parts], 1
            )

        def merged(x: Tensor, f: Tensor, number: int, own: dict[str, Tensor] = own) -> Tensor:
            if wrong == "merges swapped":
                number = 3 - number
            alpha, beta = (own[f"fused_mvsplit_norm{number}.{gain}"] for gain in ("alpha", "beta"))
            if wrong == "gains swapped":
                alpha, beta = beta, alpha
            return normed(x + beta * (f - mean(f)) + alpha * mean(f - x), 1e-5)

        def by_head(name: str, x: Tensor, own: dict[str, Tensor] = own) -> Tensor:
            return (x @ own[f"operator.{name}.weight"].T).reshape(batch, -1, heads, head).transpose(1, 2)

        def placed(y: Tensor) -> Tensor:
            y = torch.cat([turned(y[:, :, :tokens], angle, wrong), y[:, :, tokens:]], dim=2)
            return y if wrong == "no QK-Norm" else normed(y, 1e-6)

        q, k, v = placed(by_head("q_proj", x)), placed(by_head("k_proj", x)), by_head("v_proj", x)
        scores = torch.einsum("bhtf,bhsf->bhts", q, k) / (1 if wrong == "no scale" else head**0.5)
        weight = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed = (weight @ v).transpose(1, 2).reshape(batch, -1, width)
        x = merged(x, mixed @ own["operator.proj.weight"].T, 1)
        gate, value = (x @ own["ffn.w13.weight"].T).chunk(2, dim=-1)
        if wrong == "value before gate":
            gate, value = value, gate
        x = merged(x, (gate / (1 + (-gate).exp()) * value) @ own["ffn.w2.weight"].T, 2)
    written = x[:, :tokens] @ state["final_proj.weight"].T + state["final_proj.bias"]
    velocity = torch.empty(batch, channels, side * patch, side * patch, dtype=torch.float64)
    order = (channels, patch, patch) if wrong == "channels first" else (patch, patch, channels)
    for number, token in enumerate(written.unbind(1)):
        row, column = (patch * index for index in divmod(number, side))
        square = token.reshape(batch, *order)
        square = square if wrong == "channels first" else square.permute(0, 3, 1, 2)
        velocity[:, :, row : row + patch, column : column + patch] = square
    return velocity


def apart(config: DiTConfig, wrong: str, text_tokens: int = 4) -> float:
    """Largest difference between the velocities of the network and of the reference."""
    state = weights(config)
    latents, text = inputs(config, text_tokens)
    with torch.no_grad():
        found = load_published(state, config)(latents, text)
    assert found.dtype == torch.float32
    expected = reference(state, latents, text, heads=config.heads, wrong=wrong)
    assert expected.abs().max() > 1
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("config", [CONTEXT, PLACED], ids=["context", "placed"])
@pytest.mark.parametrize("text_tokens", [4, 1])
def test_a_checkpoint_gives_what_the_equations_give(config: DiTConfig, text_tokens: int) -> None:
    """arXiv:2605.06169 Eq. 3, 7-8 and Table 3."""
    assert apart(config, "", text_tokens) < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            "rope sign",
            "rope theta",
            "rope of neighbours",
            "rows and columns swapped",
            "no QK-Norm",
            "no scale",
        ),
        *("value before gate", "merges swapped", "gains swapped", "one mean of both segments"),
        *("text not normed", "image not normed", "channels first"),
    ],
)
def test_wrong_equations_give_something_else(wrong: str) -> None:
    assert apart(CONTEXT, wrong) > 1e-3


@pytest.mark.parametrize("config", [CONTEXT, PLACED], ids=["context", "placed"])
def test_the_names_and_bits_come_back(config: DiTConfig) -> None:
    state = weights(config)
    assert_same(export_published(load_published(state, config)), state)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    "wrap", [lambda state: {"model": state, "step": 3}, lambda state: {"state_dict": state}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_taken_off(wrap: Callable[[Any], Any], prefix: str, tmp_path: Path) -> None:
    state = weights(SMALL)
    torch.save(wrap({prefix + name: tensor for name, tensor in state.items()}), tmp_path / "model.pt")
    assert_same(export_published(load_published(tmp_path / "model.pt", SMALL)), state)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_written_is_read_back(suffix: str, tmp_path: Path) -> None:
    """Also if it replaces the file that a network was loaded from, which keeps its weights."""
    state, path = weights(SMALL), tmp_path / f"model{suffix}"
    export_published(load_published(state, SMALL), path)
    network = load_published(str(path), SMALL)
    other = weights(SMALL, seed=2)
    export_published(load_published(other, SMALL), path)
    assert_same(export_published(network), state)
    assert_same(export_published(load_published(path, SMALL)), other)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_network_is_changed_without_its_file(tmp_path: Path) -> None:
    state, path = weights(SMALL), tmp_path / "model.pt"
    torch.save(state, path)
    with torch.no_grad():
        for weight in load_published(path, SMALL).parameters():
            weight.zero_()
    assert_same(export_published(load_published(path, SMALL)), state)


def test_the_shapes_tell_the_configuration() -> None:
    """Head width 128, latent side 16 and the eps are the published values."""
    told = {"depth": 2, "channels": 3, "text_width": 20, "ffn_ratio": 2.5}
    config = dataclasses.replace(CONTEXT, width=256, **told, side=16)
    found = load_published(weights(config)).config
    for name, value in (
        told | {"width": 256, "heads": 2, "side": 16, "patch": 2, "merge": "mv_split"}
    ).items():
        assert getattr(found, name) == value, name
    assert (found.merge_eps, found.qk_eps, found.input_eps) == (1e-5, 1e-6, 1e-5)


def without(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in names:
            del state[name]

    return change


def put(name: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[name] = value(state.get(name))

    return change


def with_entry(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


W2, BETA = "blocks.1.ffn.w2.weight", "blocks.0.fused_mvsplit_norm2.beta"
PATCHES = "patch_embed.patch_proj.weight"

REFUSED = {
    "a missing writer": (without(W2), f"lacks {W2}$"),
    "a missing gain": (without(BETA), f"lacks {BETA}$"),
    "a missing embedding": (without(PATCHES), f"lacks {PATCHES}$"),
    "a missing bias": (without("final_proj.bias"), "lacks final_proj.bias$"),
    "a missing norm": (without("norm_text_input.weight"), "lacks norm_text_input.weight$"),
    "no projection of texts": (without("context_proj.weight"), "text_width 16 instead of 20"),
    "an unknown name": (
        put("blocks.1.ffn.w4.weight", lambda _: torch.ones(2)),
        "contains unknown blocks.1.ffn.w4",
    ),
    "another number": (put("step", lambda _: 3), "contains unknown step$"),
    "a block too many": (put("blocks.7.ffn.w2.weight", lambda _: torch.ones(16, 48)), "depth 3 instead of 2"),
    "both": (
        lambda state: (put("x", lambda _: 1)(state), without(W2)(state)),
        f"lacks {W2} and contains unknown x$",
    ),
    "a prefix of some": (put("module.x", lambda _: 1), "contains unknown module.x$"),
    "a wrong shape": (put(W2, lambda weight: weight.T), r"w2.weight \(\[48, 16\], not \[16, 48\]\)"),
    "a longer gain": (put(BETA, lambda gain: gain.repeat(2)), r"beta \(\[32\], not \[16\]\)"),
    "our own shape": (put(PATCHES, lambda weight: weight.flatten(1)), r"\[D, C, P, P\].*got \[16, 12\]"),
    "whole numbers": (put(W2, lambda weight: weight.int()), r"w2.weight \(int32\)"),
    "complex numbers": (put(W2, lambda weight: weight.cfloat()), r"w2.weight \(complex64\)"),
    "a sparse tensor": (put(W2, lambda weight: weight.to_sparse()), r"w2.weight \(float32, sparse_coo\)"),
    "no data": (put(W2, lambda weight: weight.to("meta")), r"w2.weight \(float32 without data\)"),
    "no tensor": (put(W2, lambda weight: weight.tolist()), r"w2.weight \(a list\)"),
    "NaN": (put(W2, with_entry(float("nan"))), f"contains non-finite values in {W2}$"),
    "an infinity": (put(BETA, with_entry(float("-inf"))), f"contains non-finite values in {BETA}$"),
    "a number too large": (put(W2, lambda weight: 1e300 * weight.double()), f"non-finite values in {W2}$"),
    "a scaled norm": (
        put("norm_img_input.weight", with_entry(1.001)),
        "other than 1 in norm_img_input.weight",
    ),
    "NaN in a norm": (put("norm_img_input.weight", with_entry(float("nan"))), "in norm_img_input.weight"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_named(change: Callable[[dict[str, Any]], None], message: str) -> None:
    state: dict[str, Any] = weights(SMALL)
    change(state)
    with pytest.raises(ValueError, match=f"the state dict .*{message}"):
        load_published(state, SMALL)


def test_many_names_are_counted() -> None:
    state = {f"other.{number}": torch.ones(1) for number in range(20)}
    with pytest.raises(ValueError, match=r"contains unknown other.0, .*other.7 and 12 more") as raised:
        load_published({**weights(SMALL), **state}, SMALL)
    assert "other.8," not in str(raised.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"depth": 3}, "depth 2 instead of 3"),
        ({"width": 32}, "width 16 instead of 32"),
        ({"ffn_ratio": 2.0}, "ffn_ratio 3 instead of 2"),
        ({"channels": 1, "patch": 1}, "channels 3 instead of 1, patch 2 instead of 1"),
        ({"text_width": 16}, "text_width 20 instead of 16"),
        ({"merge": "layerscale"}, r"lacks blocks.0.merge_attn.gain.* and contains unknown .*norm1.alpha"),
        ({"merge": "mv_split_attn"}, r"contains unknown blocks.0.fused_mvsplit_norm2.alpha"),
        ({"mixer": "gated"}, "lacks blocks.0.operator.gate_proj.weight"),
    ],
)
def test_a_configuration_must_agree(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_published(weights(SMALL), dataclasses.replace(SMALL, **other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state, "width 16, which is not a multiple of the published head width 128: pass a c"),
        (lambda state: {}, "lacks patch_embed.patch_proj.weight, .*: pass the configuration if its merge or"),
        (lambda state: [state], "holds a list, not a state dict"),
        (lambda state: {"model": 3, **state}, "has width 16"),
        (
            lambda state: {**state, PATCHES: torch.ones(128, 1, 3, 3)},
            "patches of side 3 do not tile",
        ),
    ],
)
def test_what_no_published_network_has_is_said(change: Any, message: str, tmp_path: Path) -> None:
    torch.save(change(weights(SMALL)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"model.pt .*{message}"):
        load_published(tmp_path / "model.pt")


class Opaque:
    """An object that no file of tensors contains."""


def not_tensors(path: Path) -> None:
    torch.save({"model": Opaque()}, path)


def old_format(path: Path) -> None:
    torch.save(weights(SMALL), path, _use_new_zipfile_serialization=False)


def cut(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        export_published(load_published(weights(SMALL), SMALL), path)
        os.truncate(path, int(share * path.stat().st_size))

    return write


FILES = {
    "none": ("model.pt", lambda path: None, "does not exist"),
    "a folder": ("model.pt", lambda path: path.mkdir(), "is a folder: name the file"),
    "text": ("model.pt", lambda path: path.write_text("weights"), "cannot be read"),
    "empty": ("model.safetensors", lambda path: path.touch(), "cannot be read"),
    "objects": ("model.pt", not_tensors, "cannot be read: it is damaged or contains more than tensors"),
    "another format": ("model.pt", old_format, "cannot be read"),
    **{f"{share} of .pt": ("model.pt", cut(share), "cannot be read") for share in (0.0, 0.1, 0.6, 0.999)},
    **{
        f"{share} of .safetensors": ("model.safetensors", cut(share), "cannot be read")
        for share in (0.0, 0.1, 0.6, 0.999)
    },
}


@pytest.mark.parametrize(("name", "write", "message"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_named(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match=message) as raised:
        load_published(path, SMALL)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("asked", [torch.float32, None])
def test_other_precisions_are_converted_or_kept(stored: torch.dtype, asked: torch.dtype | None) -> None:
    state = {name: tensor.to(stored) for name, tensor in weights(SMALL).items()}
    network = load_published(state, SMALL, dtype=asked)
    expected = {name: tensor.to(asked or stored) for name, tensor in state.items()}
    assert_same(export_published(network), expected)


def test_half_precision_as_stored_computes_under_autocast() -> None:
    """With the trunk in float32 both give the same velocity bitwise."""
    state = {name: tensor.bfloat16() for name, tensor in weights(SMALL).items()}
    latents, text = inputs(SMALL, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = load_published(state, SMALL, dtype=None)(latents, text)
        expected = load_published(state, SMALL)(latents, text)
    assert torch.equal(found, expected)


def test_a_dtype_without_fractions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"floating type of at least 16 bits, got torch\.int"):
        load_published(weights(SMALL), SMALL, dtype=torch.int64)


def test_a_state_dict_is_copied() -> None:
    state = weights(SMALL)
    network = load_published(state, SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert_same(state, weights(SMALL))


@pytest.mark.parametrize("stored", [True, False])
def test_tensors_that_share_memory_are_separated(stored: bool, tmp_path: Path) -> None:
    """As in a file whose gains were a single tensor, or an expanded one, when it was written."""
    state, shared = weights(SMALL), torch.full((16,), 0.5)
    state |= {name: shared for name in state if name.endswith("alpha")}
    state |= {name: torch.tensor([0.7]).expand(16) for name in state if name.endswith("beta")}
    torch.save(state, tmp_path / "model.pt")
    network = load_published(tmp_path / "model.pt" if stored else state, SMALL)
    with torch.no_grad():
        network.blocks[0].merge_attn.alpha[0] = 3
        network.blocks[0].merge_attn.beta[0] = 3
    others = [network.blocks[0].merge_ffn, network.blocks[1].merge_attn]
    assert all((merge.alpha == 0.5).all() and (merge.beta == torch.tensor(0.7)).all() for merge in others)
    assert (network.blocks[0].merge_attn.beta[1:] == torch.tensor(0.7)).all()


@pytest.mark.parametrize(
    "options",
    [
        *({"merge": merge} for merge in MERGES),
        *({"mixer": mixer} for mixer in MIXERS),
        {"depth": 0},
    ],
    ids=lambda options: str(*options.values()),
)
def test_networks_of_every_kind_come_back(options: dict[str, Any], tmp_path: Path) -> None:
    """Including their constants, which no file contains."""
    config = dataclasses.replace(SMALL, **options, writer_std=0.3, residual_gain=0.7, alpha=0.2, beta=0.9)
    network, path = DiT(config), tmp_path / "model.safetensors"
    state = export_published(network, path)
    found = load_published(path, config)
    assert_same(export_published(found), state)
    latents, text = inputs(config, 3)
    with torch.no_grad():
        torch.testing.assert_close(found(latents, text), network(latents, text))
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_learned_gains_have_the_names_that_are_stated() -> None:
    layerscale = export_published(DiT(dataclasses.replace(SMALL, merge="layerscale")))
    assert {"blocks.0.merge_attn.gain", "blocks.1.merge_ffn.gain"} <= layerscale.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.bin", "a checkpoint must end in .safetensors or .pt, got 'model.bin'"),
        ("none/model.pt", "none is not a folder"),
        ("folder.pt", "cannot be written: "),
        ("folder.safetensors", "cannot be written: "),
    ],
)
def test_a_path_that_cannot_be_written_to_is_named(name: str, message: str, tmp_path: Path) -> None:
    for folder in ("folder.pt", "folder.safetensors"):
        (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match=message):
        export_published(DiT(SMALL), tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.pt", "folder.safetensors"]


def test_no_single_network_is_exported() -> None:
    with pytest.raises(ValueError, match="an ensemble: export its members"):
        export_published(stack_members([DiT(SMALL), DiT(SMALL)]))
    with torch.device("meta"):
        network = DiT(SMALL)
    with pytest.raises(ValueError, match="this network has no weights"):
        export_published(network)


LOADED = """
import sys
from pathlib import Path
from meanmode.dit.model.published import export_published, load_published

def resident(line):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(found.split()[1]) for found in lines if found.startswith(line))

def peaks(small, large, again):
    export_published(load_published(small), again)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    network = load_published(large)
    loaded = resident("VmHWM") - before
    export_published(network, again)
    size = sum(4 * parameter.numel() for parameter in network.parameters())
    return loaded / size, (resident("VmHWM") - before) / size

for suffix in (".pt", ".safetensors"):
    print(*peaks(*(Path(sys.argv[1], name + suffix) for name in ("small", "large", "again"))))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_a_file_is_read_and_written_without_a_second_copy(tmp_path: Path) -> None:
    config = dataclasses.replace(CONTEXT, width=512, heads=4, side=16)
    for name, depth in (("small", 1), ("large", 4)):
        with torch.device("meta"):
            network = DiT(dataclasses.replace(config, depth=depth))
        network.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(0.5)
        for suffix in (".pt", ".safetensors"):
            export_published(network, tmp_path / f"{name}{suffix}")
    assert (tmp_path / "large.pt").stat().st_size > 5e7
    argv = [sys.executable, "-c", LOADED, tmp_path]
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is not resident
    done = subprocess.run(argv, check=True, cwd=ROOT, capture_output=True, text=True, env=given_back)
    found = [float(ratio) for ratio in done.stdout.split()]
    assert len(found) == 4
    assert 0.9 < min(found) and max(found) < 1.1


def closed_form(part: slice, *values: Tensor) -> tuple[np.ndarray, ...]:
    """Output and gradients of one segment from the closed form R6."""
    x, f, alpha, beta, cotangent = (value.detach().numpy() for value in values)
    output = merge_norm(x[part], f[part], alpha, beta, 1e-5)
    return output, *merge_norm_backward(x[part], f[part], alpha, beta, 1e-5, cotangent[part])


def test_the_module_has_the_closed_form_backward() -> None:
    """R6 (arXiv:2605.06169 Eq. 48-54) on an image and a text segment."""
    generator = torch.Generator().manual_seed(3)
    merge = MVSplit(8).double()
    with torch.no_grad():
        merge.alpha.copy_(torch.randn(8, generator=generator))
        merge.beta.copy_(torch.randn(8, generator=generator))
    x, f, cotangent = torch.randn(3, 9, 8, generator=generator, dtype=torch.float64)
    x.requires_grad_(), f.requires_grad_()
    output = merge(x[None], f[None], (6, 3))[0]
    of = (x, f, merge.alpha, merge.beta)
    found = [output.detach(), *torch.autograd.grad((output * cotangent).sum(), of)]
    image, text = (closed_form(part, *of, cotangent) for part in (slice(0, 6), slice(6, None)))
    joined = [np.concatenate([image[index], text[index]]) for index in (0, 1, 2)]
    summed = [image[index] + text[index] for index in (3, 4)]
    for ours, closed in zip(found, [*joined, *summed], strict=True):
        np.testing.assert_allclose(ours, closed, rtol=0, atol=1e-10)
