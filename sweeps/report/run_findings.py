"""What is said of a run: the verdict of `mms onset`, when, where, in which order, and how surely."""

import math
from typing import Any

import numpy as np
import xarray as xr

from meanmode.sim.onset.detector import BORN
from meanmode.sim.onset.log_onset import cosine_name, loss_rows
from meanmode.sim.onset.training_onset import LEARNED, SUSTAINED_STEPS, WINDOW, deep_medians
from meanmode.sim.onset.verdict import LABELS
from meanmode.sweeps.report.contents import Table
from meanmode.sweeps.report.depth_front import DepthFront, parts
from meanmode.sweeps.studies.run_onset import evidence_rows
from meanmode.theory.meanfield.front import FRONT_COSINE

WORDS = {
    "g_mean": "G_mean",
    "g_ctr": "G_ctr",
    "mode_ratio": "G_mean / G_ctr",
    "amplification": "amplification A",
    "grad_rms_q": "query gradient",
    "grad_rms_k": "key gradient",
    "tcs": "token cosine (TCS)",
    "tcs_image": "token cosine (TCS) of image tokens",
    "grad_norm": "gradient norm",
}
"""Signal -> its name on the page."""

NEAR = 0.8
"""Deep token cosine from which a run without a collapse came near one."""

LEAST_BLOCKS = 3
"""Measured blocks from which the depth is spoken of."""

BEFORE = 20
"""Steps before the onset at which the front is shown for comparison."""

Facts = list[tuple[str, str]]


def sentence(run: xr.Dataset, document: dict[str, Any], *, so_far: bool) -> str:
    """The verdict in one sentence.

    Args:
        run: the run.
        document: of `meanmode.sweeps.studies.run_onset.document_of_run`.
        so_far: whether more steps are to come.
    """
    step, kind = document["onset_step"], document["onset_kind"]
    first, last = (int(run["step"].values[end]) for end in (0, -1))
    until = f"in steps {first} to {last}{', so far' if so_far else ''}"
    if step is None and not document["verdict"].startswith(LABELS["none"]):
        return f"{document['verdict'][0].upper()}{document['verdict'][1:]}."
    if step is None:
        alarms = [f"step {of['step']} ({of['kind'] or of['signal']})" for of in document["alarms"][:3]]
        more = f" and {len(document['alarms']) - 3} more" if len(document["alarms"]) > 3 else ""
        seen = f", although the detector raised an alarm at {', '.join(alarms)}{more}" if alarms else ""
        unlearned = "" if has_learned(run) else f"; that it learned does not show{_ended(run)}"
        return f"It did not collapse and did not diverge {until}{seen}{unlearned}."
    if kind == "mean_mode" and document["verdict"].startswith(BORN):
        return (
            f"Its tokens were alike from its first step, {step}, on, and it did not learn ({LABELS[kind]})."
        )
    if kind == "mean_mode":
        return (
            f"It collapsed at step {step}: the tokens of its deep blocks became alike while the loss was "
            f"near its initial level ({LABELS[kind]})."
        )
    return f"It failed at step {step}: the loss left and did not come back ({LABELS[kind]})."


def run_facts(run: xr.Dataset, document: dict[str, Any], depth: DepthFront) -> Facts:
    """When, where in depth, in which order, how surely: label -> sentence."""
    step = document["onset_step"]
    facts: Facts = []
    if step is not None:
        rate = f", at a learning rate of {_rate(run, step):.3g}" if not math.isnan(_rate(run, step)) else ""
        facts.append(("When", f"Onset at step {step}{rate}. {_alarms(document)}"))
        facts.append(("Where in depth", where(depth, step, document["onset_kind"])))
        facts.append(("In which order", order(document)))
    else:
        facts.append(("How near", how_near(run)))
    facts.append(("Confidence", confidence(run, document)))
    return facts


def _rate(run: xr.Dataset, step: int) -> float:
    if "lr" not in run or run["lr"].dims != ("step",):
        return math.nan
    return float(run["lr"].sel(step=step, method="nearest"))


