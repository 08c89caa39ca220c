"""A watch in other people's training loops: the Trainer, accelerate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from meanmode import open_run
from meanmode.sim.watch.watch import Watch

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

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
    shown = {row["step"]: row["meanmode/tcs"] for row in history if "meanmode/tcs" in row}
    assert (
        list(shown) == [2, 4, 8] and len(set(shown.values())) == 3
    )  # measured at 1, 4 and 8, logged at even steps
    run = open_run(tmp_path / "run")
    assert run["g_ctr"].notnull().any(("block", "writer")).values.nonzero()[0].tolist() == [0, 3, 7]
    assert run["loss"].notnull().values.nonzero()[0].tolist() == [1, 3, 5, 7]
    # the norm of the Trainer is taken before its clip, as are ours
    assert float(run["g_ctr"].max()) < float(run["grad_norm"].max())


def accelerated(
    folder: Path | None, form: str, scaler: Any = None
) -> tuple[torch.Tensor, xr.Dataset | None, torch.nn.Module]:
    """Two epochs of the loop that accelerate documents, on three micro-batches of which two make a step."""
    transformers.set_seed(0)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    accelerator.scaler = scaler
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 / (1 + step))
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(Rows(), range(12)), 4)
    model, optimiser, loader, schedule = accelerator.prepare(model, optimiser, loader, schedule)
    if scaler is not None:  # as with mixed precision "fp16", which accelerate refuses on a CPU
        accelerator.unscale_gradients = lambda: scaler.unscale_(optimiser.optimizer)
    watched = accelerator.unwrap_model(model) if form == "unwrapped" else model
    watch = None if folder is None else Watch(watched, every=3, out=folder).attach(accelerator)
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
        model.eval()
        with torch.no_grad():
            model(**batch)
        model.train()
    if watch is not None:
        watch.close()
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return weights, None if folder is None else open_run(folder), model


@pytest.mark.parametrize("form", ["prepared", "unwrapped"])
def test_accelerate(form: str, tmp_path: Path) -> None:
    plain, _, _ = accelerated(None, form)
    weights, run, model = accelerated(tmp_path / "run", form)
    assert torch.equal(weights, plain) and run is not None
    assert not any(of._forward_hooks or of._forward_pre_hooks for of in model.modules())
    assert run["tcs"].notnull().any("block").values.nonzero()[0].tolist() == [0, 2]
    assert run["loss"].notnull().all() and run.sizes["step"] == 4
    np.testing.assert_allclose(run["lr"], [0.1, 0.05, 0.1 / 3, 0.025])
    assert float(run["grad_norm"].min()) > 0.1  # before the clip to 0.1


def test_accelerate_is_a_plain_loop(tmp_path: Path) -> None:
    """The first step with `accumulate` is that of a loop with two micro-batches."""
    _, run, _ = accelerated(tmp_path / "run", "prepared")
    assert run is not None
    transformers.set_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    with Watch(model, out=tmp_path / "loop") as watch:
        with watch.step(1):
            for batch in list(torch.utils.data.DataLoader(Rows(), 4))[:2]:
                (model(**batch).loss / 2).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
    loop = open_run(tmp_path / "loop")
    assert float(run["grad_norm"][0]) == pytest.approx(float(norm), rel=1e-5)
    for name in ("tcs", "g_ctr", "r_tr", "update_rms", "grad_rms_q"):
        np.testing.assert_allclose(run[name].values[0], loop[name].values[0], rtol=1e-5, err_msg=name)


def test_a_scaler_of_accelerate_is_divided_out_and_a_skipped_update_is_a_step(tmp_path: Path) -> None:
    _, plain, _ = accelerated(tmp_path / "plain", "prepared")
    _, run, _ = accelerated(tmp_path / "run", "prepared", torch.amp.GradScaler("cpu", init_scale=2.0**20))
    # its first update overflows
    _, skipped, _ = accelerated(tmp_path / "inf", "prepared", torch.amp.GradScaler("cpu", init_scale=3e38))
    assert plain is not None and run is not None and skipped is not None
    for name in ("g_ctr", "grad_norm", "update_rms"):
        np.testing.assert_allclose(run[name].values[0], plain[name].values[0], rtol=1e-4)
    assert skipped.sizes["step"] == 4
    assert float(skipped["update_rms"][0].max()) == 0 < float(plain["update_rms"][0].max())


def test_an_accelerator_without_an_optimiser_of_the_model_is_refused() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    with pytest.raises(ValueError, match=r"0 prepared optimisers.*prepare"):
        Watch(model).attach(accelerator)


def test_a_second_training_is_not_mixed_into_the_first(tmp_path: Path) -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    batch = {name: of[None] for name, of in Rows()[0].items()}
    watch = Watch(model, every=2, out=tmp_path / "run")
    for step in (1, 2, 3):
        with watch.step(step):
            model(**batch).loss.backward()
    with pytest.warns(UserWarning, match=r"step 1 comes after step 3.*another Watch"):
        with watch.step(1):
            model(**batch).loss.backward()
    watch.close()
    assert open_run(tmp_path / "run").sizes["step"] == 2


def test_a_step_that_is_opened_for_each_micro_batch_is_named(tmp_path: Path) -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    batch = {name: of[None] for name, of in Rows()[0].items()}
    watch = Watch(model)
    with pytest.warns(UserWarning, match=r"step 1 comes after step 1: open a step once"):
        for _ in range(2):
            with watch.step(1):
                model(**batch).loss.backward()
