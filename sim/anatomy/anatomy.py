"""The anatomy of a transformer: which weights write to its residual streams, in which blocks; as JSON too."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from torch import nn

FORMAT = "mean-mode anatomy 1"
KINDS = ("attention", "feed-forward", "other")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Norms:
    """Names of the modules whose norms surround a residual addition; empty where there is none.

    Attributes:
        before: norm between the trunk and the branch (pre-norm).
        branch: norm between the writer and the addition.
        after: norm of the trunk after the addition (post-norm).
    """

    before: str = ""
    branch: str = ""
    after: str = ""

    @property
    def placement(self) -> str:
        """`none`, or what there is of `pre`, `branch` and `post`, joined by plus signs."""
        there = {"pre": self.before, "branch": self.branch, "post": self.after}
        return "+".join(name for name, module in there.items() if module) or "none"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """A weight whose product with activations is added to a residual stream.

    Attributes:
        parameter: its full name, as in `named_parameters`.
        block: number of its block, from 1; 0 if it belongs to none.
        module: the module that owns the parameter.
        call: number of this product among those with the parameter in one forward pass, from 0.
        hooked: whether the calls of `module` are these products, so that its forward hook sees their input
            and output; if not, the product is functional, as in `nn.MultiheadAttention`.
        shape: shape of the parameter.
        transposed: whether the weight is [in, out] (`Conv1D`), not [out, in].
        experts: number of experts of a three-dimensional weight, else 0.
        added: other parameters whose products are added to the same branch: adapters, further experts.
        stream: name of the stream it writes to.
        kind: `attention`, `feed-forward` or `other`; `attention` if softmax attention feeds it.
        label: name that is unique among the writers of a block and stream, such as `attn` or `ffn`.
        norms: norms around the addition.
    """

    parameter: str
    block: int
    module: str = ""
    call: int = 0
    hooked: bool = True
    shape: tuple[int, ...] = ()
    transposed: bool = False
    experts: int = 0
    added: tuple[str, ...] = ()
    stream: str = "main"
    kind: str = "other"
    label: str = ""
    norms: Norms = Norms()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Where the output of a block's module holds the trunk after the block.

    Attributes:
        stream: name of the stream.
        path: keys that lead from the output to the tensor; empty if the output is the tensor.
    """

    stream: str
    path: tuple[int | str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One block.

    Attributes:
        index: its number, from 1, in the order of the forward pass.
        module: the module that holds it; empty if no single module does.
        call: number of the call of that module in one forward pass, from 0.
        outputs: the trunk after the block; several entries of one stream are its parts in order.
    """

    index: int
    module: str = ""
    call: int = 0
    outputs: tuple[Output, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A run of tokens of a joint stream.

    Attributes:
        stream: the stream the tokens come from; empty if they come from none.
        tokens: their number in the pass that was looked at.
    """

    stream: str
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """A residual stream.

    Attributes:
        name: `main` if there is one; `image`, `context` and `joint` where blocks have two streams; otherwise
            the module that its blocks have in common, such as `encoder`.
        width: features per token.
        layout: a letter for each dimension of its states: B batch, T tokens (several of them for a grid), D
            width.
        parts: of a joint stream, what its tokens are concatenated from.
    """

    name: str
    width: int = 0
    layout: str = "BTD"
    parts: tuple[Part, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A weight, or some of its output features.

    Attributes:
        parameter: its full name.
        module: the module that owns it.
        call: number of the product among those with this parameter in one forward pass, from 0.
        rows: ranges (start, stop) of the output features; empty means all.
    """

    parameter: str
    module: str = ""
    call: int = 0
    rows: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """The weights from which a softmax attention computes queries, keys and values.

    Attributes:
        writer: index into `Anatomy.writers` of the writer that the attention feeds.
        q: weight of the queries.
        k: weight of the keys.
        v: weight of the values.
        heads: number of heads; 0 if unknown.
        kv_heads: number of heads of keys and values; 0 if unknown.
        head_width: features per head; 0 if unknown.
        qk_norm: whether a norm acts on queries or keys.
        source: streams that the keys are read from.
    """

    writer: int
    q: Weight
    k: Weight
    v: Weight
    heads: int = 0
    kv_heads: int = 0
    head_width: int = 0
    qk_norm: bool = False
    source: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """Something that was not recognised for certain.

    Attributes:
        what: the parameter, module or stream in question.
        reason: why it is in doubt, and what was assumed.
    """

    what: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """What `meanmode.discover` finds in a model.

    To correct it, change `document()` and read it back with `of_document`; only the parameter and the block
    of each writer are required.

    Attributes:
        writers: residual writers in the order of the forward pass.
        blocks: blocks in the same order, numbered from 1.
        streams: residual streams.
        readers: queries, keys and values of the softmax attentions.
        unsure: what is in doubt, with reasons.
    """

    writers: tuple[Writer, ...]
    blocks: tuple[Block, ...] = ()
    streams: tuple[Stream, ...] = (Stream(name="main"),)
    readers: tuple[Reader, ...] = ()
    unsure: tuple[Doubt, ...] = ()

    def of_block(self, index: int) -> tuple[Writer, ...]:
        """The writers of a block, in the order of the forward pass."""
        return tuple(writer for writer in self.writers if writer.block == index)

    def stream(self, name: str) -> Stream:
        """The stream of a name.

        Raises:
            ValueError: there is none.
        """
        for stream in self.streams:
            if stream.name == name:
                return stream
        raise ValueError(f"no stream {name!r}: there are {', '.join(stream.name for stream in self.streams)}")

    def check(self, model: nn.Module) -> None:
        """Compare the names with a model.

        Raises:
            ValueError: a parameter or a module is not in the model.
        """
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
        weights = [weight for reader in self.readers for weight in (reader.q, reader.k, reader.v)]
        named = [writer.parameter for writer in self.writers] + [weight.parameter for weight in weights]
        for name in named:
            if name not in parameters:
                raise ValueError(f"the model has no parameter {name!r}: correct the anatomy")
        for block in self.blocks:
            if block.module not in modules:
                raise ValueError(f"the model has no module {block.module!r}: correct the anatomy")

    def document(self) -> dict[str, Any]:
        """Everything as lists, dictionaries, strings and numbers, ready for JSON."""
        return {"format": FORMAT, **_listed(dataclasses.asdict(self))}

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> "Anatomy":
        """Read what `document` wrote, or what somebody changed in it.

        Raises:
            ValueError: another format, an unknown or missing key, or a value of a wrong type.
        """
        content = dict(document)
        if content.pop("format", FORMAT) != FORMAT:
            raise ValueError(f"an anatomy has the format {FORMAT!r}, got {document['format']!r}")
        anatomy: Anatomy = _read(cls, content, "anatomy")
        numbers = [block.index for block in anatomy.blocks]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f"blocks are numbered 1, 2, ... in order, got {numbers}")
        names = {stream.name for stream in anatomy.streams}
        for writer in anatomy.writers:
            if writer.kind not in KINDS:
                raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {writer.kind!r}")
            if writer.stream not in names:
                raise ValueError(
                    f"{writer.parameter} writes to a stream {writer.stream!r} that is not listed"
                )
        for reader in anatomy.readers:
            if not 0 <= reader.writer < len(anatomy.writers):
                raise ValueError(f"a reader names writer {reader.writer} of {len(anatomy.writers)}")
        return anatomy


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _read(kind: Any, value: Any, where: str) -> Any:
    """A value of an annotated type, from what JSON makes of it."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object, got {value!r}")
        hints = typing.get_type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for name in value:
            if name not in fields:
                raise ValueError(f"{where} has no key {name!r}: it has {', '.join(fields)}")
        for name, field in fields.items():
            if field.default is dataclasses.MISSING and name not in value:
                raise ValueError(f"{where} lacks {name!r}")
        read = {name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()}
        return typing.cast(Any, kind)(**read)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if not isinstance(value, list | tuple) or (inner[-1] is not ... and len(value) != len(inner)):
            raise ValueError(f"{where} must be a list of matching length, got {value!r}")
        return tuple(_read(inner[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    accepted = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(value) not in accepted:
        names = " or ".join(option.__name__ for option in accepted)
        raise ValueError(f"{where} must be of type {names}, got {value!r}")
    return value
