"""Watch a GPT-2 in a loop of accelerate: `python examples/accelerate_loop.py [FOLDER]`."""

import sys
import warnings

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from meanmode import Watch

WORDS, TOKENS, EPOCHS, EVERY = 32, 24, 5, 10


def rows() -> TensorDataset:
    """Sequences that count in steps of 1, 2 or 3 from anywhere."""
    start, stride = torch.randint(WORDS, (256, 1)), torch.randint(1, 4, (256, 1))
    return TensorDataset((start + stride * torch.arange(TOKENS)) % WORDS)


def main(folder: str) -> None:
    set_seed(0)
    warnings.simplefilter("default")
    config = GPT2Config(
        vocab_size=WORDS, n_positions=TOKENS, n_embd=32, n_layer=6, n_head=4, bos_token_id=0, eos_token_id=0
    )
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = GPT2LMHeadModel(config)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    loader = DataLoader(rows(), batch_size=16, shuffle=True)
    model, optimiser, loader = accelerator.prepare(model, optimiser, loader)
    watch = Watch(model, every=EVERY, out=folder).attach(accelerator)  # after prepare, and that is all
    for epoch in range(EPOCHS):
        for (ids,) in loader:
            with accelerator.accumulate(model):
                loss = model(input_ids=ids, labels=ids).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
        print(f"epoch {epoch}: loss {loss.item():.3f}, tcs {watch.latest['tcs']:.3f}")
    watch.close()
    print(f"{folder}: read it with `mms onset {folder}`")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/accelerate_loop")
