"""Shared by the tests of `dit`: tiny runs, in this process or from the command line, and tiny models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from meanmode.dit.config.presets import PRESETS
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.text_encoders import _quiet
from meanmode.dit.train.checkpoint_files import checkpoint_folders, load_tensors
from meanmode.dit.train.checkpoint_reader import read_table
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.store.run_reader import open_run

TINY = {
    "depth": "3",
    "steps": "10",
    "telemetry_every": "2",
    "interval": "4",
    "checkpoint_every": "4",
    "ema": "0.9",
    "merge": "mv_split",
    "alpha": "0.1",
    "stop_on": "divergence",
}

UNEQUAL = ("wall_s", "data_wait_s")
"""Variables in which two equal runs may differ."""

END = "<|endoftext|>"
WORDS = ("a red car", "two dogs on a beach", "a photograph of a red car on a beach")
"""The only special token of the tiny tokenizer, and the texts from which it learns its merges."""


def tiny(**options: object) -> RunConfig:
    """Configuration of a tiny run of ten steps."""
    return PRESETS["digits-16l"].with_options(TINY | {name: str(value) for name, value in options.items()})


class Runs:
    """Trains tiny runs in this process, and compares them."""

    tiny = staticmethod(tiny)

    def trained(self, out: Path, run: RunConfig, **options: Any) -> Trainer:
        """Train a run and return its trainer."""
        trainer = Trainer(run, out, **options)
        trainer.train()
        return trainer

    def state(self, out: Path) -> dict[str, torch.Tensor]:
        """Load all tensors of the last checkpoint."""
        last = checkpoint_folders(out)[-1]
        metadata = read_table(last).state_dict_metadata
        found = {name: torch.empty(entry.size) for name, entry in metadata.items()}
        load_tensors(last, found)
        return found

    def assert_same_weights(self, first: Path, second: Path, *, rtol: float = 0.0) -> None:
        """Assert that the last checkpoints are equal, bitwise or up to rounding."""
        ours, theirs = self.state(first), self.state(second)
        assert ours.keys() == theirs.keys()
        scale = {name: rtol * float(tensor.abs().max()) for name, tensor in ours.items()}
        apart = {name: float((tensor - theirs[name]).abs().max()) for name, tensor in ours.items()}
        assert {name: off for name, off in apart.items() if not off <= scale[name]} == {}

    def assert_same_store(self, first: Path, second: Path, *, rtol: float = 0.0) -> None:
        """Assert that the telemetry is equal, bitwise or up to rounding, except for wall times."""
        ours, theirs = open_run(first), open_run(second)
        assert set(ours.data_vars) == set(theirs.data_vars)
        names = [name for name in ours.data_vars if name not in UNEQUAL]
        assert [name for name in names if not _alike(ours[name].values, theirs[name].values, rtol)] == []
        if not rtol:
            assert ours.attrs["events"] == theirs.attrs["events"]


def _alike(ours: np.ndarray, theirs: np.ndarray, rtol: float) -> bool:
    if not rtol:
        return np.array_equal(ours, theirs, equal_nan=True)
    largest = np.nanmax(np.abs(ours), initial=0.0)
    return np.allclose(ours, theirs, rtol=rtol, atol=rtol * largest, equal_nan=True)


@pytest.fixture(scope="session")
def runs() -> Runs:
    """Tiny runs in this process."""
    return Runs()


@pytest.fixture(scope="session")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    runs.trained(out, runs.tiny())
    return out


@pytest.fixture
def launch(start: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Start `mms train digits-16l` with the options of the tiny run, in one or several processes (gloo)."""
    stores = []

    def run(out: Path, *arguments: str, processes: int = 1, before: str = "", **options: object) -> Any:
        settings = TINY | {name: str(value) for name, value in options.items()}
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        shared = {}
        if processes > 1:
            # as torchrun does, whose agent holds the store at which the processes meet
            stores.append(dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False))
            shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{stores[-1].port}"}
            shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
            shared |= {name: f"{processes}" for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        ranks = [{"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} if shared else {} for rank in range(processes)]
        return start(
            *("train", "digits-16l", "--out", out, *arguments, *words),
            environments=[shared | rank for rank in ranks],
            before=before,
        )

    yield run
    stores.clear()


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny random Qwen3 and a tokenizer of single bytes and a few merges."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("text") / "qwen3"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=END, eos_token=END, padding_side="left"
    ).save_pretrained(folder)
    config = transformers.Qwen3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Qwen3Model(config)
    with _quiet():
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vae() -> Callable[..., Path]:
    """Write a random FLUX.2 VAE whose latents have different moments in every channel."""
    diffusers = pytest.importorskip("diffusers")

    def write(path: Path, blocks: int = 4, **options: Any) -> Path:
        generator = torch.Generator().manual_seed(3)
        network = diffusers.AutoencoderKLFlux2(
            block_out_channels=(8,) * blocks,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=32,
            **options,
        )
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
        network.bn.running_mean.normal_(generator=generator)
        network.bn.running_var.uniform_(0.01, 3, generator=generator)
        network.save_pretrained(path)
        return path

    return write


@pytest.fixture(scope="session")
def vae(tiny_vae: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VAE in the real geometry, with a large epsilon in its batch norm."""
    return tiny_vae(tmp_path_factory.mktemp("flux2") / "vae", batch_norm_eps=0.05)
