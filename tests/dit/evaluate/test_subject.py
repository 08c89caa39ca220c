"""Subjects: the texts, pictures and images that belong to a trained network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from meanmode.dit.config.presets import PRESETS
from meanmode.dit.data.encoding import EncodingConfig, encode
from meanmode.dit.data.images import images_of
from meanmode.dit.data.latent_store import LatentStore
from meanmode.dit.data.latents import with_data
from meanmode.dit.data.sources import Digits
from meanmode.dit.data.text_encoders import text_encoder
from meanmode.dit.evaluate.subject import DECODED_AT_ONCE, Subject, open_subject
from meanmode.dit.model.network import DiT
from meanmode.dit.train.checkpoints import save
from meanmode.sim.store.files import StoreError

SMALL = {"depth": 1, "width": 16, "heads": 1, "patch": 2, "steps": 1, "batch": 4}


def left_behind(folder: Path, **options: object) -> Path:
    """A run folder as `mms train` leaves it, with untrained weights."""
    settings = {name: str(value) for name, value in {**SMALL, **options}.items()}
    run = with_data(PRESETS["digits-16l"], settings)
    weights = {f"weight.{name}": weight.detach() for name, weight in DiT(run.model).named_parameters()}
    save(folder, 1, weights, notes={"configuration": run.document()}, watch={}, keep=1)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty digits, their pixels and labels."""
    path = tmp_path_factory.mktemp("encoded") / "digits.zarr"
    encode(EncodingConfig(images="digits", codec="pixels", limit=60), path)
    return path


