"""How a network is trained, and what is written down of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meanmode.sim.intervene.grammar import Intervention
from meanmode.sim.train.schedule import Schedule

RAMP_DEPTH = 16
"""Blocks at which a ramp that goes with the depth has the slope it states."""


def at_least(config: Any, least: Mapping[str, float]) -> None:
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and not value >= bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How it is trained, and what is written down of it. Steps are optimiser steps, counted from 1.

    Attributes:
        steps: of the run.
        batch: samples of a step, over all processes and micro-batches.
        seed: of the initial weights.
        data_seed: of the order of the samples, their noise, times and dropped texts.
        data_steps: the data of step n are those of the n-th step modulo this; 0 for ever new ones.
        schedule: `warmup`, linear to `rate` in `warmup` steps, then constant; `ramp`, `slope` * step; or
            `depth_ramp`, `slope` * sqrt(16 / depth) * step, whose runs are about equally long at every depth.
        rate: the learning rate after a warm-up; where a ramp ends, None for nowhere.
        warmup: steps.
        slope: rate gained a step.
        first_rate, first_steps: rate of the first steps instead of the schedule's, and how many these are.
        betas, eps, weight_decay, clip: AdamW as published: decay on matrices only, gradients clipped by
            global norm; a clip of None clips nothing.
        optimiser: `adamw`, or `muon`: the matrices of the blocks take orthogonalised steps of the same rms.
        reader_rate: rate of the readers of all branches (Q, K, V, W13) over that of the other parameters.
        gain_rate: rate of the gains of the merges (alpha, beta, lambda) over that of the other parameters.
        ema: decay of a moving average of the weights, kept beside them; 0 keeps none.
        null_text: probability that a sample is trained with the empty text.
        time_shift: a of the training times t' = a t / (1 + (a - 1) t), t uniform.
        precision: `float32`, or `bf16`: autocast, with norms, merges and weights in float32.
        accumulation: micro-batches of a step.
        recompute: of every `recompute_of` blocks, how many have their activations computed again in the
            backward pass instead of being kept (activation checkpointing).
        recompute_of: see `recompute`.
        sharding: `replicated` weights (DDP where there are several processes) or `full` (FSDP2).
        compile: compile every block (torch.compile); measured steps run the same blocks eagerly.
        telemetry_every: steps between measurements of all observables; 0 measures none.
        telemetry_blocks: how many blocks are measured, evenly spaced, the last among them; 0 for all.
        watch_every: steps between measurements that are kept in the ring buffer alone, until an event makes
            them worth writing; 0 for none.
        event_window: steps of the ring buffer, and steps behind an event in which every one is measured.
        event_ratio: a gradient norm this many times the median of the window is an event.
        interval: steps of a chunk of the telemetry store.
        checkpoint_every: steps between checkpoints; one is written at the end in any case.
        keep: checkpoints kept, the last ones.
        stop_on: `never`, `divergence` (a loss that is not finite) or `collapse` (or divergence): the run ends
            `event_window` steps behind it, at once where the loss is not finite.
        on_alarm: what follows an alarm of `meanmode.sim.onset.detector`, from the next step on. `log`: nothing, it is only
            written down; `stop`: the run ends; `lower_readers`, `lower_all`: the rates of the readers (see
            `reader_rate`), or all, are multiplied by `alarm_factor`, with every alarm again; `roll_back`: the
            run goes on from its last checkpoint that is `event_window` steps older than what moved first,
            with all rates lowered and a fresh order of the data, at most `meanmode.dit.train.alarm_answers.ROLL_BACKS` times (then,
            and where no checkpoint is so old, the rates are lowered only).
        alarm_factor: see `on_alarm`.
        interventions: (step, text) of `meanmode.sim.intervene.interventions`, from that step on.

    Raises:
        ValueError: a value outside its range, or a combination that means nothing.
    """

    steps: int = 400
    batch: int = 4
    seed: int = 0
    data_seed: int = 0
    data_steps: int = 0
    schedule: str = "warmup"
    rate: float | None = 1e-3
    warmup: int = 20
    slope: float = 5e-5
    first_rate: float = 0.0
    first_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0
    optimiser: str = "adamw"
    reader_rate: float = 1.0
    gain_rate: float = 1.0
    ema: float = 0.0
    null_text: float = 0.1
    time_shift: float = 4.0
    precision: str = "float32"
    accumulation: int = 1
    recompute: int = 0
    recompute_of: int = 1
    sharding: str = "replicated"
    compile: bool = False
    telemetry_every: int = 50
    telemetry_blocks: int = 0
    watch_every: int = 0
    event_window: int = 50
    event_ratio: float = 5.0
    interval: int = 50
    checkpoint_every: int = 500
    keep: int = 2
    stop_on: str = "divergence"
    on_alarm: str = "log"
    alarm_factor: float = 0.25
    interventions: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        least = {
            **dict.fromkeys(("steps", "batch", "accumulation", "recompute_of", "event_window", "keep"), 1),
            **dict.fromkeys(("interval", "checkpoint_every", "warmup"), 1),
            **dict.fromkeys(("seed", "data_seed", "recompute", "telemetry_every", "telemetry_blocks"), 0),
            **dict.fromkeys(
                ("data_steps", "watch_every", "eps", "weight_decay", "reader_rate", "gain_rate"), 0
            ),
            "event_ratio": 1,
        }
        at_least(self, least)
        for name, known in (
            ("schedule", ("warmup", "ramp", "depth_ramp")),
            ("optimiser", ("adamw", "muon")),
            ("precision", ("float32", "bf16")),
            ("sharding", ("replicated", "full")),
            ("stop_on", ("never", "divergence", "collapse")),
            ("on_alarm", ("log", "stop", "lower_readers", "lower_all", "roll_back")),
        ):
            one_of(name, getattr(self, name), known)
        for name in ("rate", "clip", "slope", "time_shift"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if self.schedule == "warmup" and self.rate is None:
            raise ValueError("a warm-up needs a rate to end at: set rate")
        pair = isinstance(self.betas, Sequence) and len(self.betas) == 2
        if not (pair and all(isinstance(beta, float | int) and 0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")
        for name in ("ema", "null_text"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("weight_decay", "eps", "reader_rate", "gain_rate"):
            if not getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if not 0 <= self.alarm_factor < 1:
            raise ValueError(f"alarm_factor lowers rates: it must be in [0, 1), got {self.alarm_factor}")
        if self.optimiser == "muon" and self.sharding == "full":
            raise ValueError("muon orthogonalises whole matrices: set sharding=replicated or optimiser=adamw")
        if self.batch % self.accumulation:
            raise ValueError(f"{self.accumulation} micro-batches do not divide a batch of {self.batch}")
        if self.recompute > self.recompute_of:
            raise ValueError(f"of {self.recompute_of} blocks not {self.recompute} can be recomputed")
        if self.stop_on == "collapse" and not self.telemetry_every:
            raise ValueError("a collapse is seen in the telemetry: set telemetry_every to stop on it")
        object.__setattr__(self, "betas", tuple(self.betas))  # lists, where they come from JSON
        for entry in self.interventions:
            match entry:
                case (int(step), str(text)) if step >= 1:
                    Intervention.parse(text)
                case _:
                    raise ValueError(f"an intervention is [step from 1, text], got {entry}")
        object.__setattr__(self, "interventions", tuple((step, text) for step, text in self.interventions))

    def data_step(self, step: int) -> int:
        """The step whose data a step takes."""
        return (step - 1) % self.data_steps + 1 if self.data_steps else step

    def learning_rate(self, depth: int) -> Schedule:
        """The schedule of a network of this depth."""
        ceiling = math.inf if self.rate is None else self.rate
        scale = math.sqrt(RAMP_DEPTH / max(depth, 1)) if self.schedule == "depth_ramp" else 1.0
        return Schedule(
            slope=ceiling / self.warmup if self.schedule == "warmup" else self.slope * scale,
            peak=ceiling,
            first_rate=self.first_rate,
            first_steps=self.first_steps,
        )
