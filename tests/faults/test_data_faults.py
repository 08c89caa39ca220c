"""Hostile and damaged inputs of encoding, sampling and evaluation: a sentence, no hang, nothing run."""

import gzip
import json
import os
import signal
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as nn
import zarr
from PIL import Image

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.data.captions import captions_of
from meanmode.dit.data.encoding import EncodingConfig, encode
from meanmode.dit.data.flux2_vae import Flux2VAE
from meanmode.dit.data.images import images_of
from meanmode.dit.data.latent_store import NEEDED, LatentStore
from meanmode.dit.data.text_encoders import text_encoder
from meanmode.dit.evaluate.features import extractor
from meanmode.dit.evaluate.sampling import check_figure
from meanmode.dit.model.network import DiT
from meanmode.dit.model.published import export_published, load_published
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.regular_files import files_under

Command = Callable[..., tuple[int, str, str]]

SECONDS = 10
"""After so long a test is taken to hang."""

DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def promptly() -> Iterator[None]:
    """Fail a test that waits for a pipe or reads without end."""

    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


# folders of images


def looped(pictures: Path) -> None:
    (pictures / "loop").symlink_to(pictures)


def looped_below(pictures: Path) -> None:
    (pictures / "cat" / "up").symlink_to("..")


def looped_above(pictures: Path) -> None:
    (pictures / "out").symlink_to(pictures.parent)


def twice(pictures: Path) -> None:
    (pictures / "dog again").symlink_to(pictures / "dog")


def hard(pictures: Path) -> None:
    os.link(pictures / "cat" / "00.png", pictures / "dog" / "zz.png")


def soft(pictures: Path) -> None:
    (pictures / "dog" / "zz.png").symlink_to(pictures / "cat" / "00.png")


@pytest.mark.parametrize("link", [looped, looped_below, looped_above, twice, hard, soft])
def test_no_link_puts_an_image_on_both_sides_of_the_split(
    pictures: Path, link: Callable[[Path], None]
) -> None:
    link(pictures)
    parts = [images_of(f"imagefolder:{pictures}", side=8, held_out=held_out) for held_out in (False, True)]
    files = [(pictures / part.name(index)).stat().st_ino for part in parts for index in range(part.size)]
    assert len(files) == len(set(files)) == 20 and [part.size for part in parts] == [18, 2]


def test_a_deep_folder_is_walked_and_a_pipe_is_passed_by(tmp_path: Path) -> None:
    places = [tmp_path]
    for _ in range(1100):
        places.append(places[-1] / "d")
        places[-1].mkdir()
    image = places[-1] / "a.png"
    image.touch()
    os.mkfifo(tmp_path / "b.png")
    try:
        assert list(files_under(tmp_path)) == [image]
    finally:  # deeper than the recursion with which pytest removes folders
        image.unlink()
        for place in reversed(places[1:]):
            place.rmdir()


def test_an_image_that_becomes_a_pipe_is_refused(pictures: Path) -> None:
    images = images_of(f"imagefolder:{pictures}")
    file = pictures / images.name(0)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=f"{file} is a named pipe, not a file: remove it"):
        images.image(0)


def test_a_small_file_of_a_huge_image_is_refused(pictures: Path) -> None:
    file = pictures / "cat" / "00.png"
    Image.new("1", (20_000, 20_000)).save(file)
    assert file.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"00\.png is not a readable image: Image size \(400000000 pixels\)"):
        images_of(f"imagefolder:{pictures}").image(0)


# idx files


def idx(path: Path, shape: tuple[int, ...], content: bytes) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, len(shape)]) + sizes + content))


