"""Time of `discover` at 100 and 400 layers, which should be linear in depth. Run with `make bench`."""

import json
import statistics
import time

import torch
from torch import nn

from meanmode.sim.anatomy.autograd_graph import Graph
from meanmode.sim.anatomy.discovery import discover
from meanmode.sim.anatomy.traced_pass import traced
from meanmode.sim.anatomy.untouched import untouched

DEPTHS = (100, 400)
REPEATS = 7
WIDTH, HEADS, TOKENS = 64, 4, 16


def encoder(depth: int) -> nn.Module:
    """A stock encoder of torch."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def timed(depth: int) -> tuple[float, float, int]:
    """Median seconds of `discover`, and of the forward pass with its record alone; nodes of the graph."""
    model, x = encoder(depth), torch.randn(2, TOKENS, WIDTH)
    whole, forward, nodes = [], [], 0
    for _ in range(REPEATS):
        start = time.perf_counter()
        assert len(discover(model, x).writers) == 2 * depth
        whole.append(time.perf_counter() - start)
        with untouched(model):
            start = time.perf_counter()
            trace = traced(model, x)
            forward.append(time.perf_counter() - start)
            nodes = len(Graph(trace.roots).nodes)
    return statistics.median(whole), statistics.median(forward), nodes


if __name__ == "__main__":
    torch.set_num_threads(1)
    seconds = {}
    for layers in DEPTHS:
        seconds[layers], passed, size = timed(layers)
        print(f"{layers} layers, {size} nodes: {seconds[layers]:.3f} s, of which the pass {passed:.3f} s")
    few, many = DEPTHS
    print(json.dumps({f"time of discover at {many} layers over that at {few}": seconds[many] / seconds[few]}))
