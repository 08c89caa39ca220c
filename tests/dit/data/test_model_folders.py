"""Folders of models that somebody else wrote: no code runs, pickles are refused, links to files are not."""

import json
from pathlib import Path

import pytest

from meanmode.dit.data.flux2_vae import Flux2VAE
from meanmode.dit.data.text_encoders import text_encoder


@pytest.mark.parametrize("kind", ["vae", "qwen3"])
def test_a_model_folder_runs_no_code_and_holds_no_pickle(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole: Path = request.getfixturevalue(kind)
    opened = {"vae": Flux2VAE, "qwen3": lambda path: text_encoder(f"qwen3:{path}")}[kind]
    folder = tmp_path / "model"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).symlink_to(file)  # as in the cache of the hub
    opened(folder)
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").unlink()
    for entry in ({"quantization_config": {"quant_method": "x"}}, {"attn_implementation": "a/kernel"}):
        (folder / "config.json").write_text(json.dumps(config | entry))
        with pytest.raises(ValueError, match=f"sets {next(iter(entry))}, which needs code from elsewhere"):
            opened(folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')")
    remote = {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config | remote | {"model_type": "evil"}))
    try:
        opened(folder)
    except ValueError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "made").exists()
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'x'\ntR.")
    with pytest.raises(
        ValueError, match=r"holds its weights as a pickle \(pytorch_model\.bin\), which could"
    ):
        opened(folder)
