"""What a run is: the diffusion transformer, its training and its data, and the presets by name."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.training_config import TrainingConfig, one_of

DATA = ("data", "data_digest")
"""Fields of a run that are of no part of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A run: the network, its training and its data.

    Attributes:
        model: the network.
        training: of it.
        data: the source of latents and texts: `digits`; `latents:PATH`, a store of `mms encode`; or `none`,
            of presets whose data are yours to name.
        data_digest: of the store that is meant; empty for whichever is there.

    Raises:
        ValueError: another source.
    """

    model: DiTConfig = field(default_factory=DiTConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: str = "digits"
    data_digest: str = ""

    def __post_init__(self) -> None:
        if self.latents is None:
            one_of("data", self.data, ("digits", "none", "latents:PATH"))

    @property
    def latents(self) -> Path | None:
        """The latent store that it is trained on, where it is one."""
        kind, _, path = self.data.partition(":")
        return Path(path) if kind == "latents" and path else None

    def field(self, name: str) -> Any:
        """The value of a field of its parts.

        Raises:
            ValueError: an unknown field.
        """
        for part in (self, self.model, self.training):
            if name in _types(type(part)):
                return getattr(part, name)
        raise ValueError(_unknown(name))

    def with_fields(self, values: Mapping[str, Any]) -> "RunConfig":
        """The run with fields of its parts set.

        Raises:
            ValueError: an unknown field, or a value out of range.
        """
        for name in values:
            self.field(name)
        changed = {}
        for part in ("model", "training"):
            known = _types(type(getattr(self, part)))
            of = {name: value for name, value in values.items() if name in known}
            changed[part] = dataclasses.replace(getattr(self, part), **of)
        rest = {name: value for name, value in values.items() if name in DATA}
        return dataclasses.replace(self, **changed, **rest)

    def with_options(self, options: Mapping[str, str]) -> "RunConfig":
        """The run with fields of its parts set from text, as of `--set name=value`.

        Raises:
            ValueError: an unknown field, or a value that is none of its type.
        """
        kinds = {**_types(DiTConfig), **_types(TrainingConfig), **dict.fromkeys(DATA, str)}
        for name in options:
            if name not in kinds:
                raise ValueError(_unknown(name))
        return self.with_fields({name: _parsed(name, text, kinds[name]) for name, text in options.items()})

    def document(self) -> dict[str, Any]:
        """As a JSON document."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> "RunConfig":
        """The run of a `document`.

        Raises:
            ValueError: a document of another version.
        """
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


def _types(of: type) -> dict[str, Any]:
    return typing.get_type_hints(of)


def _parsed(name: str, text: str, kind: Any) -> Any:
    """A field's value from text."""
    if typing.get_origin(kind) is types.UnionType:
        if text.lower() == "none":
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(kind) is tuple:
            return tuple(json.loads(text))
        return kind(text)
    except (ValueError, KeyError, TypeError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ValueError(f"{name} must be {words.get(kind, 'a JSON list')}, got {text!r}") from None
