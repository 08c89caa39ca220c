"""Long sequences: statistics from bands of rows equal those of whole matrices, and no T x T tensor exists."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from meanmode.sim.observe import attention_bands, attention_statistics
from meanmode.sim.simulate import simulate
from meanmode.sim.trunk.mixers import make_mixer
from meanmode.theory.setting import MIXERS, Setting

BANDED = [name for name in MIXERS if name != "state_space"]


@pytest.mark.parametrize("spread", [1.0, 1e-2])
@pytest.mark.parametrize("name", BANDED)
def test_bands_give_the_statistics_of_the_whole_matrix(
    name: str, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also near a collapse, where all rows are nearly equal and products of them cancel."""
    random = torch.Generator().manual_seed(0)
    mixer = make_mixer(name, 32, 2).double()
    for weight in mixer.parameters():
        torch.nn.init.normal_(weight, std=0.2, generator=random)
    common, own = (torch.randn(2, tokens, 32, generator=random).double() for tokens in (1, 150))
    x = common + spread * own
    monkeypatch.setitem(attention_bands.BAND_ENTRIES, "cpu", 40 * 150)  # bands of 40 rows, the last of 30
    with torch.no_grad():
        operands = mixer.operands(x, (150,))
        whole = attention_statistics.attention_statistics(mixer, operands, x)
        monkeypatch.setattr(attention_statistics, "WHOLE_TOKENS", 100)
        bands = attention_statistics.attention_statistics(mixer, operands, x)
    for expected, found in zip(whole, bands, strict=True):
        assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-7, abs=1e-14)


def test_bands_of_a_matrix_that_is_not_finite_have_no_singular_value() -> None:
    broken = torch.full((60, 60), torch.nan)
    found = attention_bands.banded_parts(
        lambda rows: broken[rows].clone(), torch.randn(5, 60), singular_value=True
    )
    assert torch.isnan(found.singular_value)


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.entries = max(self.entries, leaf.numel())
        return found


def test_no_pass_over_a_long_sequence_forms_a_matrix_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward nor in any observable; the state itself is T x D."""
    monkeypatch.setitem(attention_bands.BAND_ENTRIES, "cpu", 2**18)
    setting = Setting(depth=1, tokens=2304, width=16, heads=1, weight_std=0.25, adjoint_cosine=0.1)
    with _Largest() as seen:
        found = simulate(setting, 0, backward=True)
    assert all(bool((abs(values[1]) < 1e9).all()) for values in found.values())
    assert seen.entries < setting.tokens**2 / 15
