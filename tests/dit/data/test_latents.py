"""Encoding into a latent store and streaming from it: bitwise the same for any process and order."""

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.presets import PRESETS
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.data.captions import captions_of
from meanmode.dit.data.codecs import fitted_codec
from meanmode.dit.data.encoding import EncodingConfig, encode, evenly_spaced
from meanmode.dit.data.images import batch, images_of
from meanmode.dit.data.latent_store import LatentStore, rows_of_a_shard
from meanmode.dit.data.latents import Latents, with_data
from meanmode.dit.data.sources import samples_of, source_of
from meanmode.dit.data.text_encoders import text_encoder
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.store.files import StoreError, StoreExistsError
from meanmode.sim.store.run_reader import open_run

DIGITS = EncodingConfig(images="digits", codec="pixels", limit=200)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred digits in four shards, and their eleven captions in one."""
    path = tmp_path_factory.mktemp("encoded") / "digits.zarr"
    assert encode(DIGITS, path) == 5
    return path


def run_on(path: Path, **options: object) -> RunConfig:
    """A tiny run on a latent store."""
    given = {"data": f"latents:{path}", "depth": 1, "width": 16, "patch": 2, "steps": 4, "batch": 4}
    return with_data(
        PRESETS["digits-16l"], {name: str(value) for name, value in {**given, **options}.items()}
    )


def arrays(path: Path) -> dict[str, bytes]:
    """All chunks of a store."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("c/**/*"))
        if file.is_file()
    }


def test_a_store_holds_the_latents_and_texts_of_its_images(store: Path) -> None:
    images, indices = images_of("digits"), evenly_spaced(1618, 200)
    captions = captions_of(images, "classes")
    pixels = batch(images, indices)
    expected = fitted_codec("pixels", pixels).encode(pixels)
    source = Latents(store, run_on(store))
    chosen = np.array([199, 3, 64])
    torch.testing.assert_close(source.latents(chosen), expected[chosen], rtol=2**-11, atol=1e-6)
    texts = text_encoder("labels").encode([captions[indices[row]] for row in chosen], 4)
    torch.testing.assert_close(source.texts(chosen), texts, rtol=2**-11, atol=1e-6)
    torch.testing.assert_close(
        source.empty_text, text_encoder("labels").encode([""], 4)[0], rtol=2**-11, atol=0
    )
    assert source.store.captions == ("", *map(str, range(10))) and source.size == 200
    torch.testing.assert_close(
        source.store.codec().decode(source.latents(chosen)), pixels[chosen], atol=1e-3, rtol=0
    )


