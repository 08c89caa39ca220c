"""Premises of the early warning that a configuration can break: settings in which it is known to fail."""

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.intervene.grammar import Intervention

LEAST_BATCH = 3
"""Smallest batch of which the forecast speaks."""


def broken_premises(run: RunConfig, step: int | None = None) -> tuple[str, ...]:
    """Why the early warning does not hold for a run; empty if nothing in its configuration speaks against it.

    Args:
        run: configuration of the run.
        step: step in question, since an intervention acts from a step on; None for the last.
    """
    training = run.training
    found = []
    if _no_mean_write(run, training.steps if step is None else step):
        found.append("no branch writes a mean in the forward pass")
    if training.batch < LEAST_BATCH:
        found.append(f"a batch of {training.batch} is below {LEAST_BATCH}")
    if training.betas[0] == 0:
        found.append("the optimiser has no momentum (beta1 = 0)")
    if training.data_steps == 1:
        found.append("one batch is repeated for ever (data_steps = 1)")
    return tuple(found)


def _no_mean_write(run: RunConfig, step: int) -> bool:
    """Whether no branch adds a mean: by its merges, or since an intervention deletes it in all blocks."""
    acting = [Intervention.parse(text) for since, text in run.training.interventions if since <= step]
    everywhere = [of for of in acting if of.blocks is None and not of.control]
    frozen = {of.target for of in everywhere if of.action == "freeze"} & {"alpha", "gates"}
    deleted = any(
        of.part == "mean" and of.target in ("branch", "trunk") and (of.action == "delete" or of.factor == 0)
        for of in everywhere
    )
    merges = set(run.model.setting().merges)
    held = run.model.alpha == 0 and (bool(frozen) or run.training.gain_rate == 0)
    return deleted or merges == {"hard_centering"} or (merges == {"mv_split"} and held)
