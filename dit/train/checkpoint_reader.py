"""Read the tensors of a checkpoint without executing anything that its files say.

torch.distributed.checkpoint keeps a table of contents, `.metadata`, as a pickle, and a pickle is a program.
Here only the instructions and constructors that such a table needs are carried out, and what they make is
checked before a tensor is read. The tensors themselves are read by torch with `weights_only`.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path, PosixPath, WindowsPath
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint import FileSystemReader, filesystem, metadata

from meanmode.sim.store.files import StoreError, reason
from meanmode.sim.store.regular_files import read_bytes

TABLE = ".metadata"
"""Name of the table of contents in the folder of a checkpoint."""

TABLE_BYTES = 2**20
"""Largest table of contents, over the size of all other files: it describes them and is much smaller."""

CONSTRUCTORS = {
    *((metadata.__name__, name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((metadata.__name__, name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata")),
    *((metadata.__name__, name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    (filesystem.__name__, "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    *(("pathlib", kind.__name__) for kind in (PosixPath, WindowsPath)),
}
"""All that a table may call: classes of plain data, and the lookup of a memory layout by its name."""

INSTRUCTIONS = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "MEMOIZE", "BINGET", "LONG_BINGET"),
)
"""The pickle instructions that a table needs, of protocol 4. Those that grow the memo to a stated index, make
sets, reach classes by other ways or call for external objects are not among them."""

DISPATCH: Mapping[int, Callable[[Any], None]] = pickle._Unpickler.dispatch  # type: ignore[attr-defined]


class _Table(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """Unpickles a table of contents; whatever is not on the lists is refused before it is done.

    This is the unpickler that is written in Python, whose instructions can be chosen one by one.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: DISPATCH[code] for code in (getattr(pickle, name)[0] for name in INSTRUCTIONS)
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return a constructor of the list, or a data type of torch."""
        if module == "torch" and isinstance(torch.__dict__.get(name), torch.dtype):
            return torch.__dict__[name]
        if (module, name) not in CONSTRUCTORS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)

    def load_build(self) -> None:
        """Set the attributes of an object, never those of a class, which would outlive the table."""
        if isinstance(self.stack[-2], type):
            raise pickle.UnpicklingError("it changes a class")
        DISPATCH[pickle.BUILD[0]](self)

    def load_setitem(self) -> None:
        """Store an entry under a name or an index; nested keys could exhaust the stack when hashed."""
        self._check_key(self.stack[-2])
        DISPATCH[pickle.SETITEM[0]](self)

    def load_setitems(self) -> None:
        """Store entries, as `load_setitem`."""
        for key in self.stack[::2]:
            self._check_key(key)
        DISPATCH[pickle.SETITEMS[0]](self)

    @staticmethod
    def _check_key(key: Any) -> None:
        known = isinstance(key, str) or (
            isinstance(key, metadata.MetadataIndex)
            and isinstance(key.fqn, str)
            and isinstance(key.offset, torch.Size | None)
            and isinstance(key.index, int | None)
        )
        if not known:
            raise pickle.UnpicklingError(f"it has a {type(key).__name__} as a key")

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def read_table(checkpoint: Path) -> metadata.Metadata:
    """Read and check the table of contents of a checkpoint.

    Raises:
        StoreError: there is none, or it calls, holds or points to what a checkpoint of tensors does not.
    """
    file = checkpoint / TABLE
    try:
        with_sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir() if path.is_file()}
        size = sum(with_sizes.values()) - with_sizes.get(TABLE, 0)
        table = _Table(io.BytesIO(read_bytes(file, TABLE_BYTES + size))).load()
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {reason(error)}") from error
    except (StoreError, MemoryError):
        raise
    except KeyError as error:
        raise StoreError(f"{file} is no table of tensors: it has an instruction {error}") from error
    except EOFError as error:
        raise StoreError(f"{file} is no table of tensors: it ends too early") from error
    except Exception as error:  # a damaged pickle raises whatever its constructors do
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise StoreError(f"{file} is no table of tensors: {why}") from error
    wrong = _wrong(table, with_sizes)
    if wrong:
        raise StoreError(f"{file} is no table of tensors: {wrong}")
    found: metadata.Metadata = table
    return found


def _wrong(table: Any, files: Mapping[str, int]) -> str:
    """Return what is wrong with a table; empty if nothing is.

    Args:
        table: what was unpickled.
        files: sizes of the files in the folder of the checkpoint.
    """
    if not isinstance(table, metadata.Metadata):
        return f"it holds a {type(table).__name__}"
    entries, stored = vars(table).get("state_dict_metadata"), vars(table).get("storage_data")
    if not isinstance(entries, dict) or not isinstance(stored, dict):
        return "it is incomplete"
    room = sum(files.values())
    for name, entry in entries.items():
        if not isinstance(name, str) or not isinstance(entry, metadata.TensorStorageMetadata):
            return f"{name!r} is not a tensor"
        told = vars(entry)
        properties, size, chunks = (told.get(key) for key in ("properties", "size", "chunks"))
        if not isinstance(properties, metadata.TensorProperties) or not isinstance(size, torch.Size):
            return f"{name} has no type or no shape"
        if not isinstance(chunks, list) or not all(map(_is_chunk, chunks)):
            return f"{name} is not made of parts"
        if not isinstance(properties.dtype, torch.dtype) or min(size, default=0) < 0:
            return f"{name} has no type or no shape"
        room -= size.numel() * properties.dtype.itemsize
    if room < 0:
        return "its tensors are larger than the files of the checkpoint"
    for index, part in stored.items():
        if not isinstance(index, metadata.MetadataIndex) or not isinstance(part, filesystem._StorageInfo):
            return "it does not say where its tensors are"
        told = vars(part)
        if not all(isinstance(told.get(key), int) and told[key] >= 0 for key in ("offset", "length")):
            return f"it does not say where in its file {index.fqn} is"
        if told.get("relative_path") not in files:
            return f"it points to {told.get('relative_path')!r}, which is no file of the checkpoint"
        if told.get("transform_descriptors"):
            return f"{index.fqn} is transformed"
    return ""


def _is_chunk(chunk: Any) -> bool:
    return isinstance(chunk, metadata.ChunkStorageMetadata) and all(
        isinstance(vars(chunk).get(key), torch.Size) for key in ("offsets", "sizes")
    )


class CheckpointReader(FileSystemReader):
    """torch's reader, with a table of contents that cannot execute anything.

    The planner of torch unpickles entries that are not tensors; `read_table` refuses a table that has any.

    Args:
        checkpoint: folder of the checkpoint.

    Raises:
        StoreError: as `read_table`.
    """

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        self._table = read_table(checkpoint)  # here, since torch logs what read_metadata raises and goes on
        if not isinstance(vars(self._table).get("storage_meta"), metadata.StorageMeta):
            self._table.storage_meta = metadata.StorageMeta()

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        """Return the table of contents, for whichever process it is asked."""
        assert self._table.storage_meta is not None
        self._table.storage_meta.load_id = self.load_id
        return self._table


def shapes_differ(table: metadata.Metadata, shapes: Mapping[str, torch.Size]) -> str:
    """Return which of these tensors a table lacks or has in another shape; empty if it has them all."""
    for name, shape in shapes.items():
        entry = table.state_dict_metadata.get(name)
        if not isinstance(entry, metadata.TensorStorageMetadata):
            return f"it lacks {name}"
        if entry.size != shape:
            return f"{name} has the shape {tuple(entry.size)}, not {tuple(shape)}"
    return ""
