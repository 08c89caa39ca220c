"""Estimate of the memory that a run needs, made before anything is allocated."""

import dataclasses
import math
from dataclasses import dataclass

import torch

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.model.network import DiT
from meanmode.sim.kernels.choice import LAUNCHES
from meanmode.sim.trunk.merges import FUSED, make_merge

FLOAT = 4
"""Bytes per float32 number."""

KEEP_BRANCHES = {"mv_split", "layerscale", "rezero", "highway"}
"""Merges that keep the branch for the backward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Peak memory of one process, in bytes by purpose.

    Attributes:
        parameters: number of parameters of the network (a count, not bytes).
        weights: this process's share of the weights.
        gradients: this process's share of the gradients.
        moments: this process's share of AdamW's two moments.
        average: this process's share of the moving average of the weights.
        gathered: weights and gradients of the blocks gathered at one time, if the weights are sharded.
        activations: activations stored for the backward pass of a micro-batch, including those of one
            recomputed block.
    """

    parameters: int
    weights: int
    gradients: int
    moments: int
    average: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """Total of all purposes, in bytes."""
        held = self.weights + self.gradients + self.moments + self.average
        return held + self.gathered + self.activations

    def __str__(self) -> str:
        names = ("weights", "gradients", "moments", "average", "gathered", "activations")
        parts = ", ".join(f"{name} {_size(getattr(self, name))}" for name in names if getattr(self, name))
        return f"{self.parameters:,} parameters; {_size(self.total)} per process ({parts})"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def activation_bytes(run: RunConfig, *, kernels: bool = False) -> tuple[int, int]:
    """Return how many bytes a block stores per sample for its backward pass, and how many it reads.

    Per token, counted in the graph of a block, whose attention stores no matrix: in single precision both
    merged trunks after their norms (2 widths), q and k after QK-Norm (2), and the branches of merges that
    need them (`KEEP_BRANCHES`); in the precision of the products v (1), the inputs of the attention writer
    (2), and SwiGLU (4 hidden widths). In bf16 the products also store what they read, converted (5).

    Args:
        run: configuration of the run.
        kernels: whether kernels for a GPU compute, which store q and k before QK-Norm (2) and the branches.
    """
    setting, half = run.model.setting(), run.training.precision == "bf16"
    tokens, width = run.model.copies * sum(setting.segments), setting.width
    branches = sum(
        merge in KEEP_BRANCHES or (kernels and type(make_merge(merge, width)) in FUSED)
        for merge in setting.merges
    )
    products = (3 + 5 * half + 2 * kernels) * width + 4 * setting.ffn_width
    kept = FLOAT * (4 + branches) * width + (FLOAT // (1 + half)) * products
    return tokens * kept, tokens * width * FLOAT


def _parameters(model: DiTConfig) -> tuple[int, int]:
    """Return the number of parameters outside the blocks and in each block, as all blocks are alike.

    Raises:
        ValueError: the network is too large for any machine.
    """
    try:
        with torch.device("meta"):
            network = DiT(dataclasses.replace(model, depth=1))
    except RuntimeError as error:
        raise ValueError(f"this network is too large ({' '.join(str(error).split())[:120]})") from error
    total = sum(weight.numel() for weight in network.parameters())
    block = sum(weight.numel() for weight in network.blocks[0].parameters())
    return total - block, block


def estimate(run: RunConfig, processes: int = 1, *, kernels: bool = False) -> MemoryEstimate:
    """Estimate the memory that a run needs on each of its processes; with kernels for a GPU or without."""
    training, depth = run.training, run.model.depth
    ends, block = _parameters(run.model)
    count = ends + depth * block
    sharded = training.sharding == "full"
    own = FLOAT * math.ceil(count / (processes if sharded else 1))
    samples = math.ceil(training.batch / training.accumulation / processes)
    kept, entry = activation_bytes(run, kernels=kernels)
    again = depth * training.recompute // training.recompute_of
    stored = (depth - again) * kept + again * entry + (kept if again else 0)
    # autocast keeps converted weights until the backward pass
    converted = FLOAT // 2 * block * (depth - again) if training.precision == "bf16" else 0
    return MemoryEstimate(
        parameters=count,
        weights=own,
        gradients=own,
        moments=2 * own,
        average=own if training.ema else 0,
        gathered=2 * 2 * FLOAT * block if sharded else 0,
        activations=samples * stored + converted,
    )


def check_fits(run: RunConfig, processes: int, device: torch.device) -> MemoryEstimate:
    """Estimate the memory of a run and check that it is available.

    Args:
        run: configuration of the run.
        processes: number of processes that share the run.
        device: torch device of this process.

    Raises:
        ValueError: the run does not fit; the message says what would help.
    """
    found = estimate(run, processes, kernels=LAUNCHES and device.type == "cuda")
    if device.type == "cuda":
        room, where = torch.cuda.mem_get_info(device)[0], f"{device}"
    else:
        import psutil

        here = processes if processes == 1 else _processes_of_this_machine(processes)
        room, where = psutil.virtual_memory().available // here, "this machine, for each process"
    if found.total > room:
        raise ValueError(
            f"this run does not fit: it needs {found}, and {where} has {_size(room)} free; use more "
            "processes with sharding=full, a smaller batch, more accumulation, recompute=1, or another preset"
        )
    return found


def _processes_of_this_machine(processes: int) -> int:
    import os

    return int(os.environ.get("LOCAL_WORLD_SIZE", processes))
