"""A DiT of diffusers learns to draw digits by flow matching: `python examples/diffusers_dit.py [FOLDER]`."""

import sys
import warnings

import torch
from diffusers import DiTTransformer2DModel
from sklearn.datasets import load_digits

from meanmode import Watch

STEPS, EVERY, BATCH = 60, 10, 32


def main(folder: str) -> None:
    torch.manual_seed(0)
    warnings.simplefilter("default")
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # 8 x 8 pixels in [-1, 1]
    labels = torch.tensor(digits.target)
    model = DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=8,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    watch = Watch(model, every=EVERY, out=folder)
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(images), (BATCH,))
        noise, time = torch.randn(BATCH, 1, 8, 8), torch.rand(BATCH)
        mixed = torch.lerp(images[chosen], noise, time[:, None, None, None])
        with watch.step(step):
            velocity = model(mixed, timestep=1000 * time, class_labels=labels[chosen]).sample
            loss = (velocity - (noise - images[chosen])).square().mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            watch.log(loss=loss, grad_norm=norm, lr=1e-3)
        optimiser.step()
        optimiser.zero_grad()
        if step % EVERY == 0:
            values = ", ".join(f"{name} {value:.3g}" for name, value in watch.latest.items())
            print(f"step {step}: loss {loss.item():.3f}, {values}")
    watch.close()
    print(f"{folder}: read it with `mms onset {folder}`")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/diffusers_dit")
