"""Hooks that `torch.compile` compiles with the model: one opaque operator each, without a graph break."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from meanmode.sim.watch.hook_points import ARGUMENTS, PRODUCT, HookPoint
from meanmode.sim.watch.intercepted import intercepted

Report = Callable[[Tensor, list[Tensor]], None]
"""Takes the cotangent of a tensor on the way, and the tensors beside it."""

Felt = Callable[[list[Tensor], list[Tensor]], None]
"""Takes the cotangents of all tensors on the way, and the tensors beside it."""

Handler = Callable[[list[Tensor], list[Tensor], list[float]], int]
"""Takes tensors on the way, tensors beside it and numbers; returns the ticket of its reports, or -1."""

HANDLERS: dict[int, Handler] = {}
"""Site -> what handles its tensors, in a measured step only."""

REPORTS: dict[int, Felt] = {}
"""Ticket -> what reports the cotangents of that call, in a measured step only."""

NO_NUMBERS = [0.0]
"""No numbers: an empty list would count as one of tensors."""

_numbers = itertools.count()


@torch.library.custom_op(
    "meanmode::seen",
    mutates_args=(),
    schema="(Tensor[] passing, Tensor[] beside, float[] numbers, Tensor site) -> Tensor[]",
)
def seen(passing: list[Tensor], beside: list[Tensor], numbers: list[float], site: Tensor) -> list[Tensor]:
    """Copies of tensors on their way, which a handler sees; last, the ticket that the backward pass hands in.

    The copies take the place of the tensors, so that no compiler can leave the call out or move it.
    """
    handler = HANDLERS.get(int(site))
    ticket = -1 if handler is None else handler(passing, beside, numbers)
    return [*(x.clone() for x in passing), torch.tensor(ticket)]


@torch.library.custom_op(
    "meanmode::felt",
    mutates_args=(),
    schema="(Tensor[] cotangents, Tensor[] beside, Tensor ticket) -> Tensor[]",
)
def felt(cotangents: list[Tensor], beside: list[Tensor], ticket: Tensor) -> list[Tensor]:
    """Copies of the cotangents of what `seen` passed on, which are reported."""
    report = REPORTS.get(int(ticket))
    if report is not None:
        report(cotangents, beside)
    return [delta.clone() for delta in cotangents]


@seen.register_fake
def _(passing: list[Tensor], beside: list[Tensor], numbers: list[float], site: Tensor) -> list[Tensor]:
    return [*(torch.empty_like(x) for x in passing), torch.empty((), dtype=torch.int64)]


@felt.register_fake
def _(cotangents: list[Tensor], beside: list[Tensor], ticket: Tensor) -> list[Tensor]:
    return [torch.empty_like(delta) for delta in cotangents]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(output[-1], *inputs[1])


def _backward(ctx: Any, cotangents: list[Tensor]) -> tuple[Any, ...]:
    ticket, *beside = ctx.saved_tensors
    return felt(list(cotangents[:-1]), beside, ticket), [None] * len(beside), None, None


seen.register_autograd(_backward, setup_context=_keep)


class Measuring(TorchFunctionMode):
    """Changes nothing; compiled code is kept apart by it: that of measured steps and that of all others."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def _replaced(output: Any, given: dict[Any, Tensor]) -> Any:
    """A container with some of its items replaced.

    Raises:
        TypeError: a container of another kind than tuple, list or dictionary.
    """
    if type(output) is dict:
        return {**output, **given}
    if type(output) not in (tuple, list):
        raise TypeError(f"a block returns {type(output).__name__}: hooks cannot be compiled into it")
    items = [given.get(place, item) for place, item in enumerate(output)]
    return tuple(items) if isinstance(output, tuple) else items


def _tensor_at(value: Any, path: tuple[int | str, ...]) -> Tensor | None:
    """The tensor to which a key leads, or the value itself without one; None if it is no tensor."""
    if path and isinstance(value, Tensor):
        return None
    if path and isinstance(value, tuple | list) and path[0] not in range(len(value)):
        return None
    found = value[path[0]] if path else value
    return found if isinstance(found, Tensor) else None


