"""A process that has imported every module and runs each command of `mms` in a fork of itself.

It reads one JSON document per line, ["run", ARGUMENTS] with the arguments of `run`, `start` or `end`, and
answers each with one: what that function returns.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import meanmode
from meanmode.sweeps.cli.main import main

LATE = (
    *("accelerate", "dask.array", "matplotlib.backends.backend_agg", "safetensors.torch"),
    *("sklearn.datasets.data", "sklearn.datasets.descr", "torch._dynamo", "torch.utils.serialization.config"),
)
"""Packages that functions import, so that every fork would import them again; some are optional."""

OPTIONAL = {"triton"}
"""Packages of an extra that some systems lack; the modules that import them are left out."""

torch.set_num_threads(1)
LIMIT = 6 * 2**30
"""Bytes of address space that a command may take beyond those of this process."""


def run(arguments: list[str], folder: str, seconds: float) -> dict[str, Any]:
    """Run a command to its end.

    Returns:
        code: its exit code, null if it had to be killed.
        out, err: what it printed.
        seconds: how long it took.
        grown: by how many bytes its largest resident set exceeded that of this process.
    """
    with tempfile.TemporaryDirectory() as printed:
        files = [Path(printed) / name for name in ("out", "err")]
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(arguments, folder, files)
        code, used = _waited(child, began + seconds)
        return {
            "code": code,
            **{file.name: file.read_text(errors="replace") if file.exists() else "" for file in files},
            "seconds": time.monotonic() - began,
            "grown": 1024 * max(0, used - own),
        }


def start(
    arguments: list[str], folder: str, printed: str, environments: list[dict[str, str]], before: str
) -> list[int]:
    """Start a command once per environment, after some code; return the numbers of these processes.

    Unlike those of `run`, they exit as an interpreter does that was started for the command.
    """
    started = []
    for environment in environments:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.chdir(folder)
            os.environ.update(environment)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number in (1, 2):
                os.dup2(os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
            sys.argv = ["mms", *arguments]
            exec(before, {})
            main()
        started.append(child)
    return started


def end(process: int, seconds: float) -> int | None:
    """Exit code of a process that was started; null if it still runs after some seconds."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)


def _become(arguments: list[str], folder: str, files: list[Path]) -> None:
    """In the child: be the command, and exit as it does."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + LIMIT, held + LIMIT))
        sys.argv = ["mms", *arguments]
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _waited(child: int, until: float) -> tuple[int | None, int]:
    """Exit code of a child (None if it had to be killed), and its largest resident set in KiB."""
    while time.monotonic() < until:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    return None, os.wait4(child, 0)[2].ru_maxrss


def _import_everything() -> None:
    for module in pkgutil.walk_packages(meanmode.__path__, "meanmode."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
    for name in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # a collection in a fork would touch, and so copy, the memory of all that is imported here
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _import_everything()
    requests = {"run": run, "start": start, "end": end}
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(requests[name](**arguments)), flush=True)
