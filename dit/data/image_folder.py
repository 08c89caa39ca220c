"""Images in a folder and its sub-folders, whose names are the classes."""

# K colours (1 grey, 3 RGB), H height, W width of an image

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.dit.data.held_out import part_of
from meanmode.sim.store.files import StoreError, first_line, reason
from meanmode.sim.store.regular_files import files_under, open_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are decoded; Pillow knows others, some of which start programs."""


class ImageFolder:
    """Images in a folder and its sub-folders, sorted by path, cropped to a square and resized to one side.

    Classes are the names of the sub-folders that directly contain images, provided that every image is in a
    sub-folder. Links are followed, but every file counts once, under the first of its names, so that no image
    is both trained on and held out. The central square of an image is taken, as for class-conditional
    ImageNet, and scaled by a bicubic filter whose support grows with the reduction. The digest covers paths
    and file sizes, not file contents, since reading those would take longer than encoding.

    Raises:
        ValueError: the folder is missing, cannot be searched or contains no images.
    """

    colours = 3

    def __init__(self, folder: Path, side: int, held_out: bool) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give the folder of the images")
        try:
            found = [file for file in files_under(folder) if file.suffix.lower() in SUFFIXES]
            # files_under sorts names within a folder; the order of whole paths is another one
            paths = sorted(file.relative_to(folder) for file in found)
            listing = [f"{path.as_posix()} {(folder / path).stat().st_size}\n" for path in paths]
            self._listed = hashlib.sha256("".join(listing).encode()).hexdigest()
        except OSError as error:
            raise ValueError(f"{error.filename or folder} cannot be searched ({reason(error)})") from error
        except UnicodeEncodeError as error:
            raise ValueError(f"{folder} contains an image whose name is not UTF-8: rename it") from error
        if not paths:
            raise ValueError(f"{folder} contains no images ({', '.join(SUFFIXES)})")
        parents = [path.parent.as_posix() for path in paths]
        self.classes = () if "." in parents else tuple(sorted(set(parents)))
        labels = {name: label for label, name in enumerate(self.classes)}
        chosen = part_of(len(paths), held_out)
        self._folder, self.side, self.size = folder, side, len(chosen)
        self._paths = [paths[index] for index in chosen]
        self._labels = [labels.get(parents[index]) for index in chosen]

    def image(self, index: int) -> Float[Tensor, "K H W"]:
        from PIL import Image, UnidentifiedImageError

        path = self._folder / self._paths[index]
        try:
            with open_regular(path) as file, warnings.catch_warnings():
                # Pillow only warns of a small file that unpacks to an image of many pixels
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(file, formats=FORMATS) as found:
                    if found.mode.startswith(("I", "F")):
                        raise ValueError(
                            f"it has more than 8 bits per value (mode {found.mode}): convert it to 8 bits"
                        )
                    picture = found.convert("RGB")
        except StoreError as error:
            raise ValueError(f"{error}: remove it, or give another folder") from error
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is not a readable image: it is none of {', '.join(FORMATS)}") from error
        except OSError as error:
            raise ValueError(f"{path} is not a readable image: {reason(error)}") from error
        except Exception as error:  # Pillow's readers raise anything on damaged bytes
            raise ValueError(f"{path} is not a readable image: {first_line(error)}") from error
        short = min(picture.size)
        left, top = ((size - short) // 2 for size in picture.size)
        square = picture.crop((left, top, left + short, top + short))
        if short != self.side:
            square = square.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square, np.float32)).permute(2, 0, 1) / 255

    def label(self, index: int) -> int | None:
        return self._labels[index]

    def name(self, index: int) -> str:
        return self._paths[index].as_posix()

    def document(self) -> dict[str, Any]:
        return {"path": os.fspath(self._folder), "digest": self._listed}
