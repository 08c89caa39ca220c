"""Training options: data order, learning rate, optimiser, precision, telemetry, checkpoints, alarms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from meanmode.dit.config.field_ranges import (
    FAR,
    LARGE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    STEPS,
    Range,
    check_fields,
    one_of,
    shown,
)
from meanmode.sim.intervene.grammar import Intervention
from meanmode.sim.observe.observable_names import OBSERVABLES as BLOCK_OBSERVABLES
from meanmode.sim.onset.early_warning import MOST_STEPS
from meanmode.sim.train.schedule import Schedule

LABEL, FUNCTIONAL_STEP = "tcs", "functional_step"
"""The observable that labels a collapse and is therefore always measured, and the one that is measured after
the update."""

OBSERVABLES = (*BLOCK_OBSERVABLES, FUNCTIONAL_STEP)
"""Observables that telemetry can measure."""

RAMP_DEPTH = 16
"""Depth at which the schedule `depth_ramp` has exactly the slope of its configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How a network is trained, measured and saved. Steps are optimiser steps, counted from 1.

    Attributes:
        steps: number of steps to train.
        batch: samples per step, over all processes and micro-batches.
        seed: seed of the initial weights.
        data_seed: seed of the order of the samples, their noise, their diffusion times and the dropped texts.
        data_steps: number of distinct batches, which are repeated in a cycle; 0 takes a new batch every step.
        schedule: learning rate over the steps. `warmup`: linear up to `rate` over `warmup` steps, then
            constant; `cosine`: the same, then down to 0 at the last step along half a cosine; `jump`:
            `first_rate` for `first_steps` steps, then `rate` at once; `ramp`: `slope` *
            step; `depth_ramp`: `slope` * sqrt(16 / depth) * step, so that runs of all depths collapse after
            about the same number of steps.
        rate: learning rate after the warm-up or the jump, or upper limit of a ramp; None for a ramp without
            limit.
        warmup: steps of the linear warm-up, also before a cosine decay.
        slope: learning rate gained per step of a ramp.
        first_rate, first_steps: the first `first_steps` steps use the learning rate `first_rate` instead of
            the schedule.
        betas, eps, weight_decay: parameters of AdamW; only matrices are decayed, as published.
        clip: largest global gradient norm; larger gradients are scaled down to it. None disables clipping.
        optimiser: `adamw`; or `muon`, which gives the matrices of the blocks orthogonalised updates whose
            root mean square is about that of AdamW's.
        reader_rate: learning rate of the readers (Q, K, V, W13 in all blocks), relative to the other
            parameters.
        gain_rate: learning rate of the merge gains (alpha, beta, lambda), relative to the other parameters.
        ema: decay of a moving average of the weights, kept beside the weights; 0 keeps none.
        null_text: probability that a sample is trained with the empty text.
        time_shift: shift a of the diffusion times t' = a t / (1 + (a - 1) t), where t is uniform on [0, 1].
        precision: `float32`; or `bf16`: autocast, with norms, merges and weights in float32.
        accumulation: micro-batches per step.
        recompute, recompute_of: `recompute` of every `recompute_of` blocks recompute their activations in
            the backward pass instead of storing them (activation checkpointing).
        sharding: `replicated` weights (DDP on several processes); or `full`, sharded weights (FSDP2).
        compile: whether to compile every block with torch.compile, which takes seconds and gives the same
            numbers up to rounding; measured steps run the blocks eagerly.
        telemetry_every: steps between measurements of the observables; 0 measures none.
        telemetry_blocks: number of measured blocks, evenly spaced up to and including the last; 0 for all.
        observables: names of the observables that are measured and stored, from `OBSERVABLES`; empty for all.
            A name stands for its forms `_image` and `_text` as well. `tcs` is always among them, since it
            labels a collapse. `functional_step` costs a forward pass at every regular measurement.
        watch_every: steps between extra measurements that stay in a ring buffer and are stored only if an
            event follows; 0 for none.
        event_window: length of the ring buffer in steps, and number of steps after an event that are all
            measured.
        event_ratio: a gradient norm above this multiple of the median over the window counts as an event.
        interval: steps per chunk of the telemetry store.
        checkpoint_every: steps between checkpoints; the last step always writes one.
        keep: number of most recent checkpoints to keep.
        weights_ring: number of most recent steps whose weights, without moments, are kept on disk; 0 for
            none. This stops half as many steps after the first event, an alarm or a measured token cosine
            that rises above 0.9, so that the kept weights surround it.
        stop_on: when to end early: `never`; `divergence` (the loss is not finite); or `collapse`, which
            includes divergence. A run ends at once if its loss is not finite, and `event_window` steps after
            a collapse.
        on_alarm: reaction to an alarm of `meanmode.sim.onset.detector`, effective from the next step. `log`:
            only record it. `stop`: end the run. `lower_readers`, `lower_all`: multiply the learning rates of
            the readers (see `reader_rate`), or all rates, by `alarm_factor`, again at every alarm.
            `roll_back`: return to the last checkpoint at least `event_window` steps older than the first
            movement, lower all rates and draw a new data order. After three roll-backs, or without such a
            checkpoint, it only lowers the rates.
        alarm_factor: factor by which an alarm lowers the rates.
        alarm_chance: probability of a collapse within 50 steps (`meanmode.sim.onset.early_warning`) at which
            `on_alarm` acts as well, again after every `event_window` steps with such a probability. None:
            only the alarms of the detector.
        interventions: pairs (step, text): the intervention that `text` describes acts from this step on
            (grammar in `meanmode.sim.intervene.grammar`); its step must be one of the run.

    Raises:
        ValueError: a value is out of range, or options contradict each other.
    """

    steps: Annotated[int, Range(1, STEPS)] = 400
    batch: Annotated[int, Range(1, 2**24)] = 4
    seed: Annotated[int, Range(0, SEED)] = 0
    data_seed: Annotated[int, Range(0, SEED)] = 0
    data_steps: Annotated[int, Range(0, STEPS)] = 0
    schedule: str = "warmup"
    rate: Annotated[float | None, POSITIVE] = 1e-3
    warmup: Annotated[int, Range(1, STEPS)] = 20
    slope: Annotated[float, POSITIVE] = 5e-5
    first_rate: Annotated[float, NOT_NEGATIVE] = 0.0
    first_steps: Annotated[int, Range(0, STEPS)] = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Annotated[float, NOT_NEGATIVE] = 1e-8
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.1
    clip: Annotated[float | None, POSITIVE] = 1.0
    optimiser: str = "adamw"
    reader_rate: Annotated[float, NOT_NEGATIVE] = 1.0
    gain_rate: Annotated[float, NOT_NEGATIVE] = 1.0
    ema: Annotated[float, SHARE] = 0.0
    null_text: Annotated[float, SHARE] = 0.1
    time_shift: Annotated[float, POSITIVE] = 4.0
    precision: str = "float32"
    accumulation: Annotated[int, Range(1, 2**24)] = 1
    recompute: Annotated[int, Range(0, 2**16)] = 0
    recompute_of: Annotated[int, Range(1, 2**16)] = 1
    sharding: str = "replicated"
    compile: bool = False
    telemetry_every: Annotated[int, Range(0, FAR)] = 50
    telemetry_blocks: Annotated[int, Range(0, 2**16)] = 0
    observables: tuple[str, ...] = ()
    watch_every: Annotated[int, Range(0, FAR)] = 0
    event_window: Annotated[int, Range(1, 10_000)] = 50
    event_ratio: Annotated[float, Range(1, LARGE)] = 5.0
    interval: Annotated[int, Range(1, 10_000)] = 50
    checkpoint_every: Annotated[int, Range(1, FAR)] = 500
    keep: Annotated[int, Range(1, 10**6)] = 2
    weights_ring: Annotated[int, Range(0, 10_000)] = 0
    stop_on: str = "divergence"
    on_alarm: str = "log"
    alarm_factor: Annotated[float, SHARE] = 0.25
    alarm_chance: Annotated[float | None, Range(0, 1, above=True)] = None
    interventions: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for name, known in (
            ("schedule", ("warmup", "cosine", "jump", "ramp", "depth_ramp")),
            ("optimiser", ("adamw", "muon")),
            ("precision", ("float32", "bf16")),
            ("sharding", ("replicated", "full")),
            ("stop_on", ("never", "divergence", "collapse")),
            ("on_alarm", ("log", "stop", "lower_readers", "lower_all", "roll_back")),
        ):
            one_of(name, getattr(self, name), known)
        if self.schedule in ("warmup", "cosine") and self.rate is None:
            raise ValueError("a warm-up needs a final learning rate: set rate")
        if self.schedule == "jump" and not (self.rate and self.first_rate and self.first_steps):
            raise ValueError(
                "a jump needs a learning rate before and after it: set first_rate, first_steps, rate"
            )
        pair = isinstance(self.betas, Sequence) and len(self.betas) == 2
        if not (pair and all(isinstance(beta, float | int) and 0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"betas must be two numbers in [0, 1), got {shown(self.betas)}")
        if self.optimiser == "muon" and self.sharding == "full":
            raise ValueError("muon orthogonalises whole matrices: set sharding=replicated or optimiser=adamw")
        if self.batch % self.accumulation:
            raise ValueError(
                f"accumulation must divide the batch: {self.batch} samples, {self.accumulation} micro-batches"
            )
        if self.recompute > self.recompute_of:
            raise ValueError(
                f"recompute must be at most recompute_of, {self.recompute_of}, got {self.recompute}"
            )
        if self.stop_on == "collapse" and not self.telemetry_every:
            raise ValueError("stop_on=collapse reads the telemetry: set telemetry_every to at least 1")
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON has lists instead
        object.__setattr__(self, "interventions", self._checked_interventions())
        object.__setattr__(self, "observables", self._checked_observables())
        if self.alarm_chance is not None and not (
            1 <= self.telemetry_every <= MOST_STEPS and self.observes(FUNCTIONAL_STEP)
        ):
            raise ValueError(
                "alarm_chance reads token cosines and functional steps: set telemetry_every to 1 to "
                f"{MOST_STEPS} and measure {FUNCTIONAL_STEP}"
            )

    def _checked_interventions(self) -> tuple[tuple[int, str], ...]:
        """Return the interventions as tuples; JSON has lists instead."""
        if not isinstance(self.interventions, Sequence) or isinstance(self.interventions, str):
            raise ValueError(f"interventions must be a list of [step, text], got {shown(self.interventions)}")
        for entry in self.interventions:
            match entry:
                case (int(step), str(text)) if step >= 1 and not isinstance(step, bool):
                    Intervention.parse(text)
                case _:
                    raise ValueError(
                        f"an intervention must be [step, text] with a step of at least 1, got {shown(entry)}"
                    )
            if step > self.steps:
                raise ValueError(
                    f"the intervention {text} at step {shown(step)} never acts: the run ends at {self.steps}"
                )
        return tuple((step, text) for step, text in self.interventions)

    def _checked_observables(self) -> tuple[str, ...]:
        """Return the chosen observables, with TCS, in the order of `OBSERVABLES`."""
        chosen = self.observables
        if not isinstance(chosen, Sequence) or isinstance(chosen, str):
            raise ValueError(f"observables must be a list of names, got {shown(chosen)}")
        for name in chosen:
            one_of("observable", name, OBSERVABLES)
        return tuple(name for name in OBSERVABLES if name in (LABEL, *chosen)) if chosen else ()

    def observes(self, name: str) -> bool:
        """Whether telemetry measures an observable, given by its name without the suffix of a segment."""
        return name in (self.observables or OBSERVABLES)

    def data_step(self, step: int) -> int:
        """Return the step whose batch is used at this step."""
        return (step - 1) % self.data_steps + 1 if self.data_steps else step

    def learning_rate(self, depth: int) -> Schedule:
        """Return the learning-rate schedule of a network of this depth."""
        ceiling = math.inf if self.rate is None else self.rate
        scale = math.sqrt(RAMP_DEPTH / max(depth, 1)) if self.schedule == "depth_ramp" else 1.0
        warming = ceiling / self.warmup
        slopes = {"warmup": warming, "cosine": warming, "jump": math.inf}
        return Schedule(
            slope=slopes.get(self.schedule, self.slope * scale),
            peak=ceiling,
            first_rate=self.first_rate,
            first_steps=self.first_steps,
            decayed_by=self.steps if self.schedule == "cosine" else 0,
        )
