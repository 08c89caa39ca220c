"""Watch a ViT that Lightning trains (`pip install lightning`): `python lightning_trainer.py [FOLDER]`."""

import sys

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTConfig, ViTForImageClassification

from meanmode import Watch


class Digits(lightning.LightningModule):
    """Classifies the 8 x 8 digits of scikit-learn from 16 patches."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=32,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=64,
            num_labels=10,
            initializer_range=0.1,
        )
        self.vit = ViTForImageClassification(config)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.vit(pixel_values=batch[0], labels=batch[1]).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3)


def main(folder: str) -> None:
    lightning.seed_everything(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), 32, shuffle=True)
    model = Digits()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=100, default_root_dir=f"{folder}/checkpoints", logger=False
    )
    watch = Watch(model.vit, every=20, out=folder)  # what training_step calls
    watch.attach(trainer)
    trainer.fit(model, loader)
    print(", ".join(f"{name} {float(value):.3g}" for name, value in trainer.logged_metrics.items()))
    print(f"{folder}: read it with `mms onset {folder}`")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/lightning_trainer")
