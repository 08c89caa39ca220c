"""Rectified flow: the sign of the velocity, the draws of a step, and the sampler against closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from meanmode.dit.model.flow import (
    draw,
    euler_states,
    flow_losses,
    guided,
    noised,
    random_stream,
    sample,
    sampling_times,
    shifted_time,
)

SHAPE = (1, 4, 4)


def latents(seed: int, batch: int = 5) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=random_stream(seed), dtype=torch.float64)


def test_noised_latents_go_from_data_to_noise_along_minus_the_velocity() -> None:
    """z_0 = x0, z_1 = x1, and a step of dt in t moves z by -dt (x0 - x1) exactly."""
    clean, noise = latents(0), latents(1)
    assert torch.equal(noised(clean, noise, torch.zeros(5)), clean)
    assert torch.equal(noised(clean, noise, torch.ones(5)), noise)
    times = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    moved = noised(clean, noise, times) + 0.05 * (clean - noise)
    torch.testing.assert_close(moved, noised(clean, noise, times - 0.05), rtol=0, atol=1e-14)


def test_every_sample_has_its_own_time() -> None:
    clean, noise = latents(0), latents(1)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    one_by_one = [noised(x0[None], x1[None], t[None]) for x0, x1, t in zip(clean, noise, times, strict=True)]
    assert torch.equal(noised(clean, noise, times), torch.cat(one_by_one))


def test_noising_and_losses_have_a_leading_axis_of_runs() -> None:
    clean, noise = (torch.stack([latents(seed), latents(seed + 1)]) for seed in (0, 2))
    times = torch.rand(2, 5, generator=random_stream(4), dtype=torch.float64)
    noisy, losses = noised(clean, noise, times), flow_losses(clean, clean, noise)
    assert losses.shape == (2, 5)
    assert torch.equal(noisy[1], noised(clean[1], noise[1], times[1]))
    assert torch.equal(losses[1], flow_losses(clean[1], clean[1], noise[1]))


def test_the_loss_is_the_mean_square_against_data_minus_noise() -> None:
    clean, noise, velocity = (latents(seed).float() for seed in range(3))
    assert not flow_losses(clean - noise, clean, noise).any()
    by_hand = [
        sum((v - (x0 - x1)) ** 2 for v, x0, x1 in zip(*map(np.ravel, one), strict=True)) / 16
        for one in zip(velocity.numpy(), clean.numpy(), noise.numpy(), strict=True)
    ]
    np.testing.assert_allclose(flow_losses(velocity, clean, noise), by_hand, rtol=1e-6)


def test_the_loss_is_in_single_precision_at_least() -> None:
    clean, noise = latents(0).float(), latents(1).float()
    assert flow_losses((clean - noise).bfloat16(), clean, noise).dtype == torch.float32


@pytest.mark.parametrize("shift", [0.5, 1.0, 4.0])
def test_the_time_shift_keeps_the_ends_and_is_undone_by_its_inverse(shift: float) -> None:
    """t' -> t is the shift by 1 / a; dt'/dt at t = 0 is a."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shifted_time(t, shift)
    assert shifted[0] == 0 and shifted[-1] == 1 and bool((shifted.diff() > 0).all())
    torch.testing.assert_close(shifted_time(shifted, 1 / shift), t, rtol=1e-14, atol=1e-15)
    assert shifted_time(1e-9, shift) == pytest.approx(shift * 1e-9, rel=1e-7)
    assert shifted_time(0.5, shift) == pytest.approx(shift / (1 + shift))


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_a_time_shift_that_is_not_positive_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match=r"time shift must be positive, got"):
        shifted_time(0.5, shift)


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_training_times_are_uniform_and_then_shifted(shift: float) -> None:
    """P(t' <= s) = s / (a - (a - 1) s) for the shift a; 2000 samples of step 1, seed 0."""
    times = draw(0, 1, range(2000), SHAPE, time_shift=shift).times.double().numpy()
    assert stats.kstest(times, lambda s: s / (shift - (shift - 1) * s)).pvalue > 0.01
    wrong = 4.0 if shift == 1 else 1.0
    assert stats.kstest(times, lambda s: s / (wrong - (wrong - 1) * s)).pvalue < 1e-6


