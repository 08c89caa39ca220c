"""The autograd graph of a pass as lists, and the matrix products with weights in it."""

# nodes are numbered in the order in which they were made, so inputs have lower numbers than what uses them

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

LEAF = "AccumulateGrad"

LOOKUPS = {"EmbeddingBackward0", "EmbeddingBagBackward0"}
"""Nodes that turn parameters into activations."""

PRODUCTS = {
    **{name: (1, 0) for name in ("MmBackward0", "BmmBackward0", "MvBackward0", "GroupedMmBackward0")},
    **{name: (2, 1) for name in ("AddmmBackward0", "BaddbmmBackward0", "AddmvBackward0", "AddbmmBackward0")},
    **{name: (1, 0) for name in ("LinearBackward0", "MkldnnLinearBackward0", "MatmulBackward0")},
    **{name: (1, 0) for name in ("ConvolutionBackward0", "ConvolutionOverrideableBackward0")},
    "ConvolutionBackwardOverrideable0": (1, 0),
}
"""Node of a product -> its two operands, the one that is a weight in torch's own layers first."""

TRANSPOSING = {"TBackward0", "TransposeBackward0", "PermuteBackward0", "NumpyTBackward0"}

CUTTING = ("Slice", "Split", "Unbind", "Select", "Chunk", "Narrow")
"""Beginnings of the names of nodes that take a part of a tensor."""


@dataclasses.dataclass(slots=True)
class Product:
    """A product of activations with a weight.

    Attributes:
        node: number of its node.
        data: number of the node that made the activations; -1 if they have no graph.
        weights: parameters from which the weight is computed, the largest first.
        transposed: whether the weight is [in, out].
        features: size of the output's axis of features.
        over_tokens: whether it is a convolution over more than one position.
        cut: the node of the operand that is the weight, if that is a part of a matrix; else -1.
    """

    node: int
    data: int
    weights: tuple[Tensor, ...]
    transposed: bool
    features: int
    over_tokens: bool
    cut: int


class Graph:
    """The graph behind some nodes.

    Attributes:
        nodes: autograd nodes, in the order in which they were made.
        names: their names, without a version number for custom functions.
        inputs: for each node, the number of each input's node, -1 where there is none.
        slots: for each input, which output of that node it is.
        used: for each node, the numbers of the nodes that it computes from.
        sequence: sequence numbers; -1 for leaves.
        number: node -> its number.
        products: products with a weight, by number of the node.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        found: dict[Any, tuple[int, str, Any]] = {}
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node in found:
                continue
            after, name = node.next_functions, node.name().rpartition("::")[2]
            found[node] = (-1 if name == LEAF else node._sequence_nr(), name, after)
            stack.extend([other for other, _ in after if other is not None and other not in found])
        self.nodes = sorted(found, key=lambda node: found[node][0])
        self.number = {node: number for number, node in enumerate(self.nodes)}
        self.sequence = [found[node][0] for node in self.nodes]
        self.names = [found[node][1] for node in self.nodes]
        edges = [found[node][2] for node in self.nodes]
        self.inputs = [[-1 if other is None else self.number[other] for other, _ in each] for each in edges]
        self.slots = [[slot for _, slot in each] for each in edges]
        self.used = [[other for other in each if other >= 0] for each in self.inputs]
        self._shapes: dict[tuple[int, int], tuple[int, ...]] = {}
        self._of_parameters = self._constant()
        self.products = {
            product.node: product for product in map(self._product, self._candidates()) if product
        }

    def nearest(self, node: Any) -> int:
        """Number of a node, or of the one behind it if it is a view that nothing uses; -1 if none."""
        while node not in self.number:
            after = [other for other, _ in node.next_functions if other is not None]
            if len(after) != 1:
                return -1
            (node,) = after
        return self.number[node]

    def leaf(self, number: int) -> Tensor | None:
        """The tensor of a leaf; None for other nodes."""
        return self.nodes[number].variable if self.names[number] == LEAF else None

    def shape(self, number: int, slot: int = 0) -> tuple[int, ...]:
        """Shape of an output of a node; empty if it is not known."""
        key = (number, slot)
        if key not in self._shapes:
            self._shapes[key] = self._shape(number, slot)
        return self._shapes[key]

    def _shape(self, number: int, slot: int) -> tuple[int, ...]:
        if self.names[number] == LEAF:
            return tuple(self.nodes[number].variable.shape)
        metadata = self.nodes[number]._input_metadata
        return tuple(metadata[slot].shape) if slot < len(metadata) else ()

    def is_parameter(self, number: int) -> bool:
        """Whether a node is computed from parameters alone, without a lookup in a table."""
        return self._of_parameters[number]

    def _constant(self) -> list[bool]:
        from_parameters: list[bool] = []
        for number, name in enumerate(self.names):
            if name == LEAF:
                from_parameters.append(isinstance(self.nodes[number].variable, nn.Parameter))
            else:
                used = self.used[number]
                from_parameters.append(
                    name not in LOOKUPS and bool(used) and all(from_parameters[other] for other in used)
                )
        return from_parameters

    def _candidates(self) -> list[int]:
        """Nodes of torch's products, and custom functions that take a matrix of parameters."""
        found = []
        for number, name in enumerate(self.names):
            own = isinstance(self.nodes[number], BackwardCFunction)
            if name in PRODUCTS or (own and len(self.used[number]) > 1):
                found.append(number)
        return found

    def _product(self, number: int) -> Product | None:
        inputs = self.inputs[number]
        order = PRODUCTS.get(self.names[number], tuple(reversed(range(len(inputs)))))
        for position in order:
            operand = inputs[position] if position < len(inputs) else -1
            if operand < 0 or not self._of_parameters[operand]:
                continue
            weights, turned, cut = self._behind(operand)
            if weights[0].ndim < 2:
                continue
            others = [inputs[other] for other in order if other != position and other < len(inputs)]
            data = next((other for other in others if other >= 0), -1)
            convolution = self.names[number].startswith("Convolution")
            shape = weights[0].shape
            matrix = self.names[number] in PRODUCTS and "Linear" not in self.names[number] and not convolution
            # x W^T of torch's layers transposes the weight, x W does not; W x transposes neither
            transposed = matrix and position == order[0] and not turned
            features = shape[0] if convolution else shape[-1 if transposed else -2]
            part = cut and len(shape) == 2
            return Product(
                node=number,
                data=data,
                weights=weights,
                transposed=transposed,
                features=self.shape(number)[-1] if part else features,
                over_tokens=convolution and math.prod(shape[2:]) > 1,
                cut=operand if part else -1,
            )
        return None

    def _behind(self, operand: int) -> tuple[tuple[Tensor, ...], bool, bool]:
        """Parameters behind an operand, the largest first; whether one was transposed, or cut."""
        found: dict[int, Tensor] = {}
        seen, stack, turns, cut = {operand}, [operand], 0, False
        while stack:
            number = stack.pop()
            tensor = self.leaf(number)
            if tensor is not None:
                found.setdefault(id(tensor), tensor)
            turns += self.names[number] in TRANSPOSING
            cut = cut or self.names[number].startswith(CUTTING)
            stack.extend(other for other in self.used[number] if other not in seen)
            seen.update(self.used[number])
        largest = sorted(found.values(), key=lambda tensor: -tensor.numel())
        return tuple(largest), turns % 2 == 1, cut
