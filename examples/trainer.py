"""Trainer: BERT with 24 blocks collapses where 4 blocks learn; `python examples/trainer.py [FOLDER]`."""

import sys

import torch
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainingArguments, set_seed

from meanmode import Watch

WORDS, TOKENS, STEPS = 16, 16, 180


class Reverse(torch.utils.data.Dataset):
    """Random sequences, to be read backwards."""

    def __len__(self) -> int:
        return 16 * STEPS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        words = torch.randint(WORDS, (TOKENS,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": words, "labels": words.flip(0)}


def train(blocks: int, folder: str) -> None:
    set_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=TOKENS,
        num_labels=WORDS,
    )
    arguments = TrainingArguments(
        output_dir=f"{folder}/checkpoints",
        max_steps=STEPS,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=100,
        logging_steps=30,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=BertForTokenClassification(config), args=arguments, train_dataset=Reverse())
    watch = Watch(trainer.model, every=10, out=f"{folder}/{blocks}-blocks")
    watch.attach(trainer)
    trainer.train()
    said = "; ".join(map(str, watch.alarms)) or "no alarm"
    print(f"{blocks} blocks: last loss {trainer.state.log_history[-2]['loss']:.2f}, {said}")


if __name__ == "__main__":
    for blocks in (4, 24):
        train(blocks, sys.argv[1] if len(sys.argv) > 1 else "runs/trainer")