def test_noise_is_standard_normal_and_nothing_is_correlated() -> None:
    """2000 samples of 16 numbers; correlations of times, drops and noise within 4 standard errors of 0."""
    drawn = draw(0, 1, range(2000), SHAPE, null_text=0.5)
    noise = drawn.noise.flatten(1).numpy()
    assert stats.kstest(noise.ravel(), stats.norm.cdf).pvalue > 0.01
    columns = np.column_stack([drawn.times, drawn.dropped, noise])
    between = np.corrcoef(columns, rowvar=False)[np.triu_indices(columns.shape[1], 1)]
    assert np.abs(between).max() < 4 / math.sqrt(2000)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5])
def test_texts_are_dropped_with_the_given_probability(probability: float) -> None:
    dropped = int(draw(0, 1, range(2000), SHAPE, null_text=probability).dropped.sum())
    assert stats.binomtest(dropped, 2000, probability).pvalue > 0.01
    assert probability or not dropped


def test_what_is_dropped_or_shifted_changes_nothing_else() -> None:
    one, other = draw(0, 1, range(20), SHAPE), draw(0, 1, range(20), SHAPE, time_shift=1.0, null_text=0.5)
    assert torch.equal(one.noise, other.noise)
    torch.testing.assert_close(one.times, shifted_time(other.times, 4.0))
    assert not (one.dropped & ~other.dropped).any()


@pytest.mark.parametrize("positions", [[0], [7, 3, 5], [11, 0], list(reversed(range(12))), np.arange(4, 8)])
def test_draws_are_functions_of_seed_step_and_position(positions: list[int] | NDArray[np.int64]) -> None:
    torch.manual_seed(1)
    whole, part = draw(3, 5, range(12), SHAPE), draw(3, 5, positions, SHAPE)
    assert torch.equal(part.times, whole.times[positions])
    assert torch.equal(part.dropped, whole.dropped[positions])
    assert torch.equal(part.noise, whole.noise[positions])


def test_every_seed_step_and_position_has_its_own_draws() -> None:
    drawn = [draw(seed, step, range(4), SHAPE) for seed in range(3) for step in range(1, 5)]
    assert torch.cat([of.times for of in drawn]).unique().numel() == 48
    assert torch.cat([of.noise for of in drawn]).flatten(1).unique(dim=0).shape[0] == 48


@pytest.mark.parametrize(("steps", "shift"), [(1, 4.0), (4, 1.0), (25, 4.0)])
def test_sampling_times_go_from_noise_to_data(steps: int, shift: float) -> None:
    times = sampling_times(steps, shift)
    uniform = [1 - step / steps for step in range(steps + 1)]
    expected = [shift * t / (1 + (shift - 1) * t) for t in uniform]
    np.testing.assert_allclose(times, expected, rtol=1e-14, atol=0)
    assert times[0] == 1 and times[-1] == 0


def test_a_sampler_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        sampling_times(0, 4.0)


class Gaussian:
    """The true velocity E[x0 - x1 | z_t] for x0 ~ N(mean, std^2), and the flow it generates.

    Channel 0 is the data; channel 1 has x0 = 0 and x1 = 1 and is therefore the time itself. The text shifts
    the mean by its value.
    """

    mean, std = 0.7, 0.3

    def start(self, noise: Tensor) -> Tensor:
        return torch.stack([noise, torch.ones_like(noise)], dim=1)[..., None]

    def __call__(self, latents: Tensor, text: Tensor) -> Tensor:
        z, t = latents[:, :1], latents[:, 1:]
        mean = self.mean + text[..., None]
        # regression of x0 - x1 on z_t = (1 - t) x0 + t x1
        slope = ((1 - t) * self.std**2 - t) / ((1 - t) ** 2 * self.std**2 + t**2)
        return torch.cat([mean + slope * (z - (1 - t) * mean), -torch.ones_like(t)], dim=1)

    def data(self, noise: Tensor, moved: float = 0.0) -> Tensor:
        """End point of the exact flow that starts at the noise."""
        return self.mean + moved + self.std * noise


def text(value: float) -> Tensor:
    return torch.full((9, 1, 1), value, dtype=torch.float64)


NOISE = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


