"""Samples from a weight file with published names, its text encoder and its VAE, on the command line."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from meanmode.dit.config.presets import PRESETS
from meanmode.dit.data.codecs import Flux2Codec
from meanmode.dit.data.text_encoders import text_encoder
from meanmode.dit.evaluate.sampling import start_noise
from meanmode.dit.model.flow import sample
from meanmode.dit.model.network import DiT
from meanmode.dit.model.published import export_published

Command = Callable[..., tuple[int, str, str]]

CONFIG = dataclasses.replace(
    PRESETS["dit-1000l-mvsplit"].model,
    **{"depth": 2, "width": 128, "heads": 1, "text_width": 64},
    # weights as drawn, so that the text has an effect
    **{"initialisation": "width_matched", "writer_std": None, "head_std": 0.1, "alpha": 1.0, "beta": 1.0},
)
PROMPTS = ("a red car of $4_$", "two dogs on a beach")
"""The first must not be read as mathematics."""
TILE = 256
"""Side of a tile in pixels: 16 positions of 16 pixels."""


@pytest.fixture(scope="module")
def network() -> DiT:
    return DiT(CONFIG)


@pytest.fixture(scope="module")
def weights(network: DiT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weight file of a network that reads texts of width 64."""
    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    export_published(network, path)
    return path


def tiles(picture: Path, rows: int) -> np.ndarray:
    """The tiles of a picture with one sample per row [rows, pixels, pixels, RGB], 0 to 255."""
    found = np.asarray(Image.open(picture).convert("RGB"))
    size = TILE + 1  # a gap of one pixel after every tile
    mosaic = found[-6 - rows * size : -6, -6 - size : -6].reshape(rows, size, size, 3)
    assert (mosaic[:, TILE:] == 255).all() and (mosaic[:, :, TILE:] == 255).all()
    return mosaic[:, :TILE, :TILE]


def test_a_picture_is_what_encoder_sampler_and_vae_give(
    mms: Command, weights: Path, network: DiT, qwen3: Path, vae: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.png"
    options = ("--each", 1, "--steps", 2, "--cfg-scale", 20, "--time-shift", 2, "--seed", 3, "--batch", 1)
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    models = ("--text", f"qwen3:{qwen3}", "--codec", f"flux2:{vae}")
    status, printed, said = mms("sample", weights, *models, *prompts, *options, "--out", out)
    assert (status, printed) == (0, f"{out}\n") and "not finite" not in said

    encoder, codec = text_encoder(f"qwen3:{qwen3}"), Flux2Codec(vae, colours=3)
    texts = encoder.encode([*PROMPTS, ""], max(encoder.lengths(PROMPTS)))
    noise = torch.stack([start_noise(3, label, 0, (128, 16, 16)) for label in range(2)])
    empty = texts[2].expand(2, -1, -1)
    given = {"steps": 2, "cfg_scale": 20.0, "time_shift": 2.0}
    latents = sample(network, noise, texts[:2], empty, **given)
    swapped = sample(network, noise, texts[:2].flip(0), empty, **given)
    assert (latents - noise).std() > 1 and (latents - swapped).std() > 0.1
    expected = codec.decode(latents).movedim(1, -1).numpy() * 255
    np.testing.assert_allclose(tiles(out, 2), expected, atol=2)
    assert expected.std() > 20

    document = json.loads(Image.open(out).text["Description"])
    assert document["text"] == encoder.document() and document["codec"] == codec.document()
    assert document["text"]["digest"] and document["codec"]["digest"] and document["commit"]
    assert document["weights"] == str(weights) and document["captions"] == list(PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "is a weight file: name its text encoder and its codec with --text qwen3:PATH and --codec"),
        (("--text", "labels"), "is a weight file: name its text encoder and its codec"),
        (("--codec", "flux2:{vae}"), "is a weight file: name its text encoder and its codec"),
        (("--text", "labels", "--codec", "dct"), "of a weight file must be flux2:PATH, got 'dct'"),
        (("--text", "labels", "--codec", "flux2:"), "must be flux2:PATH, got 'flux2:'"),
        (("--text", "labels", "--codec", "flux2:/absent"), "folder /absent does not exist: give the folder"),
        (("--text", "qwen3:/absent/model", "--codec", "flux2:{vae}"), "/absent/model is neither a folder"),
        (("--text", "clip", "--codec", "flux2:{vae}"), "unknown text encoder 'clip'"),
        (
            ("--text", "labels", "--codec", "flux2:{vae}"),
            "has no captions of its own: give some with --prompt",
        ),
        (("--prompt", "x", "--classes", "1"), "--classes selects training captions and --prompt gives other"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(
    mms: Command, weights: Path, vae: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "x.png"
    given = [option.format(vae=vae) for option in options]
    status, printed, said = mms("sample", weights, *given, "--out", out)
    assert status == 2 and not printed and message in said and len(said.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"text_width": 48}, "labels gives 64 features per token, but {path} reads 48"),
        ({"channels": 64}, "flux2:{vae} has 128 channels, but {path} reads 64"),
    ],
)
def test_encoders_that_do_not_fit_the_network_are_refused(
    mms: Command, vae: Path, tmp_path: Path, other: dict[str, int], message: str
) -> None:
    path, config = tmp_path / "model.safetensors", dataclasses.replace(CONFIG, **{"depth": 1, **other})
    export_published(DiT(config), path)
    models = ("--text", "labels", "--codec", f"flux2:{vae}")
    status, _, said = mms("sample", path, *models, "--prompt", "x", "--out", tmp_path / "x.png")
    assert (status, said) == (2, f"mms: {message.format(path=path, vae=vae)}\n")


def test_a_run_says_itself_what_encodes_its_texts(mms: Command, whole: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.png")
    status, _, said = mms("sample", whole, "--text", "labels", *out)
    assert (status, said) == (
        2,
        f"mms: {whole} is not a weight file: its data determine --text and --codec, omit these\n",
    )
    status, _, said = mms("sample", tmp_path / "absent", "--text", "labels", *out)
    assert (status, said) == (2, f"mms: {tmp_path / 'absent'} does not exist\n")


def test_samples_that_are_not_finite_are_drawn_and_counted(mms: Command, vae: Path, tmp_path: Path) -> None:
    """Divergence is a result, also with a VAE and in colour."""
    path, config = tmp_path / "model.safetensors", dataclasses.replace(CONFIG, depth=1)
    network = DiT(config)
    with torch.no_grad():
        network.final_proj.weight.fill_(3e38)
    export_published(network, path)
    models = ("--text", "labels", "--codec", f"flux2:{vae}")
    options = ("--prompt", "x", "--each", 1, "--steps", 2)
    status, _, said = mms("sample", path, *models, *options, "--out", tmp_path / "x.png")
    assert status == 0 and "1 of 1 samples are not finite" in said
