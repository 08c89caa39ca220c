"""Other people's models converted: plain is bitwise the original, mv_split is R1 on real trunks."""

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanmode import Anatomy, Setting, Watch, convert, discover
from meanmode.sim.anatomy.traced_pass import called, tensors_in
from meanmode.sim.convert.kept_tokens import kept_of
from meanmode.sim.trunk.combinations import Combination
from meanmode.sim.trunk.stack import Stack

Made = tuple[nn.Module, dict[str, Any]]
SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 32}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


IDS = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9) < torch.tensor([[9], [5]])).long()


def bert(attention: str = "sdpa", **options: Any) -> Made:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, **options, attn_implementation=attention)
    return transformers.BertModel(config, add_pooling_layer=False), {"input_ids": IDS, "attention_mask": MASK}


def vit() -> Made:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    return transformers.ViTModel(transformers.ViTConfig(image_size=12, patch_size=4, **sizes)), {
        "pixel_values": noise(2, 3, 12, 12)
    }


def dit() -> Made:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"attention_head_dim": 8, "num_attention_heads": 2, "num_layers": 2, "sample_size": 8}
    channels = {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 10}
    model = diffusers.DiTTransformer2DModel(**sizes, **channels)
    times, labels = torch.tensor([3, 5]), torch.tensor([0, 1])
    return model, {"hidden_states": noise(2, 4, 8, 8), "timestep": times, "class_labels": labels}


def encoder(batch_first: bool = True, norm_first: bool = False) -> Made:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, norm_first=norm_first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its nested tensors are of no use without batch_first
        model = nn.TransformerEncoder(layer, 2)
    x = noise(2, 9, 16) if batch_first else noise(9, 2, 16)
    return model, {"src": x, "src_key_padding_mask": MASK == 0}


def layer() -> Made:
    """A block that is the whole model."""
    model, batch = encoder()
    assert isinstance(model, nn.TransformerEncoder)
    return model.layers[0], batch


