"""How does the amplification grow with the tokens? Tokens x adjoint cosine x seeds, forward and backward."""

from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting

TOKEN_LAW = Sweep(
    name="token_law",
    claim="amplification of writer gradients against tokens, for loss adjoints from independent to aligned",
    base=Setting(depth=48, width=256, heads=4, weight_std=0.05, input_cosine=0.0, merge="plain"),
    axes={"tokens": (16, 64, 256), "adjoint_cosine": (0.0, 0.1, 0.5)},
    seeds=16,
    laws=("G1", "A2", "A4", "A5"),
    backward=True,
)
