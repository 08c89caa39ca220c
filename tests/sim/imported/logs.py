"""Made-up training logs: every form that people have, whole and with the faults of real files."""

import gzip
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

Row = dict[str, float]

SPACING, ROWS, FAILS = 10, 60, 40  # FAILS is the row at which a run fails that does


@dataclass(frozen=True, kw_only=True)
class MadeLog:
    """A log and what is right to say of it.

    Attributes:
        name: form, story and fault.
        file: name of the file, or of a file in a folder.
        content: its bytes.
        folder: whether to import the folder rather than the file.
        options: options of `mms import`.
        steps: steps of the run; empty if it is refused.
        loss: loss at these steps.
        refused: part of the sentence that refuses it.
        note: part of a note.
        verdict: kind of onset (none, plain_divergence, mean_mode), and the first and last step at which it
            may be put.
    """

    name: str
    file: str
    content: bytes
    folder: bool = False
    options: tuple[Any, ...] = ()
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    refused: str = ""
    note: str = ""
    verdict: tuple[str, int | None, int | None] = ("none", None, None)

    def write(self, folder: Path) -> Path:
        """Write the log into a folder and return the path to import."""
        file = folder / self.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.content)
        return file.parent if self.folder else file


def story(kind: str, seed: int = 0) -> list[Row]:
    """Rows of a run: `healthy`, `diverges`, `nan`, or `collapse`, from the row FAILS on."""
    noise = np.random.default_rng([seed, len(kind)])
    rows = []
    for number in range(1, ROWS + 1):
        failed = kind != "healthy" and number >= FAILS
        loss = 0.8 + 1.4 * math.exp(-number / 15) + 0.01 * noise.standard_normal()
        norm = (0.6 + math.exp(-number / 10)) * math.exp(0.05 * noise.standard_normal())
        cosine = 0.2 + 0.01 * noise.standard_normal()
        if failed and kind == "diverges":
            loss, norm = 9 + 0.1 * noise.standard_normal(), 8 * norm
        if failed and kind == "nan":
            loss = norm = math.nan
        if failed and kind == "collapse":
            loss, norm, cosine = 2.15 + 0.02 * noise.standard_normal(), norm / 20, 0.996
        row = {"step": number * SPACING, "loss": round(loss, 5), "grad_norm": round(norm, 5)}
        rows.append(row | ({"tcs/12": round(cosine, 4)} if kind == "collapse" else {}))
    return rows


def verdict(kind: str) -> tuple[str, int | None, int | None]:
    """What is right to say of a story."""
    if kind == "healthy":
        return ("none", None, None)
    first = FAILS * SPACING
    return ("mean_mode" if kind == "collapse" else "plain_divergence", first, first)


def _text(value: float) -> str:
    return f"{value:.5g}"


def _table(mark: str, comma: bool = False) -> Callable[[list[Row]], list[str]]:
    def lines(rows: list[Row]) -> list[str]:
        shown = [mark.join(_text(value) for value in row.values()) for row in rows]
        return [mark.join(rows[0]), *(line.replace(".", ",") if comma else line for line in shown)]

    return lines


def _each(show: Callable[[Row], str]) -> Callable[[list[Row]], list[str]]:
    return lambda rows: [show(row) for row in rows]


def _renamed(**names: str) -> Callable[[Row], str]:
    return lambda row: json.dumps({names.get(name, name): value for name, value in row.items()})


def _nested(row: Row) -> str:
    inner = {name: value for name, value in row.items() if name != "step"}
    return json.dumps({"step": row["step"], "train": inner})


def _megatron(row: Row) -> str:
    return (
        f" iteration {row['step']:8d}/  250000 | consumed samples: {8 * row['step']:12d} | "
        f"learning rate: 1.0E-06 | lm loss: {row['loss']:.6E} | loss scale: 65536.0 | "
        f"grad norm: {row['grad_norm']:.5f} | number of nan iterations:   0 |"
    )


def _torchtitan(row: Row) -> str:
    return (
        f"[rank0]:\x1b[31m[titan] 2024-01-01 12:00:00,000 - root - INFO - \x1b[32mstep: {row['step']:2d}  "
        f"\x1b[33mloss: {row['loss']:7.4f}  \x1b[34mgrad_norm: {row['grad_norm']:.4f}  "
        "\x1b[35mmemory: 12.30GiB(45.00%)  \x1b[36mtps: 1,234  mfu: 12.10%\x1b[39m"
    )


