"""Sources of images: contents, order, held-out images and error messages."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from meanmode.dit.data.captions import captions_of
from meanmode.dit.data.held_out import HELD_OUT_EVERY
from meanmode.dit.data.images import Images, batch, images_of

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package dataset-fashion-mnist."""

PIXELS = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)


def write_idx(path: Path, values: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()))


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Two training images and one test image in the file format of Fashion-MNIST."""
    for first, pixels, labels in (("train", PIXELS, [9, 0]), ("t10k", 255 - PIXELS[:1], [3])):
        write_idx(tmp_path / f"{first}-images-idx3-ubyte.gz", pixels)
        write_idx(tmp_path / f"{first}-labels-idx1-ubyte.gz", np.array(labels, np.uint8))
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures in two classes, each of one colour with a border that is cropped."""
    for number in range(20):
        path = tmp_path / "pictures" / ("ape" if number < 8 else "bee") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.zeros((16, 32, 3), np.uint8)
        picture[:, 8:24] = (10 * number, 100, 250)
        Image.fromarray(picture).save(path)
    return tmp_path / "pictures"


def test_fashion_mnist_is_read_from_its_files(fashion: Path) -> None:
    images = images_of(f"fashion-mnist:{fashion}")
    assert (images.size, images.side, images.colours) == (2, 28, 1)
    torch.testing.assert_close(
        batch(images, [1, 0])[:, 0] * 255, torch.from_numpy(PIXELS[::-1].copy()).float()
    )
    assert [images.classes[images.label(index)] for index in range(2)] == ["ankle boot", "T-shirt"]
    held_out = images_of(f"fashion-mnist:{fashion}", held_out=True)
    assert (held_out.size, held_out.label(0), held_out.name(0)) == (1, 3, "t10k/00000")
    assert held_out.document()["digest"] != images.document()["digest"]
    assert images_of(f"fashion-mnist:{fashion}", side=14).image(0).shape == (1, 14, 14)


@pytest.mark.skipif(not FASHION.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_is_whole() -> None:
    images = images_of(f"fashion-mnist:{FASHION}")
    counts = np.bincount([images.label(index) for index in range(images.size)])
    assert (
        counts.tolist() == [6000] * 10 and images_of(f"fashion-mnist:{FASHION}", held_out=True).size == 10000
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-9], "images-idx3-ubyte.gz is damaged: it cannot be decompressed"),
        (lambda content: b"not gzip", "images-idx3-ubyte.gz is damaged: it cannot be decompressed"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-5]), "gz is damaged: its header says"),
        (lambda content: gzip.compress(b"\0\0\x0d\x03"), "gz is not an idx file of bytes in 3 dimensions"),
    ],
)
def test_damaged_idx_files_are_named(fashion: Path, damage, message: str) -> None:
    path = fashion / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        images_of(f"fashion-mnist:{fashion}")


def test_other_labels_than_images_are_refused(fashion: Path) -> None:
    write_idx(fashion / "train-labels-idx1-ubyte.gz", np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="has 2 train images but 3 labels"):
        images_of(f"fashion-mnist:{fashion}")


@pytest.mark.parametrize("source", ["digits", "photos"])
def test_no_pixel_is_trained_on_and_held_out(source: str) -> None:
    pytest.importorskip("skimage" if source == "photos" else "sklearn")
    kept, held_out = images_of(source), images_of(source, held_out=True)
    assert kept.document() == held_out.document() and kept.classes == held_out.classes
    if source == "digits":
        assert kept.size + held_out.size == 1797 and held_out.size == 1797 // HELD_OUT_EVERY
        assert not {kept.name(index) for index in range(kept.size)} & {
            held_out.name(index) for index in range(held_out.size)
        }
        return
    right = {label: max(_left(kept, index) + 128 for index in _of(kept, label)) for label in range(7)}
    assert all(_left(held_out, index) >= right[label] for label in range(7) for index in _of(held_out, label))


def _of(images: Images, label: int) -> list[int]:
    return [index for index in range(images.size) if images.label(index) == label]


def _left(images: Images, index: int) -> int:
    return int(images.name(index).rpartition("-")[2])


def test_a_folder_is_sorted_cut_to_squares_and_scaled(folder: Path) -> None:
    images = images_of(f"imagefolder:{folder}", side=4)
    names = [images.name(index) for index in range(images.size)]
    assert names == sorted(names) and images.size == 18 and "bee/09.png" not in names
    assert images.classes == ("ape", "bee") and images.label(0) == 0 and images.label(17) == 1
    colour = torch.tensor([30, 100, 250]) / 255
    torch.testing.assert_close(images.image(3), colour[:, None, None].expand(3, 4, 4), atol=2e-3, rtol=0)
    assert [images_of(f"imagefolder:{folder}", held_out=True).name(index) for index in (0, 1)] == [
        "bee/09.png",
        "bee/19.png",
    ]


