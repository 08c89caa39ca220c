"""A process that has imported the command line and runs each command in a fork of itself.

It reads one JSON document per line, {"arguments", "folder", "seconds"}, and answers with one, {"code", "out",
"err", "seconds", "grown"}: the exit code (null if it had to be killed), what was printed, and by how many
bytes the largest resident set exceeded that of this process.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import meanmode.dit.data.encoding
import meanmode.dit.evaluate.evaluation
import meanmode.dit.train.trainer
import meanmode.sweeps.engine.execution
import meanmode.sweeps.named.all_sweeps
import meanmode.sweeps.studies.comparison  # noqa: F401
from meanmode.sweeps.cli.main import main

torch.set_num_threads(1)
LIMIT = 6 * 2**30
"""Bytes of address space that a command may take beyond those of this process."""


def run(arguments: list[str], folder: str, seconds: float) -> dict[str, Any]:
    """Run one command in a fork of this process."""
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


if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
