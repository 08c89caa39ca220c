"""What to try next: by what was found, a sentence and the command for it."""

import shlex
from typing import Any

Steps = list[tuple[str, str]]


def after_run(path: str, document: dict[str, Any], *, imported: bool, ours: bool, unfinished: bool) -> Steps:
    """What to try after a run.

    Args:
        path: the run as the user gave it.
        document: of `meanmode.sweeps.studies.run_onset.document_of_run`.
        imported: whether it was logged elsewhere.
        ours: whether `mms train` wrote it.
        unfinished: whether more steps are to come.
    """
    run = shlex.quote(path)
    found: Steps = []
    if unfinished:
        found.append(("Rewrite this page while the run grows.", f"mms report {run} --watch"))
    tokens = not any("token cosine" in text for text in document["cannot_say"])
    if imported and not tokens:
        found.append(
            (
                "Log the token cosine, which tells a collapse from a divergence: two lines in the training "
                "script (docs/watch/index.md).",
                'watch = Watch(model, every=100, out="runs/mine")',
            )
        )
    if imported and any("--initial-loss" in text for text in document["cannot_say"]):
        found.append(("State the loss before training.", "mms import LOG --out RUN --initial-loss LOSS"))
    if document["onset_step"] is None:
        if ours:
            found.append(("Ask how probable a collapse is in the next 50 steps.", f"mms forecast {run}"))
        return found
    if ours:
        found.append(
            (
                "Draw the event, step by step.",
                f"mms figures event_run --data {run} --out figures",
            )
        )
    if document["onset_kind"] == "mean_mode" and ours:
        found += [
            (
                "Train it again with the mean channel closed, which prevented the collapse in our runs "
                "(docs/results/stabilisers.md).",
                "mms train PRESET --set merge=mv_split --out ANOTHER",
            ),
            (
                "Ask how risky a learning-rate schedule is before it is run.",
                "mms predict schedule PRESET --set rate=RATE --risk 0.05 --from FORECAST",
            ),
            (
                "Let the next run roll back at an alarm (docs/training.md).",
                "mms train PRESET --set on_alarm=roll_back --out ANOTHER",
            ),
        ]
    elif document["onset_kind"] == "mean_mode":
        found.append(
            ("See whether the depth of the model is alive before training.", "mms depth-check my_model:build")
        )
    return found


def after_store(path: str, name: str, counts: dict[str, int], *, compared: bool) -> Steps:
    """What to try after a sweep or study.

    Args:
        path: the store as the user gave it.
        name: the name of the sweep.
        counts: number of cells by status.
        compared: whether predictions were set beside measurements.
    """
    store = shlex.quote(path)
    found: Steps = []
    if counts["failed"]:
        found.append(("See why cells failed.", f"mms sweep status {store}"))
    if counts["to_do"] or counts["failed"]:
        run = f"mms sweep run {shlex.quote(name)} --out {store} --resume"
        found.append(("Compute the rest, with the options of the first time.", run))
    if compared:
        found.append(("Print the comparison, for a machine with --json.", f"mms compare {store}"))
    return found
