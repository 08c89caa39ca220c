"""The network: weights, embeddings and head, precisions, ensembles and recomputed activations."""

# B batch, C channels, H height, W width of a latent, S text tokens, D width

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

import meanmode.dit.model.network
from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.model.network import DiT, materialised
from meanmode.sim.trunk import closed_forms
from meanmode.sim.trunk.ensemble import stack_members, unstack_member
from meanmode.theory.setting import MERGES, MIXERS

CONFIG = DiTConfig(
    depth=3,
    width=32,
    heads=2,
    channels=3,
    side=6,
    patch=2,
    text_width=20,
    merge="mv_split",
    alpha=0.3,
    beta=0.8,
    writer_std=None,
    head_std=0.2,
)
"""Its writers are not zero, since the blocks would do nothing otherwise."""


def with_options(**options: Any) -> DiTConfig:
    return dataclasses.replace(CONFIG, **options)


def drawn(config: DiTConfig = CONFIG, seed: int = 0) -> DiT:
    network = DiT(config)
    network.reset_parameters(seed)
    return network


def inputs(text_tokens: int = 4, batch: int = 2, *, seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 3, 6, 6, generator=generator),
        torch.randn(batch, text_tokens, 20, generator=generator),
    )


def matrices(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in network.named_parameters() if weight.ndim == 2}


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "options", [*({"merge": name} for name in MERGES), *({"mixer": name} for name in MIXERS)]
)
def test_a_network_made_block_by_block_is_the_same(options: dict[str, str]) -> None:
    """Bitwise, including constants, whatever the state of the global generator."""
    config = with_options(**options, residual_gain=0.7)
    torch.manual_seed(1)
    whole = drawn(config, 11)
    torch.manual_seed(2)
    seen: list[nn.Module] = []
    network = materialised(config, 11, torch.device("cpu"), seen.append)
    assert same(network, whole)
    assert seen == [*network.blocks, network]
    for one, other in zip(network.buffers(), whole.buffers(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(network(*inputs()), whole(*inputs()))


def test_seeds_differ_in_every_matrix() -> None:
    one, other = (matrices(drawn(seed=seed)) for seed in (0, 1))
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_no_two_matrices_are_drawn_alike() -> None:
    found = [weight.flatten()[:50] for weight in matrices(drawn()).values()]
    shared = [torch.equal(one, other) for number, one in enumerate(found) for other in found[:number]]
    assert len(found) == 3 + 6 * CONFIG.depth and not any(shared)


def test_the_weights_of_a_block_do_not_depend_on_the_depth() -> None:
    short, long = drawn(with_options(depth=2)), drawn(with_options(depth=5))
    assert all(same(one, other) for one, other in zip(short.blocks, long.blocks, strict=False))
    assert same(short.patch_embed, long.patch_embed) and same(short.final_proj, long.final_proj)


def expected_std(name: str, config: DiTConfig) -> float:
    if name.startswith("final_proj"):
        return config.head_std
    writer = name.endswith(("operator.proj.weight", "ffn.w2.weight"))
    own = config.weight_std
    return (own if config.writer_std is None else config.writer_std) if writer else own


@pytest.mark.parametrize("writer_std", [0.0, None, 0.5])
@pytest.mark.parametrize("initialisation", ["published", "width_matched"])
def test_weights_have_the_stated_spread(writer_std: float | None, initialisation: str) -> None:
    """Mean and standard deviation within five standard errors; zero writers and all biases are zero."""
    config = with_options(width=64, writer_std=writer_std, initialisation=initialisation)
    network = drawn(config)
    for name, weight in matrices(network).items():
        std, count = expected_std(name, config), weight.numel()
        assert weight.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * count)), name
        assert weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(count)), name
    biases = [weight for name, weight in network.named_parameters() if name.endswith("bias")]
    assert len(biases) == 2 and not any(bias.any() for bias in biases)
    gains = {name.rpartition(".")[2]: gain for name, gain in network.named_parameters() if gain.ndim == 1}
    assert (gains["alpha"] == config.alpha).all() and (gains["beta"] == config.beta).all()


def test_zero_writers_leave_the_embedding_to_the_head() -> None:
    """As published with alpha = 0: the trunk is normalised repeatedly and nothing is added."""
    network = drawn(with_options(writer_std=0.0, alpha=0.0))
    latents, text = inputs()
    with torch.no_grad():
        embedded, segments = network.embed(latents, text)
        torch.testing.assert_close(network.trunk(latents, text), embedded, rtol=1e-4, atol=1e-4)
    assert segments == (9, 4)


@pytest.mark.parametrize("merge", ["pre_norm", "mv_split"])
def test_the_head_reads_the_trunk_as_the_branches_do(merge: str) -> None:
    network = drawn(with_options(merge=merge))
    latents, text = inputs()
    with torch.no_grad():
        image = network.trunk(latents, text)[:, :9]
        read = rms_norm(image, (32,), eps=1e-5) if merge == "pre_norm" else image
        written = network.final_proj(read).reshape(2, 3, 3, 2, 2, 3)
        # [B, rows, columns, P, P, C] -> [B, C, rows, P, columns, P]
        expected = written.permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 6, 6)
        torch.testing.assert_close(network(latents, text), expected, rtol=1e-6, atol=1e-6)


def test_samples_do_not_see_each_other() -> None:
    network = drawn()
    latents, text = inputs(batch=3)
    with torch.no_grad():
        whole, alone = network(latents, text), network(latents[1:2], text[1:2])
    torch.testing.assert_close(whole[1:2], alone)