@pytest.fixture(scope="module")
def on_store(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return open_subject(left_behind(tmp_path_factory.mktemp("runs") / "latents", data=f"latents:{store}"))


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return open_subject(left_behind(tmp_path_factory.mktemp("runs") / "digits", side=16))


@pytest.fixture
def on_pictures(pictures: Path, tmp_path: Path) -> Path:
    """A run on the latents of the pictures."""
    path = tmp_path / "x.zarr"
    encode(EncodingConfig(images=f"imagefolder:{pictures}", codec="pixels", side=8), path)
    return left_behind(tmp_path / "run", data=f"latents:{path}")


def test_a_run_on_digits_has_their_texts_and_pictures(on_digits: Subject) -> None:
    source = Digits(on_digits.network.config)
    assert on_digits.captions == tuple("0123456789") and not on_digits.network.training
    texts, empty = on_digits.texts(["7", "0"])
    assert torch.equal(texts, source.prompts(torch.tensor([7, 0]))) and torch.equal(empty, source.empty_text)
    latents = source.latents(np.array([4, 1000]))
    assert torch.equal(on_digits.pictures(latents), source.images(latents)[:, None])


def test_a_run_on_digits_refuses_other_captions_and_has_no_images(on_digits: Subject) -> None:
    with pytest.raises(ValueError, match=r"digits have the captions 0 to 9, got 'a cat'"):
        on_digits.texts(["3", "a cat"])
    with pytest.raises(ValueError, match=r"was trained on all digits, so no held-out .*mms encode digits"):
        on_digits.images(True)


def test_texts_of_captions_in_the_store_are_those_of_the_store(
    on_store: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise, in half precision, and without loading the encoder."""
    monkeypatch.setattr(LatentStore, "text_encoder", lambda store: pytest.fail("the encoder is loaded"))
    texts, empty = on_store.texts(["7", "", "7"])
    expected = text_encoder("labels").encode(["7", ""], 4).half().float()
    assert torch.equal(texts, expected[[0, 1, 0]]) and torch.equal(empty, expected[1])
    assert on_store.captions == tuple("0123456789")


def test_random_tokens_that_were_never_trained_on_are_refused(on_store: Subject) -> None:
    with pytest.raises(ValueError, match="has never seen those of 'a cat': choose from 0, 1, 2"):
        on_store.texts(["7", "a cat"])


def test_captions_are_looked_up_in_a_table_that_is_made_once(on_store: Subject) -> None:
    source = on_store.source
    on_store.texts(["3"])
    table = source.store.caption_indices
    on_store.texts(["4"])
    assert source.store.caption_indices is table and [table[text] for text in ("", "0", "9")] == [0, 1, 10]


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (DECODED_AT_ONCE + 3,), (2, 1, 5)])
def test_pictures_of_latents_of_any_leading_shape(on_store: Subject, lead: tuple[int, ...]) -> None:
    latents = torch.randn(*lead, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = on_store.source.store.codec().decode(latents.reshape(-1, 1, 8, 8))
    found = on_store.pictures(latents)
    assert found.shape == latents.shape and torch.equal(found.reshape(-1, 1, 8, 8), expected)


def test_latents_of_a_store_are_its_pictures(on_store: Subject) -> None:
    rows = np.array([0, 33])
    images, origins = on_store.images(False), on_store.source.store.image_of[rows]
    expected = torch.stack([images.image(int(origin)) for origin in origins])
    torch.testing.assert_close(on_store.pictures(on_store.source.latents(rows)), expected, rtol=0, atol=1e-3)
    assert images.size == 1618 and on_store.images(True).size == 179
    assert on_store.images(True).name(0) == images_of("digits", held_out=True).name(0)


def test_a_subject_says_where_it_came_from(on_store: Subject) -> None:
    document = on_store.document
    assert document["step"] == 1 and document["ema"] is False
    assert document["checkpoint"] == on_store.name.replace(", step 1", "/checkpoints/step-00000001")
    assert document["run"]["data_digest"] == on_store.source.store.digest


@pytest.mark.parametrize("given", [{"text": "labels"}, {"codec": "dct"}])
def test_a_run_takes_no_encoders(store: Path, tmp_path: Path, given: dict[str, str]) -> None:
    folder = left_behind(tmp_path / "run", data=f"latents:{store}")
    with pytest.raises(ValueError, match="is not a weight file: its data determine --text and --codec"):
        open_subject(folder, **given)
    with pytest.raises(StoreError, match=r"absent does not exist"):
        open_subject(tmp_path / "absent", **given)


def test_images_that_moved_away_are_missed_only_where_they_are_needed(
    on_pictures: Path, pictures: Path
) -> None:
    pictures.rename(pictures.with_name("elsewhere"))
    subject = open_subject(on_pictures)
    assert subject.captions == ("cat", "dog") and subject.texts(["cat"])[0].shape == (1, 4, 64)
    assert subject.pictures(torch.zeros(3, 8, 8)).shape == (3, 8, 8)
    message = rf"^the images that .*x\.zarr was made from are missing: {pictures} is not a folder: give"
    with pytest.raises(ValueError, match=message):
        subject.images(True)


def test_images_are_found_from_another_folder(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures.parent)
    path = pictures.parent / "relative.zarr"
    encode(EncodingConfig(images="imagefolder:pictures", codec="pixels", side=8), path)
    monkeypatch.chdir("/")
    assert LatentStore(path).images().size == 18 and LatentStore(path).images(held_out=True).size == 2


def test_a_home_folder_is_found(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pictures.parent))
    assert EncodingConfig(images="imagefolder:~/pictures").images == f"imagefolder:{pictures}"


def test_an_absent_encoder_is_missed_only_by_captions_of_its_own(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(qwen3, tmp_path / "qwen3"))
    path = tmp_path / "x.zarr"
    encode(EncodingConfig(images="digits", codec="pixels", limit=20, text=f"qwen3:{folder}"), path)
    run = left_behind(tmp_path / "run", data=f"latents:{path}")
    known = open_subject(run).texts(["x"])[0]
    assert torch.equal(known, text_encoder(f"qwen3:{folder}").encode(["x"], known.shape[1]))
    with pytest.raises(ValueError, match=r"'a cat' has 5 text tokens, .* was trained with at most 1"):
        open_subject(run).texts(["3", "a cat"])
    folder.rename(tmp_path / "elsewhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    subject = open_subject(run)
    assert subject.texts(["3"])[0].shape == (1, *known.shape[1:])
    with pytest.raises(ValueError, match=f"{folder} is neither a folder nor a model"):
        subject.texts(["x"])


def test_a_subject_without_a_moving_average_is_the_same_with_and_without(store: Path, tmp_path: Path) -> None:
    folder = left_behind(tmp_path / "run", data=f"latents:{store}")
    averaged, plain = (open_subject(folder, ema=ema) for ema in (True, False))
    assert averaged.document == plain.document
    weights = zip(averaged.network.parameters(), plain.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)
