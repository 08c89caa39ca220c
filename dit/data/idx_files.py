"""Gzipped idx files, the format of MNIST and its successors: arrays of bytes behind a header."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.store.files import StoreError, reason
from meanmode.sim.store.regular_files import open_regular

LARGEST_RATIO = 1032
"""Gzip packs at most this many bytes into one."""


READ_AT_ONCE = 2**20


def read_idx(path: Path, dimensions: int, limit: int) -> NDArray[np.uint8]:
    """Read a gzipped idx file: two zero bytes, type 8, dimensions, sizes as big-endian words, values.

    The header is read first, and then exactly the bytes that it promises: what a file unpacks to is never
    held before it is believed.

    Args:
        path: the file.
        dimensions: dimensions that its array must have.
        limit: largest number of values that is read.

    Raises:
        ValueError: the file is missing or damaged, or its header promises more than `limit` values.
    """
    try:
        with open_regular(path) as file, gzip.GzipFile(fileobj=file) as stream:
            packed = file.seek(0, 2)
            file.seek(0)
            return _read(stream, path, dimensions, min(limit, LARGEST_RATIO * packed), limit)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: give the folder of the gzipped idx files") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: it cannot be decompressed") from error
    except StoreError as error:
        raise ValueError(f"{error}: give the folder of the gzipped idx files") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({reason(error)})") from error


def _read(stream: gzip.GzipFile, path: Path, dimensions: int, most: int, limit: int) -> NDArray[np.uint8]:
    header = stream.read(4 * (1 + dimensions))
    if header[:4] != bytes([0, 0, 8, dimensions]) or len(header) < 4 * (1 + dimensions):
        raise ValueError(f"{path} is not an idx file of bytes in {dimensions} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", dimensions, 4))
    count = math.prod(shape)
    if count > limit:
        raise ValueError(f"{path} has {count:,} values by its header {shape}: at most {limit:,} are read")
    if count > most:
        raise ValueError(f"{path} is damaged: its header says {shape}, which does not fit into its size")
    values, filled = np.empty(count, np.uint8), 0
    while filled < count:
        part = stream.read(min(READ_AT_ONCE, count - filled))
        if not part:
            raise ValueError(f"{path} is damaged: its header says {shape} but it contains {filled:,} bytes")
        values[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    if stream.read(1):
        raise ValueError(f"{path} is damaged: its header says {shape} but it contains more bytes")
    return values.reshape(shape)
