"""Check that a file or store can be written, before the work that it is to hold."""

import os
import tempfile
from pathlib import Path

from meanmode.sim.store.files import StoreError, partial_path, reason


def check_writable(path: Path) -> None:
    """Refuse a path at which nothing can be created: its folder, or the nearest one above that exists.

    An anonymous file is created there and vanishes at once, since permissions alone do not tell: roots may
    write anywhere but in read-only and special file systems.

    Raises:
        StoreError: the path cannot be written.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise StoreError(f"{path} cannot be written (it is a link to nothing): choose another --out")
        above = path.absolute().parent
        while not os.path.lexists(above):
            above = above.parent
        try:
            os.lstat(above / partial_path(path).name)  # a name may be too long for the file system
        except FileNotFoundError:
            pass
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({reason(error)}): choose another --out") from error
