"""The single-stream diffusion transformer: embedded image and text tokens, the trunk, velocities."""

# B batch (after a leading axis of runs in an ensemble), C channels, H height, W width of a latent,
# P side of a patch, T image tokens, S text tokens, N both, D width

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from torch.utils.checkpoint import checkpoint

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.model.flow import random_stream
from meanmode.sim.trunk.linear import Linear
from meanmode.sim.trunk.segments import Segments, replicate_tokens
from meanmode.sim.trunk.stack import Block

WEIGHTS_STREAM = 0
"""First word of the key of every random stream that gives weights."""


class PatchEmbedding(nn.Module):
    """One token per patch of a latent: a convolution whose stride equals its size, as a matrix product.

    The weight is [D, C P P] with the features of a patch in the order (channel, row, column): the published
    Conv2d weight, flattened.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.patch_proj = Linear(config.patch_features, config.width, bias=True)

    def forward(self, latents: Float[Tensor, "*B C H W"]) -> Float[Tensor, "*B T D"]:
        """Embed the patches of latents as tokens in row-major order."""
        grid = latents.unflatten(-1, (-1, self.patch)).unflatten(-3, (-1, self.patch))
        # [*B, C, rows, P, columns, P] -> [*B, rows, columns, C, P, P]
        patches = _reordered(grid, (1, 3, 0, 2, 4))
        return self.patch_proj(patches.flatten(-3).flatten(-3, -2))


def _reordered(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Permute the trailing axes and keep the leading ones in place."""
    lead = x.ndim - len(order)
    return x.permute(*range(lead), *(lead + axis for axis in order))


