"""The sweep over mixers and merges: it covers all of them, and its docstring states the theory's fronts."""

import pytest

import meanmode.sweeps.named.mixers_and_merges
from meanmode.sweeps.named.all_sweeps import named_sweep
from meanmode.sweeps.named.mixers_and_merges import MIXERS_AND_MERGES
from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.meanfield.coverage import has_theory
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.setting import MERGES, MIXERS

STATED = {
    ("softmax", "plain"): "softmax 39 +- 5",
    ("uniform", "plain"): "uniform 38 +- 4",
    ("linear", "plain"): "linear 38 +- 4",
    ("softmax", "layerscale"): "layerscale and rezero 75 +- 9",
    ("softmax", "rezero"): "layerscale and rezero 75 +- 9",
    ("softmax", "deepnorm"): "deepnorm 82 +- 10",
}


def test_every_mixer_and_every_merge_is_asked_about() -> None:
    assert named_sweep("mixers") is MIXERS_AND_MERGES
    assert {setting.mixer for setting in MIXERS_AND_MERGES.settings} == set(MIXERS)
    assert {setting.merge for setting in MIXERS_AND_MERGES.settings} == set(MERGES)
    assert set(MIXERS_AND_MERGES.laws) <= set(LAWS)


def test_no_setting_is_asked_about_twice() -> None:
    assert len(set(MIXERS_AND_MERGES.settings)) == len(MIXERS_AND_MERGES.cases)
    stacks = {(setting.width, setting.tokens, setting.weight_std) for setting in MIXERS_AND_MERGES.settings}
    assert stacks == {(128, 64, 0.0707)}


@pytest.mark.parametrize(("mixer", "merge"), STATED)
def test_the_stated_fronts_are_the_predicted_ones(mixer: str, merge: str) -> None:
    setting = next(s for s in MIXERS_AND_MERGES.settings if (s.mixer, s.merge) == (mixer, merge))
    predicted = predict_front(setting)
    stated = STATED[mixer, merge]
    assert stated in " ".join((meanmode.sweeps.named.mixers_and_merges.__doc__ or "").split())
    assert stated.endswith(f" {predicted.front:.0f} +- {predicted.front_std:.0f}")


NONE = [s for s in MIXERS_AND_MERGES.settings if has_theory(s) and s.mixer in ("a_minus_i", "i_minus_a")]


@pytest.mark.parametrize("setting", NONE, ids=lambda setting: f"{setting.mixer}-{setting.input_cosine}")
def test_no_front_is_predicted_without_a_written_mean(setting: object) -> None:
    assert predict_front(setting, 100).front is None
