"""Lines of text with a step and values: DiT, Megatron, torchtitan, nanoGPT, MAE, printed dictionaries."""

import re
from collections.abc import Iterator

from meanmode.sim.imported.known_names import HELD_OUT, claim
from meanmode.sim.imported.log_text import LogText
from meanmode.sim.imported.logged_table import LoggedTable

LONGEST = 20_000
"""Characters of a line beyond which it is no line of a log of this kind."""


SOURCES = (
    ".py",
    ".ipynb",
    ".sh",
    ".md",
    ".rst",
    ".tex",
    ".yaml",
    ".yml",
    ".toml",
    ".ini",
    ".cfg",
    ".html",
    ".xml",
)
"""Suffixes of files that may quote lines of a log and are none."""


ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Colours of a terminal."""


DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)"


NUMBER = rf"[-+]?(?:{DIGITS}|(?:nan|inf|infinity)\b)"


WORD = r"[A-Za-z_][\w./%-]*"


PAIR = re.compile(
    rf"({WORD}(?:[ ]\(?{WORD}\)?){{0,5}})\s{{0,40}}[:=]\s{{0,40}}({NUMBER})(?![\w.]*:\d)", re.IGNORECASE
)
"""A name, a colon or an equals sign, and a number."""


SPACED = re.compile(rf"({WORD}(?:[ ]{WORD}){{0,2}})[ ]({NUMBER})", re.IGNORECASE)
"""A name and a number, for lines that have no other pairs."""


QUOTED = re.compile(
    rf"""['"]([^'"]{{1,200}})['"]\s?:\s?['"]?(?:[\w.]{{1,40}}\()?({NUMBER}|None)""", re.IGNORECASE
)
"""A pair of a printed dictionary, whose number may be a text, a tensor or a numpy scalar."""


STEP = re.compile(
    r"(?<![\w/])(?:global[_ ]?step|train(?:ing)?[_ ]steps?|step|iteration|iters?|num[_ ]updates|update)"
    r"(?:\(train\))?[\s:=#\[(]{1,20}(\d[\d,]*)(?![\d.]*[a-z])",
    re.IGNORECASE,
)


IN_EPOCH = re.compile(r"epoch:?\s*\[?\s?(\d+)\]?\s*:?\s*\[\s{0,10}(\d+)\s?/\s?(\d+)\]", re.IGNORECASE)
"""Epoch and iteration of how many, as MAE, DeiT and DINO print them."""


EPOCH = re.compile(r"(?<!\w)epoch\b[\s:=#\[(]{1,20}(\d+)", re.IGNORECASE)


HELD_OUT_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(HELD_OUT))})(?![a-z])", re.IGNORECASE)


Pairs = list[tuple[str, str]]


def recognise(text: LogText) -> bool:
    """Whether some lines have a step or an epoch, and pairs; or pairs with a loss."""
    if text.suffix in SOURCES or text.head.lstrip().startswith(("#!", "<")):
        return False
    rows = [pairs for line in text.head.split("\n") if (pairs := _pairs(line))]
    return (
        any(claim(name) for pairs in rows for name, _ in pairs) or sum(len(pairs) > 1 for pairs in rows) > 2
    )


def parse(text: LogText, table: LoggedTable) -> None:
    """Add every line with a step, an epoch or a loss as a row; all others are passed over."""
    passed = 0
    for line, content in text.lines():
        pairs = _pairs(content)
        if pairs:
            table.row(line, pairs)
        else:
            passed += 1
    if passed:
        table.notes.append(f"lines without a step or values were passed over: {passed:,}")


def _pairs(line: str) -> Pairs:
    """Names and numbers of a line; empty if it is no row."""
    if len(line) > LONGEST:
        return []
    if "\x1b" in line:
        line = ESCAPES.sub("", line)
    if "{'" in line or '{"' in line:
        pairs = QUOTED.findall(line[line.index("{") :])
        return pairs if len(pairs) > 1 or any(claim(name) for name, _ in pairs) else []
    counted, rest, held_out = _counters(line)
    pairs = [(name.strip(), value) for name, value in PAIR.findall(rest)]
    if not pairs or not any(claim(name) for name, _ in pairs):
        pairs += [
            (name, value) for name, value in SPACED.findall(PAIR.sub(" ", rest)) if claim(name) or counted
        ]
    if not pairs or not (counted or any(claim(name) for name, _ in pairs)):
        return []
    prefix = "eval/" if held_out else ""
    return [*counted, *_unique((prefix + name, value.replace(",", "")) for name, value in pairs)]


def _unique(pairs: Iterator[tuple[str, str]]) -> Pairs:
    """The first of several values of one name: what follows it is a mean or a maximum."""
    found: dict[str, str] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return list(found.items())


def _counters(line: str) -> tuple[Pairs, str, bool]:
    """Step and epoch of a line, the rest of it, and whether it is about held-out data."""
    epochs = "poch" in line or "POCH" in line
    if epochs and (within := IN_EPOCH.search(line)):
        epoch, iteration, total = (int(part) for part in within.groups())
        step = str(epoch * total + iteration)
        return [("step", step)], line[within.end() :], _is_held_out(line[: within.start()])
    found: Pairs = []
    held_out = False
    for name, pattern in (("step", STEP), *((("epoch", EPOCH),) if epochs else ())):
        match = pattern.search(line)
        if match:
            found.append((name, match[1].replace(",", "")))
            if name == "step":
                held_out = _is_held_out(line[: match.start()])
            line = f"{line[: match.start()]} | {line[match.end() :]}"
    return found, line, held_out


def _is_held_out(text: str) -> bool:
    return HELD_OUT_WORD.search(text) is not None
