"""Cost of watching a training step, beside the same step unwatched. Run with `python tests/bench/watch.py`.

Prints, for each number of micro-batches, the median seconds of a step without a watch, of a measured step
and of a step between measurements, taken in turns, and as a JSON line what `every=1` and `every=100` multiply
the time by.
"""

import json
import statistics
import sys
import time
from functools import partial

import torch
from torch import Tensor, nn

from meanmode import Watch

DEPTH, WIDTH, TOKENS, BATCH, ROUNDS, EVERY = 4, 256, 128, 8, 8, 100


def train(model: nn.Module, batch: Tensor, optimiser: torch.optim.Optimizer, passes: int) -> None:
    """Forward and backward passes of a step."""
    for _ in range(passes):
        (model(batch).square().mean() / passes).backward()


def seconds(work: partial[None], optimiser: torch.optim.Optimizer) -> float:
    """Time of a step, its update included."""
    start = time.perf_counter()
    work()
    optimiser.step()
    optimiser.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def watched(watch: Watch, step: int, work: partial[None]) -> None:
    """The same inside a watch."""
    with watch.step(step):
        work()


def main() -> None:
    """Print the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True, norm_first=True, device=device)
    model = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
    batch = torch.randn(BATCH, TOKENS, WIDTH, device=device)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
    print("passes  bare_s  measured_s  between_s")
    for passes in (1, 2):
        work = partial(train, model, batch, optimiser, passes)
        watch = Watch(model, every=EVERY)
        seconds(partial(watched, watch, 1, work), optimiser)
        found: dict[str, list[float]] = {"bare": [], "measured": [], "between": []}
        for number in range(1, ROUNDS + 1):
            found["bare"].append(seconds(work, optimiser))
            found["measured"].append(seconds(partial(watched, watch, EVERY * number, work), optimiser))
            watch.step(EVERY * number + 1)  # the size of the update is taken in the step that follows
            found["between"].append(seconds(partial(watched, watch, EVERY * number + 2, work), optimiser))
            print(f"\r{number}/{ROUNDS}", end="", file=sys.stderr)
        bare, measured, between = (statistics.median(times) for times in found.values())
        often, seldom = measured / bare, ((EVERY - 1) * bare + measured) / (EVERY * bare)
        print(f"\r{passes:6d}{bare:8.3f}{measured:12.3f}{between:11.3f}", flush=True)
        of = f"micro-batches {passes}: time of a step with a watch over one without"
        print(json.dumps({f"{of}, every=1": often, f"{of}, every=100": seldom}))


if __name__ == "__main__":
    main()
