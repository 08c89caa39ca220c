"""The record of a step: every observable at every block and writer, over all passes and processes."""

# R runs of an ensemble, B batch, L blocks, W writers

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from meanmode.sim.observe.observable_names import (
    GRADIENT_MODES,
    LARGEST,
    ROOTS,
    SUFFIXES,
    WRITERS,
)
from meanmode.sim.observe.process_sums import largest_of_processes, mean_of_processes
from meanmode.sim.observe.shared_writers import SharedWriterSum, shared_modes
from meanmode.sim.observe.writer_gradients import WriterModes, WriterSum

Array = NDArray[np.float32]

Place = tuple[int, ...]
"""(block,) or (block, writer)."""


class Record:
    """Values of observables at blocks and writers, of one pass or of all passes of a step.

    Values per sample are averaged over all samples of the step, in all passes and processes. Of `LARGEST`,
    the largest value counts; of `ROOTS`, the mean squares are averaged over processes. The parts of a
    writer's gradient are summed over passes and averaged over processes, as DDP and FSDP2 do, before their
    norms are taken. Processes communicate only in `values`, so as not to interfere with the collectives of a
    backward pass.

    GPU values stay on the device until they are read, so that recording never synchronises. CPU values are
    copied at once, since keeping thousands of small tensors would fragment memory.

    Args:
        dims: observable -> dimensions; other observables are ignored.
        depth: number of blocks.
        writers: number of writers per block.
        suffixes: suffixes of the names of observables of a segment.
        runs: members of an ensemble, the first axis of every value; None for a single run.
        latest: whether a value replaces that of an earlier pass, instead of being averaged with it.
        blocks: numbers of the measured blocks, for the count of passes.
        passes: forward and backward passes of the step, the same on every process; None does not count them.
        group: processes that share the batch; None for a single process.
        device: device on which processes exchange values.

    Attributes:
        unknown: (block, writer) of the writers whose modes the gradient of all processes does not tell.
    """

    def __init__(
        self,
        dims: Mapping[str, tuple[str, ...]],
        depth: int,
        *,
        writers: int = len(WRITERS),
        suffixes: Sequence[str] = SUFFIXES,
        runs: int | None = None,
        latest: bool = True,
        blocks: Sequence[int] = (),
        passes: int | None = None,
        group: dist.ProcessGroup | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.dims = dict(dims)
        self.lead = () if runs is None else (runs,)
        self.latest, self.group = latest, group
        self.unknown: list[tuple[int, int]] = []
        self._wanted = {name.removesuffix(suffix) for name in dims for suffix in ("", *suffixes)}
        sizes = {"block": depth + 1, "writer": writers}
        shapes = {name: [sizes[dim] for dim in of] for name, of in dims.items()}
        # sums over samples, largest values or mean squares, and the numbers of samples they are sums over
        self._sums = {name: np.zeros([*self.lead, *shape]) for name, shape in shapes.items()}
        self._numbers = {name: np.zeros([*self.lead, *shape]) for name, shape in shapes.items()}
        self._waiting: dict[tuple[str, Place], tuple[Tensor, Tensor | int]] = {}
        self._writers: dict[tuple[int, int], WriterSum | SharedWriterSum] = {}
        self._blocks, self._passes, self._device = tuple(blocks), passes, device
        self._passed = np.zeros(depth + 1, np.int64)
        self._times = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self._over = False

    def wants(self, *names: str) -> bool:
        """Whether any of these observables is recorded."""
        return any(name in self.dims for name in names)

    def wants_segments(self, *names: str) -> bool:
        """Whether any of these observables is recorded, for all tokens or for a segment."""
        return not self._wanted.isdisjoint(names)

    def passed(self, block: int) -> None:
        """Count a forward pass.

        Raises:
            ValueError: the values of the step were already read.
        """
        if self._over:
            raise ValueError(
                "the values of this step were already read: measure the next one in its own `with` block"
            )
        self._passed[block] += 1

    def put(
        self,
        name: str,
        place: Place | list[tuple[int, ...]],
        values: Tensor,
        counted: Tensor | None = None,
    ) -> None:
        """Record values per sample, or one for the whole batch, at one place or at several.

        Args:
            name: observable; ignored if it is not recorded.
            place: index of the values, (block,) or (block, writer); or a list of different ones, along the
                first axis of `values` and `counted`.
            values: [*R, ...] per sample or [*R]; mean squares for `ROOTS`.
            counted: boolean mask of the samples that enter the mean; None for all.

        Raises:
            ValueError: the number of runs differs from the record's.
        """
        if name not in self.dims or self._over:
            return
        values = values.detach()
        if not isinstance(place, list):
            place, values, counted = [place], values[None], None if counted is None else counted[None]
        axes = 1 + len(self.lead)
        if values.shape[1:axes] != self.lead:
            raise ValueError(
                f"{name} of {tuple(values.shape[1:2])} runs does not fit a record of {self.lead}"
            )
        number: Tensor | int = 1
        if values.ndim > axes:
            if counted is None:
                number = values.shape[axes:].numel()
            else:
                values, number = torch.where(counted, values, 0.0), counted.flatten(axes).sum(-1)
            values = values.flatten(axes).sum(-1)
        self._device = values.device
        if values.device.type == "cpu":
            self._put_arrays(name, place, values, number)
        else:
            for index, of in enumerate(place):
                self._put_tensor(
                    name, of, values[index], number if isinstance(number, int) else number[index]
                )

    def _put_arrays(
        self, name: str, places: list[tuple[int, ...]], values: Tensor, number: Tensor | int
    ) -> None:
        where: Any = tuple(zip(*places, strict=True)) if len(places) > 1 else places[0]
        at: Any = (slice(None),) * len(self.lead) + where
        sums, numbers = self._sums[name], self._numbers[name]
        new, counted = (
            (of.movedim(0, -1) if len(places) > 1 else of[0]).numpy() if isinstance(of, Tensor) else of
            for of in (values, number)
        )
        self._times[name][where] += 1
        if name in LARGEST and (numbers[at] > 0).all():
            sums[at] = np.maximum(sums[at], new)
        elif self._replaces(name):
            sums[at], numbers[at] = new, counted
        else:
            sums[at] += new
            numbers[at] += counted

    def _put_tensor(self, name: str, place: Place, value: Tensor, number: Tensor | int) -> None:
        self._times[name][place] += 1
        known = self._waiting.get((name, place))
        if known is not None and name in LARGEST:
            value = torch.maximum(known[0], value)
        elif known is not None and not self._replaces(name):
            value, number = known[0].double() + value, known[1] + number
        self._waiting[name, place] = value, number

    def _replaces(self, name: str) -> bool:
        return self.latest or name in ROOTS or name in GRADIENT_MODES or name in LARGEST

    def writer(self, place: tuple[int, int]) -> WriterSum | SharedWriterSum:
        """The sum of the gradients of a writer, to which a pass is added."""
        if place not in self._writers:
            self._writers[place] = WriterSum() if self.group is None else SharedWriterSum()
        for name in GRADIENT_MODES:
            if name in self.dims:
                self._times[name][place] += 1
        return self._writers[place]

    @property
    def writers(self) -> Mapping[tuple[int, int], WriterSum | SharedWriterSum]:
        """The sums of the gradients of all writers so far."""
        return self._writers

    def keep_writers(self, places: set[tuple[int, int]]) -> None:
        """Drop the sums of the gradients of all other writers."""
        self._writers = {place: of for place, of in self._writers.items() if place in places}

    def put_modes(self, place: Place | list[tuple[int, ...]], modes: WriterModes) -> None:
        """Record the modes of a writer's gradient, or of several."""
        for name, mode in zip(GRADIENT_MODES, modes, strict=True):
            self.put(name, place, mode)

    def values(self) -> dict[str, Array]:
        """The same as `arrays` in single precision."""
        with np.errstate(over="ignore"):
            return {name: of.astype(np.float32) for name, of in self.arrays().items()}

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Values of the step, [L + 1] or [L + 1, W] after an axis of runs; NaN where not measured.

        The first call is collective over all processes.

        Raises:
            ValueError: on every process, if any of them has not made exactly `passes` passes.
        """
        self._copy()
        if not self._over and (self._passes is not None or self.group is not None):
            self._average()
        if not self._over:
            self._take_modes()
            self._over = not self.latest
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {name: sums / self._numbers[name] for name, sums in self._sums.items()}
        return {name: np.sqrt(of) if name in ROOTS else of for name, of in found.items()}

    def _copy(self) -> None:
        """Copy the values that wait on a device."""
        kinds: dict[torch.dtype, list[tuple[NDArray[np.float64], Any, Tensor]]] = {}
        for (name, place), (value, number) in self._waiting.items():
            at = (slice(None),) * len(self.lead) + place
            kinds.setdefault(value.dtype, []).append((self._sums[name], at, value))
            if isinstance(number, Tensor):
                kinds.setdefault(number.dtype, []).append((self._numbers[name], at, number))
            else:
                self._numbers[name][at] = number
        for entries in kinds.values():
            device = entries[0][2].device
            copied = torch.stack([value.to(device) for _, _, value in entries]).cpu().numpy()
            for (array, at, _), value in zip(entries, copied, strict=True):
                array[at] = value
        if self.latest:
            self._waiting.clear()

    def _take_modes(self) -> None:
        shared = {place: of for place, of in self._writers.items() if isinstance(of, SharedWriterSum)}
        if shared and self.group is not None and self._device is not None:
            found, self.unknown = shared_modes(shared, self.group, self._device)
        else:
            found = {place: of.modes() for place, of in self._writers.items() if isinstance(of, WriterSum)}
        for place, modes in found.items():
            self.put_modes(place, modes)
        self._writers.clear()
        self._copy()

    def _average(self) -> None:
        """Sum over the samples of all processes, if all have made their passes."""
        error = self._miscount()
        arrays = [of[name] for of in (self._sums, self._numbers) for name in self.dims if name not in LARGEST]
        times = [of.ravel() for name, of in self._times.items() if name not in ROOTS]
        counts = np.concatenate([[error is not None], *times])
        pieces = [*(array.ravel() for array in arrays), counts]
        flat = torch.as_tensor(np.concatenate(pieces), dtype=torch.float64, device=self._device)
        averaged = mean_of_processes(flat, self.group).cpu().numpy()
        *summed, counted = np.split(averaged, np.cumsum([len(piece) for piece in pieces])[:-1])
        told = self._passes is None or bool(((counted[1:] == 0) | (counted[1:] == self._passes)).all())
        if counted[0] > 0 or not told:
            raise ValueError(error or f"another process has not made the {self._passes} passes of this step")
        for array, found in zip(arrays, summed, strict=True):
            array[...] = found.reshape(array.shape)
        for name in self._sums.keys() & set(LARGEST):
            known = np.where(self._numbers[name] > 0, self._sums[name], -np.inf)
            broken = np.isnan(known)  # which some backends would not find to be the largest
            pair = np.stack([np.where(broken, -np.inf, known), np.where(broken, 1.0, 0.0)])
            largest = largest_of_processes(torch.as_tensor(pair, device=self._device), self.group)
            found, broken = largest.cpu().numpy()
            measured = (found > -np.inf) | (broken > 0)
            self._sums[name] = np.where(broken > 0, np.nan, np.where(measured, found, 0.0))
            self._numbers[name] = measured.astype(float)
        self._waiting.clear()

    def _miscount(self) -> str | None:
        """Describe what is wrong with the passes of this process; None if nothing is."""
        if self._passes is None:
            return None
        announced, advice = f"{self._passes} passes of this step", "read the values after the last pass"
        for block in self._blocks:
            if self._passed[block] != self._passes:
                return f"block {block} has made {self._passed[block]} of the {announced}: {advice}"
        for name, times in self._times.items():
            if name in ROOTS:
                continue
            for place in np.argwhere((times != 0) & (times != self._passes)).tolist():
                found = f"{name} of block {place[0]} was measured in {times[tuple(place)]} of the {announced}"
                return f"{found}: {advice}, backward included"
        return None