def test_a_killed_encoding_is_resumed_to_the_bit(start, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed.zarr"
    slowly = (
        "import time; from pathlib import Path\n"
        "from meanmode.dit.data.encoding import EncodingConfig, encode\n"
        f"encode(EncodingConfig(images='digits', codec='pixels', limit=200), Path({str(path)!r}),"
        " shard_done=lambda done, total: time.sleep(0.3))"
    )
    process = start(before=slowly)
    while not (path.exists() and len(LatentStore(path).remaining()) < 4):
        assert process.running, process.said
        time.sleep(0.02)
    assert process.kill() == [-signal.SIGKILL]
    left = len(LatentStore(path).remaining())
    assert 0 < left < 5
    assert encode(DIGITS, path, resume=True) == left
    assert arrays(path) == arrays(store)


def test_shares_together_make_the_store(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "shared.zarr"
    assert [encode(DIGITS, path, share=(number, 2)) for number in (2, 1)] == [2, 3]
    assert arrays(path) == arrays(store)
    assert encode(DIGITS, path, resume=True) == 0


def test_a_shard_that_was_not_finished_is_done_again(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "torn.zarr"
    encode(DIGITS, path)
    zarr.open_group(path, mode="r+")["status"][2] = 0
    (path / "latents" / "c" / "2" / "0" / "0" / "0").write_bytes(b"torn")
    with pytest.raises(StoreError, match="lacks 1 of 5 shards: resume it with mms encode --resume"):
        source_of(run_on(path))
    assert encode(DIGITS, path, resume=True) == 1 and arrays(path) == arrays(store)


def test_another_store_is_not_resumed(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreExistsError, match="already exists: pass --resume"):
        encode(DIGITS, store)
    other = dataclasses.replace(DIGITS, codec="pca")
    with pytest.raises(StoreError, match="was begun with codec pixels, not pca"):
        encode(other, store, resume=True)
    with pytest.raises(StoreError, match="there is nothing to resume"):
        encode(DIGITS, tmp_path / "none.zarr", resume=True)


def test_a_full_disk_leaves_the_shard_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "full.zarr"
    encode(DIGITS, path, share=(2, 2))
    monkeypatch.setattr(zarr.Array, "__setitem__", _no_room)
    with pytest.raises(StoreError, match=r"shard 0 could not be written \(No space left on device\)"):
        encode(DIGITS, path, resume=True)
    monkeypatch.undo()
    assert len(LatentStore(path).remaining()) == 3 and encode(DIGITS, path, resume=True) == 3


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_images_that_cannot_be_encoded_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a multiple of 16 for the codec dct"):
        encode(EncodingConfig(images="digits"), tmp_path / "x.zarr")
    assert not list(tmp_path.iterdir())


def test_values_beyond_half_precision_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meanmode.dit.data.codecs import PixelCodec

    path = tmp_path / "x.zarr"
    encode(DIGITS, path, share=(2, 2))
    whole = PixelCodec.encode
    monkeypatch.setattr(PixelCodec, "encode", lambda codec, images: whole(codec, images) * 1e6)
    with pytest.raises(
        ValueError, match="the latent of digits/00000 contains values that are not finite in half"
    ):
        encode(DIGITS, path, resume=True)


def test_other_images_than_were_encoded_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number:02d}.png")
    config = EncodingConfig(images=f"imagefolder:{folder}", side=16, captions="none", codec="pixels")
    path = tmp_path / "x.zarr"
    encode(config, path)
    (folder / "new.png").write_bytes((folder / "00.png").read_bytes())
    with pytest.raises(ValueError, match=r"have changed since .*x\.zarr was made from them"):
        LatentStore(path).images()


def test_the_network_takes_its_sizes_from_the_store(store: Path) -> None:
    run = run_on(store)
    sizes = (run.model.channels, run.model.side, run.model.text_tokens, run.model.text_width)
    assert sizes == (1, 8, 4, 64) and run.data_digest == LatentStore(store).digest
    assert RunConfig.of_document(json.loads(json.dumps(run.document()))) == run


def test_a_store_that_does_not_fit_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"latents of the codec pixels, .*: set channels=1 \(the network has 3\)"
    ):
        source_of(RunConfig(model=DiTConfig(channels=3, text_width=64), data=f"latents:{store}"))
    with pytest.raises(ValueError, match="a batch of 300 is larger than the data, 200 samples"):
        source_of(run_on(store, batch=300))
    with pytest.raises(ValueError, match="it was encoded again"):
        source_of(dataclasses.replace(run_on(store), data_digest="0"))
    with pytest.raises(StoreError, match="does not exist"):
        source_of(RunConfig(data=f"latents:{tmp_path / 'nowhere'}"))
    with pytest.raises(StoreError, match="is not a 'mean-mode latents' store"):
        zarr.open_group(tmp_path / "other.zarr", mode="w")
        source_of(RunConfig(data=f"latents:{tmp_path / 'other.zarr'}"))


def test_large_texts_are_streamed_like_small_ones(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, everything = run_on(store), np.arange(200)
    held = Latents(store, run)
    monkeypatch.setattr("meanmode.dit.data.latents.TEXTS_HELD", 10)
    streamed = Latents(store, run)
    assert streamed._held is None
    assert torch.equal(streamed.texts(everything), held.texts(everything))
    assert torch.equal(streamed.caption_tokens(["3", ""]), held.caption_tokens(["3", ""]))


def test_the_samples_of_a_step_depend_on_their_positions_alone(store: Path) -> None:
    source = source_of(run_on(store))
    together, _ = samples_of(source, 7, 8, [(3, np.arange(8))])
    apart = torch.cat([samples_of(source, 7, 8, [(3, np.array([position]))])[0] for position in range(8)])
    assert torch.equal(together, apart)


def test_a_run_on_a_store_is_resumed_to_the_bit_and_says_how_long_it_waited(
    runs, store: Path, tmp_path: Path
) -> None:
    run = run_on(store, steps=6, checkpoint_every=2, interval=2, telemetry_every=2)
    runs.trained(tmp_path / "whole", run)
    short = dataclasses.replace(run, training=dataclasses.replace(run.training, steps=3))
    runs.trained(tmp_path / "run", short)
    runs.trained(tmp_path / "run", run, resume=True)
    runs.assert_same_weights(tmp_path / "whole", tmp_path / "run")
    waits = open_run(tmp_path / "whole")["data_wait_s"].values
    assert waits.shape == (6,) and (waits >= 0).all()


def test_a_damaged_store_stops_the_training_in_a_sentence(runs, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.zarr"
    shutil.copytree(store, path)
    for file in (path / "latents").rglob("c/*/0/0/0"):
        content = file.read_bytes()
        table = 64 * 16 + 4
        file.write_bytes(b"\1" * (len(content) - table) + content[-table:])
    with pytest.raises(StoreError, match=r"is damaged at row \d+ of latents: encode it again"):
        runs.trained(tmp_path / "run", run_on(path))


@pytest.mark.parametrize(
    ("count", "rows"), [(1, 64), (200, 64), (10_000, 157), (70_000, 1024), (10**7, 1024)]
)
def test_the_rows_of_a_shard_follow_from_the_size(count: int, rows: int) -> None:
    assert rows_of_a_shard(count) == rows


def test_training_of_one_batch_needs_no_more_samples(store: Path) -> None:
    assert source_of(run_on(store, batch=200)).size == TrainingConfig(batch=200).batch


def test_a_fork_on_latents_of_another_codec_is_refused(runs, store: Path, tmp_path: Path) -> None:
    run = run_on(store, steps=2)
    runs.trained(tmp_path / "run", run)
    other = tmp_path / "other.zarr"
    encode(dataclasses.replace(DIGITS, limit=100), other)
    assert LatentStore(other).codec_document["digest"] != LatentStore(store).codec_document["digest"]
    with pytest.raises(
        StoreError, match=r"other\.zarr was encoded by the codec pixels \w+, but .* was trained on"
    ):
        runs.trained(tmp_path / "fork", run_on(other, steps=4), fork=tmp_path / "run")
    again = tmp_path / "again.zarr"
    encode(DIGITS, again)
    assert runs.trained(tmp_path / "fork", run_on(again, steps=4), fork=tmp_path / "run").step == 4


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"torn")])
def test_a_lost_or_torn_shard_is_encoded_again(store: Path, tmp_path: Path, damage) -> None:
    path = tmp_path / "lost.zarr"
    shutil.copytree(store, path)
    damage(path / "latents" / "c" / "1" / "0" / "0" / "0")
    with pytest.raises(StoreError, match="lacks 1 of 5 shards: resume it with mms encode --resume"):
        Latents(path, run_on(store))
    assert encode(DIGITS, path, resume=True) == 1 and arrays(path) == arrays(store)


