"""Calls are checked in this test run: their types everywhere, and sizes where arrays have shapes."""

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation

from meanmode.sim.observe import observables
from meanmode.sim.store.run_store import step_numbers


def test_an_argument_of_another_type_is_refused() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        step_numbers("3", 4)


def test_an_array_of_another_shape_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        observables.tcs(torch.zeros(4))


def test_sizes_that_disagree_are_refused() -> None:
    pass
