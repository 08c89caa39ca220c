"""Calls are checked in this test run: their types everywhere, and sizes where arrays have shapes."""

import jaxtyping
import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import Float
from torch import Tensor

from meanmode.sim.observe import observables
from meanmode.sim.onset.watched_signal import Moved
from meanmode.sim.store.run_store import step_numbers


def test_an_argument_of_another_type_is_refused() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        step_numbers("3", 4)


def test_an_array_of_another_shape_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        observables.tcs(torch.zeros(4))


def test_calls_like_an_accepted_one_are_accepted_and_others_refused() -> None:
    """Checks are remembered by types, shapes and precision, of arguments and of results."""
    results = [torch.zeros(3), torch.zeros(3), torch.zeros(4), torch.zeros(4)]

    @jaxtyping.jaxtyped(typechecker=beartype)
    def first(x: Float[Tensor, " T"], y: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        return results.pop(0)

    for _ in range(2):
        assert first(torch.zeros(3), torch.zeros(3)).shape == (3,)
        with pytest.raises(jaxtyping.TypeCheckError, match="parameters"):
            first(torch.zeros(3), torch.zeros(4))
        with pytest.raises(jaxtyping.TypeCheckError, match="parameters"):
            first(torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    for _ in range(2):
        with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
            first(torch.zeros(3), torch.zeros(3))
    assert not results


def test_fields_of_another_type_are_refused() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        Moved(signal="loss", first_step="7", value=2.0, reference=1.0, factor=2.0)