def _dit(row: Row) -> str:
    return (
        f"[2024-01-01 12:00:00] (step={row['step']:07d}) Train Loss: {row['loss']:.4f}, Train Steps/Sec: 5.12"
    )


def _nanogpt(row: Row) -> str:
    return f"iter {row['step']}: loss {row['loss']:.4f}, time 101.20ms, mfu 31.50%"


def _mae_console(row: Row) -> str:
    epoch, iteration = divmod(row["step"], 100)
    return (
        f"Epoch: [{epoch}]  [{iteration:3d}/100]  eta: 0:01:00  lr: 0.0001  loss: {row['loss']:.4f} "
        "(9.9999)  time: 0.5  data: 0.0001  max mem: 1000"
    )


def _printed(row: Row) -> str:
    loss, norm = (str(row[name]) for name in ("loss", "grad_norm"))
    return f"{{'loss': {loss}, 'grad_norm': {norm}, 'learning_rate': 1e-05, 'epoch': {row['step'] / 1000}}}"


def _boxed(row: Row) -> str:
    lines = "".join(f"| {name:12} | {_text(value):9} |\n" for name, value in row.items())
    return f"{lines}{'-' * 28}"


def _lightning(rows: list[Row]) -> list[str]:
    header = "epoch,step,train_loss_epoch,train_loss_step,grad_norm,val_loss"
    lines = [f"0,{row['step']},,{_text(row['loss'])},{_text(row['grad_norm'])}," for row in rows]
    return [header, *lines[:30], "0,300,0.9,,,1.1", *lines[30:]]


def _guided(rows: list[Row]) -> list[str]:
    lines = [
        f"{_text(row['grad_norm'])},{_text(row['loss'])},{8 * row['step']},{row['step']}," for row in rows
    ]
    return ["grad_norm,loss,samples,step,eval_loss", *lines[:1], ",,,,0.9", *lines[1:]]


def _wandb_export(rows: list[Row]) -> list[str]:
    tags = [name for name in rows[0] if name != "step"]
    header = ",".join(f'"run-7 - {tag}{end}"' for tag in tags for end in ("", "__MIN", "__MAX"))
    shown = [",".join(f'"{_text(row[tag])}"' for tag in tags for _ in range(3)) for row in rows]
    return [f'"Step",{header}', *(f'"{row["step"]}",{line}' for row, line in zip(rows, shown, strict=True))]


def _long(rows: list[Row]) -> list[str]:
    return [
        "step,name,value",
        *(f"{row['step']},{name},{_text(row[name])}" for row in rows for name in row if name != "step"),
    ]


def _tag_export(rows: list[Row]) -> list[str]:
    return [
        "Wall time,Step,Value",
        *(f"{1.6e9 + row['step']},{row['step']},{_text(row['loss'])}" for row in rows),
    ]


LINES: dict[str, tuple[str, Callable[[list[Row]], list[str]]]] = {
    "json_lines": ("metrics.jsonl", _each(json.dumps)),
    "nested": ("metrics.jsonl", _each(_nested)),
    "wandb_history": (
        "history.jsonl",
        _each(_renamed(step="_step", loss="train/loss", grad_norm="train/grad_norm")),
    ),
    "logger_prefix": ("train.log", _each(lambda row: f"2024-01-01 | INFO | train_inner | {json.dumps(row)}")),
    "csv": ("metrics.csv", _table(",")),
    "semicolons": ("metrics.csv", _table(";", comma=True)),
    "tabs": ("metrics.tsv", _table("\t")),
    "lightning": ("metrics.csv", _lightning),
    "guided": ("progress.csv", _guided),
    "wandb_export": ("wandb_export.csv", _wandb_export),
    "long": ("log.csv", _long),
    "tag_export": ("run-a-tag-train_loss.csv", _tag_export),
    "dit": ("log.txt", lambda rows: ["[2024-01-01] Experiment directory created at r/0", *map(_dit, rows)]),
    "megatron": ("main_log.txt", lambda rows: ["training ...", *map(_megatron, rows)]),
    "torchtitan": ("stdout.log", _each(_torchtitan)),
    "nanogpt": ("train.log", lambda rows: ["tokens per iteration will be: 491,520", *map(_nanogpt, rows)]),
    "mae_console": ("log.txt", _each(_mae_console)),
    "boxed": ("log.txt", lambda rows: ["Logging to /tmp/x", "-" * 28, *map(_boxed, rows)]),
    "printed": ("stdout.log", _each(_printed)),
}
"""Form -> name of the file, and its lines."""

