"""A training step of the diffusion transformer, against a plain one and with telemetry; part of `make bench`.

The plain eager implementation has the same weights, and outputs are compared before anything is timed. The
cost of telemetry is measured on the trainer's own steps, each of them observed and stored. `--json FILE` also
writes the ratios to a file.
"""

import argparse
import contextlib
import datetime
import io
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from simulator import REPEATS, ratios
from torch import Tensor, nn
from torch.nn import functional as F

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.model.flow import flow_losses
from meanmode.dit.model.network import DiT
from meanmode.dit.train.optimiser import Optimiser
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.train.allocator import keep_freed_memory

BATCH = 4
MODELS = {
    merge: DiTConfig(
        depth=64,
        width=256,
        heads=4,
        channels=4,
        side=16,
        patch=2,
        text_tokens=8,
        text_width=64,
        writer_std=None,
        merge=merge,
        alpha=0.1,
        beta=0.5,
    )
    for merge in ("plain", "mv_split")
}
TRAINING = TrainingConfig()

MEASURED = [
    RunConfig(
        model=DiTConfig(depth=16, width=width, heads=heads, text_width=width, side=side),
        training=TrainingConfig(batch=batch, stop_on="never", telemetry_every=1, interval=16),
    )
    for width, heads, batch, side in ((64, 4, 64, 8), (32, 2, 32, 16))
]
CHOSEN = ("tcs", "g_mean", "g_ctr", "amplification", "kappa_abs", "grad_rms_q", "grad_rms_k")
TELEMETRY: dict[str, dict[str, object]] = {
    "none": {"telemetry_every": 0},
    ", ".join(CHOSEN): {"observables": CHOSEN},
    "all observables": {},
}
FIRST, TIMED = 4, 8
"""Number of first steps of a run that do not count, and of those that do."""


