"""Samples of a network: independent of the batch size, arranged by condition, and drawn by `mms sample`."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from scipy import stats
from torch import Tensor

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.data.sources import Digits
from meanmode.dit.evaluate.sampling import SamplingConfig, draw_samples, samples_figure, start_noise
from meanmode.dit.model.flow import random_stream, sample
from meanmode.dit.model.network import DiT
from meanmode.dit.train.checkpoints import save

CONFIG = DiTConfig(depth=2, width=16, writer_std=None, head_std=0.3)
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def network() -> DiT:
    return DiT(CONFIG)


def drawn(
    network: DiT, labels: list[int], step_done: Callable[[], object] | None = None, **options: Any
) -> Tensor:
    source, given = Digits(CONFIG), {"each": 3, "steps": 4, **options}
    prompts = source.prompts(torch.tensor(labels))
    return draw_samples(
        network,
        prompts,
        source.empty_text,
        SamplingConfig(**given),
        labels=labels,
        step_done=step_done or (lambda: None),
    )


def test_noise_is_standard_normal_and_of_seed_label_and_number_alone() -> None:
    torch.manual_seed(1)
    noise = torch.stack([start_noise(0, label, number, SHAPE) for label in range(4) for number in range(25)])
    assert torch.equal(noise[31], start_noise(0, 1, 6, SHAPE))
    assert stats.kstest(noise.numpy().ravel(), stats.norm.cdf).pvalue > 0.01
    others = [start_noise(1, 0, 0, SHAPE), start_noise(0, 6, 1, SHAPE)]
    assert not any(torch.equal(one, other) for one in noise for other in others)


def test_a_network_with_zero_velocity_returns_its_noise() -> None:
    network = DiT(dataclasses.replace(CONFIG, head_std=0.0))
    samples = drawn(network, [7, 2], seed=5)
    expected = [[start_noise(5, label, number, SHAPE) for number in range(3)] for label in (7, 2)]
    assert torch.equal(samples, torch.stack([torch.stack(row) for row in expected]))


@pytest.mark.parametrize(
    "options", [{}, {"cfg_scale": 1.0, "time_shift": 1.0}, {"steps": 9, "cfg_scale": 3.0}]
)
def test_samples_are_those_of_the_sampler(network: DiT, options: dict[str, Any]) -> None:
    samples, source = drawn(network, [3, 8], **options), Digits(CONFIG)
    for row, label in zip(samples, (3, 8), strict=True):
        noise = torch.stack([start_noise(0, label, number, SHAPE) for number in range(3)])
        text = source.prompts(torch.full((3,), label))
        empty = source.empty_text.expand(3, -1, -1)
        torch.testing.assert_close(row, sample(network, noise, text, empty, **{"steps": 4, **options}))


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_samples_are_the_same_in_any_batches_and_company(network: DiT, batch: int) -> None:
    whole = drawn(network, [0, 4, 9], batch=5)
    torch.testing.assert_close(drawn(network, [0, 4, 9], batch=batch), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        drawn(network, [9, 0], each=2, batch=batch), whole[[2, 0], :2], rtol=0, atol=1e-5
    )
    assert not torch.allclose(drawn(network, [0, 4, 9], seed=1), whole, atol=0.1)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_every_euler_step_is_told(network: DiT, batch: int) -> None:
    told: list[None] = []
    drawn(network, [0, 4], batch=batch, step_done=lambda: told.append(None))
    expected = SamplingConfig(each=3, steps=4, batch=batch).evaluations(2)
    assert len(told) == expected == 4 * -(-6 // batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"each": 0}, "each must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"cfg_scale": float("nan")}, r"cfg_scale must be at least 0.0, got nan"),
        ({"time_shift": 0.0}, "time_shift must be at least 1e-06, got 0.0"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)


def mosaic(picture: Path | io.BytesIO, rows: int, columns: int, side: int) -> np.ndarray:
    """The tiles of a picture whose labels have one letter [rows, columns, pixels, pixels, RGB], 0 to 255."""
    size = (side + 1) * (64 // side)  # a gap of one value after every tile
    found = np.asarray(Image.open(picture).convert("RGB"))[-6 - rows * size : -6, 16 : 16 + columns * size]
    tiles = found.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    assert (tiles[:, :, 64:] == 255).all() and (tiles[:, :, :, 64:] == 255).all()
    return tiles[:, :, :64, :64]


def upscaled(images: Tensor) -> np.ndarray:
    """Images [rows, columns, side, side] or [..., RGB] with every value as a square of pixels, 0 to 255."""
    colours = (images if images.ndim == 5 else images[..., None].expand(*images.shape, 3)).numpy()
    return np.kron(colours * 255, np.ones((64 // images.shape[2],) * 2 + (1,)))


@pytest.mark.parametrize("colours", [(), (3,)])
@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize("caption", ["", "a caption"])
def test_a_row_of_pictures_for_every_condition(side: int, colours: tuple[int, ...], caption: str) -> None:
    images = torch.rand(3, 5, side, side, *colours, generator=random_stream(0))
    file = io.BytesIO()
    samples_figure(images, ["0", "1", "2"], caption).savefig(file)
    np.testing.assert_allclose(mosaic(file, 3, 5, side), upscaled(images), atol=2)


def test_labels_and_caption_are_written_within_the_picture() -> None:
    images, caption = torch.zeros(2, 1, 8, 8), "a caption of many words " * 8
    figure = samples_figure(images, ["first", "second"], caption)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    (written,) = figure.texts
    assert written.get_text().split() == caption.split()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for words in (written, *axes.get_yticklabels()):
        box = words.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert written.get_window_extent(renderer).y0 >= axes.get_window_extent(renderer).y1


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mms_sample(mms: Command) -> Command:
    """Exit status, stdout and stderr of `mms sample`, in this process."""
    return lambda *arguments: mms("sample", *arguments)


def run_folder(folder: Path, network: DiT, data: str = "digits") -> Path:
    """A run folder as `mms train` leaves it: a checkpoint of step 20 whose averaged weights are zero."""
    run = RunConfig(model=network.config, training=TrainingConfig(ema=0.5), data=data)
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    state = {f"weight.{name}": weight for name, weight in weights.items()}
    state |= {f"ema.{name}": torch.zeros_like(weight) for name, weight in weights.items()}
    save(folder, 20, state, notes={"configuration": run.document()}, watch={}, keep=1)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, network: DiT) -> Path:
    return run_folder(tmp_path_factory.mktemp("runs") / "tiny", network)


FEW = ("--classes", "3,1", "--each", 2, "--steps", 3)


@pytest.mark.parametrize("path", [".", "checkpoints/step-00000020"])
def test_a_run_or_checkpoint_is_drawn(
    mms_sample: Command,
    run: Path,
    network: DiT,
    tmp_path: Path,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meanmode.sweeps.cli.progress_bar.QUIET_SECONDS", 0)
    out = tmp_path / "new" / "samples.png"
    options = ("--cfg-scale", 1.5, "--time-shift", 2, "--seed", 4, "--batch", 3, "--no-ema")
    status, printed, progress = mms_sample(run / path, *FEW, *options, "--out", out)
    assert status == 0 and printed == f"{out}\n" and "steps: " in progress
    samples = drawn(network, [3, 1], each=2, steps=3, cfg_scale=1.5, time_shift=2.0, seed=4)
    expected = Digits(CONFIG).images(samples.flatten(0, 1)).unflatten(0, (2, 2))
    np.testing.assert_allclose(mosaic(out, 2, 2, 8), upscaled(expected), atol=2)
    said = json.loads(Image.open(out).text["Description"])
    assert said["sampling"]["seed"] == 4 and said["captions"] == ["3", "1"] and said["step"] == 20
    assert said["ema"] is False and RunConfig.of_document(said["run"]).model == CONFIG and said["commit"]


def test_the_average_is_drawn_unless_told_otherwise(mms_sample: Command, run: Path, tmp_path: Path) -> None:
    """With averaged weights of zero nothing moves: the picture shows the noise."""
    out = tmp_path / "samples.png"
    assert mms_sample(run, *FEW, "--out", out)[0] == 0
    noise = [[start_noise(0, label, number, SHAPE) for number in range(2)] for label in (3, 1)]
    expected = torch.stack([torch.stack([Digits(CONFIG).images(x1[None])[0] for x1 in row]) for row in noise])
    np.testing.assert_allclose(mosaic(out, 2, 2, 8), upscaled(expected), atol=2)


def test_samples_that_are_not_finite_are_counted(mms_sample: Command, tmp_path: Path) -> None:
    network = DiT(CONFIG)
    with torch.no_grad():
        network.final_proj.bias.fill_(torch.nan)
    folder = run_folder(tmp_path / "broken", network)
    status, _, said = mms_sample(folder, *FEW, "--no-ema", "--out", tmp_path / "samples.png")
    assert status == 0 and "4 of 4 samples are not finite" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", "3,12"), "are numbered 0 to 9, got 12"),
        (("--classes", "3,cat"), "'3,cat' is not a comma-separated list of int values"),
        (("--each", "0"), "0 is not in the range 1<=x<=1000"),
        (("--time-shift", "0"), "0.0 is not in the range 1e-06<=x<=1000000.0"),
        (("--out", "samples.jpg"), "give an --out that ends in .png, not samples.jpg"),
        (("--device", "nowhere"), "cannot compute on device 'nowhere'"),
    ],
)
def test_wrong_options_are_one_line(
    mms_sample: Command, run: Path, options: tuple[str, str], message: str
) -> None:
    status, printed, said = mms_sample(run, *options)
    assert status == 2 and not printed and message in said and len(said.splitlines()) == 1


def test_what_has_no_samples_is_refused(mms_sample: Command, tmp_path: Path, network: DiT) -> None:
    out = ("--out", tmp_path / "samples.png")
    status, _, said = mms_sample(tmp_path / "nothing", *out)
    assert status == 2 and said == f"mms: {tmp_path / 'nothing'} does not exist\n"
    (tmp_path / "model.safetensors").touch()
    status, _, said = mms_sample(tmp_path / "model.safetensors", *out)
    assert status == 2 and "is a weight file: name its text encoder and its codec" in said
    status, _, said = mms_sample(tmp_path, *out)
    assert status == 2 and "holds no intact checkpoint" in said
    folder = run_folder(tmp_path / "latents", network, data="none")
    status, _, said = mms_sample(folder, *out)
    assert status == 2 and "this preset has no data: encode some" in said
    assert not out[1].exists()


def test_what_training_leaves_is_drawn(mms_sample: Command, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.png"
    assert mms_sample(whole, *FEW, "--out", out)[0] == 0
    said = json.loads(Image.open(out).text["Description"])
    assert said["step"] == 10 and said["ema"] is True
