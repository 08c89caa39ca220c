"""Memory that a process has freed stays with it, for its next step to use."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""

ASKED = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
"""Their names in the environment."""

KEPT_BYTES = 2**28
"""Free bytes at the top of the heap above which they go back to the system."""

LARGEST = 2**25
"""Bytes from which an allocation is mapped on its own, and unmapped when freed: the most that glibc takes."""


def keep_freed_memory() -> bool:
    """Let the C library of this process keep up to `KEPT_BYTES` of freed memory.

    A step frees its tensors, and the next one allocates the same again. By default glibc returns much of what
    is freed, and the system has to clear every page anew. What the environment asks of the library stays.

    Returns:
        Whether the C library complied; only glibc does.
    """
    asked = ASKED & set(os.environ) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or asked:
        return False
    set_parameter = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_parameter is None:
        return False
    return bool(set_parameter(MMAP_THRESHOLD, LARGEST)) and bool(set_parameter(TRIM_THRESHOLD, KEPT_BYTES))