def sampling_error(steps: int, shift: float, cfg_scale: float = 1.0) -> float:
    """Largest distance of samples from the end points of the exact flow."""
    true = Gaussian()
    options = {"steps": steps, "time_shift": shift, "cfg_scale": cfg_scale}
    found = sample(true, true.start(NOISE), text(0.25), text(-0.25), **options)
    moved = 0.25 * cfg_scale - 0.25 * (1 - cfg_scale)
    return float((found[:, 0, :, 0] - true.data(NOISE, moved)).abs().max())


@pytest.mark.parametrize("shift", [1.0, 4.0])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 2.0])
def test_euler_converges_to_the_data_with_first_order(shift: float, cfg_scale: float) -> None:
    """The velocity is linear in the mean, which guidance by w moves by w (condition - empty) + empty."""
    steps = [64, 128, 256, 512]
    errors = [sampling_error(number, shift, cfg_scale) for number in steps]
    order = -stats.linregress(np.log(steps), np.log(errors)).slope
    assert order == pytest.approx(1, abs=0.1)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("steps", [1, 7])
def test_straight_flows_are_exact_in_any_number_of_steps(steps: int) -> None:
    """If all data are at one point x then v = (x - z) / t; a schedule that ends above 0 would miss x."""
    true = Gaussian()
    true.std = 0.0
    found = sample(true, true.start(NOISE), text(0.0), text(0.0), steps=steps, cfg_scale=1.0)
    torch.testing.assert_close(found[:, 0, :, 0], torch.full_like(NOISE, true.mean), rtol=0, atol=1e-14)
    assert found[:, 1].abs().max() < 1e-14


def test_the_states_follow_the_schedule() -> None:
    true, schedule = Gaussian(), sampling_times(6, 4.0)
    states = list(euler_states(true, true.start(NOISE), text(0.0), text(0.0), steps=6))
    assert len(states) == 6
    for state, t in zip(states, schedule[1:], strict=True):
        torch.testing.assert_close(state[:, 1], torch.full_like(state[:, 1], t), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("scale", "asked"), [(1.0, 1), (2.0, 2), (0.0, 2)])
def test_guidance_extrapolates_from_the_empty_text_to_the_condition(scale: float, asked: int) -> None:
    seen = []

    def velocity(latents: Tensor, text: Tensor) -> Tensor:
        seen.append(text.shape[-2])
        return text.sum((1, 2))[:, None, None, None].expand_as(latents)

    found = guided(
        velocity, torch.zeros(2, *SHAPE), torch.full((2, 3, 1), 1.0), torch.full((2, 1, 1), 0.5), scale
    )
    torch.testing.assert_close(found, torch.full((2, *SHAPE), 0.5 + scale * 2.5))
    assert seen == [3, 1][:asked]


def test_samplers_leave_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    states = euler_states(
        lambda latents, text: weight * latents,
        torch.ones(1, *SHAPE),
        torch.ones(1, 1, 1),
        torch.ones(1, 1, 1),
    )
    assert not next(states).requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("shift", [1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 25])
def test_diffusers_takes_the_same_steps(steps: int, shift: float) -> None:
    """Its Euler scheduler shifts uniform times and ends at 0; it expects x1 - x0, which is -v."""
    module = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    scheduler = module.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
    matrix = torch.randn(16, 16, generator=random_stream(0)) / 4
    words, empty = torch.full((5, 1, 1), 0.3), torch.full((5, 2, 1), -0.2)

    def velocity(latents: Tensor, text: Tensor) -> Tensor:
        mixed = torch.tanh(latents.flatten(1) @ matrix) + text.sum((1, 2))[:, None]
        return mixed.view_as(latents)

    noise = latents(1).float()
    options = {"steps": steps, "cfg_scale": 2.0, "time_shift": shift}
    theirs = noise
    for ours, time in zip(
        euler_states(velocity, noise, words, empty, **options), scheduler.timesteps, strict=True
    ):
        prediction = -guided(velocity, theirs, words, empty, 2.0)
        theirs = scheduler.step(prediction, time, theirs).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scheduler.sigmas, sampling_times(steps, shift), atol=1e-7)
    assert all(now > after for now, after in itertools.pairwise(scheduler.sigmas))
