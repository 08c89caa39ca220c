"""Small models of other libraries, each with a task that it learns in a few hundred steps."""

# B batch, T tokens, P pixels of a side

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from meanmode.sim.convert.conversion import convert
from meanmode.sweeps.engine.stock.stock_run import StockRun

WORDS, TOKENS, HEADS = 16, 16, 4
"""Size of the vocabulary, length of a sequence, attention heads."""


PIXELS, PATCH, CLASSES = 8, 2, 10
"""Pixels of a side of a digit and of a patch, and number of classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A model and its task.

    Attributes:
        model: the model.
        loss: takes a generator and whether the data are the other ones; draws a batch and returns its loss.
    """

    model: nn.Module
    loss: Callable[[torch.Generator, bool], Tensor]


def stock_model(run: StockRun) -> Trained:
    """The model of a run with its task and its merge; weights are drawn from the global generator."""
    builders = {"bert": _bert, "bert_pre_norm": _bert_pre_norm, "gpt2": _gpt2, "vit": _vit, "dit": _dit}
    trained = builders[run.family](run)
    if run.merge != "as built":
        merge, frozen = run.merge.removesuffix(" frozen"), run.merge.endswith(" frozen")
        convert(
            trained.model,
            merge,
            lambda: trained.loss(torch.Generator().manual_seed(0), False),
            frozen_alpha=frozen,
        )
        if merge == "deepnorm":
            _scale_down(trained.model, run.depth)
    return trained


def _scale_down(model: nn.Module, depth: int) -> None:
    """Divide values, feed-forward and output weights by (8 L)^(1/4), as DeepNorm does (arXiv:2203.00555).

    Raises:
        ValueError: a model whose weights have other names than those of BERT.
    """
    ends = ("attention.self.value.weight", "intermediate.dense.weight", "output.dense.weight")
    scaled = [weight for name, weight in model.named_parameters() if name.endswith(ends)]
    if len(scaled) != 4 * depth:
        raise ValueError("the initial weights of DeepNorm are known for BERT: choose the family bert")
    with torch.no_grad():
        for weight in scaled:
            weight /= (8 * depth) ** 0.25


def _words(
    run: StockRun, random: torch.Generator, other: bool
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Random sequences and their reverses, in which the other data replace every word by another one."""
    words = torch.randint(WORDS, (run.batch, TOKENS), generator=random)
    reverse = words.flip(1)
    return words, (5 * reverse + 3) % WORDS if other else reverse


def _encoder_options(run: StockRun) -> dict[str, Any]:
    return {
        "hidden_size": run.width,
        "num_hidden_layers": run.depth,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * run.width,
        "num_labels": WORDS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _bert(run: StockRun) -> Trained:
    from transformers import BertConfig, BertForTokenClassification

    config = BertConfig(vocab_size=WORDS, max_position_embeddings=TOKENS, **_encoder_options(run))
    return _reversing(run, BertForTokenClassification(config))


def _bert_pre_norm(run: StockRun) -> Trained:
    from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForTokenClassification

    # one more word stands for padding, which does not occur; positions are counted from the one after it
    positions = WORDS + 1 + TOKENS
    config = RobertaPreLayerNormConfig(
        vocab_size=WORDS + 1, pad_token_id=WORDS, max_position_embeddings=positions, **_encoder_options(run)
    )
    return _reversing(run, RobertaPreLayerNormForTokenClassification(config))


def _reversing(run: StockRun, model: nn.Module) -> Trained:
    def loss(random: torch.Generator, other: bool) -> Tensor:
        words, reverse = _words(run, random, other)
        return cross_entropy(model(input_ids=words).logits.flatten(0, 1), reverse.flatten())

    return Trained(model=model, loss=loss)


def _gpt2(run: StockRun) -> Trained:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=2 * TOKENS,
        n_embd=run.width,
        n_layer=run.depth,
        n_head=HEADS,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)

    def loss(random: torch.Generator, other: bool) -> Tensor:
        words, reverse = _words(run, random, other)
        logits = model(input_ids=torch.cat([words, reverse], 1)).logits[:, TOKENS - 1 : -1]
        return cross_entropy(logits.flatten(0, 1), reverse.flatten())

    return Trained(model=model, loss=loss)


@cache
def _digits() -> tuple[Float[Tensor, "N 1 P P"], Int[Tensor, " N"]]:
    """The 8 x 8 digits of scikit-learn, scaled to [-1, 1], and their classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, PIXELS, PIXELS) / 8 - 1, torch.tensor(
        classes
    )


def _drawn(run: StockRun, random: torch.Generator) -> tuple[Float[Tensor, "B 1 P P"], Int[Tensor, " B"]]:
    images, classes = _digits()
    chosen = torch.randint(len(images), (run.batch,), generator=random)
    return images[chosen], classes[chosen]


def _vit(run: StockRun) -> Trained:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=run.width,
        num_hidden_layers=run.depth,
        num_attention_heads=HEADS,
        intermediate_size=4 * run.width,
        image_size=PIXELS,
        patch_size=PATCH,
        num_channels=1,
        num_labels=CLASSES,
    )
    model = ViTForImageClassification(config)

    def loss(random: torch.Generator, other: bool) -> Tensor:
        images, classes = _drawn(run, random)
        return cross_entropy(
            model(pixel_values=images).logits, (3 * classes + 1) % CLASSES if other else classes
        )

    return Trained(model=model, loss=loss)


def _dit(run: StockRun) -> Trained:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=run.width // HEADS,
        in_channels=1,
        num_layers=run.depth,
        sample_size=PIXELS,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_num_groups=1,
    )

    def loss(random: torch.Generator, other: bool) -> Tensor:
        images, classes = _drawn(run, random)
        images = -images if other else images
        noise = torch.randn(images.shape, generator=random)
        time = torch.rand(len(images), 1, 1, 1, generator=random)
        noisy = (1 - time) * images + time * noise
        steps = (1000 * time.flatten()).long()
        return mse_loss(model(noisy, timestep=steps, class_labels=classes).sample, noise - images)

    return Trained(model=model, loss=loss)
