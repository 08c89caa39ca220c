"""Probe and interventions on networks compiled by torch.compile, which would skip their hooks.

Run as a script, this file makes the measurements: the test run's checks of shapes cannot be compiled.
"""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meanmode.sim.intervene.grammar import Intervention
from meanmode.sim.intervene.interventions import Interventions
from meanmode.sim.observe.probe import Probe
from meanmode.sim.simulate import stream
from meanmode.sim.trunk.stack import Block, Stack, synthetic_input
from meanmode.theory.setting import Setting

SETTING = Setting(depth=2, tokens=4, batch=2, width=8, heads=2, weight_std=0.3, input_cosine=0.3)
KINDS = ("blocks", "regions", "whole", "blocks and whole")
Report = dict[str, dict[str, object]]


class Counting:
    """A compiler backend that leaves the operations as they are and counts the calls of its compiled code."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        def run(*given: object) -> object:
            self.calls += 1
            return graph.forward(*given)

        return run

    def since(self, calls: int) -> bool:
        """Whether any compiled code has run since."""
        return self.calls > calls


def network(kind: str, backend: Counting) -> nn.Module:
    """A network, compiled in the given way; kind `written` is not compiled."""
    stack = Stack(SETTING)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(SETTING, 0, index))
    for index, block in enumerate(stack.blocks):
        if kind.startswith("blocks"):
            block.compile(backend=backend)
        elif kind == "regions":  # as accelerate compiles them
            stack.blocks[index] = torch.compile(block, backend=backend)
    return torch.compile(stack, backend=backend) if kind.endswith("whole") else stack


def passed(model: nn.Module) -> None:
    model.zero_grad()
    x = synthetic_input(SETTING, stream(SETTING, 0, 0)).requires_grad_()
    (model(x) - x.detach().flip(1)).square().mean().backward()


def report(kind: str, warm: bool) -> dict[str, object]:
    """Measurements, and whether compiled code ran inside and after the contexts."""
    torch.compiler.reset()
    backend = Counting()
    model = network(kind, backend)
    if warm:
        passed(model)
    before = backend.calls
    with Probe(model) as probe:
        passed(model)
    with Interventions(model, [Intervention.parse("delete:mean:writer-gradient")]) as active:
        with Probe(model, names=["tcs"]):
            passed(model)
        passed(model)
    inside = backend.since(before)
    before = backend.calls
    with Probe(model, names=["tcs", "adjoint_tcs"], uncompiled=kind != "blocks") as states:
        passed(model)
    beside = backend.since(before)
    gradients = [weight.grad.flatten().tolist() for weight in model.parameters()]
    before = backend.calls
    writers = [module.ffn.w2 for module in model.modules() if isinstance(module, Block)]
    handles = [writer.register_forward_hook(lambda *_: None) for writer in writers]
    passed(model)
    hooked = backend.since(before)
    for handle in handles:
        handle.remove()
    before = backend.calls
    passed(model)
    values = probe.values() | {f"{name}_alone": of for name, of in states.values().items()}
    values |= {f"handed_on_{name}": of for name, of in active.handed_on().items()}
    return {
        "inside": inside,
        "beside": beside,
        "hooked": hooked,
        "after": backend.since(before),
        "gradients": gradients,
        "values": {name: of.tolist() for name, of in values.items()},
    }


@pytest.fixture(scope="module")
def found() -> Report:
    """The reports of all kinds, compiled before (warm) or inside the contexts (cold)."""
    command = [sys.executable, "-W", "error", __file__]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=900).stdout)


@pytest.mark.parametrize("start", ["cold", "warm"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_code_runs_after_the_contexts_and_not_inside_them(
    found: Report, kind: str, start: str
) -> None:
    case = found[f"{kind}-{start}"]
    assert not case["inside"]
    assert case["after"]


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_compiled_blocks_stay_compiled_unless_a_hook_is_inside(found: Report, start: str) -> None:
    case = found[f"blocks-{start}"]
    assert case["beside"] and not case["hooked"]


@pytest.mark.parametrize("start", ["cold", "warm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_network_is_measured_and_changed_like_an_uncompiled_one(
    found: Report, kind: str, start: str
) -> None:
    case, written = found[f"{kind}-{start}"], found["written-cold"]
    # blocks stay compiled beside a probe of states, and compilers round a backward pass in their own way
    compiled = kind == "blocks"
    for own, expected in zip(case["gradients"], written["gradients"], strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-4 * compiled, atol=1e-6 * compiled)
    for name, values in written["values"].items():
        beside = 1e-5 * (compiled and name.endswith("_alone"))
        np.testing.assert_allclose(case["values"][name], values, rtol=beside, err_msg=name)
        assert np.isfinite(values[-1]).all(), name
    np.testing.assert_allclose(case["values"]["handed_on_g_mean"][1:], 0.0, atol=1e-8)


def test_compiled_code_is_asked_for_no_more_than_it_shows() -> None:
    with pytest.raises(ValueError, match="measured uncompiled: leave out `uncompiled`"):
        Probe(Stack(SETTING), names=["tcs", "mu_eff"], uncompiled=False)


def test_copies_of_a_compiled_block_are_not_compiled() -> None:
    stack = Stack(SETTING)
    for block in stack.blocks:
        block.compile(backend="eager")
    for again in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert all(block.compiled is None for block in again.blocks)
    assert all(block.compiled is not None for block in stack.blocks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = {f"{kind}-{start}": report(kind, start == "warm") for kind in KINDS for start in ("cold", "warm")}
    print(json.dumps(cases | {"written-cold": report("written", False)}))
