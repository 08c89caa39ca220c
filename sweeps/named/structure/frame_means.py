"""MV-Split of a video: one mean for every frame against one global mean, and the plain merge.

Predicted before the sweeps were run, by `GramField.map` at 256 tokens (16 frames of 4 x 4 patches, width 128,
sigma sqrt(D) = 1.41); the forecast of its walk is in the store:

* Plain merge: front at block 3.8. TCS within frames starts at 0.42, that of all tokens at 0.28; the two meet
  at the front.
* MV-Split with the mean channel closed (alpha 0.1, beta 1): no front, either way. TCS of all tokens 0. Within
  frames it is 0 with a global mean and -1/15 with frame means: the tokens of a frame are centered.
* MV-Split with a nearly open mean channel (alpha 0.95, beta 1): front at 11.6 with a global mean, at 9.5 with
  frame means. Frame means protect less: what tells frames apart lies in the centered part of a global
  mean, which is kept, but in the leaking part of frame means, where every frame is drawn to the same mean.
* In between (alpha 0.92) that decides: no front with a global mean (TCS 0.26 to 0.23, near its unstable
  value), a front at 17 with frame means. Near a threshold seeds differ, so: more seeds collapse within 24
  blocks with frame means than with a global mean.
* 4096 tokens (64 frames of 8 x 8 patches; TCS of the input 0.06, within frames 0.22) are beyond the Gram
  recursion. From one cosine: plain 7.2 or earlier, since structured inputs collapse earlier than their
  mean cosine says; alpha 0.8, beta 0.5 with a global mean 9.2 or earlier; with frame means earlier still.
* A of both writers stays below 2 where the mean channel is closed, at both sizes of the mean.
"""

from typing import Any

from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting


def _split(depth: int, alpha: float, beta: float) -> list[dict[str, Any]]:
    """MV-Split with one global mean, and with a mean for every frame."""
    gains = {"depth": depth, "merge": "mv_split", "alpha": alpha, "beta": beta}
    return [{**gains, "frame_means": framed} for framed in (False, True)]


FRAME_MEANS = Sweep(
    name="frame_means",
    claim="front, TCS within frames and amplification of a video under MV-Split with frame means, 256 tokens",
    base=Setting(width=128, heads=2, tokens=256, weight_std=0.125, input="video", frames=16),
    cases=({"depth": 8}, *_split(8, 0.1, 1.0), *_split(20, 0.95, 1.0), *_split(24, 0.92, 1.0)),
    seeds=12,
    laws=("R1", "P1", "A2"),
    backward=True,
)


FRAME_MEANS_LARGEST = Sweep(
    name="frame_means_largest",
    claim="front, TCS within frames and amplification of a video under MV-Split with frame means, 4096 "
    "tokens",
    base=Setting(width=128, heads=2, tokens=4096, weight_std=0.125, input="video", frames=64),
    cases=({"depth": 12}, *_split(14, 0.8, 0.5)),
    seeds=3,
    laws=FRAME_MEANS.laws,
    backward=True,
)