def _alarms(document: dict[str, Any]) -> str:
    alarms = document["alarms"]
    if not alarms:
        return "The detector raised no alarm."
    said = [f"step {of['step']} ({of['kind'] or of['signal']})" for of in alarms[:4]]
    more = f" and {len(alarms) - 4} more" if len(alarms) > 4 else ""
    return f"The detector raised an alarm at {', '.join(said)}{more}."


def where(depth: DepthFront, step: int, kind: str) -> str:
    """Where the front was before, at and after an onset, and which part of the depth was alike first."""
    if len(depth.blocks) < LEAST_BLOCKS:
        blocks = f"{len(depth.blocks) or 'no'} block{'s' if len(depth.blocks) > 1 else ''}"
        return f"The token cosine of {blocks} was logged, so the depth is not known."
    before, at, end = (depth.at(of) for of in (step - BEFORE, step, int(depth.steps[-1])))
    said = [
        f"At the onset {_block(at, depth.depth)} (front: first block with TCS of {FRONT_COSINE:g} or more); "
        f"{BEFORE} steps before, {_block(before, depth.depth)}; at the last measurement, "
        f"{_block(end, depth.depth)}."
    ]
    if len(depth.blocks) < depth.depth:
        said.append(
            f"Measured after {len(depth.blocks)} of the blocks, {depth.blocks[0]} to {depth.blocks[-1]}."
        )
    if kind == "mean_mode":
        found = [row for row in depth_rows(depth, step) if isinstance(row[1], int)]
        if found:
            earliest = min(row[1] for row in found)
            names = [row[0] for row in found if row[1] == earliest]
            joined = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
            said.append(f"Blocks {joined} were alike first, from step {earliest} (median).")
    return " ".join(said)


def _block(front: float | None, depth: int) -> str:
    return "there was no front" if front is None else f"the front was at block {front:.3g} of {depth}"


