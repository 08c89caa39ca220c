"""The frozen FLUX.2 VAE, loaded from a folder by diffusers' AutoencoderKLFlux2."""

# B batch, H height, W width of an image, C channels, h height, w width of a latent

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from meanmode.dit.data.model_folders import model_config
from meanmode.sim.store.files import file_digest, first_line

WHAT = "the FLUX.2 VAE"


WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")
"""Patterns of the weight files that diffusers reads: a single file, or several shards."""


class Flux2VAE:
    """Encode RGB images in [0, 1] to normalised latents and decode them, in float32.

    The latent is the mode of the posterior, so encoding is deterministic. Each 2 x 2 group of positions is
    stacked in the layout of diffusers' `Flux2Pipeline`, channel 4 c + 2 y + x, and normalised as there: by
    the running mean and variance of `bn`, with its `batch_norm_eps` added to the variance.

    Args:
        path: folder that contains `config.json` and safetensors.

    Attributes:
        channels: channels of a latent; 128 for the released VAE.
        factor: pixels per latent position along each side; 16 for the released VAE.
        config: configuration of the network as stored in the folder, without diffusers' own entries.
        files: SHA-256 of every weight file.

    Raises:
        ValueError: diffusers is not installed, or the folder is missing or has no complete RGB VAE.
    """

    def __init__(self, path: Path) -> None:
        self._network = _read(path)
        # read from the file, since diffusers adds defaults that depend on its version
        stored = model_config(path, WHAT)
        self.config = {name: value for name, value in stored.items() if not name.startswith("_")}
        self.files = {
            file.name: file_digest(file) for pattern in WEIGHTS for file in sorted(path.glob(pattern))
        }
        config = self._network.config
        colours, patch = config["in_channels"], config["patch_size"]
        if colours != 3 or not isinstance(patch, list | tuple) or list(patch) != [patch[0]] * 2:
            raise ValueError(
                f"the VAE in {path} must encode RGB and stack square groups of positions, got "
                f"in_channels {colours} and patch_size {patch}"
            )
        self._merged = patch[0]
        self.channels = config["latent_channels"] * self._merged**2
        # every block but the last halves the sides
        self.factor = 2 ** (len(config["block_out_channels"]) - 1) * self._merged

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Encode images on their own device."""
        found = self._network.to(images.device).encode(2 * images.float() - 1)
        mean, std = self._moments()
        return (pixel_unshuffle(found.latent_dist.mode(), self._merged) - mean) / std

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode latents on their own device, without clamping."""
        network = self._network.to(latents.device)
        mean, std = self._moments()
        return network.decode(pixel_shuffle(latents.float() * std + mean, self._merged)).sample / 2 + 0.5

    def _moments(self) -> tuple[Float[Tensor, "C 1 1"], Float[Tensor, "C 1 1"]]:
        running = self._network.bn
        std = (running.running_var + self._network.config["batch_norm_eps"]).sqrt()
        return running.running_mean[:, None, None], std[:, None, None]


def _read(path: Path) -> Any:
    """Load the frozen network of a folder in float32.

    Raises:
        ValueError: diffusers is not installed, or the folder is missing or has no complete VAE.
    """
    try:
        from diffusers import AutoencoderKLFlux2
    except ImportError as error:
        raise ValueError("the FLUX.2 VAE needs diffusers: pip install '.[eval]'") from error
    # diffusers would take a path that is not a folder for a name on the hub
    if not path.is_dir():
        raise ValueError(f"folder {path} does not exist: give the folder of {WHAT}")
    model_config(path, WHAT)
    try:
        network, found = AutoencoderKLFlux2.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # a damaged file may raise anything, depending on the library that reads it
        raise ValueError(f"{path} has no readable AutoencoderKLFlux2: {first_line(error)}") from error
    # diffusers initialises missing weights at random
    wrong = [*found["missing_keys"], *found["unexpected_keys"]]
    wrong += [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    if wrong:
        raise ValueError(
            f"{path} has no complete AutoencoderKLFlux2: {wrong[0]} is missing, unknown or not finite"
        )
    return network.float().eval().requires_grad_(False)