TABLES = ("csv", "semicolons", "tabs", "lightning", "guided", "wandb_export", "long", "tag_export")
OPTIONS = {"printed": ("--steps-per-row", SPACING)}
# forms that carry a token cosine
COSINES = ("json_lines", "csv", "semicolons", "tabs", "long", "wandb_export", "boxed")


def record(message: bytes) -> bytes:
    """A record of an event file, with its checksums."""

    def checked(content: bytes) -> bytes:
        check = google_crc32c.value(content)
        return content + struct.pack("<I", ((check >> 15 | check << 17) + 0xA282EAD8) % 2**32)

    return checked(struct.pack("<Q", len(message))) + checked(message)


def varint(number: int) -> bytes:
    """A whole number in groups of seven bits."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def event(step: int, name: str, value: float, time: float = 1.9e9) -> bytes:
    """The record of a scalar as torch writes it."""
    logged = b"\x0a" + varint(len(name)) + name.encode() + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + varint(len(logged)) + logged
    return record(
        b"\x09" + struct.pack("<d", time) + b"\x10" + varint(step) + b"\x2a" + varint(len(summary)) + summary
    )


def events(rows: list[Row]) -> bytes:
    """An event file of these rows, one record per value."""
    names = {"loss": "train/loss"}
    return b"".join(
        event(int(row["step"]), names.get(name, name), value, 1.9e9 + row["step"])
        for row in rows
        for name, value in row.items()
        if name != "step"
    )


def viewer(rows: list[Row]) -> bytes:
    """The published page with these rows."""
    steps = [row["step"] for row in rows]
    scalars = {name: {"s": steps, "v": [row[name] for row in rows]} for name in ("loss", "grad_norm")}
    data = {"config": {"N_LAYERS": 12}, "scalars": scalars, "layerwise": {}}
    return f"<html><script>window.TRAINING_DATA = {json.dumps(data)};</script></html>".encode()


def trainer_state(rows: list[Row]) -> bytes:
    """The state that transformers writes, with evaluations and a closing row."""
    history = [{**row, "learning_rate": 1e-5, "epoch": row["step"] / 200} for row in rows]
    history.insert(20, {"eval_loss": 1.0, "epoch": 1.0, "step": rows[19]["step"]})
    history.append({"step": rows[-1]["step"], "total_flos": 1e9, "train_loss": 1.2, "train_runtime": 9.0})
    return json.dumps({"best_metric": None, "log_history": history, "global_step": rows[-1]["step"]}).encode()


DOCUMENTS: dict[str, tuple[str, Callable[[list[Row]], bytes]]] = {
    "trainer_state": ("checkpoint-600/trainer_state.json", trainer_state),
    "viewer": ("viewer.html", viewer),
    "lists": (
        "history.json",
        lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode(),
    ),
    "events": ("run/events.out.tfevents.1900000000.host.1.0", events),
}


def _joined(lines: list[str], end: str = "\n") -> bytes:
    return "".join(line + end for line in lines).encode()


def _made(
    form: str, fault: str, content: bytes, rows: list[Row], kind: str = "healthy", **more: Any
) -> MadeLog:
    file, _ = (LINES | DOCUMENTS)[form]
    given: dict[str, Any] = {
        "file": file,
        "options": OPTIONS.get(form, ()),
        "steps": [int(row["step"]) for row in rows],
        "loss": [row["loss"] for row in rows],
        "verdict": verdict(kind),
        "folder": form == "events",
    }
    return MadeLog(name=f"{form}-{kind}-{fault}", content=content, **(given | more))


def _whole() -> list[MadeLog]:
    """Every form whole, with each story in turn."""
    found = []
    for number, form in enumerate(LINES):
        kinds = ["healthy", ("diverges", "nan")[number % 2], *(["collapse"] if form in COSINES else [])]
        for kind in kinds:
            rows = story(kind, number)
            found.append(_made(form, "whole", _joined(LINES[form][1](rows)), rows, kind))
    for number, (form, (_, write)) in enumerate(DOCUMENTS.items()):
        for kind in ("healthy", ("diverges", "nan")[number % 2]):
            rows = story(kind, number)
            found.append(_made(form, "whole", write(rows), rows, kind))
    rows = story("collapse")
    return [*found, _made("events", "whole", events(rows), rows, "collapse")]


def _cut() -> list[MadeLog]:
    """The last line or record is cut, as a killed process leaves it."""
    rows = story("healthy")
    found = []
    for form in ("json_lines", "nested", "wandb_history", "logger_prefix", "csv", "tabs", "semicolons"):
        content = _joined(LINES[form][1](rows))
        note = "is cut short and was left out"
        cut = content[: content.rindex(b"\n", 0, -1) + 6]
        found.append(_made(form, "cut", cut, rows[:-1], note=note))
    found.append(_made("events", "cut", events(rows)[:-90], rows[:-1], note="is cut short"))
    found.append(_made("trainer_state", "cut", trainer_state(rows)[:-50], [], refused="is not JSON"))
    return found


def _resumed() -> list[MadeLog]:
    """The run diverges, and is resumed from an earlier step: the abandoned branch says nothing of it."""
    rows = story("healthy")
    abandoned = [*rows[:30], *story("diverges")[FAILS - 1 : FAILS + 8]]
    found = []
    for form in LINES:
        if form in ("printed", "lightning", "guided"):
            continue
        first, second = LINES[form][1](abandoned), LINES[form][1](rows[30:])
        written = [*first, *(second[1:] if form in TABLES else second)]
        found.append(_made(form, "resumed", _joined(written), rows, note="steps go back once, first to 310"))
    content = events(abandoned) + events(rows[30:])
    found.append(_made("events", "resumed", content, rows, note="steps go back once, first to 310"))
    again = [*LINES["csv"][1](abandoned), *LINES["csv"][1](rows[30:])]
    return [*found, _made("csv", "header_again", _joined(again), rows, note="the header comes again")]


def _damaged() -> list[MadeLog]:
    """One line in the middle is no row."""
    rows = story("healthy")
    found = []
    for form in LINES:
        if form == "printed":
            continue
        lines = LINES[form][1](rows)
        lines.insert(len(lines) // 2, "\x1b[0mWARNING something happened {here: [" + "!" * 5)
        found.append(_made(form, "damaged", _joined(lines), rows))
    return found


def _dressed() -> list[MadeLog]:
    """Compressed; with a byte order mark and Windows line ends; in UTF-16; counted from 0."""
    rows = story("healthy")
    found = []
    for form in ("json_lines", "csv", "dit", "megatron", "boxed"):
        content = _joined(LINES[form][1](rows))
        found.append(_made(form, "gz", gzip.compress(content), rows, file=LINES[form][0] + ".gz"))
    for form in ("json_lines", "csv", "semicolons", "dit"):
        lines = LINES[form][1](rows)
        found.append(_made(form, "bom_crlf", b"\xef\xbb\xbf" + _joined(lines, "\r\n"), rows))
    content = "".join(line + "\n" for line in LINES["csv"][1](rows)).encode("utf-16")
    found.append(_made("csv", "utf16", content, rows))
    zero = [{**row, "step": row["step"] - SPACING} for row in rows]
    one = [{**row, "step": row["step"] - SPACING + 1} for row in rows]
    for form in ("json_lines", "csv", "dit", "nanogpt"):
        note = "steps count from 0 and are numbered from 1 here"
        found.append(_made(form, "from_zero", _joined(LINES[form][1](zero)), one, note=note))
    return found


def _several() -> list[MadeLog]:
    """Two processes or runs in one file: one is asked for."""
    rows = story("healthy")
    ranks = [{"rank": rank, **row, "loss": row["loss"] + rank} for row in rows for rank in (0, 1)]
    plain = [{name: value for name, value in row.items() if name != "rank"} for row in ranks]
    found = []
    for form in ("json_lines", "csv", "tabs"):
        content = _joined(LINES[form][1](ranks))
        found.append(_made(form, "two_ranks", content, [], refused="pass --only rank=0 to read one"))
        found.append(_made(form, "one_rank", content, rows, options=("--only", "rank=0")))
        mixed = _joined(LINES[form][1](plain))
        found.append(_made(form, "two_unnamed", mixed, [], refused="give a file of one run"))
    return found


LOGS = [log for made in (_whole, _cut, _resumed, _damaged, _dressed, _several) for log in made()]