def test_a_shard_that_is_being_written_again_is_to_do(store: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "again.zarr"
    shutil.copytree(store, path)
    again = LatentStore(path, "r+")
    monkeypatch.setattr(zarr.Array, "__setitem__", _no_room)
    with pytest.raises(StoreError, match="fix that and continue with --resume"):
        again.write(1, np.zeros((64, 1, 8, 8), np.float16))
    assert LatentStore(path).remaining() == [1]


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("encoding", "{}", "its attributes lack encoding: images"),
        ("codec", '{"name": "dct"}', "its attributes lack codec: digest"),
        ("source", "[]", "its attribute source is not a dict"),
        ("digest", None, "its attributes lack digest"),
    ],
)
def test_a_store_with_damaged_attributes_is_named(
    store: Path, tmp_path: Path, attribute: str, value: str | None, message: str
) -> None:
    path = tmp_path / "damaged.zarr"
    shutil.copytree(store, path)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"][attribute] = value
    if value is None:
        del document["attributes"][attribute]
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match=message):
        LatentStore(path)


def test_the_codec_of_another_store_is_taken_as_it_is(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.zarr"
    encode(dataclasses.replace(DIGITS, codec=f"store:{store}", limit=100), path)
    assert LatentStore(path).codec_document == LatentStore(store).codec_document
    assert LatentStore(path).digest != LatentStore(store).digest


def test_a_run_resumes_after_its_store_has_moved(
    runs, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, tmp_path / "first.zarr")
    monkeypatch.chdir(tmp_path)
    runs.trained(tmp_path / "run", run_on(Path("first.zarr"), steps=2))
    (tmp_path / "first.zarr").rename(tmp_path / "second.zarr")
    assert runs.trained(tmp_path / "run", run_on(tmp_path / "second.zarr"), resume=True).step == 4
    encode(dataclasses.replace(DIGITS, limit=100), tmp_path / "third.zarr")
    with pytest.raises(StoreError, match="holds another run: its data is"):
        Trainer(run_on(tmp_path / "third.zarr"), tmp_path / "run", resume=True)


def test_a_run_of_an_older_version_resumes_without_the_variables_it_lacks(
    runs, store: Path, tmp_path: Path
) -> None:
    run = run_on(store, steps=4)
    runs.trained(
        tmp_path / "run", dataclasses.replace(run, training=dataclasses.replace(run.training, steps=2))
    )
    telemetry = tmp_path / "run" / "telemetry.zarr"
    document = json.loads((telemetry / "zarr.json").read_text())
    names = json.loads(document["attributes"]["variables"])
    document["attributes"]["variables"] = json.dumps([name for name in names if name != "data_wait_s"])
    (telemetry / "zarr.json").write_text(json.dumps(document))
    shutil.rmtree(telemetry / "data_wait_s")
    assert runs.trained(tmp_path / "run", run, resume=True).step == 4
    assert "data_wait_s" not in open_run(tmp_path / "run")
