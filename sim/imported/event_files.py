"""Scalars of TensorBoard event files: records with checksums, each a protocol-buffer message, parsed here.

TensorBoard's own library brings along a web server and gRPC, and stops silently at a damaged record.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

HEAD = struct.Struct("<QI")


TENSOR_TYPES = {1: "<f", 2: "<d"}
"""Tensor type number -> struct format of one value; tensors of other types are not scalars."""


TENSOR_VALUES = {1: 5, 2: 6}
"""Tensor type number -> field that holds the values if they are not packed as bytes."""


def event_files(path: Path) -> list[Path]:
    """Event files of one run, oldest first: the file itself, or those in a folder.

    Raises:
        ValueError: the folder holds none.
    """
    if path.is_file():
        return [path]
    # the name contains the time at which the file was started
    found = sorted(file for file in path.glob("*tfevents*") if file.is_file())
    if not found:
        raise ValueError(f"{path} holds no TensorBoard event file (*tfevents*): give the folder of one run")
    return found


def is_event_file(path: Path) -> bool:
    """Whether a file starts with the valid head of a record."""
    with path.open("rb") as file:
        head = file.read(HEAD.size)
    return len(head) == HEAD.size and _masked(head[:8]) == HEAD.unpack(head)[1]


def read_scalars(path: Path, said: Callable[[str], None]) -> Iterator[tuple[str, int, float | None]]:
    """Yield name, step and value of everything logged, in order; the value is None if it is not a scalar.

    Args:
        path: path of the event file.
        said: called with a sentence if the last record is cut short, as a killed process leaves it.

    Raises:
        ValueError: a record is damaged; the message gives its position in the file.
    """
    with path.open("rb") as file:
        for position, record in _records(file, path, said):
            try:
                yield from _scalars(record)
            except (struct.error, IndexError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{path} is damaged: the record at byte {position} is not an event"
                ) from error


def _masked(content: bytes) -> int:
    """Checksum as stored in TFRecord files: CRC-32C rotated by 15 bits, plus a constant."""
    check = int(google_crc32c.value(content))
    return ((check >> 15 | check << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _records(file: BinaryIO, path: Path, said: Callable[[str], None]) -> Iterator[tuple[int, bytes]]:
    """Yield every whole record with its position; checksums are verified."""
    while True:
        position, head = file.tell(), file.read(HEAD.size)
        if not head:
            return
        whole = len(head) == HEAD.size
        length, check = HEAD.unpack(head) if whole else (0, 0)
        sound = whole and _masked(head[:8]) == check
        record, tail = (file.read(length), file.read(4)) if sound else (b"", b"")
        if not whole or (sound and len(tail) < 4):
            said(f"the last record of {path}, at byte {position}, is cut short and was left out")
            return
        if not sound or _masked(record) != int.from_bytes(tail, "little"):
            raise ValueError(f"{path} is damaged: the checksum of the record at byte {position} is wrong")
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
    while True:
        number |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 128:
            return number, at


def _scalars(event: bytes) -> Iterator[tuple[str, int, float | None]]:
    """Yield the values of one event: field 2 is the step, field 5 a summary with the values as fields 1."""
    fields = list(_fields(event))
    step = next((value for number, value in fields if number == 2), 0)
    # negative numbers are written as 64-bit two's complement
    step -= (step >> 63) << 64
    for summary in (value for number, value in fields if number == 5):
        for logged in (value for number, value in _fields(summary) if number == 1):
            parts = dict(_fields(logged))
            simple = struct.unpack("<f", parts[2])[0] if 2 in parts else None
            yield parts.get(1, b"").decode(), step, _of_tensor(parts[8]) if 8 in parts else simple


def _of_tensor(tensor: bytes) -> float | None:
    """Value of a tensor that holds a single float, else None."""
    parts = dict(_fields(tensor))
    packing = TENSOR_TYPES.get(parts.get(1, 0))
    if packing is None:
        return None
    content = parts.get(4) or parts.get(TENSOR_VALUES[parts[1]], b"")
    return float(struct.unpack(packing, content)[0]) if len(content) == struct.calcsize(packing) else None
