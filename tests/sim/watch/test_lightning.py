"""A watch attached to a Trainer of Lightning: the package, where it is installed, and a stand-in for it."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from meanmode import open_run
from meanmode.sim.watch.watch import Watch

ROWS = torch.randn(14, 6, 16, generator=torch.Generator().manual_seed(1))
HOOKS = ("setup", "on_fit_start", "on_sanity_check_start", "on_sanity_check_end", "on_train_start")
ENDS = ("on_train_end", "on_fit_end", "teardown")


class Standin(nn.Module):
    """What a callback sees of a LightningModule."""

    automatic_optimization = True

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, Any] = {}

    def log_dict(self, values: dict[str, float], *, on_step: bool, on_epoch: bool, batch_size: int) -> None:
        self.logged.update(values)


class StandinTrainer:
    """Two epochs of seven micro-batches, two a step, in the order of Lightning's events."""

    def __init__(self, scaler: Any = None) -> None:
        self.callbacks: list[Any] = []
        self.accumulate_grad_batches, self.global_step, self.max_epochs, self.begun = 2, 0, 2, 0
        self.precision_plugin = self
        self.scaler = scaler

    def call(self, name: str, module: nn.Module, *given: Any) -> None:
        for callback in self.callbacks:
            assert callback.state_key and not callback.state_dict()
            getattr(callback, name)(self, module, *given)

    def fit(self, module: Any, batches: list[Tensor]) -> None:
        optimiser = module.configure_optimizers()
        for name in HOOKS:
            self.call(name, module)
        for _ in range(self.begun, self.max_epochs):
            for index, batch in enumerate(batches):
                self.call("on_train_batch_start", module, batch, index)
                loss = module.training_step(batch, index) / 2
                if index % 2 == 0:
                    self.call("on_before_zero_grad", module, optimiser)
                    optimiser.zero_grad()
                self.call("on_before_backward", module, loss)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                self.call("on_after_backward", module)
                if index % 2 or index == len(batches) - 1:
                    if self.scaler is not None:
                        self.scaler.unscale_(optimiser)
                    self.call("on_before_optimizer_step", module, optimiser)
                    nn.utils.clip_grad_norm_(module.parameters(), 0.1)
                    optimiser.step() if self.scaler is None else self.scaler.step(optimiser)
                    if self.scaler is not None:
                        self.scaler.update()
                    self.global_step += 1
                self.call("on_train_batch_end", module, {"loss": loss.detach()}, batch, index)
                if index == 4:  # between two micro-batches of a step
                    self.call("on_validation_start", module)
                    with torch.no_grad():
                        module.net(batch)
        self.begun = self.max_epochs
        for name in ENDS:
            self.call(name, module)


def module_of(base: type[Any], *, manual: bool = False) -> Any:
    """A small network as a module of Lightning."""

    class Module(base):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not manual
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return (self.net(batch) - 1).square().mean()

        def validation_step(self, batch: Tensor, index: int) -> None:
            self.net(batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    torch.manual_seed(0)
    return Module()


def standin(_: Path, scaler: Any = None) -> tuple[Any, ...]:
    """Module, trainer, what fits the one by the other, and what yields the logged values."""
    module, trainer = module_of(Standin), StandinTrainer(scaler)
    return module, trainer, lambda: trainer.fit(module, list(ROWS.split(2))), lambda: module.logged


def real(folder: Path, scaler: Any = None) -> tuple[Any, ...]:
    """The same with the package, and a validation between two micro-batches."""
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.plugins import MixedPrecision

    module = module_of(lightning.LightningModule)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        val_check_interval=5,
        log_every_n_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)] if scaler else None,
    )
    loaders = DataLoader(ROWS, 2), DataLoader(ROWS[:4], 2)
    return module, trainer, lambda: trainer.fit(module, *loaders), lambda: dict(trainer.logged_metrics)


FORMS = pytest.mark.parametrize("form", [standin, real])
pytestmark = pytest.mark.filterwarnings(
    "ignore:::lightning",
    "ignore:.*LeafSpec.*",
    "ignore:.*_register_pytree_node.*",
    "ignore:::pytorch_lightning",
)


