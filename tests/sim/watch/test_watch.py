"""Measured steps agree with our own probe, and with themselves however they are computed; nothing changes."""

import copy
import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.model.network import DiT
from meanmode.sim.anatomy.anatomy import Anatomy
from meanmode.sim.observe.probe import Probe
from meanmode.sim.trunk.stack import Stack, synthetic_input
from meanmode.sim.watch.watch import Watch
from meanmode.theory.setting import Setting

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
OTHERS = {"var_gain", "mu_eff", "row_div", "retention", "leakage", "kappa_abs"}
OTHERS |= {f"var_gain_{segment}" for segment in ("image", "text")}
"""Observables of our own blocks only."""

IDS = torch.arange(3, 27).reshape(3, 8)


def bert(**more: object) -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**SMALL, **more), add_pooling_layer=False)


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return transformers.GPT2Model(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def opt() -> nn.Module:
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
    }
    return transformers.OPTModel(
        transformers.OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=32)
    )


def albert() -> nn.Module:
    return transformers.AlbertModel(
        transformers.AlbertConfig(**SMALL, embedding_size=16), add_pooling_layer=False
    )


def encoder(*, batch_first: bool = True, norm_first: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def swin() -> nn.Module:
    sizes = {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2],
        "num_heads": [2],
        "window_size": 4,
    }
    return transformers.SwinModel(transformers.SwinConfig(**sizes), add_pooling_layer=False)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


FAMILIES = {
    "bert": (bert, {"input_ids": IDS}, 0),
    "gpt2": (gpt2, {"input_ids": IDS}, 0),
    "opt": (opt, {"input_ids": IDS}, 0),
    "albert": (albert, {"input_ids": IDS}, 0),
    "encoder": (encoder, {"src": drawn(3, 8, 16)}, 0),
    "tokens first": (partial(encoder, batch_first=False, norm_first=True), {"src": drawn(8, 3, 16)}, 1),
    "swin": (swin, {"pixel_values": drawn(3, 3, 32, 32)}, 0),
}
"""Name -> model, batch, and which axis of the batch holds the samples."""


def loss_of(out: object) -> torch.Tensor:
    """A loss that is a sum over samples."""
    x = out if isinstance(out, torch.Tensor) else out[0]
    return (x.float() * torch.linspace(-1, 1, x.shape[-1])).square().sum()


def measured(
    model: nn.Module, batches: list[dict[str, torch.Tensor]], **options: object
) -> dict[str, np.ndarray]:
    """Observables of one step over several micro-batches."""
    watch = Watch(model, every=1, **options)
    with watch.step(1):
        for batch in batches:
            loss_of(model(**batch)).backward()
    model.zero_grad()
    assert watch.values
    return watch.values


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], within: float = 1e-5) -> None:
    """Compare all observables; of small values (differences of large ones) the absolute error counts."""
    assert found and set(found) >= set(expected) - OTHERS
    for name, values in expected.items():
        if name in found and name != "update_rms":
            np.testing.assert_allclose(found[name], values, rtol=within, atol=within / 30, err_msg=name)


