"""Is its depth alive? Post-norm encoders of torch, from their defaults, against the number of layers.

python depth_check.py                                        # the verdicts
mms depth-check depth_check:build --depth 6,12,24 --seeds 3  # the same as a table, with an exit code
"""

import torch
from torch import nn

from meanmode.sim.watch.depth_check import depth_check


def build(depth: int) -> tuple[nn.Module, torch.Tensor]:
    """An encoder and a batch of 4 samples of 16 distinct tokens."""
    layer = nn.TransformerEncoderLayer(d_model=64, nhead=4, dim_feedforward=256, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=depth, enable_nested_tensor=False)
    return model, torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(0))


def main() -> None:
    """Print the verdict of each depth, and how alike the tokens are after its last block."""
    for row in depth_check(build, depths=(6, 12, 24), seeds=3)["rows"]:
        last = [profile[-1] for profile in row["tcs"]]
        front = row["front"]["mean"]
        shown = "none" if front is None else f"block {front:.1f} +- {row['front']['std']:.1f}"
        print(f"{row['depth']} layers: {row['said']}; front {shown}; last TCS {sum(last) / len(last):.3f}")


if __name__ == "__main__":
    main()
