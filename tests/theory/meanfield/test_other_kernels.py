"""Our Gaussian kernels against those of neural-tangents, where both describe the same layers.

neural-tangents has neither QK-Norm nor a merge by parts, so softmax attention and MV-Split are not compared.
It is no dependency and needs an older jax than the latest: run with neural-tangents 0.6.5, jax 0.4.30.
"""

from typing import Any

import numpy as np
import pytest

from meanmode.theory.meanfield.phase_diagram import BlockMap
from meanmode.theory.meanfield.swiglu_moments import silu_kernel, slope_kernel
from meanmode.theory.setting import Setting

stax = pytest.importorskip("neural_tangents.stax")
jax = pytest.importorskip("jax")

COSINES = np.array([0.0, 0.2, 0.5, 0.9, 0.99])
NODES = 60


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """One token, and one at each cosine to it; features of mean 0 and mean square 1."""
    base = np.array([1.0, -1, 1, -1]), np.array([1.0, 1, -1, -1])
    return base[0][None], COSINES[:, None] * base[0] + np.sqrt(1 - COSINES[:, None] ** 2) * base[1]


def silu(std: float) -> Any:
    """silu of a dense layer of Gaussian weights."""
    return stax.serial(stax.Dense(1, W_std=std), stax.ElementwiseNumerical(jax.nn.silu, deg=NODES))


def swiglu(setting: Setting, std: float) -> Any:
    hidden = stax.parallel(silu(std), stax.Dense(1, W_std=std))
    return stax.serial(
        stax.FanOut(2), hidden, stax.FanInProd(), stax.Dense(1, W_std=std * setting.ffn_ratio**0.5)
    )


def merged(branch: Any, gain: float) -> Any:
    """gain X + F, and a norm."""
    skip = stax.serial(stax.Identity(), stax.DotGeneral(rhs=np.array(gain)))
    return stax.serial(stax.FanOut(2), stax.parallel(skip, branch), stax.FanInSum(), stax.LayerNorm())


@pytest.mark.parametrize("std", [0.3, 0.8, 1.5])
def test_the_kernel_of_silu_and_of_its_slope(std: float) -> None:
    kernel = silu(std)[2](*pairs(), ("nngp", "ntk"))
    np.testing.assert_allclose(kernel.nngp[0], silu_kernel(std)(COSINES), rtol=1e-9)
    slopes = std**2 * COSINES * slope_kernel(std)(COSINES)
    np.testing.assert_allclose(kernel.ntk[0], slopes, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("std", [0.5, 1.2])
def test_the_pair_product_of_swiglu(std: float) -> None:
    setting = Setting(width=256, weight_std=std / 16, ffn_ratio=3.0)
    block = BlockMap(setting)
    found = swiglu(setting, std)[2](*pairs(), "nngp")[0]
    np.testing.assert_allclose(found, block.ffn_gain * block.swiglu(COSINES), rtol=1e-9)


@pytest.mark.parametrize(("ratio", "gain"), [(1.0, 1.0), (8.0, 1.5)])
def test_blocks_that_mix_no_tokens(ratio: float, gain: float) -> None:
    """Merges with a gain and norms: three blocks whose mixer is the identity, so a linear layer of two."""
    std = 0.9
    fields = {"mixer": "lazy", "mixer_share": 0.0, "merge": "deepnorm", "residual_gain": gain}
    setting = Setting(width=256, weight_std=std / 16, ffn_ratio=ratio, **fields)
    linear = stax.serial(stax.Dense(1, W_std=std), stax.Dense(1, W_std=std))
    branches = [linear, swiglu(setting, std)] * 3
    layers = [merged(branch, gain) for branch in branches]
    kernel = stax.serial(stax.Dense(1), *layers)[2](*pairs(), "nngp")[0]
    expected = COSINES
    for _ in range(3):
        expected = BlockMap(setting)(expected)
    np.testing.assert_allclose(kernel, expected, atol=1e-8)