@pytest.mark.parametrize("merge", ["mv_split", "hard_centering", "plain"])
@pytest.mark.parametrize("text_tokens", [0, 1, 9])
def test_any_number_of_text_tokens_is_read(merge: str, text_tokens: int) -> None:
    """Text changes the velocity, but the order of its tokens does not, since they have no positions."""
    network = drawn(with_options(merge=merge))
    latents, text = inputs(text_tokens)
    velocity = network(latents, text)
    assert velocity.shape == latents.shape
    velocity.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    other = network(latents, text + 1)
    torch.testing.assert_close(network(latents, text.flip(1)), velocity, rtol=1e-4, atol=1e-5)
    assert torch.equal(other, velocity) == (text_tokens == 0)


@pytest.mark.parametrize(
    ("latents", "text", "message"),
    [
        ((2, 3, 6, 8), (2, 4, 20), r"latents must be \[batch, 3, 6, 6\], got \[2, 3, 6, 8\]"),
        ((2, 1, 6, 6), (2, 4, 20), r"latents must be \[batch, 3, 6, 6\], got \[2, 1, 6, 6\]"),
        ((3, 6, 6), (4, 20), r"latents must be \[batch, 3, 6, 6\], got \[3, 6, 6\]"),
        ((2, 3, 6, 6), (2, 4, 32), r"texts must be \[2, 'tokens', 20\].*got \[2, 4, 32\]"),
        ((2, 3, 6, 6), (1, 4, 20), r"texts must be \[2, 'tokens', 20\].*got \[1, 4, 20\]"),
        ((2, 3, 6, 6), (2, 20), r"texts must be \[2, 'tokens', 20\].*got \[2, 20\]"),
    ],
)
def test_other_shapes_are_refused(latents: tuple[int, ...], text: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unchecked(DiT.embed)(DiT(CONFIG), torch.zeros(latents), torch.zeros(text))


def unchecked(function: Any) -> Any:
    """Remove the shape checks of the test run, which would raise first."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def test_half_precision_texts_are_read() -> None:
    """Text encoders may return half precision."""
    network = drawn()
    latents, text = inputs()
    with torch.no_grad():
        expected = network(latents, text.bfloat16().float())
        assert torch.equal(network(latents, text.bfloat16()), expected)


@pytest.mark.parametrize("merge", MERGES)
def test_an_ensemble_computes_all_its_members(merge: str) -> None:
    members = [drawn(with_options(merge=merge, residual_gain=0.7), seed) for seed in (0, 1)]
    ensemble = stack_members(members)
    latents, text = (torch.stack(pair) for pair in zip(inputs(seed=5), inputs(seed=6), strict=True))
    found = ensemble(latents, text)
    assert found.shape == (2, 2, 3, 6, 6)
    alone = torch.stack([member(*pair) for member, *pair in zip(members, latents, text, strict=True)])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.1
    assert all(same(unstack_member(ensemble, run), member) for run, member in enumerate(members))


def test_autocast_leaves_trunk_norms_and_merges_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    normed: dict[str, set[torch.dtype]] = {}
    for module, name in ((meanmode.dit.model.network, "rms_norm"), (closed_forms, "_inverse_rms")):
        of, norm = normed.setdefault(name, set()), getattr(module, name)

        def recorded(
            x: Tensor, *args: Any, of: set[torch.dtype] = of, norm: Any = norm, **named: Any
        ) -> Tensor:
            of.add(x.dtype)
            return norm(x, *args, **named)

        monkeypatch.setattr(module, name, recorded)
    network = drawn()
    written: dict[str, torch.dtype] = {}
    for name, module in network.named_modules():
        if not isinstance(module, nn.ModuleList):
            module.register_forward_hook(
                lambda module, args, output, name=name: written.__setitem__(name, output.dtype)
            )
    latents, text = inputs()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(latents, text)
    assert set().union(*normed.values()) == {torch.float32} and all(normed.values())
    trunk = [name for name in written if "merge_" in name or name.removeprefix("blocks.").isdigit()]
    assert len(trunk) == 3 * CONFIG.depth
    assert {written[name] for name in trunk} == {torch.float32}
    assert {written[name] for name in written if name.endswith(("proj", "w13", "w2"))} == {torch.bfloat16}
    with torch.no_grad():
        exact = network(latents, text)
    error = (found.float() - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03


@pytest.mark.parametrize("recompute", [(1, 2), (1, 1), (2, 3)])
@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_activations_give_the_same_gradients(recompute: tuple[int, int], autocast: bool) -> None:
    """Bitwise; exactly the recomputed blocks run a second time in the backward pass."""
    gradients, runs = [], []
    for setting in ((0, 1), recompute):
        network = drawn()
        network.recompute = setting
        counts = [0] * CONFIG.depth
        for index, block in enumerate(network.blocks):
            # a forward hook of a recomputed block would not fire, since recomputation stops early
            block.operator.v_proj.register_forward_hook(
                lambda *_, index=index, counts=counts: counts.__setitem__(index, counts[index] + 1)
            )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = network(*inputs()).float().square().mean()
        loss.backward()
        gradients.append([weight.grad for weight in network.parameters()])
        runs.append(counts)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    again, of = recompute
    assert runs == [[1] * 3, [2 if index % of < again else 1 for index in range(3)]]


def test_nothing_is_recomputed_without_a_backward_pass() -> None:
    network = drawn()
    with torch.no_grad():
        expected = network(*inputs())
        network.recompute = (1, 1)
        assert torch.equal(network(*inputs()), expected)


def test_a_network_of_no_blocks_is_its_ends() -> None:
    network = drawn(with_options(depth=0))
    latents, text = inputs()
    with torch.no_grad():
        assert torch.equal(network(latents, text), network(latents, text + 1))
