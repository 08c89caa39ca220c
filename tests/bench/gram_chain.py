"""The chain of law E4 against the network: fronts of `structured_fronts`, segments, positions, causal masks.

`python tests/bench/gram_chain.py predict` writes what the theory says to `gram_chain.json`, once, before any
network is run; `... measure` runs the networks, on seeds of their own, and adds what they do. The scores:
`exact` against the fronts of the sweep (paper_figs/data/structured_fronts.zarr), and `walk` against the
profiles of each case of `CASES`.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize, scaled_dot_product_attention
from tqdm import tqdm

import meanmode.sim.trunk.attention
from meanmode.sim.onset.measured_front import collapse_front
from meanmode.sim.simulate import stream
from meanmode.sim.store.provenance import provenance
from meanmode.sim.trunk.stack import Block, synthetic_input
from meanmode.sweeps.named.structure.structured_fronts import STRUCTURED_FRONTS
from meanmode.theory.meanfield.gram import GramField
from meanmode.theory.setting import Setting

Array = NDArray[np.float64]
OUT = Path(__file__).parents[2] / "paper_figs" / "data" / "gram_chain.json"
EXACT, WALK, SEEDS = 256, 128, 64
FIRST_SEED = 9000
BASE = Setting(depth=56, tokens=64, width=128, heads=4, weight_std=0.0625)
SPLIT = {"merge": "mv_split", "alpha": 0.95, "beta": 0.5, "weight_std": 0.0884, "depth": 40}

CASES: dict[str, tuple[dict[str, Any], bool]] = {
    **{f"image and text, {of}": ({"input": of, "text_tokens": 16}, False) for of in ("photo", "clusters")},
    **{
        f"MV-Split by segment, {of}": ({"input": of, "text_tokens": 8, **SPLIT}, False)
        for of in ("photo", "clusters")
    },
    **{f"RoPE, {of}": ({"input": of, "rope": True}, False) for of in ("photo", "clusters")},
    "RoPE, gaussian": ({"rope": True, "depth": 80}, False),
    "state space, photo": ({"input": "photo", "mixer": "state_space"}, False),
    "gated, clusters": ({"input": "clusters", "mixer": "gated"}, False),
    **{f"causal, {of}": ({"input": of, "depth": 80}, True) for of in ("photo", "clusters")},
    "causal, gaussian": ({"depth": 110}, True),
}
"""Name -> fields of the setting, and whether token i sees only tokens up to i."""


def fields(name: str) -> tuple[Setting, bool]:
    """The setting of a case."""
    given, causal = CASES[name]
    return dataclasses.replace(BASE, **given), causal


def predicted(name: str) -> dict[str, Any]:
    """Front and profiles [L + 1, S] of a case by the walk."""
    setting, causal = fields(name)
    tokens = sum(setting.segments)
    walked = GramField(setting, mask=np.tri(tokens) if causal else None).walk(WALK)
    return {
        "front": walked.front,
        "front_std": walked.front_std,
        "tcs": np.round(walked.segment_tcs, 4).tolist(),
    }


def measured(name: str) -> dict[str, Any]:
    """Fronts and mean profiles [L + 1, S] of the network."""
    setting, causal = fields(name)
    if causal:
        meanmode.sim.trunk.attention.scaled_dot_product_attention = functools.partial(
            scaled_dot_product_attention, is_causal=True
        )
    block, fronts, profiles = Block(setting), [], []
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + SEEDS), desc=name, file=sys.stderr, leave=False):
        profile = _profile(block, setting, seed)
        profiles.append(profile)
        front = collapse_front(profile[:, 0])
        fronts.append(np.nan if front is None else front)
    meanmode.sim.trunk.attention.scaled_dot_product_attention = scaled_dot_product_attention
    return {"fronts": np.round(fronts, 3).tolist(), "tcs": np.round(np.mean(profiles, axis=0), 4).tolist()}


@torch.inference_mode()
def _profile(block: Block, setting: Setting, seed: int) -> Array:
    x = synthetic_input(setting, stream(setting, seed, 0))
    seen = [_segments(x[0], setting)]
    for index in range(1, setting.depth + 1):
        block.reset_parameters(stream(setting, seed, index))
        x = block(x, setting.segments)
        seen.append(_segments(x[0], setting))
    return np.array(seen)


def _segments(tokens: torch.Tensor, setting: Setting) -> list[float]:
    parts = normalize(tokens.double(), dim=-1).split([count for count in setting.segments if count])
    return [(float((part.sum(0) ** 2).sum()) / len(part) - 1) / (len(part) - 1) for part in parts]


def predict() -> dict[str, Any]:
    """Everything that the theory says, for the file."""
    chain = []
    for setting in tqdm(STRUCTURED_FRONTS.settings, desc="exact", file=sys.stderr):
        drawn = GramField(setting).exact(EXACT)
        varied = {name: getattr(setting, name) for name in STRUCTURED_FRONTS.varied}
        chain.append({**varied, "front": drawn.front, "front_std": drawn.front_std, "n": EXACT})
    cases = {name: {"predicted": predicted(name)} for name in tqdm(CASES, desc="walk", file=sys.stderr)}
    return {"statement": __doc__, **provenance(), "exact": chain, "cases": cases}


def scores(document: dict[str, Any]) -> list[str]:
    """One line per case."""
    lines = []
    for name, case in document["cases"].items():
        theory, network = (np.array(case[side]["tcs"]) for side in ("predicted", "measured"))
        fronts = np.array(case["measured"]["fronts"])
        rms, front = np.sqrt(np.mean((theory - network) ** 2)), case["predicted"]["front"]
        seen = f"{np.nanmean(fronts):.1f}" if np.isfinite(fronts).all() else "none in every seed"
        lines.append(f"{name}: TCS rms {rms:.3f}; front {front and round(front, 1)}, measured {seen}")
    return lines


if __name__ == "__main__":
    if sys.argv[1:] == ["predict"]:
        if OUT.exists():
            sys.exit(f"{OUT.name} exists: a prediction is written once")
        OUT.write_text(json.dumps(predict()))
    elif sys.argv[1:] == ["measure"]:
        document = json.loads(OUT.read_text())
        for name, case in document["cases"].items():
            case["measured"] = measured(name)
            OUT.write_text(json.dumps(document))
        print("\n".join(scores(document)))
    else:
        sys.exit("usage: gram_chain.py predict|measure")