def test_a_folder_without_classes_has_none(folder: Path) -> None:
    (folder / "ape" / "00.png").rename(folder / "zero.png")
    images = images_of(f"imagefolder:{folder}")
    assert images.classes == () and images.label(0) is None
    with pytest.raises(ValueError, match="these images have no classes: give --captions a file, or none"):
        captions_of(images, "classes")


def test_another_file_is_another_folder(folder: Path) -> None:
    before = images_of(f"imagefolder:{folder}").document()["digest"]
    (folder / "ape" / "00.png").write_bytes(b"x")
    assert images_of(f"imagefolder:{folder}").document()["digest"] != before


def test_a_corrupt_image_is_named(folder: Path) -> None:
    path = folder / "ape" / "00.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"ape/00\.png is not a readable image: "):
        images_of(f"imagefolder:{folder}").image(0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cats", "unknown images 'cats': choose from digits, fashion-mnist:PATH"),
        ("fashion-mnist:", "unknown images 'fashion-mnist:'"),
        ("digits:4", "unknown images 'digits:4'"),
        ("fashion-mnist:/nowhere", "/nowhere/train-images-idx3-ubyte.gz does not exist"),
        ("imagefolder:/nowhere", "/nowhere is not a folder: give the folder of the images"),
    ],
)
def test_unknown_images_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images_of(spec)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no images"):
        images_of(f"imagefolder:{tmp_path}")


def test_captions_come_from_classes_a_file_or_nowhere(folder: Path, tmp_path: Path) -> None:
    images = images_of(f"imagefolder:{folder}")
    assert captions_of(images, "classes")[7:9] == ["ape", "bee"] and captions_of(images, "none")[0] == ""
    lines = [{"file_name": f"bee/{number:02d}.png", "text": f"bee {number}"} for number in range(19, 7, -1)]
    lines += [{"file_name": f"ape/{number:02d}.png", "text": "an ape"} for number in range(8)]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = captions_of(images, str(path))
    assert found[0] == "an ape" and found[8] == "bee 8" and found[9] == "bee 10"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"file_name": "ape/00.png", "text": "x"}',
            r"has no caption for 17 of 18 images, such as ape/01\.png",
        ),
        (
            '{"file_name": "ape/00.png", "text": "x"}\n{"file_n',
            "line 2 of .*captions.jsonl is not a JSON object",
        ),
        ('["ape/00.png"]', "line 1 of .*captions.jsonl is not a JSON object"),
        ('{"file_name": "ape/00.png", "text": 3}', 'line 1 of .*: "file_name" and "text" must be strings'),
    ],
)
def test_captions_that_are_missing_or_damaged_are_named(
    folder: Path, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        captions_of(images_of(f"imagefolder:{folder}"), str(path))


def test_an_absent_file_of_captions_is_named() -> None:
    with pytest.raises(
        ValueError, match="/nowhere cannot be read as a file of captions: give a readable file"
    ):
        captions_of(images_of("digits"), "/nowhere")


def test_linked_folders_are_classes_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for name in ("ape", "bee"):
        (tmp_path / "linked" / name).symlink_to(folder / name)
    linked = images_of(f"imagefolder:{tmp_path / 'linked'}")
    assert linked.classes == ("ape", "bee") and linked.size == 18


@pytest.mark.parametrize(("mode", "kind"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_images_of_more_than_8_bits_are_refused(folder: Path, mode: str, kind: type) -> None:
    path = folder / "ape" / "00.tiff"
    Image.fromarray(np.full((16, 16), 4000, kind)).save(path)
    (folder / "ape" / "00.png").unlink()
    with pytest.raises(
        ValueError, match=rf"00\.tiff is not a readable image: .* \(mode {mode}\): convert it to 8"
    ):
        images_of(f"imagefolder:{folder}").image(0)


def test_labels_of_no_class_are_refused(fashion: Path) -> None:
    write_idx(fashion / "train-labels-idx1-ubyte.gz", np.array([3, 10], np.uint8))
    with pytest.raises(ValueError, match=r"train labels in .* must be 0 to 9, got 10"):
        images_of(f"fashion-mnist:{fashion}")


def test_captions_may_contain_any_character_and_are_one_per_image(folder: Path, tmp_path: Path) -> None:
    images, path = images_of(f"imagefolder:{folder}"), tmp_path / "captions.jsonl"
    entries = [{"file_name": images.name(index), "text": "a\u2028b\x85c"} for index in range(images.size)]
    path.write_text("\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries), newline="")
    assert captions_of(images, str(path)) == ["a\u2028b\x85c"] * 18
    path.write_text("\n".join(map(json.dumps, [*entries, entries[3]])))
    with pytest.raises(ValueError, match=r"line 19 of .* is a second caption of ape/03\.png: give one"):
        captions_of(images, str(path))