class PlainBlock(nn.Module):
    """The block of arXiv:2605.06169 in plain PyTorch, with a plain or MV-Split merge."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.setting().ffn_width
        self.heads, self.image, self.split = config.heads, config.image_tokens, config.merge == "mv_split"
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.w13, self.w2 = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)
        if self.split:
            self.alphas = nn.ParameterList(torch.full((width,), config.alpha) for _ in range(2))
            self.betas = nn.ParameterList(torch.full((width,), config.beta) for _ in range(2))

    def segment_mean(self, x: Tensor) -> Tensor:
        image, text = x[:, : self.image], x[:, self.image :]
        means = [part.mean(1, keepdim=True).expand_as(part) for part in (image, text)]
        return torch.cat(means, dim=1)

    def merge(self, x: Tensor, branch: Tensor, sublayer: int) -> Tensor:
        if self.split:
            mean = self.segment_mean(branch)
            merged = x + self.betas[sublayer] * (branch - mean)
            merged = merged + self.alphas[sublayer] * (mean - self.segment_mean(x))
        else:
            merged = x + branch
        return F.rms_norm(merged, merged.shape[-1:], eps=1e-5)

    def head_norm(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((first * cos + second * sin, -first * sin + second * cos), dim=-1)
        return F.rms_norm(turned, turned.shape[-1:], eps=1e-6)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(self.head_norm(q, cos, sin), self.head_norm(k, cos, sin), v)
        x = self.merge(x, self.o(mixed.transpose(1, 2).reshape(batch, tokens, width)), 0)
        gate, value = self.w13(x).chunk(2, dim=-1)
        return self.merge(x, self.w2(F.silu(gate) * value), 1)


class PlainDiT(nn.Module):
    """The diffusion transformer of arXiv:2605.06169 in plain PyTorch, independent of `dit` and `sim`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)
        self.context = nn.Linear(config.text_width, config.width, bias=False)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.depth))
        self.final = nn.Linear(config.width, config.patch**2 * config.channels)
        half = config.width // config.heads // 2
        frequencies = 10000.0 ** (-2 * torch.arange(half // 2) / half)
        rows, columns = torch.meshgrid(*[torch.arange(config.side // config.patch)] * 2, indexing="ij")
        angles = torch.cat([place.reshape(-1, 1) * frequencies for place in (rows, columns)], dim=1)
        angles = torch.cat([angles, torch.zeros(config.text_tokens, half)])
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        image = self.embed(latents).flatten(2).transpose(1, 2)
        parts = [F.rms_norm(part, part.shape[-1:], eps=1e-5) for part in (image, self.context(text))]
        x = torch.cat(parts, dim=1)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        patches = self.final(x[:, : image.shape[1]])
        side, patch = math.isqrt(image.shape[1]), self.config.patch
        patches = patches.view(len(x), side, side, patch, patch, -1)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(latents.shape)


def same_weights(plain: PlainDiT, ours: DiT) -> None:
    """Copy the weights of our network to the plain one; the gains of its merges start equal."""
    pairs = [
        (plain.embed.weight.flatten(1), ours.patch_embed.patch_proj.weight),
        (plain.embed.bias, ours.patch_embed.patch_proj.bias),
        (plain.context.weight, ours.context_proj.weight),
        (plain.final.weight, ours.final_proj.weight),
        (plain.final.bias, ours.final_proj.bias),
    ]
    for plain_block, block in zip(plain.blocks, ours.blocks, strict=True):
        operator, ffn = block.operator, block.ffn
        layers = (operator.q_proj, operator.k_proj, operator.v_proj, operator.proj, ffn.w13, ffn.w2)
        plain_layers = (getattr(plain_block, name) for name in ("q", "k", "v", "o", "w13", "w2"))
        pairs += [(to.weight, of.weight) for to, of in zip(plain_layers, layers, strict=True)]
    with torch.no_grad():
        for to, of in pairs:
            to.copy_(of)


def plain_step(network: nn.Module, optimiser: torch.optim.Optimizer, sample: list[Tensor]) -> None:
    noisy, text, clean, noise = sample
    F.mse_loss(network(noisy, text), clean - noise).backward()
    nn.utils.clip_grad_norm_(network.parameters(), TRAINING.clip)
    optimiser.step()
    optimiser.zero_grad()


def our_step(network: nn.Module, optimiser: Optimiser, sample: list[Tensor]) -> None:
    """A step as the trainer makes it, which also computes the gradient norm of every parameter."""
    noisy, text, clean, noise = sample
    flow_losses(network(noisy, text), clean, noise).mean().backward()
    _, total = optimiser.gradient_norms()
    optimiser.clip(total)
    optimiser.step(TRAINING.rate)
    optimiser.zero_grad()


def decayed(network: nn.Module) -> list[dict[str, object]]:
    """Parameter groups with weight decay on matrices only."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim == 1]
    return [
        {"params": matrices, "weight_decay": TRAINING.weight_decay},
        {"params": vectors, "weight_decay": 0},
    ]


def times(config: DiTConfig) -> dict[str, float]:
    """Time of each implementation's training step relative to ours."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, BATCH, config.channels, config.side, config.side, generator=generator)
    text = torch.randn(BATCH, config.text_tokens, config.text_width, generator=generator)
    sample = [(clean + noise) / 2, text, clean, noise]
    ours = DiT(config)
    work: dict[str, Callable[[], object]] = {}
    optimiser = Optimiser(ours, TRAINING)
    work["ours"] = lambda: our_step(ours, optimiser, sample)
    for name, options in (("plain, torch.optim.AdamW", {}), ("plain, fused AdamW", {"fused": True})):
        plain = PlainDiT(config)
        same_weights(plain, ours)
        with torch.no_grad():
            torch.testing.assert_close(ours(*sample[:2]), plain(*sample[:2]), rtol=1e-5, atol=1e-5)
        adamw = torch.optim.AdamW(decayed(plain), lr=TRAINING.rate, **options)
        work[name] = lambda plain=plain, adamw=adamw: plain_step(plain, adamw, sample)
    return ratios(work, "cpu")


def seconds(run: RunConfig, steps: int) -> float:
    """CPU time of a training of this many steps; on a shared machine, wall times vary too much."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        trainer = Trainer(run.with_fields({"steps": steps}), Path(folder) / "run")
        start = time.process_time()
        trainer.train()
        return time.process_time() - start


def telemetry_ratios(run: RunConfig) -> dict[str, float]:
    """CPU time of a step with each kind of telemetry relative to one without; medians, in rotating order."""
    times: dict[str, list[float]] = {name: [] for name in TELEMETRY}
    names = list(TELEMETRY)
    for repeat in range(REPEATS):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            measured = run.with_fields(TELEMETRY[name])
            times[name].append(seconds(measured, FIRST + TIMED) - seconds(measured, FIRST))
    bare = statistics.median(times["none"])
    return {name: statistics.median(of) / bare for name, of in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Also write the ratios to this file.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `mms` does
    results: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
    }
    for merge, config in MODELS.items():
        tokens = f"T = {config.image_tokens} + {config.text_tokens}"
        sizes = f"L = {config.depth}, D = {config.width}, {tokens}, B = {BATCH}"
        results[f"time of a training step relative to ours, {merge} merge, {sizes}"] = times(config)
    for run in MEASURED:
        model = run.model
        tokens = f"T = {model.image_tokens} + {model.text_tokens}"
        sizes = f"L = {model.depth}, D = {model.width}, {tokens}, B = {run.training.batch}"
        results[f"time of a measured step relative to a bare one, {sizes}"] = telemetry_ratios(run)
    text = json.dumps(results, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