def depth_rows(depth: DepthFront, onset: int) -> list[tuple[str, int | None, int | None, str]]:
    """Range of blocks, median and earliest step from which they were alike, and how many of how many."""
    since = depth.alike_from(onset)
    rows = []
    for first, last, inside in parts(depth.blocks, depth.depth):
        if not inside:
            continue
        steps = [of for at in inside if (of := since[at]) is not None]
        # the median of those that never were is infinite
        every = sorted(math.inf if since[at] is None else float(since[at] or 0) for at in inside)
        middle = every[(len(every) - 1) // 2] if every else math.inf
        rows.append(
            (
                f"{first} to {last}" if first < last else f"{first}",
                int(middle) if math.isfinite(middle) else None,
                min(steps, default=None),
                f"{len(steps)} of {len(inside)}",
            )
        )
    return rows


def depth_table(depth: DepthFront, onset: int) -> Table:
    """In which order parts of the depth became alike."""
    return Table(
        title="Order in depth",
        columns=("blocks", "alike from step (median)", "earliest", "measured blocks alike"),
        rows=tuple(depth_rows(depth, onset)),
        note=f"Alike: TCS of {FRONT_COSINE:g} or more, for good, at or after the onset.",
    )


def order(document: dict[str, Any]) -> str:
    """The signals in the order in which they moved."""
    steps: dict[int, list[str]] = {}
    still = []
    for row in evidence_rows(document):
        name = WORDS.get(row["signal"], row["signal"])
        if row["first_step"] == "-":
            still.append(name)
        else:
            steps.setdefault(int(row["first_step"]), []).append(name)
    moved = "; ".join(f"step {step}: {', '.join(names)}" for step, names in steps.items())
    unmoved = f" Not moved for good: {', '.join(still)}." if still else ""
    return f"{moved or 'No signal can be dated'}.{unmoved}"


def order_table(document: dict[str, Any]) -> Table:
    """When each signal left its baseline for good, and by what factor."""
    onset = document["onset_step"]
    rows = []
    for row in evidence_rows(document):
        step = None if row["first_step"] == "-" else int(row["first_step"])
        name = WORDS.get(row["signal"], row["signal"])
        rows.append((name, step, None if step is None else step - onset, row["ratio"]))
    return Table(
        title="Order of the signals",
        columns=("signal", "moved at step", "steps after the onset", "median after / before"),
        rows=tuple(rows),
        note=f"Deep blocks, within {WINDOW} rows of the onset; empty: not moved for good, or no data before.",
    )


def has_learned(run: xr.Dataset) -> bool:
    """Whether the loss ended below `LEARNED` of its initial level; false where that level is not known."""
    rows = loss_rows(run)
    return rows is not None and rows.known and bool(rows.smoothed[-1] < LEARNED * rows.level)


def _ended(run: xr.Dataset) -> str:
    """Where the loss of a run that did not learn ended, as far as it is known."""
    rows = loss_rows(run)
    if rows is None or not rows.known or not rows.level > 0 or not np.isfinite(rows.smoothed[-1]):
        return ""
    if len(rows.steps) == 1:
        return " in one logged row"
    return f": the loss ended at {rows.smoothed[-1] / rows.level:.0%} of its initial level"


def how_near(run: xr.Dataset) -> str:
    """How near a run without an onset came to one."""
    name, rows = cosine_name(run), loss_rows(run)
    said = []
    if rows is not None and math.isfinite(rows.level) and rows.level > 0 and np.isfinite(rows.smoothed[-1]):
        level = rows.smoothed[-1] / rows.level
        first = "initial level" if rows.known else "level when the log begins"
        said.append(f"The loss ended at {level:.0%} of its {first}.")
    if name is None or not bool(run[name].notnull().any()):
        return " ".join([*said, "No token cosine was logged."])
    steps, values = deep_medians(run, name)
    at = int(values.argmax())
    text = f"The deep median of the token cosine was {values[at]:.3g} at most, at step {steps[at]}"
    if values[at] > FRONT_COSINE and said and rows is not None:
        row = max(int(np.searchsorted(rows.steps, steps[at], side="right")) - 1, 0)
        text += f", when the loss was at {rows.smoothed[row] / rows.level:.0%} of that level"
    return " ".join([*said, f"{text} (a collapse needs {FRONT_COSINE:g})."])


def confidence(run: xr.Dataset, document: dict[str, Any]) -> str:
    """High, medium or low, with what speaks for the verdict and what is missing."""
    name, rows, step = cosine_name(run), loss_rows(run), document["onset_step"]
    measured = name is not None and bool(run[name].notnull().any())
    if rows is None:
        return "None: there is no verdict without a loss."
    support: list[tuple[bool, str]] = [
        (
            measured,
            "token cosine logged" if measured else "no token cosine, which would tell a collapse apart",
        ),
        (rows.known, "initial level of the loss known" if rows.known else "initial level not known"),
    ]
    alarms = [of["step"] for of in document["alarms"]]
    if step is None:
        support.append((not alarms, "the detector raised an alarm" if alarms else "no alarm of the detector"))
        learned, count = has_learned(run), int(np.isfinite(rows.loss).sum())
        if rows.known:
            ended = "ended" if learned else "did not end"
            support.append((learned, f"the loss {ended} below {LEARNED:.0%} of that level"))
        plural = "row" if count == 1 else "rows"
        few = f"only {count} {plural} with a finite loss" if count < SUSTAINED_STEPS else f"{count} rows"
        support.append((count >= SUSTAINED_STEPS, few))
        if measured and name is not None:
            most = float(deep_medians(run, name)[1].max())
            far = "tokens stayed unlike" if most < NEAR else f"tokens came near a collapse (TCS {most:.3g})"
            support.append((most < NEAR or learned, far))
    else:
        near = any(abs(of - step) <= WINDOW * rows.row_steps for of in alarms)
        agrees = "the detector, by other rules, agrees" if near else "no alarm of the detector near the onset"
        support.append((near, agrees))
        after = int((rows.steps >= step).sum())
        support.append((after >= SUSTAINED_STEPS, f"{after} rows from the onset on"))
    missing = [text for holds, text in support if not holds]
    held = [text for holds, text in support if holds]
    level = "High" if not missing else "Medium" if len(missing) == 1 else "Low"
    against = f" Against: {'; '.join(missing)}." if missing else ""
    return f"{level}, judged by {document['grade']}. For: {'; '.join(held) or 'nothing'}.{against}"
