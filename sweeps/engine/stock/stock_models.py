"""Small models of other libraries, each with a task that it learns in a few hundred steps."""

# B batch, T tokens

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from meanmode.sim.convert.conversion import convert
from meanmode.sim.trunk.constants import MERGE_EPS
from meanmode.sweeps.engine.stock.backbone_models import bert_text, bert_text_pre_norm, vit_encoder
from meanmode.sweeps.engine.stock.stock_run import StockRun
from meanmode.sweeps.engine.stock.stock_task import (
    CLASSES,
    HEADS,
    PATCH,
    PIXELS,
    Trained,
    drawn_digits,
    other_classes,
)

WORDS, TOKENS = 16, 16
"""Size of the vocabulary and length of a sequence."""


def stock_model(run: StockRun) -> Trained:
    """The model of a run with its task and its merge; weights are drawn from the global generator."""
    builders = {
        "bert": _bert,
        "bert_pre_norm": _bert_pre_norm,
        "gpt2": _gpt2,
        "vit": _vit,
        "dit": _dit,
        "vit_encoder": vit_encoder,
        "vit_encoder_pre_norm": vit_encoder,
        "bert_text": bert_text,
        "bert_text_pre_norm": bert_text_pre_norm,
    }
    trained = builders[run.family](run)
    if run.merge != "as built":
        merge, frozen = run.merge.removesuffix(" frozen"), run.merge.endswith(" frozen")
        highway = merge == "highway"
        convert(
            trained.model,
            "deepnorm" if highway else merge,
            lambda: trained.loss(torch.Generator().manual_seed(0), False),
            gain=(2 * run.depth) ** 0.5 if highway else None,
            frozen_alpha=frozen,
        )
        if highway:
            _normalise_branches(trained.model, run)
        if merge == "deepnorm":
            _scale_down(trained.model, run.depth)
    return trained


SCALED = (
    ("attention.self.value.weight", "intermediate.dense.weight", "output.dense.weight"),
    ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"),
)
"""Ends of the names of the weights that DeepNorm scales, in BERT and in `nn.TransformerEncoder`."""


def _scale_down(model: nn.Module, depth: int) -> None:
    """Divide values, feed-forward and output weights by (8 L)^(1/4), as DeepNorm does (arXiv:2203.00555).

    Raises:
        ValueError: a model whose weights have other names than those of BERT and `nn.TransformerEncoder`.
    """
    for ends in SCALED:
        scaled = {name: weight for name, weight in model.named_parameters() if name.endswith(ends)}
        scaled = {name: weight for name, weight in scaled.items() if ".layer" in name}
        if len(scaled) == 4 * depth:
            break
    else:
        raise ValueError(
            "the initial weights of DeepNorm are known for BERT and nn.TransformerEncoder: choose the family "
            "bert, bert_text or vit_encoder"
        )
    with torch.no_grad():
        for name, weight in scaled.items():
            values = weight.chunk(3)[2] if name.endswith("in_proj_weight") else weight
            values /= (8 * depth) ** 0.25


def _normalise_branches(model: nn.Module, run: StockRun) -> None:
    """Put an RMSNorm without weights where the dropout of each branch was, which does nothing here.

    Raises:
        ValueError: a model whose blocks have no such dropouts.
    """
    ends = (".output.dropout", ".dropout1", ".dropout2")
    names = [name for name, _ in model.named_modules() if name.endswith(ends) and ".layer" in name]
    if len(names) != 2 * run.depth:
        raise ValueError(
            "the branches of a highway are known for BERT and nn.TransformerEncoder: choose the family bert, "
            "bert_text or vit_encoder"
        )
    for name in names:
        model.set_submodule(name, nn.RMSNorm(run.width, eps=MERGE_EPS, elementwise_affine=False))


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
        images, classes = drawn_digits(run, random)
        return cross_entropy(model(pixel_values=images).logits, other_classes(classes) if other else classes)

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
        images, classes = drawn_digits(run, random)
        images = -images if other else images
        noise = torch.randn(images.shape, generator=random)
        time = torch.rand(len(images), 1, 1, 1, generator=random)
        noisy = (1 - time) * images + time * noise
        steps = (1000 * time.flatten()).long()
        return mse_loss(model(noisy, timestep=steps, class_labels=classes).sample, noise - images)

    return Trained(model=model, loss=loss)
