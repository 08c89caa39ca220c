"""Watch a post-norm transformer in a plain training loop: `python examples/plain_loop.py [FOLDER]`."""

import sys
import warnings

import torch
from torch import nn

from meanmode import Watch

STEPS, EVERY, TOKENS, WIDTH = 60, 10, 16, 32


class Sorter(nn.Module):
    """Tags every token of a sequence with its rank."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True, dropout=0.0)
        self.embed = nn.Linear(1, WIDTH)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(numbers[..., None])))


def main(folder: str) -> None:
    torch.manual_seed(0)
    warnings.simplefilter("default")
    model = Sorter(depth=12)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    watch = Watch(model, every=EVERY, out=folder)
    for step in range(1, STEPS + 1):
        numbers = torch.randn(32, TOKENS)
        ranks = numbers.argsort(-1).argsort(-1)
        with watch.step(step):
            for x, target in zip(numbers.split(16), ranks.split(16), strict=True):  # two micro-batches
                loss = nn.functional.cross_entropy(model(x).flatten(0, 1), target.flatten())
                (loss / 2).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            watch.log(loss=loss, grad_norm=norm, lr=1e-3)
        optimiser.step()
        optimiser.zero_grad()
        if step % EVERY == 0:
            values = ", ".join(f"{name} {value:.3g}" for name, value in watch.latest.items())
            print(f"step {step}: loss {loss.item():.3f}, {values}")
    watch.close()
    print(f"{folder}: read it with `mms onset {folder}`")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/plain_loop")
