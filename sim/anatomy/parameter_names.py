"""Names of the parameters behind products, and which call of which module a product is."""

from torch import Tensor, nn

from meanmode.sim.anatomy.anatomy import Weight
from meanmode.sim.anatomy.autograd_graph import Graph
from meanmode.sim.anatomy.traced_pass import TracedPass


class ParameterNames:
    """The parameters of a model and the products they take part in.

    Args:
        model: the model.
        trace: calls of its modules.
        graph: graph of the pass.
    """

    def __init__(self, model: nn.Module, trace: TracedPass, graph: Graph) -> None:
        self._trace, self._graph = trace, graph
        self._names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), []).append(name)
        for number, names in trace.gathered.items():
            known = self._names.setdefault(number, [])
            known += [name for name in dict.fromkeys(names) if name not in known]
        self._calls: dict[int, int] = {}
        self._number: dict[int, int] = {}
        inside: dict[int, int] = {}
        counts: dict[int, int] = {}
        for product in sorted(graph.products):
            weight = id(graph.products[product].weights[0])
            self._number[product] = counts.get(weight, 0)
            counts[weight] = self._number[product] + 1
            call = trace.call_at(graph.sequence[product])
            self._calls[product] = call
            inside[call] = inside.get(call, 0) + 1
        self._inside = inside

    def of(self, tensor: Tensor) -> str:
        """Name of a parameter; of several, the first."""
        return self._names.get(id(tensor), ["(no parameter of the model)"])[0]

    def weight(self, product: int) -> Weight:
        """The weight of a product, named after the module that was called where it has several names."""
        call = self._calls[product]
        home = self._trace.calls[call].module if call >= 0 else ""
        names = self._names.get(id(self._graph.products[product].weights[0]), ["(no parameter of the model)"])
        name = next((name for name in names if name.rpartition(".")[0] == home), names[0])
        number = self._trace.calls[call].number if self.hooked(product) else self._number[product]
        return Weight(parameter=name, module=name.rpartition(".")[0], call=number)

    def hooked(self, product: int) -> bool:
        """Whether a product is all that the call of the module that owns the weight computes with weights."""
        call = self._calls[product]
        if call < 0 or self._inside[call] > 1:
            return False
        names = self._names.get(id(self._graph.products[product].weights[0]), [])
        return any(name.rpartition(".")[0] == self._trace.calls[call].module for name in names)
