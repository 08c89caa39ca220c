"""`mms anatomy`: a tree or a document on stdout, and one sentence for whatever cannot be used."""

import json
from pathlib import Path

import pytest

from meanmode.sim.anatomy.anatomy import Anatomy

MODELS = """
import torch
from torch import nn

NUMBER = 3

def build():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.zeros(2, 5, 8)

def failing():
    raise RuntimeError("no data\\nhere")

def number():
    return 3

def frozen():
    model = nn.Linear(3, 3)
    return nn.Sequential(model), torch.ones(2, 3)
"""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models_of_mine.py").write_text(MODELS)
    (tmp_path / "needs_more.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)


def test_the_tree_names_blocks_writers_and_readers(mms) -> None:
    status, out, err = mms("anatomy", "models_of_mine:build")
    assert status == 0 and err == "" and out.endswith("4 writers in 2 blocks\n")
    for line in (
        "stream main: width 8, states BTD",
        "block 2  layers.1",
        "attn: layers.0.self_attn.out_proj.weight [8, 8], functional, norm post",
        "reads q layers.0.self_attn.in_proj_weight[0:8], k layers.0.self_attn.in_proj_weight[8:16]",
        "ffn: layers.1.linear2.weight [8, 12], norm post",
    ):
        assert line in out


def test_the_document_is_an_anatomy(mms) -> None:
    status, out, _ = mms("anatomy", "models_of_mine:build", "--json")
    assert status == 0 and len(Anatomy.of_document(json.loads(out)).writers) == 4


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("models_of_mine", "give MODULE:FUNCTION"),
        ("nowhere_at_all:build", "cannot import the module 'nowhere_at_all': there is none"),
        ("needs_more:build", "it needs 'nowhere_to_be_found'"),
        ("broken:build", "ZeroDivisionError"),
        ("models_of_mine:other", "has no function 'other'"),
        ("models_of_mine:NUMBER", "is no function"),
        ("models_of_mine:failing", "failed with RuntimeError: no data"),
        ("models_of_mine:number", "must return a torch module and a batch or a function, got int"),
        ("models_of_mine:frozen", "no residual addition was found"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(mms, target: str, said: str) -> None:
    status, out, err = mms("anatomy", target)
    assert status == 2 and out == "" and said in err and err.count("\n") == 1
