"""The configuration of a run: its network, training and data, read from options and JSON documents."""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.field_ranges import WORDS, check_fields, one_of, shown
from meanmode.dit.config.training_config import TrainingConfig

DATA = ("data", "data_digest")
"""Fields of `RunConfig` itself, besides those of its model and training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The configuration of a training run.

    Attributes:
        model: architecture of the network.
        training: how the network is trained and measured.
        data: source of latents and texts: `digits`; `latents:PATH`, a store written by `mms encode`; or
            `none`, for presets whose data the user has to choose.
        data_digest: digest that the latent store must have; empty accepts any store.

    Raises:
        ValueError: the data source is unknown.
    """

    model: DiTConfig = field(default_factory=DiTConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: str = "digits"
    data_digest: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.latents is None:
            one_of("data", self.data, ("digits", "none", "latents:PATH"))

    @property
    def latents(self) -> Path | None:
        """Path of the latent store used as data; None for other sources."""
        kind, _, path = self.data.partition(":")
        return Path(path) if kind == "latents" and path else None

    def field(self, name: str) -> Any:
        """Return the value of a field of the run, its model or its training.

        Raises:
            ValueError: there is no such field.
        """
        for part in (self, self.model, self.training):
            if name in _types(type(part)):
                return getattr(part, name)
        raise ValueError(_unknown(name))

    def with_fields(self, values: Mapping[str, Any]) -> "RunConfig":
        """Return the run with some fields of the run, its model or its training replaced.

        Raises:
            ValueError: there is no such field, or a value is out of range.
        """
        for name in values:
            self.field(name)
        changed: dict[str, Any] = {}
        for part in ("model", "training"):
            known = _types(type(getattr(self, part)))
            of = {name: value for name, value in values.items() if name in known}
            if of:
                changed[part] = dataclasses.replace(getattr(self, part), **of)
        rest = {name: value for name, value in values.items() if name in DATA}
        return dataclasses.replace(self, **changed, **rest)

    def with_options(self, options: Mapping[str, str]) -> "RunConfig":
        """Return the run with some fields replaced by values given as text, as in `--set name=value`.

        A `width` without `heads` keeps the width of a head, and without `text_width` it is also the width of
        the text if that was the width of the network.

        Raises:
            ValueError: there is no such field, or a value does not parse or is out of range.
        """
        kinds = {**_types(DiTConfig), **_types(TrainingConfig), **dict.fromkeys(DATA, str)}
        for name in options:
            if name not in kinds:
                raise ValueError(_unknown(name))
        values = {name: _parsed(name, text, kinds[name]) for name, text in options.items()}
        return self.with_fields({**self._following(values), **values})

    def _following(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that follow a new width."""
        width, model = values.get("width", 0), self.model
        if width < 1:
            return {}
        found = {"heads": max(width * model.heads // model.width, 1)}
        return found | ({"text_width": width} if model.text_width == model.width else {})

    def document(self) -> dict[str, Any]:
        """Return the configuration as a JSON document."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> "RunConfig":
        """Return the run that a `document` describes.

        Raises:
            ValueError: another version wrote the document, with other fields, or a value is out of range.
        """
        if not isinstance(document, Mapping):
            raise ValueError("a configuration must be a JSON object")
        try:
            return cls(
                model=DiTConfig(**document["model"]),
                training=TrainingConfig(**document["training"]),
                data=document["data"],
                data_digest=document.get("data_digest", ""),
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"this configuration was written by another version: {error}") from error


def _unknown(name: str) -> str:
    known = [*_types(DiTConfig), *_types(TrainingConfig), *DATA]
    return f"unknown option {name!r}: choose from {', '.join(known)}"


@functools.cache
def _types(of: type) -> Mapping[str, Any]:
    return types.MappingProxyType(typing.get_type_hints(of))


def _parsed(name: str, text: str, kind: Any) -> Any:
    """Parse a value of a field with the type `kind`."""
    if typing.get_origin(kind) is types.UnionType:
        if text.lower() == "none":
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_args(kind) == (str, ...):
            return tuple(word.strip() for word in text.split(",")) if text else ()
        if typing.get_origin(kind) is tuple:
            return tuple(json.loads(text))
        return kind(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{name} must be {WORDS.get(kind, 'a JSON list')}, got {shown(text)}") from None