@pytest.mark.parametrize("merge", ["plain", "mv_split"])
def test_equals_the_probe_on_a_stack(merge: str) -> None:
    setting = Setting(depth=3, width=16, heads=2, batch=4, tokens=4, text_tokens=3, merge=merge)
    model = Stack(setting)
    for block in model.blocks:
        block.reset_parameters(torch.Generator().manual_seed(1))
    x = synthetic_input(setting, torch.Generator().manual_seed(0))
    with Probe(model) as probe:
        model(x).square().sum().backward()
        expected = probe.values()
    model.zero_grad()
    watch = Watch(model, every=1, segments={"image": 4, "text": 3})
    with watch.step(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(x).square().sum().backward()
    shared = {name: of for name, of in expected.items() if name in watch.values}
    assert len(shared) > 15
    same(watch.values, shared)


def test_equals_the_probe_on_a_dit() -> None:
    model = DiT(DiTConfig(depth=3, heads=2, side=4, writer_std=None, initialisation="width_matched"))
    model.reset_parameters(0)
    latents, text = torch.randn(3, 1, 4, 4), torch.randn(3, 4, 16)
    with Probe(model) as probe:
        model(latents, text).square().sum().backward()
        expected = probe.values()
    model.zero_grad()
    watch = Watch(model, every=1, segments={"image": 4, "text": 4})
    with watch.step(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(latents, text).square().sum().backward()
    same(watch.values, expected)
    assert not np.isnan(watch.values["g_ctr"][1:]).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_samples_one_by_one(family: str) -> None:
    make, batch, axis = FAMILIES[family]
    model = make().eval()
    whole = measured(model, [batch])
    apart = [{name: x.narrow(axis, n, 1) for name, x in batch.items()} for n in range(3)]
    single = measured(model, apart)
    assert not np.isnan(whole["g_ctr"][1:]).any()
    assert not np.isnan(whole["r_tr"][1:]).any()
    assert not np.isnan(whole["max_logit"][1:]).any()
    same(single, whole)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("family", ["bert", "gpt2", "albert", "tokens first"])
def test_later_steps_measure_what_the_first_does(family: str, passes: int) -> None:
    """At the first step products are summed and compared with gradients; later these take their place."""
    make, batch, _ = FAMILIES[family]
    model, found = make().eval(), []
    watch = Watch(model, every=1)
    for step in (1, 2):
        with watch.step(step):
            for number in range(passes):
                (loss_of(model(**batch)) * (1 + number)).backward()
        model.zero_grad()
        found.append({name: values.copy() for name, values in watch.values.items()})
    same(found[1], found[0])
    assert not np.isnan(found[1]["g_ctr"][1:]).any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_padding_is_left_out(attention: str, dtype: torch.dtype, within: float) -> None:
    """In single precision the model itself gives other last digits with padding."""
    model = bert(attn_implementation=attention).eval().to(dtype)
    mask = torch.ones_like(IDS)
    mask[0, 5:] = mask[2, 3:] = 0
    watch = Watch(model, every=1)
    with watch.step(1):
        x = model(input_ids=IDS, attention_mask=mask)[0] * mask[..., None]
        loss_of([x]).backward()
    model.zero_grad()
    pieces = [{"input_ids": IDS[n : n + 1, :end]} for n, end in enumerate(mask.sum(-1).tolist())]
    same(watch.values, measured(model, pieces), within)


def test_packed_sequences_are_apart() -> None:
    model = bert().eval()
    groups = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    seen = (groups[:, :, None] == groups[:, None])[:, None]
    whole = model(input_ids=IDS[:1], attention_mask=seen, position_ids=positions)[0]
    anatomy = Watch(model, run={"input_ids": IDS}).anatomy
    assert anatomy is not None

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = model

        def forward(self, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=IDS[:1], attention_mask=seen, position_ids=positions)[0]

    packed = Packed()
    watch = Watch(packed, every=1)
    with watch.step(1):
        loss_of([packed(attention_mask=groups)[:, :7]]).backward()
    model.zero_grad()
    pieces = [{"input_ids": IDS[:1, :3]}, {"input_ids": IDS[:1, 3:7]}]
    pieces[1]["position_ids"] = positions[:, 3:7]
    expected = measured(model, pieces)
    skipped = {"attention_entropy", "max_logit"}
    same(watch.values, {name: of for name, of in expected.items() if name not in skipped})
    assert whole.shape == (1, 8, 16)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the name of the method, which older versions have too
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant: bool) -> None:
    model = bert().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = measured(model, [{"input_ids": IDS}, {"input_ids": IDS + 1}])
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    same(measured(model, [{"input_ids": IDS}, {"input_ids": IDS + 1}]), plain)


class Inplace(nn.Module):
    """A block that adds in place, as many do to save memory."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, inplace: bool) -> torch.Tensor:
        branch = self.attn(self.norm1(x).mean(1, keepdim=True) + self.norm1(x))
        x = branch.add_(x) if inplace else branch + x
        branch = self.down(self.up(self.norm2(x)).relu())
        return branch.add_(x) if inplace else branch + x


class InplaceModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Inplace() for _ in range(2))
        self.inplace = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, self.inplace)
        return x


def test_additions_in_place() -> None:
    model, batch = InplaceModel(), [{"x": torch.randn(3, 5, 16)}]
    expected = measured(model, batch)
    model.inplace = True
    same(measured(model, batch), expected)


def test_half_precision_has_a_centered_part() -> None:
    model = gpt2().eval()
    with torch.no_grad():
        model.wte.weight.copy_(model.wte.weight[:1] + 0.1 * model.wte.weight)
        model.wpe.weight.zero_()  # alike tokens, whose centered part is small
    half = copy.deepcopy(model).bfloat16()
    for weight, rounded in zip(model.parameters(), half.parameters(), strict=True):
        weight.data = rounded.data.float()
    batch = [{"input_ids": IDS}]
    exact, found = measured(model, batch), measured(half, batch)
    assert exact["g_mean"][2, 1] > 5 * exact["g_ctr"][2, 1]
    np.testing.assert_allclose(found["g_ctr"][1:], exact["g_ctr"][1:], rtol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        cast = measured(model, batch)
    np.testing.assert_allclose(cast["g_ctr"][1:], exact["g_ctr"][1:], rtol=0.02)


def test_gradients_are_those_before_the_clip_and_without_the_scale() -> None:
    model = gpt2().eval()
    expected = measured(model, [{"input_ids": IDS}])

    class Scaler:
        def get_scale(self) -> float:
            return 1024.0

    watch = Watch(model, every=1)
    with watch.step(1, scaler=Scaler()):
        (1024 * loss_of(model(input_ids=IDS))).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    same(watch.values, expected)


@pytest.mark.parametrize("family", ["bert", "gpt2", "encoder"])
def test_training_is_the_same_to_the_bit(family: str) -> None:
    make, batch, _ = FAMILIES[family]

    def trained(watched: bool) -> Iterator[torch.Tensor]:
        torch.manual_seed(3)
        model = make().train()
        optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
        watch = Watch(model, every=2) if watched else None
        for step in range(1, 21):
            if watch:
                with watch.step(step):
                    loss = loss_of(model(**batch))
                    loss.backward()
                    watch.log(loss=loss)
            else:
                loss = loss_of(model(**batch))
                loss.backward()
            yield from (loss.detach(), *(weight.grad.clone() for weight in model.parameters()))
            optimiser.step()
            optimiser.zero_grad()
        yield from (*model.state_dict().values(), torch.get_rng_state())

    for ours, theirs in zip(list(trained(True)), list(trained(False)), strict=True):
        assert torch.equal(ours, theirs)


def test_an_error_is_reported_once_and_training_goes_on() -> None:
    model = gpt2().train()
    before = torch.nn.functional.scaled_dot_product_attention
    watch = Watch(model, every=1)
    with pytest.warns(UserWarning, match="training goes on: ZeroDivisionError") as caught:
        for step in (1, 2):
            with watch.step(step):
                if step == 1:
                    watch._guard(lambda: 1 / 0)()
                loss_of(model(input_ids=IDS)).backward()
            watch.log(loss=1.0)
    assert len(caught) == 1
    assert not watch.values
    assert torch.nn.functional.scaled_dot_product_attention is before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_error_between_the_passes_leaves_checkpointing_intact() -> None:
    """The second pass must save as many tensors as the first."""
    model = bert().eval()
    loss_of(model(input_ids=IDS)).backward()
    expected = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    watch = Watch(model, every=1)
    with pytest.warns(UserWarning, match="training goes on"), watch.step(1):
        loss = loss_of(model(input_ids=IDS))
        watch._guard(lambda: 1 / 0)()
        loss.backward()
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)


def test_errors_of_the_training_pass_through() -> None:
    watch = Watch(gpt2(), every=1)
    with pytest.raises(KeyError), watch.step(1):
        raise KeyError("theirs")
    assert not watch.values


def test_a_wrong_writer_has_no_values() -> None:
    model = InplaceModel()
    document = Watch(model, run={"x": torch.randn(2, 5, 16)}).anatomy.document()
    for writer in document["writers"]:
        writer["transposed"] = writer["parameter"] == "blocks.1.attn.weight"
    watch = Watch(model, every=1, anatomy=Anatomy.of_document(document))
    with pytest.warns(UserWarning, match="no gradient parts are measured") as caught:
        for step in (1, 2):
            with watch.step(step):
                loss_of(model(torch.randn(2, 5, 16))).backward()
    assert len(caught) == 1
    assert np.isnan(watch.values["g_ctr"][1:]).sum() == np.isnan(watch.values["kappa"][1:]).sum() == 1
    assert np.isfinite(watch.values["r_tr"][1:]).all()


def test_writers_of_one_label_are_kept_apart() -> None:
    model, batch = InplaceModel(), {"x": torch.randn(2, 5, 16)}
    anatomy = Watch(model, run=batch).anatomy
    document = anatomy.document()
    for writer in document["writers"]:
        writer["label"], writer["kind"] = "", "other"
    expected = measured(model, [batch], anatomy=anatomy)
    same(measured(model, [batch], anatomy=Anatomy.of_document(document)), expected)


def test_experts_have_no_gradient_parts() -> None:
    config = transformers.MixtralConfig(**SMALL, num_local_experts=3, num_key_value_heads=2)
    model = transformers.MixtralModel(config)
    watch = Watch(model, every=1)
    with pytest.warns(UserWarning), watch.step(1):
        loss_of(model(input_ids=IDS)).backward()
    attn, ffn = (watch.values["g_ctr"][1:, watch._plan.labels.index(label)] for label in ("attn", "ffn"))
    assert np.isfinite(attn).all() and np.isnan(ffn).all()
    assert np.isfinite(watch.values["tcs"]).all()


class LoRA(nn.Module):
    """A frozen linear layer and a product of two thin ones."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def test_adapters_are_part_of_the_branch() -> None:
    model, batch = InplaceModel(), [{"x": torch.randn(3, 5, 16)}]
    for weight in model.parameters():
        weight.requires_grad_(False)
    for block in model.blocks:
        block.down = LoRA(block.down)
    merged = copy.deepcopy(model)
    for block in merged.blocks:
        lora, block.down = block.down, block.down.base_layer
        block.down.weight.data += lora.lora_B.weight @ lora.lora_A.weight
    merged.requires_grad_()
    found, expected = measured(model, batch), measured(merged, batch)
    for name in ("tcs", "rho", "r_tr"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(found["g_ctr"][2, 1], expected["g_ctr"][2, 1], rtol=1e-4)


def test_chosen_blocks_and_names() -> None:
    values = measured(gpt2(), [{"input_ids": IDS}], blocks=(2,), names=("tcs", "g_ctr"))
    assert set(values) == {"tcs", "g_ctr"}
    assert np.isnan(values["tcs"][1]) and np.isfinite(values["tcs"][2])
    with pytest.raises(ValueError, match="unknown observable"):
        Watch(gpt2(), names=("tsc",))
    with pytest.raises(ValueError, match="counted from 1"):
        Watch(gpt2()).step(0)


def test_other_kinds_of_parallelism_are_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(ValueError, match="sharded by FSDP1, whose weights cannot be told: use `fully_shard`"):
        Watch(FullyShardedDataParallel())