@pytest.mark.parametrize(
    ("shape", "content", "message"),
    [
        ((1, 28, 28), bytes(200_000_000), r"its header says \(1, 28, 28\) but it contains more bytes"),
        ((1, 28, 28), b"", r"its header says \(1, 28, 28\) but it contains 0 bytes"),
        ((2**32 - 1,) * 3, b"", r"at most 805,306,368 are read"),
        ((700_000, 32, 32), b"", r"which does not fit into its size"),
        ((2, 28, 14), bytes(2 * 28 * 14), r"has images of 28 x 14 pixels: crop or pad them to squares"),
        ((2, 0, 0), b"", r"has images of 0 x 0 pixels"),
    ],
)
def test_an_idx_file_is_read_as_its_header_says_and_no_further(
    tmp_path: Path, shape: tuple[int, ...], content: bytes, message: str
) -> None:
    idx(tmp_path / "train-images-idx3-ubyte.gz", shape, content)
    idx(tmp_path / "train-labels-idx1-ubyte.gz", shape[:1] if shape[0] < 9 else (1,), bytes(2))
    del content
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        images_of(f"fashion-mnist:{tmp_path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


# pipes, devices, depth


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("what", ["captions", "idx", "extractor", "weights", "config", "model"])
def test_whatever_is_no_file_is_refused(tmp_path: Path, what: str, kind: str) -> None:
    names = {"idx": "train-images-idx3-ubyte.gz", "config": "config.json", "model": "config.json"}
    place = tmp_path / names.get(what, "given.safetensors")
    if kind == "device":
        place.symlink_to("/dev/zero")
    else:
        os.mkfifo(place) if kind == "pipe" else place.mkdir()
    opened: dict[str, Callable[[], object]] = {
        "captions": lambda: captions_of(images_of("digits"), str(place)),
        "idx": lambda: images_of(f"fashion-mnist:{tmp_path}"),
        "extractor": lambda: extractor(f"inception:{place}"),
        "weights": lambda: load_published(place),
        "config": lambda: Flux2VAE(tmp_path),
        "model": lambda: text_encoder(f"qwen3:{tmp_path}"),
    }
    with pytest.raises(ValueError, match=str(place)) as refused:
        opened[what]()
    assert "\n" not in str(refused.value)


def test_a_chunk_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    store = encoded(tmp_path)
    chunk = next(file for file in store.rglob("c/*") if file.is_file())
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(StoreError, match=f"{chunk} is no regular file"):
        LatentStore(store)


def test_deep_json_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text(DEEP)
    with pytest.raises(ValueError, match=f"line 1 of {file} is not a JSON object"):
        captions_of(images_of("digits"), str(file))
    (tmp_path / "config.json").write_text(DEEP)
    for opened in (lambda: Flux2VAE(tmp_path), lambda: text_encoder(f"qwen3:{tmp_path}")):
        with pytest.raises(ValueError, match=r"config\.json is JSON nested too deep to be read"):
            opened()


# numbers out of bounds, destinations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encode", "digits", "--side", 10**9), "1000000000 is not in the range 1<=x<=4096"),
        (("encode", "digits", "--limit", 10**14), "is not in the range 1<=x<=1000000000"),
        (("encode", "digits", "--side", 10**400), "is not in the range"),
        (("sample", "run", "--each", 10**11), "is not in the range 1<=x<=1000"),
        (("sample", "run", "--steps", 10**9), "is not in the range 1<=x<=100000"),
        (("sample", "run", "--batch", 10**9), "is not in the range 1<=x<=65536"),
        (("sample", "run", "--seed", 2**63), "is not in the range 0<=x<=9223372036854775807"),
        (("sample", "run", "--seed", -1), "is not in the range"),
        (("sample", "run", "--cfg-scale", "nan"), "cfg_scale must be at least 0.0, got nan"),
        (("sample", "run", "--cfg-scale", "inf"), "inf is not in the range"),
        (("sample", "run", "--cfg-scale", -1), "-1.0 is not in the range"),
        (("sample", "run", "--time-shift", 0), "0.0 is not in the range"),
        (("sample", "run", "--time-shift", "inf"), "inf is not in the range"),
        (("sample", "run", "--time-shift", "nan"), "time_shift must be at least 1e-06, got nan"),
        (("evaluate", "run", "--samples", 10**12), "is not in the range 3<=x<=10000000"),
        (("evaluate", "run", "--reference", 10**12), "is not in the range 3<=x<=10000000"),
        (("encode", "digits", "--out", "file/x.zarr"), "file/x.zarr cannot be written (Not a directory)"),
        (("encode", "digits", "--out", "/proc/x"), "/proc/x cannot be written (No such file or directory)"),
        (("encode", "digits", "--out", "file"), "file already exists: pass --resume to continue it"),
        (("encode", "digits", "--out", "dangling"), "dangling cannot be written (it is a link to nothing)"),
        (("encode", "digits", "--out", "x" * 250), "cannot be written (File name too long)"),
        (("sample", "run", "--out", "file/x.png"), "file/x.png cannot be written (Not a directory)"),
        (("sample", "run", "--out", "/proc/x.png"), "/proc/x.png cannot be written (No such file"),
        (("sample", "run", "--out", "folder.png"), "folder.png is not a file: choose another --out"),
        (("evaluate", "run", "--cache", "/proc/x"), "/proc/x cannot be written (No such file or directory)"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    mms: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = listing(tmp_path)
    out = ("--out", "x.zarr") if arguments[0] == "encode" and "--out" not in arguments else ()
    status, printed, said = mms(*arguments, *out)
    assert (status, printed) == (2, "") and said.startswith("mms: ") and said.count("\n") == 1
    assert message in said and listing(tmp_path) == before


def test_a_figure_that_cannot_be_drawn_is_refused_before_it_is_computed() -> None:
    check_figure(10, 100, 64)
    for rows, each, what in ((10, 1000, "samples side by side"), (1000, 8, "rows of samples")):
        with pytest.raises(ValueError, match=f"has room for at most 977 {what} of side 64, got 1,000"):
            check_figure(rows, each, 64)


# stores that somebody else made


def encoded(folder: Path) -> Path:
    store = folder / "x.zarr"
    encode(EncodingConfig(images="digits", codec="pixels", limit=12), store)
    return store


def test_encoding_leaves_what_it_did_not_make(tmp_path: Path) -> None:
    for name in (".x.zarr.partial", ".x.zarr.0.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    before = listing(tmp_path)
    store = encoded(tmp_path)
    assert [path for path in listing(tmp_path) if not path.startswith(str(store))] == before
    outside = tmp_path / "outside"
    (store / "latents").rename(outside)
    (store / "latents").symlink_to(outside)
    kept = listing(outside)
    with pytest.raises(StoreError, match="is no regular file"):
        encode(EncodingConfig(images="digits", codec="pixels", limit=12), store, resume=True)
    assert listing(outside) == kept


@pytest.mark.parametrize("value", [None, "text", 10**30, 1.5, [], {}, True, float("nan")])
def test_attributes_of_other_types_are_refused(tmp_path: Path, value: object) -> None:
    """Every needed entry of every attribute in turn."""
    store = encoded(tmp_path)
    group = zarr.open_group(store, mode="r+")
    for name, keys in NEEDED.items():
        whole = str(group.attrs[name])
        for key, kind in keys.items():
            if type(value) is kind:
                continue
            group.attrs[name] = json.dumps(json.loads(whole) | {key: value})
            with pytest.raises(StoreError, match=f"is damaged: its attributes lack {name}: {key}"):
                LatentStore(store)
        for wrong in (DEEP, "[]", "3", "{", json.dumps(value)):
            if wrong != "{}":
                group.attrs[name] = wrong
                with pytest.raises(StoreError, match=f"its attribute.* {name}"):
                    LatentStore(store)
        group.attrs[name] = whole
    LatentStore(store)


def test_indices_of_nothing_are_refused(tmp_path: Path) -> None:
    store = encoded(tmp_path)
    for name in ("caption_of", "image_of"):
        array = zarr.open_group(store, mode="r+")[name]
        kept = array[:]
        array[3] = -1
        with pytest.raises(StoreError, match=f"{name} holds numbers of nothing"):
            LatentStore(store)
        array[:] = kept


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_codec_of_numbers_that_are_none_is_refused(tmp_path: Path, value: float) -> None:
    store = encoded(tmp_path)
    zarr.open_group(store, mode="r+")["codec_std"][:] = value
    with pytest.raises(ValueError, match="the parameter std of the codec pixels is damaged: encode again"):
        LatentStore(store).codec()


# code in files


class Pieces(torch.nn.Module):
    """What an Inception network is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.output = torch.nn.Linear(16, 8)

    def forward(self, img: torch.Tensor, return_features: bool = False, half: bool = False) -> torch.Tensor:
        count, colours, height, width = img.shape
        assert colours == 3 and height > 1, "colours"
        theta = torch.eye(2, 3, device=img.device).unsqueeze(0).repeat(count, 1, 1)
        theta[:, 0, 2] += theta[:, 0, 0] / width
        grid = nn.affine_grid(theta, [count, colours, 19, 19], align_corners=False)
        x = img.to(torch.float16 if half else torch.float32)
        x = nn.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        x = (nn.interpolate(x, size=(17, 17), mode="bilinear", align_corners=False) - 128) / 128
        x = self.branch(x)
        y = nn.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        x = torch.cat([nn.max_pool2d(x, 3, stride=2), nn.max_pool2d(y, 3, stride=2)], dim=1)
        x = nn.adaptive_avg_pool2d(nn.dropout(x, 0.1, False), (1, 2)).flatten(1)
        if return_features:
            return x
        return nn.softmax(self.output(x), dim=1)


def test_the_pieces_of_an_inception_are_computations(
    scripted: Callable[[torch.nn.Module, Path], Path], tmp_path: Path
) -> None:
    network = Pieces().eval()
    found = extractor(f"inception:{scripted(network, tmp_path / 'pieces.pt')}")
    images = torch.rand(2, 3, 24, 24)
    values, classes = found.read(images)
    pixels = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(values, network(pixels, return_features=True))
    torch.testing.assert_close(classes, network(pixels))


@pytest.fixture
def changed(inception: Path, tmp_path: Path) -> Callable[[str, bytes, bytes], Path]:
    """Replace bytes in a record of the scripted extractor."""

    def write(record: str, before: bytes, after: bytes) -> Path:
        file = tmp_path / "changed.pt"
        with zipfile.ZipFile(inception) as whole, zipfile.ZipFile(file, "w") as copy:
            for name in whole.namelist():
                content = whole.read(name)
                if name.partition("/")[2].startswith(record) and not name.endswith("debug_pkl"):
                    assert before in content
                    content = content.replace(before, after)
                copy.writestr(name, content)
        return file

    return write


DEFAULT, START = b"return_features: bool=False", b"    if torch.eq("


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        (DEFAULT, b'return_features: bool=bool(torch.from_file("{made}", True, 9))', "torch.from_file"),
        (
            DEFAULT,
            b'return_features: bool=bool(getattr(torch, "from_fi" "le")("{made}", True, 9))',
            "from_file",
        ),
        (DEFAULT, b'return_features: bool=bool(torch . from_file("{made}", True, 9))', "torch.from_file"),
        (DEFAULT, b'return_features: bool=bool(ops.aten.from_file("{made}", True, 9))', "ops.aten.from_file"),
        (DEFAULT, b'return_features: bool=bool(torch.\\\nfrom_file("{made}", True, 9))', "characters"),
        (
            DEFAULT,
            b'return_features: bool=bool(getattr(torch, "from_fil\\145")("{made}", True, 9))',
            "characters",
        ),
        (b"def forward", b"def __setstate__(self, s: int) -> None:\n    pass\n  def forward", "__setstate__"),
        (START, b'    torch.save(img, "{made}")\n' + START, "torch.save"),
        (START, b'    t = torch\n    t.save(img, "{made}")\n' + START, "torch"),
        (START, b'    img.save("{made}")\n' + START, "save"),
        (START, b"    o = ops.profiler\n" + START, "ops.profiler"),
        (START, b"    o = ops.prim.rpc_sync\n" + START, "ops.prim.rpc_sync"),
        (START, b"    print(img)\n" + START, "print"),
        (START, b"    f = fork\n" + START, "fork"),
        (START, b"    c = __torch__.torch.classes.a.B\n" + START, "classes"),
        (START, b"    import os\n" + START, "Import"),
        (START, b"  def\n" + START, "cannot be parsed"),
    ],
)
def test_no_code_of_an_extractor_runs_that_does_more_than_compute(
    changed: Callable[[str, bytes, bytes], Path], tmp_path: Path, before: bytes, after: bytes, name: str
) -> None:
    made = tmp_path / "made"
    file = changed("code/", before, after.replace(b"{made}", str(made).encode()))
    with pytest.raises(ValueError, match=f"{file} is not loaded, as its code may do more.*{name}") as refused:
        extractor(f"inception:{file}")
    assert not made.exists() and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"cos\nsystem\n", "os.system"),
        (b"c__torch__.torch\nclasses.a.B\n", "__torch__.torch.classes.a.B"),
        (b"c__builtin__\neval\n", "__builtin__.eval"),
    ],
)
def test_no_pickle_of_an_extractor_names_foreign_code(
    changed: Callable[[str, bytes, bytes], Path], name: bytes, said: str
) -> None:
    with zipfile.ZipFile(changed("version", b"", b"")) as whole:
        content = {record: whole.read(record) for record in whole.namelist()}
    file = Path(whole.filename or "")
    record = next(record for record in content if record.endswith("/data.pkl"))
    start = content[record].index(b"c__torch__")
    end = content[record].index(b"\n", content[record].index(b"\n", start) + 1) + 1
    content[record] = content[record][:start] + name + content[record][end:]
    with zipfile.ZipFile(file, "w") as copy:
        for record, value in content.items():
            copy.writestr(record, value)
    with pytest.raises(ValueError, match=f"data.pkl names {said}"):
        extractor(f"inception:{file}")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: bytes(reversed(content)),
        lambda content: content + content,
    ],
)
def test_a_damaged_extractor_is_a_sentence(
    inception: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "damaged.pt"
    file.write_bytes(damage(inception.read_bytes()))
    try:
        extractor(f"inception:{file}")
    except ValueError as error:
        assert str(file) in str(error) and "\n" not in str(error)


# published weights


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    config = DiTConfig(depth=2, width=128, heads=1, text_width=128, merge="mv_split")
    return {name: tensor.clone() for name, tensor in export_published(DiT(config)).items()}


def extra(value: float) -> dict[str, torch.Tensor]:
    """Scales that the published code adds where Triton is absent."""
    found = {}
    for block in range(2):
        for name in ("attn.qk_norm.query_norm", "attn.qk_norm.key_norm"):
            found[f"blocks.{block}.{name}.weight"] = torch.full((128,), value)
        for name in ("fused_mvsplit_norm1", "fused_mvsplit_norm2"):
            found[f"blocks.{block}.{name}.weight"] = torch.full((128,), value)
    return found


def test_scales_of_norms_are_accepted_only_as_ones(weights: dict[str, torch.Tensor]) -> None:
    first, second = load_published(weights), load_published(weights | extra(1.0))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    for name in extra(1.0):
        for value in (1.001, float("nan"), 0.0):
            with pytest.raises(ValueError, match=f"where Triton was absent, and training has .*{name}"):
                load_published(weights | extra(1.0) | {name: torch.full((128,), value)})
    with pytest.raises(ValueError, match=r"contains unknown blocks\.0\.other_norm\.weight"):
        load_published(weights | {"blocks.0.other_norm.weight": torch.ones(128)})


def header(length: int, text: bytes = b"{}") -> Callable[[bytes], bytes]:
    return lambda content: length.to_bytes(8, "little") + text + content[8:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:4],
        lambda content: content[:200],
        lambda content: content[:-5],
        lambda content: b"",
        header(2**63),
        header(2**40),
        header(100_000, DEEP.encode()),
        lambda content: content.replace(b'"F32"', b'"F99"'),
        lambda content: content.replace(b'"F32"', b'"I32"'),
        lambda content: content.replace(b"[128,", b"[999,"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_weights_are_a_sentence(
    weights: dict[str, torch.Tensor], tmp_path: Path, damage: Callable[[bytes], bytes], suffix: str
) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(weights, file)
    else:
        from safetensors.torch import save_file

        save_file(weights, file)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    if file.read_bytes() != content:
        with pytest.raises(ValueError, match=str(file)) as refused:
            load_published(file)
        assert "\n" not in str(refused.value)


def test_an_export_leaves_the_files_of_others(tmp_path: Path) -> None:
    (tmp_path / ".x.pt.partial").write_text("mine")
    config = DiTConfig(depth=1, width=128, heads=1, text_width=128, merge="mv_split")
    export_published(DiT(config), tmp_path / "x.pt")
    assert (tmp_path / ".x.pt.partial").read_text() == "mine"


def test_weights_are_no_code(tmp_path: Path) -> None:
    """Weights are read as tensors alone."""
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"cos\nsystem\n(S'touch made'\ntR.")
        archive.writestr("x/version", b"3\n")
    with pytest.raises(ValueError, match="is damaged or contains more than tensors"):
        load_published(file)
