"""Freed memory stays with the process."""

import json
import subprocess
import sys

import pytest

from meanmode.sim.train.allocator import keep_freed_memory

FAULTS = """
import json, resource
import numpy as np
from meanmode.sim.train.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for step in range(20):
        tensors = [np.ones(2**20) for number in range(4)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
print(json.dumps([keep_freed_memory(), given_back, faults()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a parameter of glibc")
def test_the_pages_of_a_step_are_used_by_the_next() -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    complied, given_back, kept = json.loads(run.stdout)
    if not complied:
        pytest.skip("another C library")
    pages = 4 * 2**23 // 4096
    assert given_back > 4 * pages, "by default most are cleared again in every step"
    assert kept < 1.5 * pages


def test_what_the_environment_asks_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    assert not keep_freed_memory()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=65536")
    assert not keep_freed_memory()
