"""The text of a log: a regular file, unpacked if gzipped, decoded, of a bounded size, line by line."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from meanmode.sim.imported.file_kinds import binary_kind, refusal
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.regular_files import JSON_BYTES, open_regular

HEAD_BYTES = 2**20
"""Bytes from which the form of a log is recognised."""


TEXT_BYTES = 2 * 2**30
"""Most bytes that are read of a log, after unpacking."""


LINE_CHARACTERS = 2**24
"""Longest line of a log."""


UNPACKED, UNPACKED_BYTES = 50, 16 * 2**20
"""A gzipped log may unpack to this multiple of its size, or to this many bytes if that is more."""


GZIP = b"\x1f\x8b"


class _Bounded(io.RawIOBase):
    """A stream that refuses to yield more than its limit, and ends where a gzipped file is cut or damaged."""

    def __init__(self, file: BinaryIO, path: Path, limit: int, *, packed: bool) -> None:
        self._file, self._path, self._limit = file, path, limit
        self._inner: Any = gzip.GzipFile(fileobj=file) if packed else file
        self._left = limit
        self.cut = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            content = b"" if self.cut else self._inner.read1(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.cut, content = True, b""
        self._left -= len(content)
        if self._left < 0:
            raise StoreError(
                f"{self._path} holds more than the {self._limit:,} bytes that are read of such a log: "
                "split it, or log fewer rows"
            )
        buffer[: len(content)] = content
        return len(content)


class LogText:
    """A text file.

    Args:
        path: the file; `.gz` files are unpacked whatever their name.

    Attributes:
        path: the file.
        stem: name without its suffixes.
        suffix: last suffix in lower case, without `.gz`.
        head: first part of the text.
        cut: whether a gzipped file ended too early when it was last read.

    Raises:
        StoreError: no regular file, or a binary or empty one; the sentence says what it looks like.
        OSError: no such file, or one that may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
        self.stem, self.suffix = Path(name).stem, Path(name).suffix.lower()
        self.cut = False
        with self._open() as stream:
            content = stream.read(HEAD_BYTES) or b""
        self._encoding = _encoding(content)
        kind = None if self._encoding.startswith("utf-16") else binary_kind(content)
        if kind is not None:
            raise StoreError(refusal(path, kind))
        self.head = content.decode(self._encoding, "replace").replace("\r\n", "\n").replace("\r", "\n")
        if not self.head.strip():
            raise StoreError(refusal(path, "an empty file" if not content else "a file of blank lines"))

    def _open(self) -> io.BufferedReader:
        file = open_regular(self.path)
        packed = file.read(2) == GZIP
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        limit = min(max(UNPACKED * size, UNPACKED_BYTES), TEXT_BYTES) if packed else TEXT_BYTES
        self._raw = _Bounded(file, self.path, limit, packed=packed)
        return io.BufferedReader(self._raw)

    def head_lines(self, count: int = 200) -> list[str]:
        """First lines that are not blank, each as far as it is within the head."""
        return [line for line in self.head.split("\n") if line.strip()][:count]

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield number and text of every line that is not blank, without its end.

        Raises:
            StoreError: the file or a line is too long.
        """
        with io.TextIOWrapper(self._open(), self._encoding, "replace", newline=None) as text:
            number = 0
            while line := text.readline(LINE_CHARACTERS):
                number += 1
                if len(line) == LINE_CHARACTERS:
                    raise StoreError(
                        f"{self.path} line {number} is longer than {LINE_CHARACTERS:,} characters, "
                        "as no line of a log is"
                    )
                if not line.isspace():
                    yield number, line.rstrip("\n")
            self.cut = self._raw.cut

    def whole(self) -> str:
        """The whole text, for a form that is one document.

        Raises:
            StoreError: it is too large.
        """
        with self._open() as stream:
            content = stream.read(JSON_BYTES + 1)
            self.cut = self._raw.cut
        if len(content) > JSON_BYTES:
            raise StoreError(
                f"{self.path} is larger than the {JSON_BYTES:,} bytes that are read of a document"
            )
        return content.decode(self._encoding, "replace")


def _encoding(head: bytes) -> str:
    """UTF-8 or, as its mark says, UTF-16; Latin-1 if it is neither."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # a character may be cut at the end of the head
    whole = re.sub(rb"[\xc0-\xff][\x80-\xbf]{0,3}\Z", b"", head)
    try:
        whole.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"
