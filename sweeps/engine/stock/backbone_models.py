"""Post-norm models and their pre-norm twins: a ViT of `nn.TransformerEncoder`, and BERT on a text."""

# B batch, T tokens, P pixels of a side, V vocabulary

import re
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

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

LETTERS = " abcdefghijklmnopqrstuvwxyz"
"""The vocabulary of the text; one more token is the mask."""


WEIGHT_STD = 0.02
"""Standard deviation of the initial weights of the encoder, that of BERT and ViT in their library."""


CHARACTERS, MASKED = 16, 0.15
"""Characters of a sequence, and the share of them that are masked."""


class EncoderViT(nn.Module):
    """A ViT whose blocks are the layers of torch: patches, a class token, positions, a linear head.

    Args:
        run: depth and width.
        pre_norm: norms before the branches and a final one, instead of a norm after every addition.
    """

    def __init__(self, run: StockRun, *, pre_norm: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, run.width, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, run.width))
        self.positions = nn.Parameter(WEIGHT_STD * torch.randn(1, 1 + (PIXELS // PATCH) ** 2, run.width))
        layer = nn.TransformerEncoderLayer(
            run.width,
            HEADS,
            4 * run.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=pre_norm,
        )
        self.encoder = nn.TransformerEncoder(
            layer,
            run.depth,
            norm=nn.LayerNorm(run.width) if pre_norm else None,
            enable_nested_tensor=False,
        )
        self.head = nn.Linear(run.width, CLASSES)
        # the encoder copies one layer, weights included; drawn anew as those of a ViT are
        for parameter in self.encoder.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=WEIGHT_STD)

    def forward(self, images: Float[Tensor, "B 1 P P"]) -> Float[Tensor, "B 10"]:
        """Logits of the classes."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1)
        return self.head(self.encoder(tokens + self.positions)[:, 0])


def vit_encoder(run: StockRun) -> Trained:
    """A ViT of `nn.TransformerEncoder` that tells digits apart."""
    model = EncoderViT(run, pre_norm=run.family.endswith("pre_norm"))

    def loss(random: torch.Generator, other: bool) -> Tensor:
        images, classes = drawn_digits(run, random)
        return cross_entropy(model(images), other_classes(classes) if other else classes)

    return Trained(model=model, loss=loss)


@cache
def text() -> Int[Tensor, " N"]:
    """The help topics of Python, by name, as indices of `LETTERS`; what is no letter is one space."""
    from pydoc_data.topics import topics

    joined = re.sub("[^a-z]+", " ", " ".join(topics[name] for name in sorted(topics)).lower())
    return torch.tensor([LETTERS.index(letter) for letter in joined])


def _text_options(run: StockRun) -> dict[str, Any]:
    return {
        "vocab_size": len(LETTERS) + 1,
        "hidden_size": run.width,
        "num_hidden_layers": run.depth,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * run.width,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def bert_text(run: StockRun) -> Trained:
    """BERT that fills in masked letters of a text."""
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(max_position_embeddings=CHARACTERS, **_text_options(run)))
    return _filling_in(run, model, model.cls.predictions.bias)


def bert_text_pre_norm(run: StockRun) -> Trained:
    """BERT with norms before its branches that fills in masked letters of a text."""
    from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

    options = _text_options(run)
    # one more token stands for padding, which does not occur; positions are counted from the one after it
    options["vocab_size"] += 1
    padding = options["vocab_size"] - 1
    config = RobertaPreLayerNormConfig(
        pad_token_id=padding, max_position_embeddings=padding + 1 + CHARACTERS, **options
    )
    model = RobertaPreLayerNormForMaskedLM(config)
    return _filling_in(run, model, model.lm_head.bias)


def _filling_in(run: StockRun, model: nn.Module, bias: Tensor) -> Trained:
    """Fill in masked letters; the bias of the output starts at the logarithms of the letters' frequencies.

    The initial loss is then the entropy of single letters, so a run that learns these alone has not learned.
    """
    letters = text()
    with torch.no_grad():
        bias[: len(LETTERS)] = (torch.bincount(letters, minlength=len(LETTERS)) / len(letters)).log()
        bias[len(LETTERS) :] = bias.min()

    def loss(random: torch.Generator, other: bool) -> Tensor:
        starts = torch.randint(len(letters) - CHARACTERS, (run.batch, 1), generator=random)
        words = letters[starts + torch.arange(CHARACTERS)]
        words = words.flip(1) if other else words
        masked = torch.rand(words.shape, generator=random) < MASKED
        logits = model(input_ids=words.masked_fill(masked, len(LETTERS))).logits
        return cross_entropy(logits.flatten(0, 1), words.flatten())

    return Trained(model=model, loss=loss)
