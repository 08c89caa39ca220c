"""One table of ratios out of all benches: run them, keep a record, write docs/benchmarks.md (`make bench`).

Every script of `SCRIPTS` prints its ratios as one JSON document or as JSON lines; other lines are ignored. A
record is appended to records.json, and the page shows the range over the last records.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meanmode.sim.store.files import write_whole
from meanmode.sim.store.provenance import provenance

HERE = Path(__file__).parent
RECORDS = HERE / "records.json"
PAGE = HERE.parents[1] / "docs" / "benchmarks.md"

SCRIPTS: tuple[tuple[str, ...], ...] = (
    ("simulator.py", "--part", "observables", "--part", "ensembles"),
    ("training_step.py",),
    ("compiled.py",),
    ("watch.py",),
    ("overhead.py",),
    ("front.py",),
    ("discovery.py",),
)
"""Scripts and their arguments."""

LATEST = 3
"""Number of records whose range the page shows."""

ABOUT = """# Benchmarks

<!-- generated: python tests/bench/table.py -->

Ratios of times, each a median of alternating runs on one core unless it says otherwise. `make bench`
measures them, adds a record to `tests/bench/records.json` and writes this page. Ranges are over the last
three records that hold a ratio; it depends on processor, load and versions. What is not a ratio is on the
page [what it costs](performance.md).
"""

Record = Mapping[str, Any]


def ratios_of(printed: str) -> dict[str, float]:
    """The numbers in what a bench printed, by name; nested names are joined by colons."""
    try:
        documents = [json.loads(printed)]
    except ValueError:
        documents = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    found: dict[str, float] = {}
    for document in documents:
        _collect(document, "", found)
    return found


def _collect(document: Mapping[str, Any], prefix: str, found: dict[str, float]) -> None:
    for name, value in document.items():
        if isinstance(value, dict):
            _collect(value, f"{prefix}{name}: ", found)
        elif isinstance(value, float):
            found[prefix + name] = round(value, 3)


def processor() -> str:
    """Name of the processor."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def record(scripts: Sequence[Sequence[str]] = SCRIPTS) -> Record:
    """Run the scripts one after the other, on one thread each.

    Raises:
        subprocess.CalledProcessError: a script failed.
    """
    commit = provenance()["commit"]
    ratios = {}
    for script, *arguments in scripts:
        print(f"{script} ...", file=sys.stderr, flush=True)
        run = subprocess.run(
            [sys.executable, str(HERE / script), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        ratios[script] = ratios_of(run.stdout)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    return {"date": now, "commit": commit, "processor": processor(), "ratios": ratios}


def page(records: Sequence[Record]) -> str:
    """The page: for every script, the ratios of its latest record, and their ranges over the last ones."""
    used: list[Record] = []
    tables = []
    for script in dict.fromkeys(name for of in records for name in of["ratios"]):
        latest = [of for of in records if script in of["ratios"]][-LATEST:]
        used += [of for of in latest if of not in used]
        rows = [f"## {script}", "", "| ratio | range | records |", "| --- | --- | --- |"]
        for name in latest[-1]["ratios"][script]:
            values = [of["ratios"][script][name] for of in latest if name in of["ratios"][script]]
            low, high = f"{min(values):.2f}", f"{max(values):.2f}"
            rows.append(f"| {name} | {low if low == high else f'{low} to {high}'} | {len(values)} |")
        tables += [*rows, ""]
    runs = ["| date (UTC) | commit | processor |", "| --- | --- | --- |"]
    for of in sorted(used, key=lambda of: str(of["date"])):
        runs.append(f"| {of['date'][:16].replace('T', ' ')} | {_short(of['commit'])} | {of['processor']} |")
    if not used:
        runs = ["No record has been taken yet."]
    return "\n".join([ABOUT, *runs, "", *tables]).rstrip() + "\n"


def _short(commit: str) -> str:
    whole, _, state = commit.partition("-")
    return whole[:12] + (f"-{state}" if state else "")


def main() -> None:
    records = json.loads(RECORDS.read_text())
    records.append(record())
    write_whole(RECORDS, (json.dumps(records, indent=1) + "\n").encode())
    write_whole(PAGE, page(records).encode())
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