class AddsInPlace(nn.Module):
    """A bidirectional block that adds the trunk to its branches in place, and a tuple to a list."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        seen: list[int] = []
        seen += (x.shape[1],)
        y = self.norms[0](x)
        y = self.attention(y, y, y, need_weights=False)[0]
        y += x
        z = self.feed(self.norms[1](y))
        z += y
        assert seen == [x.shape[1]]
        return z


def in_place() -> Made:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), AddsInPlace(), AddsInPlace()), {"input": noise(2, 9, 16)}


FAMILIES: dict[str, Callable[[], Made]] = {
    "bert": bert,
    "bert-eager": lambda: bert("eager"),
    "vit": vit,
    "dit": dit,
    "encoder": encoder,
    "encoder-tbd": lambda: encoder(batch_first=False),
    "encoder-pre": lambda: encoder(norm_first=True),
    "in-place": in_place,
}
MAKE = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in FAMILIES.items()])
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")


def outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    torch.manual_seed(3)  # dropout draws the same
    return [tensor for _, tensor in tensors_in(called(model, batch))]


def merges_of(model: nn.Module) -> dict[str, Combination]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Combination)}


@MAKE
@pytest.mark.parametrize("training", [True, False])
def test_a_plain_conversion_is_the_original_to_the_bit(make: Callable[[], Made], training: bool) -> None:
    """Outputs, gradients and state dict."""
    results = []
    for converted in (False, True):
        model, batch = make()
        model.train(training)
        before = model.state_dict().keys()
        if converted:
            assert convert(model, "plain", batch) is model
            assert len(merges_of(model)) == 4 and model.training == training
        assert model.state_dict().keys() == before
        found = outputs(model, batch)
        sum(tensor.square().mean() for tensor in found).backward()
        results.append([*found, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@MAKE
def test_mv_split_is_r1_on_the_trunk_and_branch_of_the_model(make: Callable[[], Made]) -> None:
    """Over kept tokens: mean (1 - alpha) JX + alpha JF, centered PX + beta PF."""
    model, batch = make()
    convert(model, "mv_split", batch, alpha=0.3, beta=0.7)
    seen = []
    for merge in merges_of(model).values():
        merge.register_forward_hook(lambda of, _, given, z: seen.append((of, given, z)), with_kwargs=True)
    plain, _ = make()
    convert(plain, "plain", batch)
    first: list[Tensor] = []
    next(iter(merges_of(plain).values())).register_forward_hook(
        lambda _, __, given, ___: first.extend((given["trunk"], given["branch"])), with_kwargs=True
    )
    outputs(model, batch)
    outputs(plain, batch)
    assert len(seen) == 4
    torch.testing.assert_close((seen[0][1]["trunk"], seen[0][1]["branch"]), tuple(first), rtol=0, atol=0)
    masked = "attention_mask" in batch or "src_key_padding_mask" in batch
    for merge, given, z in seen:
        axis = merge.layout.index("T")
        x, f, z = (part.double().transpose(1, axis) for part in (given["trunk"], given["branch"], z))
        kept = MASK.bool() if masked else torch.ones(x.shape[:2], dtype=torch.bool)
        assert (given["kept"] is None) == (not masked) and (not masked or torch.equal(given["kept"], kept))
        share = (kept / kept.sum(1, keepdim=True)).double()[:, None]
        means = [share @ part for part in (x, f, z)]
        torch.testing.assert_close(means[2], 0.7 * means[0] + 0.3 * means[1], rtol=1e-6, atol=1e-6)
        centered = [part - mean for part, mean in zip((x, f, z), means, strict=True)]
        torch.testing.assert_close(centered[2], centered[0] + 0.7 * centered[1], rtol=1e-6, atol=1e-6)


@MAKE
def test_a_converted_model_is_discovered_watched_trained_and_copied(make: Callable[[], Made]) -> None:
    model, batch = make()
    old = copy.deepcopy(model.state_dict())
    before = discover(model, batch)
    convert(model, "mv_split", batch, alpha=0.3)
    merges = merges_of(model)
    found = model.load_state_dict(old, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) == {f"{name}.{of}" for name in merges for of in ("alpha", "beta")}
    after = discover(model, batch)
    assert (after.writers, after.readers, after.blocks) == (before.writers, before.readers, before.blocks)
    twin = copy.deepcopy(model)
    assert all(torch.equal(*pair) for pair in zip(outputs(model, batch), outputs(twin, batch), strict=True))
    watch = Watch(model, every=1, names=("tcs", "r_tr", "g_ctr"))
    with watch.step(1):
        sum(tensor.square().mean() for tensor in outputs(model, batch)).backward()
    assert set(watch.latest) >= {"tcs", "g_ctr"} and (watch.values["r_tr"][1:] > 0).all()
    for merge in merges.values():
        assert all(merge.get_parameter(name).grad.abs().max() > 0 for name in ("alpha", "beta"))
        with torch.no_grad():
            merge.get_parameter("beta").zero_()
    assert not torch.equal(outputs(model, batch)[0], outputs(twin, batch)[0])
    fresh = convert(make()[0], "mv_split", batch)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(outputs(fresh, batch)[0], outputs(model, batch)[0])


@pytest.mark.parametrize(
    "make", [bert, lambda: bert("eager"), encoder, layer], ids=["sdpa", "eager", "encoder", "layer"]
)
def test_padding_does_not_influence_tokens(make: Callable[[], Made]) -> None:
    """Also without gradients, where the encoders of torch would take a fused path round the merges."""
    model, batch = make()
    convert(model, "mv_split", batch, alpha=0.3, beta=0.7).eval()
    short = {name: value[1:, :5] for name, value in batch.items()}
    expected = outputs(model, short)[0]
    torch.testing.assert_close(outputs(model, batch)[0][1:, :5], expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(outputs(model, batch)[0][1:, :5], expected, rtol=1e-5, atol=1e-5)


def test_the_mean_of_each_segment_is_kept_apart() -> None:
    """With alpha = 0, the mean of no segment changes."""
    model, batch = vit()
    convert(model, "mv_split", batch, segments={"cls": 1, "image": 9}, frozen_alpha=True)
    merge = merges_of(model)["layers.0.merge_attn"]
    seen = []
    merge.register_forward_hook(lambda _, __, given, z: seen.append((given["trunk"], z)), with_kwargs=True)
    outputs(model, batch)
    ((x, z),) = seen
    torch.testing.assert_close(z[:, 0], x[:, 0])
    torch.testing.assert_close(z[:, 1:].mean(1), x[:, 1:].mean(1))
    assert not merge.get_parameter("alpha").requires_grad and merge.get_parameter("beta").requires_grad


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_checkpointing_recomputes_each_micro_batch_with_its_own_padding() -> None:
    """Two passes before one backward pass."""
    results = []
    for checkpointed in (False, True):
        model, batch = bert()
        convert(model, "mv_split", batch, alpha=0.3)
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        states = [
            model(input_ids=IDS, attention_mask=mask)[0]
            for mask in (MASK, MASK.flip(0), torch.ones_like(MASK))
        ]
        sum(state.square().mean() for state in states).backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_converted_model_is_compiled_without_a_graph_break() -> None:
    """Also in its backward pass; in a process of its own, since checks of shapes cannot be compiled."""
    pytest.importorskip("transformers")
    subprocess.run([sys.executable, __file__], check=True, timeout=600)


def test_autocast_and_half_precision_keep_their_types() -> None:
    model, batch = bert()
    convert(model, "mv_split", batch, alpha=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert outputs(model, batch)[0].dtype == torch.float32
    assert outputs(model.bfloat16(), batch)[0].dtype == torch.bfloat16
    half = convert(bert()[0].bfloat16(), "mv_split", batch)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_deepnorm_scales_the_skip_by_the_rule_of_its_depth() -> None:
    model, batch = bert()
    convert(model, "deepnorm", batch)
    assert all(float(merge.gain) == pytest.approx(4**0.25) for merge in merges_of(model).values())


def test_pre_norm_moves_the_norms_of_torchs_encoders() -> None:
    model, batch = encoder()
    old = model.state_dict()
    convert(model, "pre_norm", batch)
    found = model.load_state_dict(old, strict=False)
    assert found.missing_keys == ["norm.weight", "norm.bias"] and not found.unexpected_keys
    assert {writer.norms.placement for writer in discover(model, batch).writers} == {"pre"}
    model.eval()
    with_gradients = outputs(model, batch)[0]
    with torch.no_grad():
        torch.testing.assert_close(outputs(model, batch)[0], with_gradients, rtol=1e-5, atol=1e-5)


def test_only_the_writers_of_an_anatomy_are_converted() -> None:
    model, batch = bert()
    document = discover(model, batch).document()
    document["writers"] = [writer for writer in document["writers"] if writer["kind"] == "attention"]
    document["readers"] = []
    convert(model, "layerscale", batch, anatomy=Anatomy.of_document(document))
    names = [f"encoder.layer.{layer}.attention.output.merge_attn" for layer in range(2)]
    assert list(merges_of(model)) == names


class AddsByFunction(AddsInPlace):
    """Adds by a function, not by a plus sign."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.add(x, self.attention(x, x, x, need_weights=False)[0])
        return torch.add(x, self.feed(x))


