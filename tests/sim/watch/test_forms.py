"""A watch in other people's training loops: the Trainer, accelerate, Lightning."""

from pathlib import Path

import pytest
import torch

from meanmode import open_run
from meanmode.sim.watch.watch import Watch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 50, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids, "attention_mask": (torch.arange(8) < 8 - index % 3).long()}


def trained(folder: Path, watched: bool) -> tuple[torch.Tensor, list[dict[str, float]]]:
    transformers.set_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        logging_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows())
    if watched:
        Watch(model, every=4, out=folder / "run").attach(trainer)
    trainer.train()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]), trainer.state.log_history


def test_trainer(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path, watched=False)
    weights, history = trained(tmp_path, watched=True)
    assert torch.equal(weights, plain)
    shown = [row["meanmode/tcs"] for row in history if "loss" in row]
    assert len(shown) == 4 and shown[0] != shown[-1]
    run = open_run(tmp_path / "run")
    assert run["g_ctr"].notnull().any(("block", "writer")).values.nonzero()[0].tolist() == [0, 3, 7]
    assert run["loss"].notnull().values.nonzero()[0].tolist() == [1, 3, 5, 7]
    # the norm of the Trainer is taken before its clip, as are ours
    assert float(run["g_ctr"].max()) < float(run["grad_norm"].max())


def test_accelerate() -> None:
    from accelerate import Accelerator

    transformers.set_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    loader = torch.utils.data.DataLoader(Rows(), 4)
    model, optimiser, loader = accelerator.prepare(model, optimiser, loader)
    watch = Watch(accelerator.unwrap_model(model), every=2)
    batches = iter(loader)
    for step in range(1, 5):
        with watch.step(step):
            for _ in range(2):
                with accelerator.accumulate(model):
                    accelerator.backward(model(**next(batches)).loss)
        optimiser.step()
        optimiser.zero_grad()
    assert watch.latest["g_ctr"] > 0
