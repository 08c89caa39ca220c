"""Depth profiles equal direct measurements and leave no trace; verdicts say what the thresholds say."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from meanmode.sim.anatomy.anatomy import Anatomy, Block, Part, Stream, Writer
from meanmode.sim.observe.layer_hooks import watch_writer
from meanmode.sim.observe.observables import rho, tcs
from meanmode.sim.observe.writer_gradients import writer_amplification, writer_modes
from meanmode.sim.trunk.stack import Stack, synthetic_input
from meanmode.sim.watch.depth_check import depth_check, depth_verdict, lasting_front
from meanmode.sim.watch.depth_profile import depth_profiles, trunks
from meanmode.theory.setting import Setting

ROOT = Path(__file__).parents[3]
BLOCKS = tuple(range(9))


def encoder(depth: int, **options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def stack(depth: int, *, drawn: bool = True, **options: Any) -> tuple[nn.Module, Tensor]:
    sizes: dict[str, Any] = {"tokens": 8, "batch": 2, "width": 64, "heads": 4, "weight_std": 0.2}
    setting = Setting(depth=depth, **(sizes | options))
    model = Stack(setting)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    with torch.no_grad():
        for block in model.blocks if drawn else ():
            block.reset_parameters(generator)
    return model, synthetic_input(setting, torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        ([[0.0, 0.2, 0.4, 0.6, 0.8, 0.92, 0.95, 0.97, 0.98]], "homogeneous from block 5"),
        ([[0, 0.2, 0.4, 0.6, 0.8, 0.95, 0.88, 0.91, 0.95], [0] * 5 + [0.95] * 4], "homogeneous from block 6"),
        ([[0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]], "homogeneous from block 1"),
        ([[0.0, 0.1, 0.2, 0.3, 0.4, 0.42, 0.43, 0.44, 0.47]], "growing"),
        ([[0.0, 0.1, 0.2, 0.3, 0.4, 0.42, 0.43, 0.44, 0.44]], "flat"),
        ([[0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, -0.1, -0.1]], "flat"),
        ([[0.0, np.nan, 0.2, np.nan, 0.4, 0.5, 0.6, 0.7, 0.8]], "growing"),
        (
            [[0.0] * 8 + [0.91], [0.0] * 8 + [0.89]],
            "unsure: the tokens are alike after the last block in 1 of 2",
        ),
        ([[0.0] * 4 + [0.95] * 2 + [0.5] * 3], "unsure: the TCS is above 0.9 at block 4 but falls below"),
        ([[0.95] * 9], "unsure: the tokens are alike before the first block (TCS 0.95)"),
        ([[0.5] * 8 + [np.nan]], "unsure: the TCS after the last block is not a number"),
        ([[0.5, *[np.nan] * 5, 0.5, 0.5, 0.5]], "unsure: fewer than 4 blocks"),
    ],
)
def test_the_verdict_follows_its_thresholds(profiles: list[list[float]], said: str) -> None:
    verdict = str(depth_verdict(BLOCKS, np.array(profiles, dtype=float)))
    assert verdict.startswith(said) if said.startswith("unsure") else verdict == said


@given(st.lists(st.floats(-0.2, 1.0), min_size=2, max_size=12))
def test_the_front_is_where_the_tokens_become_alike_for_good(values: list[float]) -> None:
    profile = np.array(values)
    front = lasting_front(range(len(values)), profile)
    if front is None:
        assert profile[-1] < 0.9
    else:
        after = profile[int(np.ceil(front)) :]
        assert (after >= 0.9).all() and (front == 0 or profile[int(np.ceil(front)) - 1] < 0.9)


@pytest.mark.parametrize("backward", [False, True])
def test_profiles_are_those_of_the_states_and_the_model_stays_as_it_was(backward: bool) -> None:
    model, x = encoder(4), noise(2, 6, 16)
    model.train()
    model.layers[0].linear1.weight.grad = torch.ones_like(model.layers[0].linear1.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    (profile,) = depth_profiles(model, x, backward=backward)
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients == {"layers.0.linear1.weight"} and bool((model.layers[0].linear1.weight.grad == 1).all())
    model.eval()
    states = [x]
    with torch.no_grad():
        for layer in model.layers:
            states.append(layer(states[-1]))
    assert profile.blocks == tuple(range(5)) and bool(profile.writers) == backward
    np.testing.assert_allclose(profile.tcs, [float(tcs(state).mean()) for state in states], atol=1e-5)
    np.testing.assert_allclose(profile.rho, [float(rho(state).mean()) for state in states], rtol=1e-5)


def test_gradients_of_writers_are_those_of_the_loss_that_is_returned() -> None:
    model, x = stack(4)
    target = noise(*x.shape)

    def loss() -> Tensor:
        return (model(x) * target).mean()

    (profile,) = depth_profiles(model, loss, backward=True)
    seen = []
    handle = watch_writer(model.blocks[1].ffn.w2, lambda y, delta: seen.append((y, delta)))
    loss().backward()
    handle.remove()
    y, delta = (part.detach() for part in seen[0])
    modes = writer_modes(y, delta)
    expected = {"g_mean": modes.g_mean, "g_ctr": modes.g_ctr, "amplification": writer_amplification(y, delta)}
    for name, value in expected.items():
        assert profile.writers[f"{name} ffn"][2] == pytest.approx(float(value.mean()), rel=1e-4)


def test_padding_does_not_count_and_streams_are_trunks_of_their_own() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=32))
    ids = torch.arange(3, 19).reshape(2, 8)
    padded = {
        "input_ids": nn.functional.pad(ids, (0, 4)),
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
    }
    padded["attention_mask"] = nn.functional.pad(padded["attention_mask"], (0, 4))
    ((plain,), (masked,)) = (depth_profiles(model, batch) for batch in ({"input_ids": ids}, padded))
    np.testing.assert_allclose(masked.tcs, plain.tcs, atol=1e-5)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2, "vocab_size": 50}
    t5 = transformers.T5Model(transformers.T5Config(**shape))
    found = depth_profiles(t5, {"input_ids": ids, "decoder_input_ids": ids}, backward=True)
    assert [(of.trunk, of.blocks) for of in found] == [
        ("encoder", (0, 1, 2, 3, 4)),
        ("decoder", (5, 6, 7, 8)),
    ]
    assert np.isfinite(found[0].writers["g_ctr attn"][1:]).all()  # through the keys of the decoder


def test_streams_that_are_joined_or_end_early_are_one_trunk() -> None:
    image, context = Stream(name="image"), Stream(name="context")
    joint = Stream(name="joint", parts=(Part(stream="context", tokens=3), Part(stream="image", tokens=9)))
    written = {1: ("image", "context"), 2: ("joint",), 3: ("image",), 4: ("other",)}
    anatomy = Anatomy(
        writers=tuple(
            Writer(parameter=f"{block}.{stream}", block=block, stream=stream)
            for block, streams in written.items()
            for stream in streams
        ),
        blocks=tuple(Block(index=block) for block in written),
        streams=(image, context, joint, Stream(name="other")),
    )
    assert trunks(anatomy) == {"context+image": (1, 2, 3), "other": (4,)}


def test_the_theory_is_beside_what_it_covers_and_within_its_spread() -> None:
    document = depth_check(lambda depth: stack(depth), depths=(16,), seeds=4)
    (row,) = document["rows"]
    predicted, measured = row["predicted_front"], row["front"]
    assert document["verdict"] == row["verdict"] == "homogeneous"
    error = 4 * predicted["std"] / 2  # of the mean over four seeds
    assert abs(predicted["mean"] - measured["mean"]) < error and measured["std"] > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: stack(4, drawn=False),
        lambda: stack(4, merge="pre_norm"),
        lambda: (stack(4)[0], noise(2, 12, 64)),
        lambda: (encoder(4), noise(2, 6, 16)),
    ],
    ids=["other weights", "merge without theory", "other tokens", "other model"],
)
def test_the_theory_is_silent_elsewhere(make: Callable[[], tuple[nn.Module, Any]]) -> None:
    (row,) = depth_check(make)["rows"]
    assert row["predicted_front"] is None and row["front"]["std"] is None


def test_seeds_are_reproducible_and_must_agree_in_shape() -> None:
    before = torch.get_rng_state()
    first, again = (depth_check(lambda: (encoder(4), noise(2, 6, 16)), seeds=2) for _ in range(2))
    assert first == again and torch.equal(torch.get_rng_state(), before)
    assert first["rows"][0]["tcs"][0] != first["rows"][0]["tcs"][1]
    depths = iter((4, 5))
    with pytest.raises(ValueError, match="have different blocks"):
        depth_check(lambda: (encoder(next(depths)), noise(2, 6, 16)), seeds=2)


def test_the_example_sees_the_tokens_of_a_deep_encoder_become_alike(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(ROOT / "examples" / "depth_check.py"), run_name="__main__")
    shallow, _, deep = capsys.readouterr().out.splitlines()
    assert shallow.startswith("6 layers: growing; front none")
    assert deep.startswith("24 layers: homogeneous from block ")
