"""`JudgedStudy`: training runs on a latent store, judged on held-out images and by their samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from meanmode.sim.store.files import Variable
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.plan import Layout, Measured
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.engine.study_variables import OUTCOME, SERIES
from meanmode.sweeps.engine.trained import StudyCell, stored

if TYPE_CHECKING:
    from meanmode.dit.evaluate.subject import Subject

EXTRACTOR, CACHE = "effnet-lite0", Path("features")
"""Feature extractor of the distances between images, and the folder that caches features of real ones."""


JUDGEMENT = {
    "held_out_loss": Variable(
        dims=("measurement",), definition="loss on held-out images after the step, noise and times fixed"
    ),
    "fid": Variable(definition="FID of samples of the last weights, features of EfficientNet-Lite0"),
    "kid": Variable(definition="KID of these samples"),
    "kid_error": Variable(definition="standard error of KID over the draw of the images"),
    "fid_floor": Variable(definition="FID of as many held-out images: the score of perfect samples"),
    "kid_floor": Variable(definition="KID of as many held-out images"),
}
"""What a network is judged by; NaN after the end of a run that ended early."""


@dataclass(frozen=True, kw_only=True)
class JudgedStudy(Study):
    """A study whose runs train on a latent store, which lies where their `data` says.

    Attributes:
        judged_every: steps between measurements of the loss on held-out images.
        images: held-out images of that loss and of the floors, and samples of the last weights.
        reference: training images that samples and held-out images are compared with.
        sampling_steps: Euler steps of a sample.

    Raises:
        ValueError: data that are no latent store, or runs whose last step would not be judged.
    """

    kind: ClassVar[str] = "judged_study"

    judged_every: int = 100
    images: int = 256
    reference: int = 2000
    sampling_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(run.latents is None for run in self.runs):
            raise ValueError(f"{self.name}: networks are judged by images, so data must be latents:PATH")
        if self.judged_every < 1 or any(run.training.steps % self.judged_every for run in self.runs):
            raise ValueError(f"{self.name}: judged_every must divide the steps, got {self.judged_every}")

    def configuration(self) -> dict[str, Any]:
        """Everything that determines the numbers, and the statement, JSON-serialisable."""
        return {**super().configuration(), **self._judging()}

    def _judging(self) -> dict[str, int]:
        names = ("judged_every", "images", "reference", "sampling_steps")
        return {name: getattr(self, name) for name in names}

    def layout(self) -> Layout:
        """What the store holds; the held-out loss is measured after the step `measurement`."""
        steps = max(run.training.steps for run in self.runs)
        marks = range(self.judged_every, steps + 1, self.judged_every)
        return Layout(
            sizes={"step": range(1, steps + 1), "measurement": marks},
            variables={**OUTCOME, **SERIES, **JUDGEMENT},
            forecasts=self._forecasts(),
            witness="loss",
        )

    def measure(self) -> Callable[[Sequence[tuple[int, StudyCell]]], Measured]:
        """A picklable function that trains the cells of a unit and judges their networks.

        Raises:
            ValueError: a latent store that does not fit the networks, or no feature extractor.
            StoreError: no latent store.
        """
        from meanmode.dit.data.sources import source_of
        from meanmode.dit.evaluate.features import extractor

        for run in self.runs:
            source_of(run)
        extractor(EXTRACTOR)
        return partial(judged, functional_every=self.functional_every, device=self.device, **self._judging())


def judged(
    cells: Sequence[tuple[int, StudyCell]],
    *,
    functional_every: int,
    device: str,
    judged_every: int,
    images: int,
    reference: int,
    sampling_steps: int,
) -> Measured:
    """Outcome, series and judgement of the runs of one ensemble."""
    from meanmode.dit.evaluate.held_out_loss import HeldOut
    from meanmode.dit.evaluate.subject import subject_of
    from meanmode.dit.train.ensemble_runs import network_at, train_runs

    runs = [cell.run for _, cell in cells]
    last = runs[0].training.steps
    marks = range(judged_every, last + 1, judged_every)
    found: Measured = []
    held_out: HeldOut | None = None
    for run, measured in zip(
        runs,
        train_runs(runs, functional_every=functional_every, keep_states=marks, device=device),
        strict=True,
    ):
        values: dict[str, Any] = {**stored(measured), "held_out_loss": np.full(len(marks), np.nan)}
        for number, mark in enumerate(marks):
            if mark not in measured.states:
                continue
            network = network_at(run, measured.states[mark]).eval()
            subject = subject_of(network, run, name=f"seed {run.training.seed}, step {mark}", document={})
            held_out = held_out or HeldOut.of(subject, run, images)
            values["held_out_loss"][number] = held_out.loss(network)
            if mark == last and np.isfinite(values["held_out_loss"][number]):
                values |= _distances(subject, images, reference, sampling_steps)
        found.append((values, DONE))
    return found


def _distances(subject: "Subject", images: int, reference: int, steps: int) -> dict[str, Any]:
    """FID and KID of samples and of held-out images."""
    from meanmode.dit.evaluate.evaluation import EvaluationConfig, evaluate
    from meanmode.dit.evaluate.features import extractor
    from meanmode.dit.evaluate.sampling import SamplingConfig

    fid, kid, _, fid_floor, kid_floor, *_ = evaluate(
        subject,
        extractor(EXTRACTOR),
        EvaluationConfig(samples=images, reference=reference),
        SamplingConfig(each=1, steps=steps),
        cache=CACHE,
        tell=lambda _: None,
    )
    rows = {"fid": fid, "kid": kid, "fid_floor": fid_floor, "kid_floor": kid_floor}
    errors = {"kid_error": np.array(kid.standard_error)}
    return {name: np.array(row.value) for name, row in rows.items()} | errors