@FORMS
def test_a_fit_is_watched(form: Any, tmp_path: Path) -> None:
    """A step is all its micro-batches, the last of an epoch too; nothing changes; a second fit goes on."""
    plain, _, fit, _ = form(tmp_path)
    fit()
    module, trainer, fit, logged = form(tmp_path)
    watch = Watch(module.net, every=3, out=tmp_path / "run").attach(trainer).attach(trainer)
    assert len([of for of in trainer.callbacks if type(of).__name__ == "LightningCallback"]) == 1
    fit()
    assert all(map(torch.equal, module.parameters(), plain.parameters()))
    assert not any(of._forward_hooks or of._forward_pre_hooks for of in module.modules())
    run = open_run(tmp_path / "run")
    measured = run["g_ctr"].notnull().any(("block", "writer")).values
    assert measured.nonzero()[0].tolist() == [0, 2, 5]
    assert run["loss"].notnull().all() and run.sizes["step"] == 8
    assert (run["grad_norm"].notnull().values == measured).all()
    # norm and observables are those before the clip to 0.1
    assert float(run["grad_norm"].min()) > 0.1
    assert float(logged()["meanmode/tcs"]) == pytest.approx(watch.latest["tcs"])
    getattr(trainer, "fit_loop", trainer).max_epochs = 3
    fit()
    run = open_run(tmp_path / "run")
    assert run["tcs"].notnull().any("block").values.nonzero()[0].tolist() == [0, 2, 5, 8, 11]


@FORMS
def test_a_step_is_the_same_in_a_plain_loop(form: Any, tmp_path: Path) -> None:
    module, trainer, fit, _ = form(tmp_path)
    Watch(module.net, every=100, out=tmp_path / "run").attach(trainer)
    fit()
    found = open_run(tmp_path / "run")
    other = module_of(Standin)
    optimiser = other.configure_optimizers()
    with Watch(other.net, every=100, out=tmp_path / "loop") as watch:
        with watch.step(1):
            losses = [other.training_step(batch, 0) for batch in ROWS[:4].split(2)]
            for loss in losses:
                (loss / 2).backward()
            watch.log(loss=sum(losses) / 2)
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimiser.step()
    expected = open_run(tmp_path / "loop")
    for name in ("loss", "tcs", "g_mean", "g_ctr", "r_tr", "update_rms", "grad_rms_q"):
        np.testing.assert_allclose(found[name].values[0], expected[name].values[0], rtol=1e-5, err_msg=name)


@FORMS
def test_a_gradient_scaler_is_divided_out(form: Any, tmp_path: Path) -> None:
    """Smaller scales would not do: gradients of this model below 6e-8 are 0 in half precision."""
    values = []
    for scale in (2.0**12, 2.0**15):
        module, trainer, fit, _ = form(tmp_path, torch.amp.GradScaler("cpu", init_scale=scale))
        Watch(module.net, every=100, out=tmp_path / str(scale)).attach(trainer)
        fit()
        row = open_run(tmp_path / str(scale))
        values.append([float(row["grad_norm"][0]), *row["g_mean"].values[0, 1:].ravel()])
    np.testing.assert_allclose(*values, rtol=0.02)


@FORMS
def test_training_that_breaks_off_leaves_no_hooks(form: Any, tmp_path: Path) -> None:
    module, trainer, fit, _ = form(tmp_path)
    watch = Watch(module.net, every=1).attach(trainer)
    step, module.training_step = module.training_step, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit()
    watch.close()
    assert not any(of._forward_hooks or of._forward_pre_hooks for of in module.modules())
    module.training_step = step


def test_manual_optimisation_is_refused_and_the_way_that_is_named_works(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    watch: Watch | None = None

    class Manual(type(module_of(lightning.LightningModule))):  # type: ignore[misc]
        def training_step(self, batch: Tensor, index: int) -> None:
            assert watch is not None
            optimiser = self.optimizers()
            with watch.step(self.global_step + 1):
                self.manual_backward((self.net(batch) - 1).square().mean())
            optimiser.step()
            optimiser.zero_grad()

    def fit(attach: bool) -> None:
        nonlocal watch
        module = Manual()
        module.automatic_optimization = False
        trainer = lightning.Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            max_steps=4,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        watch = Watch(module.net, every=2, sink=lambda step, _: steps.append(step))
        if attach:
            watch.attach(trainer)
        with watch:
            trainer.fit(module, DataLoader(ROWS, 2))

    steps: list[int] = []
    with pytest.raises(ValueError, match=r"manual optimisation.*watch.step"):
        fit(attach=True)
    fit(attach=False)
    assert steps == [1, 2, 4]


def test_a_checkpoint_is_written_and_resumed(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    def fit(steps: int, checkpoint: Path | None) -> None:
        module = module_of(lightning.LightningModule)
        trainer = lightning.Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        Watch(module.net, every=2, out=tmp_path / "run").attach(trainer)
        trainer.fit(module, DataLoader(ROWS, 2), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(4, None)
        fit(6, tmp_path / "4.ckpt")
    run = open_run(tmp_path / "run")
    assert run["tcs"].notnull().any("block").values.nonzero()[0].tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize("trainer", [object(), nn.Linear(1, 1)])
def test_what_a_watch_cannot_be_attached_to(trainer: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot be attached to .*watch.step"):
        Watch(module_of(Standin).net).attach(trainer)
