"""Training data of a run: the digits and their enlargement, frozen texts, and the order of the samples."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.presets import PRESETS
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.data.batches import batch_of, batch_of_runs
from meanmode.dit.data.sources import Digits, samples_of, source_of

SIZE = 1797
EVERYTHING = np.arange(SIZE)


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Interpolate linearly between pixel centres, along rows and then along columns."""
    centres = (np.arange(side) + 0.5) * 8 / side - 0.5
    rows = [np.interp(centres, np.arange(8), row) for row in image]
    return np.stack([np.interp(centres, np.arange(8), column) for column in np.transpose(rows)], axis=1)


@pytest.mark.parametrize(("side", "patch", "tokens"), [(8, 2, 16), (16, 2, 64), (8, 1, 64)])
def test_latents_have_mean_zero_and_variance_one(side: int, patch: int, tokens: int) -> None:
    config = DiTConfig(side=side, patch=patch)
    source = Digits(config)
    latents = source.latents(EVERYTHING)
    assert latents.shape == (SIZE, 1, side, side) and latents.dtype == torch.float32
    assert source.size == SIZE and config.image_tokens == tokens
    assert latents.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert latents.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("side", [8, 12, 16])
def test_digits_are_enlarged_bilinearly(side: int) -> None:
    source, raw = Digits(DiTConfig(side=side)), load_digits()
    for_these = np.array([0, 5, 1796])
    images = source.images(source.latents(for_these))
    expected = np.stack([enlarged(raw.images[number], side) / 16 for number in for_these])
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert source.labels[torch.from_numpy(for_these)].tolist() == raw.target[for_these].tolist()


def test_images_stay_in_their_range() -> None:
    images = Digits(DiTConfig()).images(torch.tensor([-9.0, 0.0, 9.0]).reshape(3, 1, 1, 1))
    assert images[0] == 0 and 0 < images[1] < 1 and images[2] == 1


def test_texts_are_those_of_the_class_and_frozen() -> None:
    """The same numbers in every run, whatever else is drawn."""
    torch.manual_seed(1)
    one = Digits(DiTConfig(text_tokens=3, text_width=5))
    torch.manual_seed(2)
    two = Digits(DiTConfig(text_tokens=3, text_width=5, side=16, depth=2))
    texts = one.texts(EVERYTHING)
    assert texts.shape == (SIZE, 3, 5) and torch.equal(texts, two.texts(EVERYTHING))
    assert torch.equal(texts, one.prompts(one.labels)) and torch.equal(one.empty_text, two.empty_text)
    # of torch.randn(11, 3, 5, generator=torch.Generator().manual_seed(20260501))
    first = torch.tensor([0.7720, 1.7172, -0.9062])
    torch.testing.assert_close(one.prompts(torch.tensor([0]))[0, 0, :3], first, rtol=0, atol=1e-4)


def test_every_class_and_the_empty_text_are_distinct() -> None:
    source = Digits(DiTConfig(text_tokens=1, text_width=16))
    tokens = torch.cat([source.prompts(torch.arange(10)), source.empty_text[None]]).flatten(1)
    apart = torch.cdist(tokens, tokens) + torch.diag(torch.full((11,), torch.inf))
    assert source.empty_text.shape == (1, 16) and apart.min() > 1


@pytest.mark.parametrize("label", [-1, 10])
def test_a_class_that_no_digit_has_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"classes 0 to 9, got {label}"):
        Digits(DiTConfig()).prompts(torch.tensor([0, label]))


def test_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="digits have 1 channel but the network reads 3"):
        Digits(DiTConfig(channels=3))
    with pytest.raises(ValueError, match="a batch of 1798 is larger than the data, 1797 samples"):
        source_of(RunConfig(training=TrainingConfig(batch=1798)))
    with pytest.raises(ValueError, match="this preset has no data: encode some"):
        source_of(PRESETS["dit-400l-mvsplit"])


def test_a_batch_of_all_data_is_an_epoch() -> None:
    run = RunConfig(training=TrainingConfig(batch=SIZE))
    latents, _ = samples_of(source_of(run), 1, SIZE, [(0, EVERYTHING)])
    torch.testing.assert_close(latents.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)


class Numbered:
    """A source whose latent and text are the sample number, with an offset added to sample 7."""

    size = 10
    empty_text = torch.zeros(1, 1)

    def __init__(self, latent: float = 0.0, text: float = 0.0) -> None:
        self.broken = {"latent": latent, "text": text}

    def of(self, indices: np.ndarray, name: str) -> torch.Tensor:
        values = torch.from_numpy(indices).float()
        return torch.where(values == 7, values + self.broken[name], values)

    def latents(self, indices: np.ndarray) -> torch.Tensor:
        return self.of(indices, "latent")[:, None, None, None]

    def texts(self, indices: np.ndarray) -> torch.Tensor:
        return self.of(indices, "text")[:, None, None]


def numbers(seed: int, step: int, batch: int, positions: list[int] | None = None) -> list[int]:
    chosen = np.arange(batch) if positions is None else np.array(positions)
    latents, texts = samples_of(Numbered(), step, batch, [(seed, chosen)])
    assert torch.equal(latents.flatten(), texts.flatten())
    return latents.flatten().int().tolist()


def test_samples_are_functions_of_seed_step_and_position() -> None:
    whole = numbers(0, 3, 4)
    assert numbers(0, 3, 4, [2, 0]) == [whole[2], whole[0]]
    assert numbers(0, 3, 4) == whole != numbers(1, 3, 4)
    assert numbers(0, 4, 4) != whole


@pytest.mark.parametrize("batch", [1, 3, 4, 10])
def test_every_epoch_has_every_sample_once_in_an_order_of_its_own(batch: int) -> None:
    steps = 2 * 10 // batch + 1
    order = [number for step in range(1, steps + 1) for number in numbers(0, step, batch)]
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("cycled", [0, 3])
def test_runs_that_are_drawn_together_have_the_batches_of_each(batch: int, cycled: int) -> None:
    runs = [
        RunConfig(training=TrainingConfig(batch=batch, data_seed=seed, data_steps=cycled, null_text=0.5))
        for seed in range(3)
    ]
    source = source_of(runs[0])
    for step in (1, 2, 5, SIZE // batch + 1):
        together = batch_of_runs(source, runs, step)
        apart = [batch_of(source, run, step) for run in runs]
        for parts, own in zip(together, zip(*apart, strict=True), strict=True):
            assert torch.equal(parts, torch.stack(own)), "bit by bit, also where an epoch ends"


@pytest.mark.parametrize("name", ["latent", "text"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_named(name: str, value: float) -> None:
    broken = Numbered(**{name: value})
    with pytest.raises(ValueError, match=f"the {name} of sample 7 contains non-finite values"):
        samples_of(broken, 1, 10, [(0, np.arange(10))])
    spared = [index for index, number in enumerate(numbers(0, 1, 10)) if number != 7]
    samples_of(broken, 1, 10, [(0, np.array(spared))])


def test_a_run_asks_for_the_same_data_whatever_its_seed() -> None:
    one = RunConfig()
    other = dataclasses.replace(one, training=TrainingConfig(seed=5, data_seed=6))
    assert torch.equal(source_of(one).texts(EVERYTHING), source_of(other).texts(EVERYTHING))
