"""What to hook in a model, from its anatomy: writers, blocks, norms, readers, and what cannot be measured."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from meanmode.sim.anatomy.anatomy import Anatomy, Reader, Writer
from meanmode.sim.watch.watched_names import SUFFIXED, described


@dataclass(frozen=True, kw_only=True)
class WatchedWriter:
    """A writer and where its values go.

    Attributes:
        writer: the writer.
        place: block and index on the axis `writer`.
        module: module that owns the weight.
        weight: its weight.
        bias: bias that is added to the product; None if there is none.
        branch: name of the module whose output is the branch; empty if it is the product itself.
        trunk: whether the trunk it is added to is known when it writes.
        tokens_first: whether flattened inputs have the tokens before the samples.
        alike: whether a weight of the same shape is added to the same branch, as of another expert.
    """

    writer: Writer
    place: tuple[int, int]
    module: nn.Module
    weight: nn.Parameter
    bias: Tensor | None
    branch: str
    trunk: bool
    tokens_first: bool
    alike: bool

    @property
    def current(self) -> Tensor:
        """The weight that the module computes with at this moment: FSDP2 puts another in its place."""
        found = self.module._parameters.get(self.writer.parameter.rpartition(".")[2])
        return self.weight if found is None else found

    @property
    def routed(self) -> str:
        """Why its gradient cannot be measured; empty if it can."""
        if self.writer.experts or self.weight.ndim != 2:
            return "its weight is not a matrix: each expert sees its own tokens"
        if self.alike:
            return "it is one of several experts, each of which sees its own tokens"
        return ""


class WatchPlan:
    """Everything that a measured step hooks.

    Args:
        model: the model, unwrapped.
        anatomy: its anatomy.
        blocks: numbers of the blocks to measure; None for all.
        names: observables to measure, without suffixes.
        segments: name -> number of tokens.

    Attributes:
        dims: name of an observable, with its suffix -> dimensions.
        labels: coordinate of the axis `writer`.
        alone: parameter of a writer that no other product uses -> index of the writer.
        several: names of the streams that share blocks with others.
        broken: index of a writer -> why it is not measured.
        given: name of a module -> position or name of the argument that is the state of its stream.

    Raises:
        ValueError: a name is not in the model, or a block is not in the anatomy.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        *,
        blocks: tuple[int, ...] | None,
        names: tuple[str, ...],
        segments: Mapping[str, int],
    ) -> None:
        anatomy.check(model)
        self.model, self.anatomy, self.names, self.segments = model, anatomy, names, dict(segments)
        self.depth = max(writer.block for writer in anatomy.writers)
        self.blocks = tuple(range(1, self.depth + 1)) if blocks is None else tuple(blocks)
        for block in self.blocks:
            if not 1 <= block <= self.depth:
                raise ValueError(f"block {block} is not in the model: choose from 1 to {self.depth}")
        self.given: dict[str, int | str] = {}
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.streams = {block: self._streams(block) for block in range(1, self.depth + 1)}
        several = [name for streams in self.streams.values() if len(streams) > 1 for name in streams]
        self.several = tuple(dict.fromkeys(several))
        self._labels = self._apart()
        self.labels = tuple(dict.fromkeys(self._labels))
        self.writers = {
            number: self._watched(number, writer)
            for number, writer in enumerate(anatomy.writers)
            if writer.block in self.blocks
        }
        uses = Counter(writer.parameter for writer in anatomy.writers)
        self.alone = {
            of.writer.parameter: number
            for number, of in self.writers.items()
            if uses[of.writer.parameter] == 1
        }
        self.broken = {number: of.routed for number, of in self.writers.items() if of.routed}
        self.suffixes = self._suffixes()
        self.dims = {
            f"{name}_{suffix}" if suffix else name: described(name, ())[0]
            for name in names
            for suffix in ("", *(self.suffixes if name in SUFFIXED else ()))
        }
        self.readers: dict[int, list[Reader]] = {}
        for reader in anatomy.readers:
            self.readers.setdefault(anatomy.writers[reader.writer].block, []).append(reader)

    @cached_property
    def fingerprint(self) -> int:
        """A number that is the same where the same is measured of the same anatomy."""
        said = json.dumps([self.anatomy.document(), sorted(self.dims), self.blocks], sort_keys=True)
        return int.from_bytes(hashlib.sha256(said.encode()).digest()[:7])

    def wants(self, *names: str) -> bool:
        """Whether any of these observables is measured."""
        return any(name in self.names for name in names)

    def definitions(self) -> dict[str, tuple[tuple[str, ...], str]]:
        """Name -> dimensions and definition of everything that is measured."""
        return {name: described(name, self.suffixes) for name in self.dims}

    def _streams(self, block: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(writer.stream for writer in self.anatomy.of_block(block)))

    def _suffixes(self) -> tuple[str, ...]:
        parts = [part.stream for stream in self.anatomy.streams for part in stream.parts if part.stream]
        return tuple(dict.fromkeys([*self.segments, *self.several, *parts]))

    def _apart(self) -> list[str]:
        """Labels of all writers; of those of a block that have the same, further ones are numbered."""
        found, known = [], Counter[tuple[int, str]]()
        for writer in self.anatomy.writers:
            label = writer.label or writer.kind
            label = f"{writer.stream}_{label}" if writer.stream in self.several else label
            known[writer.block, label] += 1
            number = known[writer.block, label]
            found.append(label if number == 1 else f"{label}{number}")
        return found

    def module_of(self, writer: Writer) -> str:
        """Name of the module that owns the weight of a writer."""
        return writer.module or writer.parameter.rpartition(".")[0]

    def _watched(self, number: int, writer: Writer) -> WatchedWriter:
        owner = self.module_of(writer)
        parent = self.modules[owner.rpartition(".")[0]]
        return WatchedWriter(
            writer=writer,
            place=(writer.block, self.labels.index(self._labels[number])),
            module=self.modules[owner],
            weight=self.parameters[writer.parameter],
            bias=getattr(self.modules[owner], "bias", None) if writer.parameter.endswith("weight") else None,
            branch=self._branch(writer),
            trunk=self._trunk_known(writer),
            tokens_first=isinstance(parent, nn.MultiheadAttention),
            alike=any(
                self.parameters[name].shape == self.parameters[writer.parameter].shape
                for name in writer.added
            ),
        )

    def _branch(self, writer: Writer) -> str:
        """The module whose output is the branch where that is not the product itself."""
        if self.usable(writer.norms.branch, writer):
            return writer.norms.branch
        if not writer.added:
            return ""
        names = [self.module_of(writer), *(name.rpartition(".")[0] for name in writer.added)]
        apart = [name.split(".") for name in names]
        shared = 0
        while all(len(name) > shared and name[shared] == apart[0][shared] for name in apart):
            shared += 1
        common = apart[0][:shared]
        while common and isinstance(self.modules[".".join(common)], nn.ModuleList | nn.ModuleDict):
            common.pop()
        return ".".join(common)

    def usable(self, norm: str, writer: Writer) -> bool:
        """Whether a module is a norm on its own, not one that holds the writer."""
        return norm in self.modules and bool(norm) and not self.module_of(writer).startswith(norm + ".")

    def _trunk_known(self, writer: Writer) -> bool:
        """Whether the state that a writer is added to, and the branch, are those of known modules."""
        if writer.experts and not writer.added:
            return False
        if self.usable(writer.norms.before, writer):
            return True
        same = [other for other in self.anatomy.writers if other.stream == writer.stream]
        before = same[: same.index(writer)]
        if before and before[-1].block == writer.block:
            return self.usable(before[-1].norms.after, before[-1])
        return self.home(writer.block) is not None

    def home(self, block: int) -> nn.Module | None:
        """The module of a block; None if no single one holds it."""
        found = next((of for of in self.anatomy.blocks if of.index == block), None)
        return self.modules[found.module] if found and found.module else None
