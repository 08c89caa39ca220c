"""`mms depth-check`: verdicts with their exit codes, the table, the document, the figure, and bad usage."""

import json
from pathlib import Path

import pytest
from PIL import Image

MODELS = """
import torch
from torch import nn

def build(depth, **options):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
    model = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    return model, torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))

def alike():
    model, batch = build(4)
    return model, torch.ones_like(batch)
"""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoders_of_mine.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)


def test_a_deep_encoder_is_homogeneous_and_its_table_and_figure_show_it(mms) -> None:
    words = ("--depth", "4,24", "--seeds", 2, "--backward", "--figure", "depth.png")
    status, out, err = mms("depth-check", "encoders_of_mine:build", *words)
    shallow, deep, note = out.split("\n\n")
    assert (status, err) == (1, "") and "not say that a model will not train" in note
    assert shallow.startswith("depth 4: growing\n  measured front none\n")
    assert deep.startswith("depth 24: homogeneous from block ") and " +- " in deep and "predicted" not in out
    assert all(f"{name} ffn" in deep for name in ("g_mean", "g_ctr", "amplification"))
    assert deep.splitlines()[-1].split()[0] == "24" and 10 < len(deep.splitlines()) < 20
    with Image.open("depth.png") as picture:
        assert picture.size[0] > 1000


def test_the_document_has_every_block_and_an_unfinished_shape_is_growing(mms) -> None:
    status, out, err = mms("depth-check", "encoders_of_mine:build", "--depth", "6", "--json")
    document = json.loads(out)
    (row,) = document["rows"]
    assert (status, err) == (0, "") and document["verdict"] == row["verdict"] == "growing"
    assert row["blocks"] == list(range(7)) and len(row["tcs"][0]) == len(row["rho"][0]) == 7
    assert row["front"] == {"mean": None, "std": None, "seeds": [None]} and row["writers"] == {}


def test_tokens_that_are_alike_before_the_first_block_are_no_verdict(mms) -> None:
    status, out, _ = mms("depth-check", "encoders_of_mine:alike")
    assert status == 2 and "depth 4: unsure: the tokens are alike before the first block" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("encoders_of_mine:build",), "failed with TypeError"),
        (("encoders_of_mine:build", "--depth", "4,0"), "depths of at least 1, got 0"),
        (("encoders_of_mine:build", "--depth", "four"), "comma-separated list of int"),
        (("encoders_of_mine:alike", "--depth", "4"), "failed with TypeError"),
        (("encoders_of_mine:alike", "--seeds", "0"), "0 is not in the range"),
        (("encoders_of_mine:alike", "--figure", "depth.pdf"), "name of a .png file, got depth.pdf"),
    ],
)
def test_bad_usage_is_refused_in_one_sentence(mms, words: tuple[str, ...], said: str) -> None:
    status, out, err = mms("depth-check", *words)
    assert status == 2 and out == "" and said in err and err.count("\n") == 1
