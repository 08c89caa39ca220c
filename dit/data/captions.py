"""Captions of images: from a file, from the names of their classes, or none."""

import json
from pathlib import Path

from meanmode.dit.data.images import Images

NO_CAPTION = ""
"""The empty text, which the unconditional velocity is asked for with."""


def captions_of(images: Images, spec: str) -> list[str]:
    """A caption of every image.

    Args:
        images: which.
        spec: `classes`, names of the classes; `none`, the empty text; or a file of JSON lines
            {"file_name": name of the image, "text": its caption}.

    Raises:
        ValueError: no classes, or a file that is missing, damaged, or lacks images.
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
        lines = path.read_text(encoding="utf-8").split("\n")  # no other character ends a line of JSON
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable file of captions; or say classes, or none") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'line {number} of {path} is no JSON object with "file_name" and "text"'
            ) from error
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError(f'line {number} of {path}: "file_name" and "text" must be text')
        if name in found:
            raise ValueError(f"line {number} of {path} is the second caption of {name}: give one an image")
        found[name] = text
    names = [images.name(index) for index in range(images.size)]
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{path} has no caption for {len(missing)} of {len(names)} images, such as {missing[0]}"
        )
    return [found[name] for name in names]