class DiT(nn.Module):
    """Velocities of noisy latents given text: no time embedding, no modulation (arXiv:2605.06169 section 3).

    Image and text tokens are embedded, normalised separately and concatenated, image first. The trunk is that
    of `meanmode.sim.trunk.stack`; the final projection reads its image tokens as the branches do
    (`Merge.read`).

    Args:
        config: sizes, merge and mixer of the network. Weights are drawn with seed 0; `reset_parameters`
            redraws them.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        width, text_width = config.width, config.text_width
        self.context_proj = None if text_width == width else Linear(text_width, width)
        self.blocks = nn.ModuleList(new_block(config) for _ in range(config.depth))
        self.final_proj = Linear(width, config.patch_features, bias=True)
        self.recompute = (0, 1)
        if not self.final_proj.weight.is_meta:
            self.reset_parameters(0)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Redraw all weights; those of a block depend only on the seed and the number of the block."""
        self.reset_ends(seed)
        for number, block in enumerate(self.blocks, start=1):
            block.reset_parameters(weight_stream(seed, number))

    @torch.no_grad()
    def reset_ends(self, seed: int) -> None:
        """Redraw the embeddings and the final projection, and set their biases to zero."""
        stream = weight_stream(seed, 0)
        embeddings = (self.patch_embed.patch_proj, self.context_proj)
        of = [(layer, self.config.weight_std) for layer in embeddings if layer is not None]
        for layer, std in (*of, (self.final_proj, self.config.head_std)):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=stream).mul_(std))
            if layer.bias is not None:
                layer.bias.zero_()

    def embed(
        self, latents: Float[Tensor, "*B C H W"], text: Float[Tensor, "*B S W_text"]
    ) -> tuple[Float[Tensor, "*B T D"], Segments]:
        """Return X_0, each segment normalised separately, and its numbers of image and text tokens.

        Raises:
            ValueError: latents or texts have the wrong shape.
        """
        config = self.config
        expected = (config.channels, config.side, config.side)
        if latents.ndim < 4 or tuple(latents.shape[-3:]) != expected:
            raise ValueError(
                f"latents must be [batch, {', '.join(map(str, expected))}], got {list(latents.shape)}"
            )
        if text.shape[:-2] != latents.shape[:-3] or text.shape[-1] != config.text_width:
            batch = list(latents.shape[:-3])
            raise ValueError(
                f"texts must be {[*batch, 'tokens', config.text_width]} for latents of batch {batch}, "
                f"got {list(text.shape)}"
            )
        image = self.patch_embed(latents)
        words = text.to(latents.dtype)  # text may be stored in half precision
        if self.context_proj is not None:
            words = self.context_proj(words)
        parts = [
            rms_norm(part.to(latents.dtype), (config.width,), eps=config.input_eps) for part in (image, words)
        ]
        segments: Segments = (image.shape[-2], text.shape[-2])
        x = torch.cat(parts, dim=-2)
        return replicate_tokens(x, segments, config.copies) if config.copies > 1 else (x, segments)

    def trunk(
        self, latents: Float[Tensor, "*B C H W"], text: Float[Tensor, "*B S W_text"]
    ) -> Float[Tensor, "*B N D"]:
        """Return x_L, the state after the last block."""
        return self._trunk(*self.embed(latents, text))

    def _trunk(self, x: Tensor, segments: Segments) -> Tensor:
        again, of = self.recompute
        for index, block in enumerate(self.blocks):
            if index % of < again and torch.is_grad_enabled():
                x = checkpoint(block, x, segments, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, segments)
        return x

    def forward(
        self, latents: Float[Tensor, "*B C H W"], text: Float[Tensor, "*B S W_text"]
    ) -> Float[Tensor, "*B C H W"]:
        """Predict the velocity v = x0 - x1 of every latent.

        Args:
            latents: noisy latents z_t.
            text: any number of text tokens of the condition.

        Raises:
            ValueError: latents or texts have the wrong shape.
        """
        x = self.trunk(latents, text)
        copies = self.config.copies
        image = x[..., : copies * self.config.image_tokens : copies, :]
        if len(self.blocks):
            image = self.blocks[-1].merge_ffn.read(image)
        return self._unpatched(self.final_proj(image))

    def _unpatched(self, tokens: Tensor) -> Tensor:
        """Assemble latents from patches whose features are in the order (row, column, channel)."""
        config = self.config
        rows = config.side // config.patch
        patches = tokens.unflatten(-1, (config.patch, config.patch, config.channels))
        grid = patches.unflatten(-4, (rows, rows))
        # [*B, rows, columns, P, P, C] -> [*B, C, rows, P, columns, P]; one reshape: FSDP2 allows no view here
        return _reordered(grid, (4, 0, 2, 1, 3)).reshape(
            *tokens.shape[:-2], config.channels, config.side, config.side
        )


def new_block(config: DiTConfig) -> Block:
    """Build a block of the network without drawing its weights."""
    return Block(config.setting(), merge_eps=config.merge_eps, qk_eps=config.qk_eps)


def weight_stream(seed: int, block: int) -> torch.Generator:
    """Return the random stream of a block's weights; block 0 stands for everything outside the blocks."""
    return random_stream(seed, WEIGHTS_STREAM, block)


def materialised(
    config: DiTConfig,
    seed: int,
    device: torch.device,
    placed: Callable[[nn.Module], object] = lambda module: None,
) -> DiT:
    """Build a network with fresh weights block by block, so that no process holds more than its own share.

    Args:
        config: sizes, merge and mixer of the network.
        seed: seed of the weights.
        device: device of the weights.
        placed: called with each block once it is on the device, then with the network (FSDP2 shards there).
    """
    with torch.device("meta"):
        network = DiT(config)
    for ends in (network.patch_embed, network.context_proj, network.final_proj):
        if ends is not None:
            ends.to_empty(device=device)
    network.reset_ends(seed)
    for number in range(1, config.depth + 1):
        with device:
            block = new_block(config)
        block.reset_parameters(weight_stream(seed, number))
        placed(block)
        network.blocks[number - 1] = block
    placed(network)
    return network
