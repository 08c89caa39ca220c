"""Captions of images: read from a file, taken from class names, or empty."""

import json
from pathlib import Path
from typing import BinaryIO

from meanmode.dit.data.images import Images
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.regular_files import open_regular, parse_json

LONGEST_LINE = 2**20
"""Longest line of a file of captions, in bytes."""


NO_CAPTION = ""
"""The empty text, which conditions the unconditional velocity."""


def captions_of(images: Images, spec: str) -> list[str]:
    """Return one caption per image.

    Args:
        images: the images to caption.
        spec: `classes` for the class names, `none` for the empty text, or a file of JSON lines
            {"file_name": name of the image, "text": its caption}.

    Raises:
        ValueError: the images have no classes, or the file is missing, damaged or incomplete.
    """
    if spec == "none":
        return [NO_CAPTION] * images.size
    if spec == "classes":
        labels = [images.label(index) for index in range(images.size)]
        if not images.classes or None in labels:
            raise ValueError("these images have no classes: give --captions a file, or none")
        return [images.classes[label] for label in labels if label is not None]
    names = [images.name(index) for index in range(images.size)]
    path = Path(spec)
    try:
        with open_regular(path) as file:
            found = _captions(file, path, set(names))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as a file of captions: give a readable file, classes or none"
        ) from error
    except StoreError as error:
        raise ValueError(f"{error}: give a file of captions, classes or none") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{path} has no caption for {len(missing)} of {len(names)} images, such as {missing[0]}"
        )
    return [found[name] for name in names]


def _captions(file: BinaryIO, path: Path, wanted: set[str]) -> dict[str, str]:
    """Read the captions of the wanted images line by line, so that no other one is held.

    Raises:
        ValueError: a line is damaged or too long, or gives a wanted image a second caption.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"line {number} of {path} is longer than {LONGEST_LINE:,} bytes: shorten it")
        if not line.strip():
            continue
        try:
            entry = parse_json(line, f"line {number} of {path}")
            name, text = entry["file_name"], entry["text"]
            json.dumps(text, ensure_ascii=False).encode()  # a lone surrogate is no character
        except UnicodeEncodeError as error:
            raise ValueError(f"line {number} of {path}: its text is not Unicode") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'line {number} of {path} is not a JSON object with "file_name" and "text"'
            ) from error
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError(f'line {number} of {path}: "file_name" and "text" must be strings')
        if name in found:
            raise ValueError(f"line {number} of {path} is a second caption of {name}: give one per image")
        if name in wanted:
            found[name] = text
    return found
