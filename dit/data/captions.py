"""Captions of images: read from a file, taken from class names, or empty."""

import json
from pathlib import Path

from meanmode.dit.data.images import Images

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
    path, found = Path(spec), {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would break at other characters
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as a file of captions: give a readable file, classes or none"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'line {number} of {path} is not a JSON object with "file_name" and "text"'
            ) from error
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError(f'line {number} of {path}: "file_name" and "text" must be strings')
        if name in found:
            raise ValueError(f"line {number} of {path} is a second caption of {name}: give one per image")
        found[name] = text
    names = [images.name(index) for index in range(images.size)]
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{path} has no caption for {len(missing)} of {len(names)} images, such as {missing[0]}"
        )
    return [found[name] for name in names]