# these three are traced by `torch.compile`


def _before(attribute: str, chosen: int | str) -> Callable[..., Any]:
    def before(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given: list[tuple[Any, Any]] = [*enumerate(args), *options.items()]
        able = {key: x for key, x in given if isinstance(x, Tensor) and x.is_floating_point()}
        if not able:
            return None
        key = chosen if chosen in able else next(iter(able))  # it may be called in another way than before
        x = seen([able[key]], [], NO_NUMBERS, getattr(module, attribute))[0]
        if isinstance(key, str):
            return args, {**options, key: x}
        return (*args[:key], x, *args[key + 1 :]), options

    return before


def _product(attribute: str) -> Callable[..., Any]:
    def product(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Tensor) -> Tensor:
        y = args[0] if args else next(iter(options.values()))
        return seen([output], [y], NO_NUMBERS, getattr(module, attribute))[0]

    return product


def _after(attribute: str, paths: tuple[tuple[int | str, ...], ...]) -> Callable[..., Any]:
    def after(module: nn.Module, _: Any, output: Any) -> Any:
        found = [x for x in (_tensor_at(output, path) for path in paths) if x is not None]
        if len(found) < len(paths):
            return output
        given = seen(found, [], NO_NUMBERS, getattr(module, attribute))
        if not paths[0]:
            return given[0]
        return _replaced(output, {path[0]: x for path, x in zip(paths, given, strict=False)})

    return after


class CompiledHooks:
    """Hook points of one measured step of a model that is compiled as a whole, in parts or not yet.

    Args:
        functions: name of a function -> its number, kept from step to step as a constant of compiled code.

    Attributes:
        points: name of a hook point -> whether it saw something.
        incomplete: whether some point saw nothing in a step, whose values are then not to be used.
        reports: what reports cotangents of the call that is being handled, with the tensors these belong to.
    """

    def __init__(self, functions: dict[str, int]) -> None:
        self._known = functions
        self._stack = contextlib.ExitStack()
        self._opened: list[int] = []
        self._tickets: list[int] = []
        self._sleeping = self.incomplete = False
        self.points: dict[str, bool] = {}
        self.reports: list[tuple[Tensor, Report]] = []

    def expect(self, x: Tensor, report: Report) -> None:
        """Have the cotangents reported of the call that is being handled, if `x` is on its way."""
        self.reports.append((x, report))

    @contextlib.contextmanager
    def installed(self, points: Sequence[HookPoint], **functions: Any) -> Iterator[None]:
        """Install hook points, and see functions as `intercepted` does, inside the context."""
        with Measuring(), self._stack:
            self._stack.callback(self._forget)
            for point in points:
                if point.chosen is not None:
                    self._stack.callback(self._install(point).remove)
            self._stack.enter_context(intercepted(**self._functions(**functions)))
            yield

    def withdraw(self) -> None:
        """Remove all hooks."""
        self._stack.close()

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """See nothing inside the context, with the hooks in place."""
        self._sleeping = True
        try:
            yield
        finally:
            self._sleeping = False

    def _forget(self) -> None:
        for site in self._opened:
            HANDLERS.pop(site, None)
        for ticket in self._tickets:
            REPORTS.pop(ticket, None)

    def _site(self, work: Callable[[list[Tensor], list[Tensor], list[float]], None]) -> Tensor:
        """A number for tensors that `work` sees from now on: a tensor, lest it be a constant in the code."""
        return torch.tensor(self._open(next(_numbers), work))

    def _open(self, site: int, work: Callable[[list[Tensor], list[Tensor], list[float]], None]) -> int:
        def handle(passing: list[Tensor], beside: list[Tensor], numbers: list[float]) -> int:
            if self._sleeping:
                return -1
            self.reports = []
            with torch.no_grad():
                work(passing, beside, numbers)
            return self._ticket(passing)

        HANDLERS[site] = handle
        self._opened.append(site)
        return site

    def _function(self, name: str, work: Callable[[list[Tensor], list[Tensor], list[float]], None]) -> int:
        """The number of a function."""
        return self._open(self._known.setdefault(name, next(_numbers)), work)

    def _ticket(self, passing: list[Tensor]) -> int:
        found = [
            (place, report) for x, report in self.reports for place, other in enumerate(passing) if other is x
        ]
        if not found:
            return -1

        def tell(cotangents: list[Tensor], beside: list[Tensor]) -> None:
            with torch.no_grad():
                for place, report in found:
                    report(cotangents[place], beside)

        ticket = next(_numbers)
        REPORTS[ticket] = tell
        self._tickets.append(ticket)
        return ticket

    def _install(self, point: HookPoint) -> Any:
        """Hook a module; the number of the point is an attribute, since modules that are alike share code."""
        module, work = point.module, point.work
        attribute = f"_watched_{point.name.partition(' ')[0]}"
        while attribute in vars(module):
            attribute += "_"

        def see(passing: list[Tensor], beside: list[Tensor], numbers: list[float]) -> None:
            self.points[point.name] = True
            if point.takes == ARGUMENTS:
                work(module, (passing[0],), {})
            elif point.takes == PRODUCT:
                work(module, (beside[0],), {}, passing[0])
            else:
                whole = {path[0]: x for path, x in zip(point.paths, passing, strict=False) if path}
                work(module, (), whole or passing[0])

        self.points[point.name] = False
        vars(module)[attribute] = self._site(see)
        self._stack.callback(vars(module).pop, attribute)
        if point.takes == ARGUMENTS:
            before = _before(attribute, point.chosen or 0)
            return module.register_forward_pre_hook(before, with_kwargs=True)
        if point.takes == PRODUCT:
            return module.register_forward_hook(_product(attribute), with_kwargs=True)
        return module.register_forward_hook(_after(attribute, point.paths))

    def _functions(
        self,
        product: Callable[..., Any] | None,
        attention: Callable[..., Any] | None,
        softmax: Callable[..., Any] | None,
    ) -> dict[str, Any]:
        """The same functions, called from inside the operator."""
        found: dict[str, Any] = dict.fromkeys(("product", "attention", "softmax"))
        if product is not None:

            def see_linear(passing: list[Tensor], beside: list[Tensor], numbers: list[float]) -> None:
                product(beside[0], beside[1], None, passing[0])

            linear_site = self._function("linear", see_linear)
            found["product"] = lambda input, weight, bias, written: seen(
                [written], [input, weight], NO_NUMBERS, torch.full((), linear_site)
            )[0]
        if softmax is not None:

            def see_softmax(passing: list[Tensor], beside: list[Tensor], numbers: list[float]) -> None:
                softmax(beside[0], passing[0])

            softmax_site = self._function("softmax", see_softmax)
            found["softmax"] = lambda input, weights: seen(
                [weights], [input], NO_NUMBERS, torch.full((), softmax_site)
            )[0]
        if attention is not None:

            def see_attention(passing: list[Tensor], beside: list[Tensor], numbers: list[float]) -> None:
                causal, scale, grouped = numbers
                attention(
                    passing[0],
                    beside[0],
                    beside[0],
                    beside[1] if len(beside) > 1 else None,
                    is_causal=bool(causal),
                    scale=None if math.isnan(scale) else scale,
                    enable_gqa=bool(grouped),
                )

            attention_site = self._function("attention", see_attention)

            def attended(
                query: Tensor,
                key: Tensor,
                value: Tensor,
                attn_mask: Tensor | None = None,
                dropout_p: float = 0.0,
                is_causal: bool = False,
                scale: float | None = None,
                enable_gqa: bool = False,
            ) -> Tensor:
                beside = [key] if attn_mask is None else [key, attn_mask]
                numbers = [float(is_causal), math.nan if scale is None else float(scale), float(enable_gqa)]
                return seen([query], beside, numbers, torch.full((), attention_site))[0]

            found["attention"] = attended
        return found
