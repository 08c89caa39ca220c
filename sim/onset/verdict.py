"""What a run's signals allow to be said: its onset in words, the grade of the verdict, open questions."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from meanmode.sim.onset.detector import BORN
from meanmode.sim.onset.log_onset import cosine_name, log_onset, loss_rows, remarks
from meanmode.sim.onset.training_onset import Onset, deep_medians, training_onset

LABELS = {
    "mean_mode": "collapse with the mean-mode signature",
    "plain_divergence": "plain divergence",
    "none": "no collapse and no divergence",
}
"""Kind of onset -> its text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The verdict on a run.

    Attributes:
        onset: its label.
        words: the label in words.
        grade: the signals that the verdict rests on.
        cannot_say: what these signals leave open, one phrase each that follows "cannot say".
        remarks: what shows in the last rows and is too short for a verdict.
    """

    onset: Onset
    words: str
    grade: str
    cannot_say: tuple[str, ...]
    remarks: tuple[str, ...]


def verdict(run: xr.Dataset) -> Verdict:
    """The best verdict that the signals of a run allow; a run of our own keeps the label of its trainer.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`.
    """
    rows, cosine = loss_rows(run), cosine_name(run)
    measured = cosine is not None and bool(run[cosine].notnull().any())
    imported = "import" in run.attrs
    onset = training_onset(run) if rows is not None and measured and not imported else log_onset(run)
    return Verdict(
        onset=onset,
        words=_words(run, onset, cosine if measured else None),
        grade=_grade(run, loss=rows is not None, tokens=measured),
        cannot_say=tuple(_open_questions(run, tokens=measured)),
        remarks=tuple(remarks(run)) if onset.step is None else (),
    )


def _words(run: xr.Dataset, onset: Onset, cosine: str | None) -> str:
    if onset.step is None:
        return LABELS[onset.kind] if loss_rows(run) is not None else "no verdict: no loss was logged"
    label = LABELS[onset.kind]
    if onset.kind == "mean_mode" and cosine is not None and onset.step == deep_medians(run, cosine)[0][0]:
        label = f"{BORN}, {label}"
    return f"{label}, onset at step {onset.step}"


def _grade(run: xr.Dataset, *, loss: bool, tokens: bool) -> str:
    writers = all(name in run and bool(run[name].notnull().any()) for name in ("g_mean", "g_ctr"))
    norm = "grad_norm" in run and bool(run["grad_norm"].notnull().any())
    found = [
        *(["loss"] if loss else []),
        *(["gradient norm"] if norm else []),
        *(["token signals"] if tokens else []),
        *(["writer modes"] if writers else []),
    ]
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found) or "no known signal"


def _open_questions(run: xr.Dataset, *, tokens: bool) -> list[str]:
    rows, found = loss_rows(run), []
    if rows is None:
        found.append("whether it learned or failed: no loss was logged")
    elif (rows.loss < 0).any():
        found.append("how far the loss rose: some of its values are negative")
    elif not rows.known and "import" in run.attrs:
        found.append(
            f"whether the loss is back at its level before training: the log starts at step {rows.steps[0]} "
            "(mms import --initial-loss states that level)"
        )
    if not tokens:
        found.append(
            "whether tokens became alike: no token cosine was logged, and a collapse may not show in the loss"
        )
    elif rows is not None and not all(name in run for name in ("g_mean", "g_ctr")):
        found.append("which part of the writer gradients grew: G_mean and G_ctr were not logged")
    if rows is not None and int(np.isfinite(rows.loss).sum()) < 3:
        found.append("much from fewer than three rows with a finite loss")
    return found
