"""Which names of a foreign log mean the loss, the gradient norm, the learning rate, or count the steps."""

import re
from collections.abc import Mapping
from functools import lru_cache

SCALARS = (
    "loss",
    "lr",
    "grad_norm",
    "grad_norm_clipped",
    "tokens_seen",
    "wall_s",
    "data_wait_s",
    "functional_step",
)
"""Our names of numbers that a run logs once per step."""


STEPS = (
    *("step", "steps", "global_step", "global_steps", "_step", "trainer/global_step", "train/global_step"),
    *("iteration", "iterations", "iter", "iters", "itr", "it", "train_step", "train_steps", "training_step"),
    *("current_step", "update", "updates", "num_updates", "n_updates", "optimizer_step", "total_steps"),
)
"""Names of the column that counts optimiser steps, best first."""


SAMPLES = (
    *("consumed_samples", "consumed_train_samples", "samples", "samples_seen", "n_samples", "num_samples"),
    *("consumed_tokens", "tokens", "tokens_seen", "n_tokens", "num_tokens", "total_tokens", "images_seen"),
)


EPOCHS = ("epoch", "epochs", "train/epoch", "trainer/epoch")


HELD_OUT = {
    *(
        "val",
        "valid",
        "validation",
        "eval",
        "evaluation",
        "evaluate",
        "test",
        "testing",
        "dev",
        "heldout",
        "holdout",
    ),
}
"""A name with one of these words is never about training."""


GENERIC = {
    *("train", "training", "trainer", "metrics", "metric", "log", "logs", "scalars", "step", "batch", "iter"),
    *("avg", "average", "mean", "global", "lm", "losses", "stats", "optim", "optimizer", "total"),
}
"""Words that may stand beside a name without changing what it means."""


NOT_THE_LOSS = {"scale", "scaler", "epoch", "weight", "min", "max", "std", "count", "ema", "ratio"}


MEANINGS = {
    "loss": (("loss",),),
    "grad_norm": (("grad", "norm"), ("gradient", "norm"), ("gradients", "norm"), ("gradnorm",), ("gnorm",)),
    "lr": (("lr",), ("learning", "rate"), ("rate",)),
}
"""Our name -> words that mean it, once generic ones are dropped."""


def normalised(name: str) -> str:
    """Name in lower case, with underscores for spaces and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def words(name: str) -> list[str]:
    """Words of a name in lower case; a capital within a word begins another."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^a-z0-9]+", apart.lower()) if word]


def held_out(name: str) -> bool:
    """Whether a name is about data that is not trained on."""
    return not HELD_OUT.isdisjoint(words(name))


@lru_cache(maxsize=10_000)
def claim(name: str) -> str | None:
    """Our name for what a foreign name means; None if it is anything else, or held out."""
    said = words(name)
    if not HELD_OUT.isdisjoint(said):
        return None
    kept = tuple(dict.fromkeys(word for word in said if word not in GENERIC))
    for ours, meant in MEANINGS.items():
        if kept in meant and (ours != "lr" or kept != ("rate",) or "learning" in said):
            return ours
    return None


def weak_claim(name: str) -> str | None:
    """Our name for a foreign name that contains it, such as nll_loss; counts if no other name has a claim."""
    said = set(words(name))
    if said & (HELD_OUT | NOT_THE_LOSS) or any(any(letter.isdigit() for letter in word) for word in said):
        return None
    if {"grad", "norm"} <= said and not said & {"param", "clip", "clipped"}:
        return "grad_norm"
    return "loss" if "loss" in said else None


def our_names(counts: Mapping[str, int], taken: set[str]) -> tuple[dict[str, str], list[str]]:
    """Foreign name -> our name where it is unambiguous, and notes.

    Args:
        counts: foreign name -> number of its values.
        taken: our names that are given already.
    """
    found: dict[str, str] = {}
    notes = []
    for ours in MEANINGS:
        if ours in taken or ours in counts:
            continue
        claims = [name for name in counts if claim(name) == ours]
        claims = claims or [name for name in counts if weak_claim(name) == ours]
        # a mean over the whole run, logged once at its end, does not compete
        most = max((counts[name] for name in claims), default=0)
        claims = [name for name in claims if 10 * counts[name] >= most]
        if len(claims) == 1:
            found[claims[0]] = ours
            notes.append(f"{claims[0]} is taken as {ours}")
        elif claims:
            notes.append(
                f"{', '.join(claims[:6])} may each be {ours} and keep their names: "
                f"--name {claims[0]}={ours} decides"
            )
    return found, notes


def step_column(names: Mapping[str, object], known: tuple[str, ...]) -> str | None:
    """The best of the columns with one of these names, or whose path ends in one."""
    full = {normalised(name): name for name in reversed(list(names))}
    last = {normalised(name.rpartition("/")[2]): name for name in reversed(list(names)) if not held_out(name)}
    return next((found[name] for found in (full, last) for name in known if name in found), None)
