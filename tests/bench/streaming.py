"""Training from a large latent store: how long steps wait for their batches, and peak memory.

    python tests/bench/streaming.py [LATENTS]

Writes a store of LATENTS random latents with the geometry of FLUX.2's VAE (128 channels, side 16, 64 kB each;
100,000 by default, 6.6 GB in a temporary folder), a hundred per caption, and trains the preset
`latents-samples` on it for 30 steps in a separate process. Memory is that process's peak resident set, which
excludes the system's file cache. The same steps on a hundredth of the latents serve as the comparison.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from meanmode.dit.config.presets import PRESETS
from meanmode.dit.data.codecs import PatchCodec
from meanmode.dit.data.latent_store import LatentStore, lay_out_latents
from meanmode.dit.data.latents import with_data
from meanmode.dit.data.patch_bases import dct_basis
from meanmode.dit.data.text_encoders import text_encoder
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.store.run_reader import open_run

STEPS, SETTLED = 30, 5
"""Steps per run, and how many of the first ones are ignored."""

SMALLEST = 64
"""Least number of latents that makes a batch."""


def lay_out(path: Path, count: int) -> None:
    """Write a complete store of random latents."""
    captions = ["", *(f"caption {number}" for number in range(count // 100))]
    encoder = text_encoder("labels")
    zeros, ones = np.zeros(128), np.ones(128)
    tensors = {"basis": dct_basis(), "centre": np.zeros(192), "mean": zeros, "std": ones}
    lay_out_latents(
        path,
        latent=(128, 16, 16),
        text=(4, encoder.width),
        captions=captions,
        caption_of=1 + np.arange(count) // 100,
        image_of=np.arange(count),
        codec=PatchCodec("dct", 3, tensors),
        text_encoder=encoder,
        attributes={"encoding": {"images": "random"}, "source": {"side": 256, "digest": "random"}},
    )
    store, generator = LatentStore(path, "r+"), torch.Generator().manual_seed(0)
    for index, part in enumerate(store.parts):
        shape = (len(store.rows(part)), *store.arrays[part[0]].shape[1:])
        store.write(index, torch.randn(shape, generator=generator).half().numpy())


def train(store: Path, out: Path) -> None:
    """Train on a store and print the time per step, the waits and the peak memory."""
    options = {"data": f"latents:{store}", "steps": str(STEPS), "telemetry_every": "0"}
    run = with_data(PRESETS["latents-samples"], options)
    Trainer(run, out).train()
    data = open_run(out)
    waited = data["data_wait_s"].values[SETTLED:]
    spent = float(data["wall_s"].values[-1] - data["wall_s"].values[SETTLED - 1])
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    count = LatentStore(store).arrays["latents"].shape[0]
    print(
        f"{count:8,} latents: {spent / len(waited):.3f} s per step, waiting {waited.sum() / spent:.3%}, "
        f"longest wait {1e3 * waited.max():.2f} ms, largest resident set {resident:.2f} GiB"
    )


def main() -> None:
    if sys.argv[1:2] == ["train"]:
        train(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        for count in (max(largest // 100, SMALLEST), largest):
            store = Path(folder) / f"{count}.zarr"
            lay_out(store, count)
            out = str(Path(folder) / f"run-{count}")
            subprocess.run([sys.executable, __file__, "train", str(store), out], check=True)


if __name__ == "__main__":
    main()
