"""The gated state-space mixer: a scan of the tokens both ways, each with a decay of its own, in O(T)."""

# B batch (behind a leading axis of runs in an ensemble), T tokens, D width, H heads, F features of a head,
# N any number of heads, C tokens of a chunk, K chunks

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from meanmode.sim.trunk.attention import Mixer
from meanmode.sim.trunk.linear import Linear
from meanmode.sim.trunk.segments import Segments

CHUNK = 64
"""Tokens that are mixed by a matrix; from chunk to chunk a state is carried."""


def decay_products(log_decay: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C C"]:
    """prod_{s < k <= t} a_k below the diagonal (t, s), 1 on it, 0 above.

    Sums of logarithms that all start at s, so that no large sums are subtracted and every exponent is
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

    Within a chunk by its matrix of decay products; the last state of a chunk enters the next.
    """
    tokens = values.shape[-2]
    chunk = min(chunk, tokens)
    missing = -tokens % chunk
    log_decay = pad(log_decay, (0, missing)).unflatten(-1, (-1, chunk))
    within = decay_products(log_decay) @ pad(values, (0, 0, 0, missing)).unflatten(-2, (-1, chunk))
    since_start = log_decay.cumsum(-1).exp().unsqueeze(-1)
    state, states = torch.zeros_like(within[..., 0, -1, :]), []
    for place in range(within.shape[-3]):
        states.append(state)
        state = within[..., place, -1, :] + since_start[..., place, -1, :] * state
    carried = since_start * torch.stack(states, dim=-2).unsqueeze(-2)
    return (within + carried).flatten(-3, -2)[..., :tokens, :]


class StateSpace(Mixer):
    """h_t = a_t h_{t-1} + (1 - a_t) v_t, one decay a_t = sigmoid(w x_t + b_h) a head and token (N10).

    An image is not causal: the output is the mean of a scan from the first token to the last and one from the
    last to the first, with the same decays. Tokens are scanned in the order of the sequence, image rows first
    and text behind, with no state between heads. The offsets b_h are constants, as no block has a bias: head
    h keeps 1 - 2^-(h+1) of its state where the projection is silent, a memory of 2, 4, 8, ... tokens. No
    output gate: that is a mixer by itself.

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
        """The logits of the decays."""
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
