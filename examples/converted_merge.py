"""Another merge in somebody else's blocks: post-norm encoders of torch, checked before and after.

python converted_merge.py
"""

import torch
from torch import nn

from meanmode import convert
from meanmode.sim.watch.depth_check import depth_check


def build(depth: int) -> tuple[nn.Module, torch.Tensor]:
    """An encoder and a batch of 4 samples of 16 distinct tokens."""
    layer = nn.TransformerEncoderLayer(d_model=64, nhead=4, dim_feedforward=256, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=depth, enable_nested_tensor=False)
    return model, torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(0))


def build_converted(depth: int) -> tuple[nn.Module, torch.Tensor]:
    """The same weights, with MV-Split where trunk and branch are added."""
    model, batch = build(depth)
    return convert(model, "mv_split", batch), batch


def main() -> None:
    """Print the verdict of each depth before and after; it speaks of the start, not of training."""
    for name, make in (("as it is", build), ("with MV-Split", build_converted)):
        for row in depth_check(make, depths=(6, 12, 24), seeds=2)["rows"]:
            last = [profile[-1] for profile in row["tcs"]]
            print(
                f"{row['depth']:2} layers {name}: {row['said']}; TCS at the end {sum(last) / len(last):.3f}"
            )
    model, batch = build(6)
    old = model.state_dict()
    missing = convert(model, "mv_split", batch).load_state_dict(old, strict=False).missing_keys
    print(f"new in the state dict: {', '.join(missing[:4])}, ... ({len(missing)} in all)")


if __name__ == "__main__":
    main()
