"""Folders of models that somebody else wrote: no code is run from them, and only safetensors are read."""

from pathlib import Path
from typing import Any

from meanmode.sim.store.files import StoreError, reason
from meanmode.sim.store.regular_files import check_regular, read_json

CONFIG, INDEX = "config.json", ".safetensors.index.json"


PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Weights that are pickles, which can run code when they are read."""


FOREIGN = ("quantization_config", "attn_implementation", "_attn_implementation", "use_kernels")
"""Entries of a configuration that make the libraries fetch or import other code."""


def model_config(folder: Path, what: str) -> dict[str, Any]:
    """Check a folder before any library opens it, and return its configuration.

    Args:
        folder: folder of the model.
        what: what it should hold, for the messages.

    Raises:
        ValueError: something in it is no regular file, its weights are not in safetensors, or its
            configuration is missing, damaged, or asks for foreign code.
    """
    try:
        check_regular(folder)
        config = read_json(folder / CONFIG)
        weights = [file.name for file in folder.iterdir() if file.suffix == ".safetensors"]
        indices = [read_json(file) for file in folder.iterdir() if file.name.endswith(INDEX)]
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {CONFIG}: give the folder of {what}") from error
    except StoreError as error:
        raise ValueError(f"{folder} is not the folder of {what}: {error}") from error
    except OSError as error:
        raise ValueError(f"{error.filename or folder} cannot be read ({reason(error)})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} is not a JSON object: give the folder of {what}")
    if not weights:
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickled:
            raise ValueError(
                f"{folder} holds its weights as a pickle ({pickled[0]}), which could run code: "
                "convert them to safetensors"
            )
        raise ValueError(f"{folder} has no weights in safetensors: give the folder of {what}")
    for index in indices:
        named = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(named, dict) or not all(name in weights for name in map(str, named.values())):
            raise ValueError(f"the index of the weights in {folder} names files that are not there")
    for name in FOREIGN:
        if config.get(name) not in (None, "eager", "sdpa"):
            raise ValueError(
                f"{folder / CONFIG} sets {name}, which needs code from elsewhere: remove that entry"
            )
    return config
