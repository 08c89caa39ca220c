"""One forward pass with a record of which module made which part of the autograd graph."""

import bisect
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from meanmode.sim.anatomy.untouched import sharded_modules
from meanmode.sim.kernels.choice import plain_torch

Path = tuple[int | str, ...]


@dataclasses.dataclass(slots=True)
class ModuleCall:
    """One call of a module during the pass.

    Attributes:
        module: name of the module.
        number: how often it was called before in this pass.
        parent: index of the call that made this one; -1 for the outermost.
        start: sequence number of the first autograd node made in it.
        stop: sequence number after the last.
        outputs: tensors with a graph in its output: where they are, their nodes and output numbers.
    """

    module: str
    number: int
    parent: int
    start: int
    stop: int = -1
    outputs: tuple[tuple[Path, Any, int], ...] = ()


@dataclasses.dataclass(slots=True)
class TracedPass:
    """What one forward pass left: the ends of the graph and the calls of modules.

    Attributes:
        roots: autograd nodes of the outputs.
        calls: calls of modules in the order in which they began.
        boundaries: sequence numbers at which the innermost call changes.
        innermost: index of the innermost call from that boundary on; -1 outside all.
        gathered: names of the parameters that FSDP2 gathered for the pass, by identity.
    """

    roots: list[Any]
    calls: list[ModuleCall]
    boundaries: list[int]
    innermost: list[int]
    gathered: dict[int, list[str]] = dataclasses.field(default_factory=dict)

    def call_at(self, sequence: int) -> int:
        """Index of the innermost call in which the node of a sequence number was made; -1 if in none."""
        found = bisect.bisect_right(self.boundaries, sequence) - 1
        return self.innermost[found] if found >= 0 else -1

    def enclosing(self, call: int) -> Iterator[int]:
        """Indices of a call and of those around it, innermost first."""
        while call >= 0:
            yield call
            call = self.calls[call].parent


def tensors_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Tensors in nested lists, tuples, mappings and data classes, with the keys that lead to them."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from tensors_in(item, (*path, number))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name), (*path, field.name))


def _with_graph(value: Any) -> tuple[tuple[Path, Any, int], ...]:
    found = ((path, tensor) for path, tensor in tensors_in(value) if tensor.grad_fn is not None)
    return tuple((path, tensor.grad_fn, tensor.output_nr) for path, tensor in found)


def asking(value: Any) -> Any:
    """Copies of all floating tensors in nested containers that ask for gradients and can be written to."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.requires_grad:
            return value
        return value.detach().clone().requires_grad_(True).clone()
    if isinstance(value, Mapping):
        changed = {key: asking(item) for key, item in value.items()}
        return changed if type(value) is dict else _like(value, changed)
    if isinstance(value, list | tuple):
        items = [asking(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _like(original: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    """A mapping of the same type, or the dictionary where its type cannot be made from one."""
    try:
        return type(original)(changed)  # type: ignore[call-arg]
    except TypeError:
        return changed


class _Recorder:
    """Global hooks that note the calls of a model's modules."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._sharded = {id(module) for module in sharded_modules(model)}
        self._open: list[int] = []
        self._counts: dict[str, int] = {}
        self.trace = TracedPass(roots=[], calls=[], boundaries=[], innermost=[])

    def _change(self, sequence: int) -> None:
        self.trace.boundaries.append(sequence)
        self.trace.innermost.append(self._open[-1] if self._open else -1)

    def enter(self, module: nn.Module, arguments: Any) -> None:
        name = self._names.get(id(module))
        if name is None:
            return
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        sequence: int = torch._C._autograd._get_sequence_nr()
        parent = self._open[-1] if self._open else -1
        self._open.append(len(self.trace.calls))
        self.trace.calls.append(ModuleCall(module=name, number=number, parent=parent, start=sequence))
        self._change(sequence)

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if id(module) not in self._names:
            return
        call = self.trace.calls[self._open.pop()]
        call.stop = torch._C._autograd._get_sequence_nr()
        call.outputs = _with_graph(output)
        self._change(call.stop)
        if id(module) in self._sharded:  # its own hook, which gives the parameters back, is yet to come
            for name, parameter in module.named_parameters(self._names[id(module)], remove_duplicate=False):
                self.trace.gathered.setdefault(id(parameter), []).append(name)


def traced(model: nn.Module, run: Any) -> TracedPass:
    """Run one forward pass; its floating inputs ask for gradients.

    Args:
        model: the model; its parameters should ask for gradients.
        run: a callable without arguments that runs the pass, or a batch: a mapping is passed as named
            arguments, a list or tuple as arguments, anything else as the only argument.

    Raises:
        ValueError: neither the value returned nor the output of the model has a graph.
    """
    recorder = _Recorder(model)
    handles = [
        model.register_forward_pre_hook(
            lambda _, arguments, named: (asking(arguments), asking(named)), with_kwargs=True
        ),
        global_hooks.register_module_forward_pre_hook(recorder.enter),
        global_hooks.register_module_forward_hook(recorder.leave),
    ]
    try:
        with plain_torch():  # what is looked for are torch's own operations
            returned = called(model, run)
    finally:
        for handle in handles:
            handle.remove()
    trace = recorder.trace
    outermost = [call for call in trace.calls if call.parent < 0]
    ends = [*_with_graph(returned), *(output for call in outermost for output in call.outputs)]
    trace.roots = list({id(node): node for _, node, _ in ends}.values())
    if not trace.roots:
        raise ValueError(
            f"the forward pass of {type(model).__name__} returned no tensor with an autograd graph: return "
            "the output, and do not detach it or run under torch.no_grad"
        )
    return trace


def called(model: nn.Module, run: Any) -> Any:
    """Run one forward pass, `run` as in `traced`; returns what the callable or the model returned."""
    if callable(run) and not isinstance(run, Tensor):
        return run()
    if isinstance(run, Mapping):
        return model(**run)
    return model(*run) if isinstance(run, Sequence) and not isinstance(run, str) else model(run)
