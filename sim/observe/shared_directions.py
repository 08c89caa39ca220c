"""What the current weights of a stack share: directions of its writers, coherence with the trunk's mean."""

# S samples, T tokens, D width, H hidden width, R shared directions, L blocks

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from meanmode.sim.trunk.segments import Segments
from meanmode.sim.trunk.stack import Block
from meanmode.theory.meanfield.dynamic_front import BlockOverlaps, Coherence, Overlap

Array = NDArray[np.float64]
SHARED = 4.0
"""Directions into which the writers of all blocks write over this many times their average are shared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterAlignment:
    """What the writers of a stack have in common, from their weights alone.

    Attributes:
        shared: orthonormal directions E [D, R] that all writers write more than `SHARED` times as strongly as
            the average direction: eigenvectors of the mean of W W^T D / |W|_F^2 over the writers. Often none.
        energy: the eigenvalues, largest first [D]; of fresh writers at most (1 + sqrt(D / n))^2 with
            n = L (D + H) columns (Marchenko-Pastur).
        alignment: |u_k . u_l| of the writers k and l, u_l the first left singular vector [2 L, 2 L]; of fresh
            ones about sqrt(2 / (pi D)).
        stable_rank: |W|_F^2 / |W|_2^2 of every writer [L, 2]; 1 for a single spike.
        reading: |W u|^2 D / |W|_F^2 of the readers W_V and W_13 of every block [L, 2], u the first of the
            eigenvectors; 1 for fresh ones.
    """

    shared: Array
    energy: Array
    alignment: Array
    stable_rank: Array
    reading: Array


def _array(weight: Tensor) -> Array:
    return np.asarray(weight.detach().double().cpu().numpy())


def _writers(blocks: Sequence[Block]) -> list[Array]:
    return [_array(layer.weight) for block in blocks for layer in (block.operator.proj, block.ffn.w2)]


def _shared(blocks: Sequence[Block]) -> tuple[Array, Array]:
    """Eigenvalues of the writers' mean output covariance, largest first [D], and eigenvectors [D, D]."""
    writers = _writers(blocks)
    width = writers[0].shape[0]
    energies = [max(float(np.square(weight).sum()), np.finfo(float).tiny) for weight in writers]
    covariance = sum(weight @ weight.T / of for weight, of in zip(writers, energies, strict=True))
    values, vectors = np.linalg.eigh(np.asarray(covariance) * width / len(writers))
    return values[::-1], vectors[:, ::-1]


def shared_directions(blocks: Sequence[Block]) -> Array:
    """Orthonormal directions that the writers of all blocks share [D, R]; see `WriterAlignment.shared`."""
    values, vectors = _shared(blocks)
    return np.ascontiguousarray(vectors[:, values > SHARED])


def writer_alignment(blocks: Sequence[Block]) -> WriterAlignment:
    """Measure the alignment of writers between blocks, their rank, and how readers see what they write."""
    values, vectors = _shared(blocks)
    leading, ranks = [], []
    for weight in _writers(blocks):
        left, singular, _ = np.linalg.svd(weight, full_matrices=False)
        leading.append(left[:, 0])
        ranks.append(np.square(singular).sum() / max(float(singular[0]) ** 2, np.finfo(float).tiny))
    pairs = [(block.operator.v_proj, block.ffn.w13) for block in blocks]
    readers = [_array(layer.weight) for pair in pairs for layer in pair]
    seen = [np.square(weight @ vectors[:, 0]).sum() / np.square(weight).sum() for weight in readers]
    units = np.stack(leading)
    return WriterAlignment(
        shared=np.ascontiguousarray(vectors[:, values > SHARED]),
        energy=values,
        alignment=np.abs(units @ units.T),
        stable_rank=np.reshape(ranks, (-1, 2)),
        reading=len(vectors) * np.reshape(seen, (-1, 2)),
    )


def block_overlaps(
    blocks: Sequence[Block], x: Float[Tensor, "S T D"], segments: Segments
) -> list[BlockOverlaps]:
    """Sizes, overlaps and coherences of the current weights of every block, for the dynamic front.

    The blocks must be all those of a stack, in order. Sizes and shared directions come from the weights
    alone. The coherence of a branch with the trunk's mean is that along the path of reference tokens: only
    ratios within a sub-layer are kept, neither the path nor its cosines.

    Args:
        blocks: blocks of the stack.
        x: reference tokens at its input; they need not be those whose front is predicted.
        segments: token counts of image and text.
    """
    basis = shared_directions(blocks)
    found = []
    with torch.no_grad():
        for block in blocks:
            mixed = block.operator(block.merge_attn.read(x), segments)
            attention = Coherence.of(_array(x), _array(mixed), basis)
            x = block.merge_attn(x, mixed, segments)
            written = block.ffn(block.merge_ffn.read(x))
            ffn = dataclasses.replace(Coherence.of(_array(x), _array(written), basis), gain=None)
            x = block.merge_ffn(x, written, segments)
            found.append(_overlaps(block, basis, attention, ffn))
    return found


def _overlaps(block: Block, basis: Array, attention: Coherence, ffn: Coherence) -> BlockOverlaps:
    def against(weight: Tensor) -> Overlap:
        return Overlap.of(_array(weight), basis)

    operator = block.operator
    queries, keys = (
        against(getattr(operator, name).weight) if hasattr(operator, name) else None
        for name in ("q_proj", "k_proj")
    )
    gate, hidden = block.ffn.w13.weight.chunk(2)
    return BlockOverlaps(
        queries=queries,
        keys=keys,
        values=against(operator.v_proj.weight),
        attention_writer=against(operator.proj.weight.T),
        gate=against(gate),
        hidden=against(hidden),
        ffn_writer=against(block.ffn.w2.weight.T),
        attention=attention,
        ffn=ffn,
        merge_attn=block.merge_attn.gains(),
        merge_ffn=block.merge_ffn.gains(),
    )