class SkipsWithoutGradients(AddsInPlace):
    """Has a path without gradients that goes round its additions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.added(x) if torch.is_grad_enabled() else x

    def added(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.feed(x)


def refused(name: str) -> tuple[nn.Module, Any, str, dict[str, Any]]:
    x = noise(2, 9, 16)
    if name in ("decoder", "chunks", "segments", "post"):
        options = {"decoder": {"is_decoder": True}, "chunks": {"chunk_size_feed_forward": 3}}.get(name, {})
        merge = "pre_norm" if name == "post" else "mv_split"
        return *bert(**options), merge, {"segments": (4, 4)} if name == "segments" else {}
    if name == "causal":
        mask = nn.Transformer.generate_square_subsequent_mask(9)
        return encoder()[0], {"src": x, "mask": mask, "is_causal": True}, "mv_split", {}
    if name == "gpt2":
        transformers = pytest.importorskip("transformers")
        model = transformers.GPT2Model(transformers.GPT2Config(**SMALL, bos_token_id=0, eos_token_id=1))
        return model, {"input_ids": IDS}, "mv_split", {}
    if name == "own":
        return Stack(Setting(depth=2, tokens=9, width=16, heads=2)), x, "plain", {}
    if name == "twice":
        model, batch = bert()
        return convert(model, "layerscale", batch), batch, "mv_split", {}
    if name == "compiled":
        return torch.compile(encoder()[0], backend="eager"), x, "plain", {}
    if name in ("function", "skips"):
        kind = AddsByFunction if name == "function" else SkipsWithoutGradients
        return nn.Sequential(nn.Linear(16, 16), kind()), x, "plain", {}
    return encoder(norm_first=True)[0], x, {"pre": "deepnorm", "moved": "pre_norm"}.get(name, name), {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("decoder", "attention is causal, and the token means of mv_split would leak the future"),
        ("causal", "no token of the stream 'main' of TransformerEncoder sees a later one"),
        ("gpt2", "of GPT2Model sees a later one"),
        ("chunks", "set chunk_size_feed_forward=0"),
        ("segments", r"segments \(4, 4\) hold 8 tokens, the trunk has 9"),
        ("post", "pre_norm is known of nn.TransformerEncoder alone, .* not of BertModel"),
        ("own", "choose the merges of our own blocks in their Setting"),
        ("twice", "convert a model once"),
        ("compiled", "convert it before torch.compile"),
        ("function", r"must be a \+ or \+= in a method of AddsByFunction"),
        ("skips", "went through 0 of 2 residual additions without gradients"),
        ("pre", "deepnorm needs a norm after every addition"),
        ("moved", "pre-norm already"),
        ("sum", "unknown merge 'sum': choose one of plain"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_left_as_it_was(name: str, reason: str) -> None:
    model, batch, merge, options = refused(name)
    kinds, before = [type(module) for module in model.modules()], copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=reason):
        convert(model, merge, batch, **options)
    assert [type(module) for module in model.modules()] == kinds
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("mask", "padding"),
    [
        (MASK, False),
        (MASK.float(), False),
        (MASK == 0, True),
        (torch.zeros(2, 9).masked_fill(MASK == 0, -torch.inf), True),
        (MASK.bool()[:, None, None].expand(2, 1, 9, 9), False),
        (torch.zeros(2, 1, 9).masked_fill(MASK[:, None] == 0, torch.finfo(torch.float16).min), False),
    ],
)
def test_masks_of_any_kind_tell_padding(mask: Tensor, padding: bool) -> None:
    found = kept_of(mask, padding=padding)
    assert found is not None and torch.equal(found, MASK.bool())


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, batch = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    convert(model, "mv_split", batch, alpha=0.3).train()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    pair = [outputs(each, batch)[0] for each in (model, compiled)]
    for state in pair:
        state.square().mean().backward()
    torch.testing.assert_close(*pair)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
