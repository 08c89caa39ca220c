"""Video: cosines within frames, and merges with a mean for every frame, simulated and predicted."""

import dataclasses

import numpy as np
import pytest
import torch

from meanmode.sim.observe.observables import tcs, tcs_frame
from meanmode.sim.simulate import simulate, simulate_ensemble
from meanmode.theory.meanfield.gram import GramField
from meanmode.theory.setting import Setting

VIDEO = Setting(
    depth=5, tokens=16, width=32, heads=2, weight_std=0.18, input="video", frames=4, text_tokens=2, beta=0.7
)


def test_tcs_within_frames_is_the_mean_of_that_of_each_frame() -> None:
    x = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    frames = torch.stack([tcs(x[:, start : start + 4]) for start in (0, 4, 8)])
    torch.testing.assert_close(tcs_frame(x, 3), frames.mean(0))


def test_tcs_within_frames_is_recorded_of_a_video_alone() -> None:
    found = simulate(dataclasses.replace(VIDEO, depth=1), 0)
    assert found["tcs_frame"].shape == (2,) and found["tcs_frame"][0] > found["tcs_image"][0]
    assert "tcs_frame" not in simulate(Setting(depth=1, tokens=16, width=32), 0)


def test_a_mean_for_every_frame_is_what_the_gram_recursion_says() -> None:
    """TCS of all tokens and within the frames, simulated and by the chain's own law: 4 standard errors."""
    setting = dataclasses.replace(VIDEO, merge="mv_split", alpha=0.6, frame_means=True)
    seen = simulate_ensemble([(setting, seed) for seed in range(96)])
    chain = GramField(setting)
    assert chain.segments == setting.merge_segments == (4, 4, 4, 4, 2)
    exact = chain.exact(96)
    within = exact.segment_tcs[:, :4].mean(1)
    error = seen["tcs_frame"].std(0) / np.sqrt(48)  # that of both sides
    assert (abs(seen["tcs_frame"].mean(0) - within) < 4 * error).all()
    error = np.hypot(seen["tcs"].std(0), exact.profiles.std(0)) / np.sqrt(96)
    assert (abs(seen["tcs"].mean(0) - exact.tcs) < 4 * error).all()
    # negative control: one mean for the whole image is another network
    whole = GramField(dataclasses.replace(setting, frame_means=False)).exact(96)
    assert (abs(whole.tcs - exact.tcs) > 4 * error).any()


def test_a_mean_for_every_frame_needs_frames() -> None:
    with pytest.raises(ValueError, match="frame_means needs several frames: set frames"):
        Setting(frame_means=True)
