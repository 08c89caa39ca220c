"""Measurements made for several blocks at once: they have the values of blocks measured one by one."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from meanmode.sim.observe import deferred, measurement, singular_values, waiting_states
from meanmode.sim.observe.deferred import Queue
from meanmode.sim.observe.probe import Probe
from meanmode.sim.simulate import ADJOINT_STREAM, stream
from meanmode.sim.trunk.stack import Stack, synthetic_adjoint, synthetic_input
from meanmode.theory.setting import Setting

SETTING = Setting(
    depth=5, tokens=16, text_tokens=4, batch=3, width=16, heads=2, weight_std=0.3, input_cosine=0.2, rope=True
)
CASES = {
    "text": SETTING,
    "no text": dataclasses.replace(SETTING, tokens=36, text_tokens=0),
    "tokens alike": dataclasses.replace(SETTING, depth=16, weight_std=0.5, input_cosine=0.99),
    "adjoints alike": dataclasses.replace(SETTING, adjoint_cosine=0.99999),
}


def observed(setting: Setting) -> dict[str, np.ndarray]:
    """All observables of a pass."""
    stack = Stack(setting)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, 0, index))
    x = synthetic_input(setting, stream(setting, 0, 0)).requires_grad_()
    with Probe(stack) as probe:
        stack(x).backward(synthetic_adjoint(setting, stream(setting, 0, ADJOINT_STREAM)))
    return probe.values()


@pytest.mark.parametrize("setting", CASES.values(), ids=CASES)
def test_blocks_measured_together_have_the_values_they_have_alone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = observed(setting)
    monkeypatch.setattr(deferred, "STACKED_BYTES", 0)
    monkeypatch.setattr(measurement, "COPIED_BYTES", 0)
    alone = observed(setting)
    for name, values in alone.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_memory_of_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    kept = waiting_states.WaitingStates._other

    def counted(self: waiting_states.WaitingStates, x: Tensor) -> int:
        row = kept(self, x)
        held.append(len(self._others) + len(self._states))
        return row

    monkeypatch.setattr(waiting_states.WaitingStates, "_other", counted)
    expected = observed(SETTING)
    assert max(held) > 3
    held.clear()
    state = SETTING.batch * 20 * SETTING.width * 4
    monkeypatch.setattr(deferred, "HELD_BYTES", state)
    monkeypatch.setattr(waiting_states, "WAITING_BYTES", 3 * state)
    found = observed(SETTING)
    assert max(held) <= 3
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_one_kind_and_shape_is_one_call_and_a_place_that_comes_again_is_measured_before() -> None:
    calls: list[tuple[list[tuple[int, ...]], tuple[int, ...]]] = []

    def work(places: list[tuple[int, ...]], x: Tensor) -> None:
        calls.append((places, tuple(x.shape)))

    queue = Queue()
    for place, tokens in ((1, 4), (2, 4), (3, 5), (1, 4)):
        queue.add("kind", work, (place,), torch.ones(tokens, 2))
    assert calls == [([(1,), (2,)], (2, 4, 2)), ([(3,)], (1, 5, 2))]
    queue.flush()
    assert calls[2:] == [([(1,)], (1, 4, 2))]


def test_many_matrices_of_few_tokens_have_the_norms_of_single_ones() -> None:
    """Among them matrices of rank one and of equal singular values."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(800, 20, 20, generator=generator)
    scores[:200] = scores[:200, :, :1]  # of rank one once centered
    scores[200:400] = 9 * torch.eye(20)  # all singular values equal
    attention = torch.softmax(scores, -1)
    attention[:200] = scores[:200] / 20
    apart = attention - attention.mean(-2, keepdim=True)
    expected = torch.linalg.svdvals((apart - apart.mean(-1, keepdim=True)).double())[:, 0]
    found = singular_values.centered_norm(apart)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("sharpness", [2, 4])
def test_no_matrix_of_many_keeps_a_smaller_singular_value(sharpness: int) -> None:
    """If each matrix is tested alone, and early, one in 2,000 keeps its second singular value."""
    generator = torch.Generator().manual_seed(68 * sharpness)
    attention = torch.softmax(torch.randn(2000, 68, 68, generator=generator) * sharpness, -1).double()
    apart = attention - attention.mean(-2, keepdim=True)
    expected = torch.linalg.matrix_norm(apart - apart.mean(-1, keepdim=True), 2)
    found = singular_values.centered_norm(apart.float())
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=0.0)
