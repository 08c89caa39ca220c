"""Scalars of TensorBoard event files: records with checksums, each a protocol-buffer message, parsed here.

TensorBoard's own library brings along a web server and gRPC, and stops silently at a damaged record.
"""

import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from meanmode.sim.imported.logged_table import LoggedTable
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.regular_files import open_regular

HEAD = struct.Struct("<QI")


LARGEST_RECORD = 2**26
"""Bytes of a record beyond which it holds pictures rather than scalars, and is passed over."""


TENSOR_TYPES = {1: "<f", 2: "<d"}
"""Tensor type number -> struct format of one value; tensors of other types are not scalars."""


TENSOR_VALUES = {1: 5, 2: 6}
"""Tensor type number -> field that holds the values if they are not packed as bytes."""


def is_event_file(path: Path) -> bool:
    """Whether a file starts with the valid head of a record.

    Raises:
        StoreError: no regular file.
        OSError: no such file, or one that may not be read.
    """
    with open_regular(path) as file:
        head = file.read(HEAD.size)
    return len(head) == HEAD.size and _masked(head[:8]) == HEAD.unpack(head)[1]


def read_event_files(files: Sequence[Path], table: LoggedTable) -> None:
    """Add the scalars of one run's event files, given in order of time; other values are noted.

    Raises:
        ValueError: two of the files logged the same quantities at the same time, so they are of two runs.
    """
    spans: list[tuple[float, float, set[str], Path]] = []
    for file in files:
        first, last, names = math.inf, -math.inf, set[str]()
        # the name says when a file was begun; a resumed run may copy the times of its log
        begun = re.search(r"tfevents\.(\d{10})", file.name)
        for time, name, step, value in read_scalars(file, table):
            # a tag called step repeats what every event says
            if name != "step":
                table.row(step, (("step", step), (name, () if value is None else value)))
            first, last = min(first, time), max(last, time)
            names.add(name)
        first = max(first, float(begun[1]) if begun else first)
        for earlier in spans:
            if names & earlier[2] and first < earlier[1] and earlier[0] < last:
                raise StoreError(
                    f"{earlier[3]} and {file} were logged at the same time, so they are of two runs or "
                    "processes: give one of the files"
                )
        spans.append((first, last, names, file))


def read_scalars(path: Path, table: LoggedTable) -> Iterator[tuple[float, str, int, float | None]]:
    """Yield time, name, step and value of everything logged, in order; the value is None if it is no scalar.

    A damaged record is left out; where the length of one is damaged, or the file is cut as a killed process
    leaves it, so is what follows. Notes of the table say so.
    """
    with open_regular(path) as file:
        for position, record in _records(file, path, table):
            try:
                yield from list(_scalars(record))
            except (struct.error, IndexError, UnicodeDecodeError, ValueError, TypeError, AttributeError):
                table.skip(f"records of {path.name} that are no events", position)


def _masked(content: bytes) -> int:
    """Checksum as stored in TFRecord files: CRC-32C rotated by 15 bits, plus a constant."""
    check = int(google_crc32c.value(content))
    return ((check >> 15 | check << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _records(file: BinaryIO, path: Path, table: LoggedTable) -> Iterator[tuple[int, bytes]]:
    """Yield every whole record with its position; checksums are verified."""
    size = os.fstat(file.fileno()).st_size
    while True:
        position, head = file.tell(), file.read(HEAD.size)
        if not head:
            return
        whole = len(head) == HEAD.size
        length, check = HEAD.unpack(head) if whole else (0, 0)
        if whole and _masked(head[:8]) != check:
            table.notes.append(f"{path} is damaged at byte {position}: what follows was left out")
            return
        if not whole or position + HEAD.size + length + 4 > size:
            table.notes.append(
                f"the last record of {path}, at byte {position}, is cut short and was left out"
            )
            return
        if length > LARGEST_RECORD:
            file.seek(length + 4, os.SEEK_CUR)
            table.skip(f"records of {path.name} of more than {LARGEST_RECORD:,} bytes", position)
            continue
        record, tail = file.read(length), file.read(4)
        if _masked(record) != int.from_bytes(tail, "little"):
            table.skip(f"records of {path.name} whose checksum is wrong", position)
            continue
        yield position, record


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of a message's fields: integers for varints, bytes for everything else."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 2:
                size, at = _varint(message, at)
            case kind:
                # 64 and 32 bits; an unknown wire type has no size and fails below
                size = {1: 8, 5: 4}[kind] if kind in (1, 5) else len(message) + 1
        if at + size > len(message):
            raise IndexError(size)
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Read an integer stored in groups of seven bits, lowest first; return it and the position after it."""
    number = shift = 0
    while shift < 70:
        number |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 128:
            return number, at
    raise IndexError("a whole number of more than 64 bits")


def _scalars(event: bytes) -> Iterator[tuple[float, str, int, float | None]]:
    """Yield the values of one event, whose fields are 1 the time, 2 the step, 5 a summary of values."""
    fields = list(_fields(event))
    time = next((struct.unpack("<d", value)[0] for number, value in fields if number == 1), 0.0)
    step = next((value for number, value in fields if number == 2), 0)
    # negative numbers are written as 64-bit two's complement
    step -= (step >> 63) << 64
    for summary in (value for number, value in fields if number == 5):
        for logged in (value for number, value in _fields(summary) if number == 1):
            parts = dict(_fields(logged))
            simple = struct.unpack("<f", parts[2])[0] if 2 in parts else None
            yield time, parts.get(1, b"").decode(), step, _of_tensor(parts[8]) if 8 in parts else simple


def _of_tensor(tensor: bytes) -> float | None:
    """Value of a tensor that holds a single float, else None."""
    parts = dict(_fields(tensor))
    packing = TENSOR_TYPES.get(parts.get(1, 0))
    if packing is None:
        return None
    content = parts.get(4) or parts.get(TENSOR_VALUES[parts[1]], b"")
    return float(struct.unpack(packing, content)[0]) if len(content) == struct.calcsize(packing) else None
