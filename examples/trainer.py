"""Watch a BERT that `transformers.Trainer` trains: `python examples/trainer.py [FOLDER]`."""

import sys

import torch
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainingArguments, set_seed

from meanmode import Watch

TOKENS, WORDS = 16, 40


class Parity(torch.utils.data.Dataset):
    """Sequences whose tokens are tagged by whether they equal their neighbour."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(1, WORDS, (TOKENS,), generator=torch.Generator().manual_seed(index)) // 8 + 1
        return {"input_ids": ids, "labels": (ids == ids.roll(1)).long()}


def main(folder: str) -> None:
    set_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=2,
    )
    model = BertForTokenClassification(config)
    arguments = TrainingArguments(
        output_dir=f"{folder}/checkpoints",
        max_steps=40,
        per_device_train_batch_size=16,
        logging_steps=10,
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Parity())
    watch = Watch(model, every=10, out=folder)
    watch.attach(trainer)
    trainer.train()
    for row in trainer.state.log_history:
        if "meanmode/tcs" in row:
            print(f"step {row['step']}: loss {row['loss']:.3f}, tcs {row['meanmode/tcs']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/trainer")
