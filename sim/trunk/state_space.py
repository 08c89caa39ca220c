"""The state-space mixer: a bidirectional scan with token-dependent decays, in O(T)."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width, H heads, F features per head,
# N any number of heads, C tokens per chunk

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from meanmode.sim.trunk.attention import Mixer
from meanmode.sim.trunk.linear import Linear
from meanmode.sim.trunk.segments import Segments

CHUNK = 64
"""Tokens per chunk: within a chunk a matrix mixes them, between chunks a state is carried over."""


def decay_products(log_decay: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C C"]:
    """prod_{s < k <= t} a_k below the diagonal (t, s), 1 on it, 0 above.

    Computed from sums of logarithms that all start at s: no large sums are subtracted, and every exponent is
    negative.
    """
    tokens = log_decay.shape[-1]
    lower = torch.ones(tokens, tokens, dtype=torch.bool, device=log_decay.device).tril()
    steps = log_decay.unsqueeze(-1).expand(*log_decay.shape, tokens).masked_fill(~lower.tril(-1), 0.0)
    return steps.cumsum(-2).masked_fill(~lower, -torch.inf).exp()


def scan(
    values: Float[Tensor, "*N T F"], log_decay: Float[Tensor, "*N T"], chunk: int = CHUNK
) -> Float[Tensor, "*N T F"]:
    """h_t = a_t h_{t-1} + v_t with h_0 = 0, a = exp(log_decay) <= 1, in O(T chunk) work.

    Within a chunk, the matrix of decay products mixes the tokens; its last state enters the next chunk.
    """
    tokens = values.shape[-2]
    chunk = min(chunk, tokens)
    missing = -tokens % chunk
    log_decay = pad(log_decay, (0, missing)).unflatten(-1, (-1, chunk))
    within = decay_products(log_decay) @ pad(values, (0, 0, 0, missing)).unflatten(-2, (-1, chunk))
    since_start = log_decay.cumsum(-1).exp().unsqueeze(-1)
    state, states = torch.zeros_like(within[..., 0, -1, :]), []
    for index in range(within.shape[-3]):
        states.append(state)
        state = within[..., index, -1, :] + since_start[..., index, -1, :] * state
    carried = since_start * torch.stack(states, dim=-2).unsqueeze(-2)
    return (within + carried).flatten(-3, -2)[..., :tokens, :]


class StateSpace(Mixer):
    """h_t = a_t h_{t-1} + (1 - a_t) v_t, with a decay a_t = sigmoid(w x_t + b_h) per head and token (N10).

    Images are not causal, so the output is the mean of a forward and a backward scan with the same decays.
    Tokens are scanned in sequence order, image rows first, then text; heads share no state. The offsets b_h
    are constants, as no block has a bias: where the projection is zero, head h keeps 1 - 2^-(h+1) of its
    state, a memory of 2, 4, 8, ... tokens. There is no output gate; gating is a mixer of its own.

    Row t of the matrix sums to 1 - (prod_{s <= t} a_s + prod_{s >= t} a_s) / 2, not to 1.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.decay_proj = Linear(width, heads)
        self.offset: Tensor
        memory = 2.0 ** torch.arange(1, heads + 1)
        self.register_buffer("offset", torch.log(memory - 1), persistent=False)

    @property
    def sources(self) -> tuple[Linear, ...]:
        return (self.decay_proj,)

    def operands(
        self, x: Float[Tensor, "*B T D"], segments: Segments
    ) -> tuple[Float[Tensor, "*B H T _"], ...]:
        """The logits of the decays, [*B, H, T, 1]."""
        return ((self.decay_proj(x) + self.offset).transpose(-1, -2).unsqueeze(-1),)

    def matrix_of(self, *operands: Float[Tensor, "*N T _"]) -> Float[Tensor, "*N T T"]:
        (logit,) = (operand.squeeze(-1) for operand in operands)
        forward = decay_products(logsigmoid(logit))
        backward = decay_products(logsigmoid(logit).flip(-1)).flip(-1, -2)
        return 0.5 * (forward + backward) * torch.sigmoid(-logit).unsqueeze(-2)

    def mix(
        self, values: Float[Tensor, "*B H T F"], *operands: Float[Tensor, "*B H T _"]
    ) -> Float[Tensor, "*B H T F"]:
        (logit,) = operands
        written, log_decay = torch.sigmoid(-logit) * values, logsigmoid(logit).squeeze(-1)
        backward = scan(written.flip(-2), log_decay.flip(-1)).flip(-2)
        return 0.5 * (scan(written, log_decay) + backward)
