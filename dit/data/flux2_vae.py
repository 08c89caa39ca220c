"""The frozen VAE of FLUX.2, as diffusers' AutoencoderKLFlux2 reads it from a folder."""

# B batch, H height, W width of an image, C channels, h height, w width of a latent

import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from meanmode.sim.store.files import file_digest, first_line

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")
"""Names of the files that diffusers reads: one, or several shards."""


class Flux2VAE:
    """Normalised latents of RGB images in [0, 1], and images of latents, in float32.

    The latent is the mode of the posterior, so that encoding draws no numbers. Positions of 2 x 2 are stacked
    in the layout of diffusers' `Flux2Pipeline`, channel 4 c + 2 y + x, and normalised as there: by the
    running mean and variance of `bn`, its `batch_norm_eps` added to the variance.

    Args:
        path: the folder, which holds `config.json` and safetensors.

    Attributes:
        channels: of a latent; 128 of the released VAE.
        factor: pixels of a side per position of a latent; 16 of the released VAE.
        config: the network's, as it is in the folder, without the entries of diffusers itself.
        files: SHA-256 of every file of weights.

    Raises:
        ValueError: diffusers is not installed, or the folder is absent or holds no whole VAE for RGB.
    """

    def __init__(self, path: Path) -> None:
        self._network = _read(path)
        # of the file, since diffusers adds defaults, which may be more in another version
        stored = json.loads((path / "config.json").read_text())
        self.config = {name: value for name, value in stored.items() if name[0] != "_"}
        self.files = {
            file.name: file_digest(file) for pattern in WEIGHTS for file in sorted(path.glob(pattern))
        }
        config = self._network.config
        colours, (self._merged, *others) = config["in_channels"], config["patch_size"]
        if colours != 3 or others != [self._merged]:
            raise ValueError(
                f"the VAE of {path} must encode RGB and stack squares of positions, got "
                f"in_channels {colours} and patch_size {[self._merged, *others]}"
            )
        self.channels = config["latent_channels"] * self._merged**2
        # every block but the last halves the sides
        self.factor = 2 ** (len(config["block_out_channels"]) - 1) * self._merged

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Latents, computed where the images lie."""
        found = self._network.to(images.device).encode(2 * images.float() - 1)
        mean, std = self._moments()
        return (pixel_unshuffle(found.latent_dist.mode(), self._merged) - mean) / std

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images, not clamped, computed where the latents lie."""
        network = self._network.to(latents.device)
        mean, std = self._moments()
        return network.decode(pixel_shuffle(latents.float() * std + mean, self._merged)).sample / 2 + 0.5

    def _moments(self) -> tuple[Float[Tensor, "C 1 1"], Float[Tensor, "C 1 1"]]:
        running = self._network.bn
        std = (running.running_var + self._network.config["batch_norm_eps"]).sqrt()
        return running.running_mean[:, None, None], std[:, None, None]


def _read(path: Path) -> Any:
    """The network of a folder in float32, frozen.

    Raises:
        ValueError: no diffusers, no such folder, or one that holds no whole VAE.
    """
    try:
        from diffusers import AutoencoderKLFlux2
    except ImportError as error:
        raise ValueError("FLUX.2's VAE comes with diffusers: pip install '.[eval]'") from error
    # diffusers would take the path of no folder for a name on its hub
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}: name the one that holds FLUX.2's VAE")
    try:
        network, found = AutoencoderKLFlux2.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # what a damaged file raises is up to the library that reads it
        raise ValueError(f"{path} holds no readable AutoencoderKLFlux2: {first_line(error)}") from error
    # diffusers draws at random what a file lacks
    wrong = [*found["missing_keys"], *found["unexpected_keys"]]
    wrong += [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    if wrong:
        raise ValueError(
            f"{path} holds no whole AutoencoderKLFlux2: {wrong[0]} is missing, unknown or not finite"
        )
    return network.float().eval().requires_grad_(False)
