"""Residual writers of stock models, built tiny from configuration, against those read from their code."""

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.model.network import DiT
from meanmode.sim.anatomy.anatomy import Anatomy, Writer
from meanmode.sim.anatomy.autograd_graph import Graph
from meanmode.sim.anatomy.discovery import discover
from meanmode.sim.anatomy.traced_pass import tensors_in
from meanmode.sim.trunk.stack import Stack
from meanmode.theory.setting import MERGES, Setting

Made = tuple[nn.Module, Any]
WIDTH, LAYERS, HEADS, TOKENS, BATCH = 16, 2, 2, 9, 2


def ids(tokens: int = TOKENS) -> Tensor:
    return torch.randint(3, 50, (BATCH, tokens), generator=torch.Generator().manual_seed(0))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def stock(name: str, *, batch: Any = None, model: str = "Model", **options: Any) -> Callable[[], Made]:
    """A model of transformers; `options` change the sizes that most configurations share."""

    def make() -> Made:
        transformers = pytest.importorskip("transformers")
        sizes: dict[str, Any] = {
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 2 * WIDTH,
            "vocab_size": 50,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }
        sizes |= options
        config = getattr(transformers, f"{name}Config")(
            **{key: value for key, value in sizes.items() if value is not None}
        )
        return getattr(transformers, name + model)(config), batch or {"input_ids": ids()}

    return make


def picture(side: int = 12) -> dict[str, Tensor]:
    return {"pixel_values": noise(BATCH, 3, side, side)}


BOTH = {"input_ids": ids(), "decoder_input_ids": ids(7)}
SEEN = {"image_size": 12, "patch_size": 4, "vocab_size": None}
TEXT = {"vocab_size": 50, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
TEXT |= {"intermediate_size": 2 * WIDTH, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
VISION = {"image_size": 12, "patch_size": 4, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
VISION |= {"num_attention_heads": HEADS, "intermediate_size": 2 * WIDTH}
SEQ2SEQ = {"encoder_layers": LAYERS, "decoder_layers": LAYERS, "d_model": WIDTH, "encoder_ffn_dim": 2 * WIDTH}
SEQ2SEQ |= {"decoder_ffn_dim": 2 * WIDTH, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
SPEECH = {
    "conv_dim": (WIDTH, WIDTH),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 4),
    "num_feat_extract_layers": 2,
}
SPEECH |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": None}


def musicgen() -> Made:
    transformers = pytest.importorskip("transformers")
    config = transformers.MusicgenDecoderConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_dim=2 * WIDTH,
        num_codebooks=2,
        pad_token_id=2,
        bos_token_id=0,
    )
    from transformers.models.musicgen.modeling_musicgen import MusicgenModel

    codes = ids().repeat_interleave(2, 0)
    return MusicgenModel(config), {"input_ids": codes, "encoder_hidden_states": noise(BATCH, 5, WIDTH)}


def diffuser(name: str, batch: dict[str, Any], **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        diffusers = pytest.importorskip("diffusers")
        return getattr(diffusers, name)(**options), batch

    return make


HEADED = {"attention_head_dim": 8, "num_attention_heads": HEADS, "num_layers": LAYERS}
LATENTS = noise(BATCH, 4, 8, 8)
TIMES = torch.tensor([3, 5])
SD3 = {**HEADED, "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4}
SD3 |= {"joint_attention_dim": 12, "caption_projection_dim": WIDTH, "pooled_projection_dim": 6}
FLUX = {**HEADED, "num_single_layers": 3, "in_channels": 4, "joint_attention_dim": 12}
FLUX |= {"pooled_projection_dim": 6, "axes_dims_rope": (2, 2, 4), "guidance_embeds": False}
FLUX_BATCH = {"hidden_states": noise(BATCH, 16, 4), "encoder_hidden_states": noise(BATCH, 5, 12)}
FLUX_BATCH |= {"pooled_projections": noise(BATCH, 6), "timestep": torch.tensor([0.1, 0.2])}
FLUX_BATCH |= {"img_ids": noise(16, 3), "txt_ids": torch.zeros(5, 3)}


def torch_encoder(**options: Any) -> Callable[[], Made]:
    layers = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 2 * WIDTH, **options}
    batch_first = options.get("batch_first", False)
    x = noise(BATCH, TOKENS, WIDTH) if batch_first else noise(TOKENS, BATCH, WIDTH)
    return lambda: (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(**layers), LAYERS, enable_nested_tensor=False),
        x,
    )


def torch_both() -> Made:
    model = nn.Transformer(WIDTH, HEADS, LAYERS, LAYERS, 2 * WIDTH, batch_first=True)
    return model, (noise(BATCH, TOKENS, WIDTH), noise(BATCH, 7, WIDTH))


def own_stack(merge: str) -> Callable[[], Made]:
    setting = Setting(depth=LAYERS, tokens=16, batch=BATCH, width=WIDTH, heads=HEADS, merge=merge)
    return lambda: (Stack(setting), noise(BATCH, 16, WIDTH))


def own_dit() -> Made:
    config = DiTConfig(depth=LAYERS, heads=HEADS, text_width=12)
    return DiT(config), (noise(BATCH, 1, 8, 8), noise(BATCH, 4, 12))


CORE: dict[str, Callable[[], Made]] = {
    "bert": stock("Bert"),
    "albert": stock("Albert", embedding_size=8),
    "deberta-v2": stock(
        "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], max_position_embeddings=16
    ),
    "gpt2": stock("GPT2"),
    "gpt-neox": stock("GPTNeoX"),
    "llama": stock("Llama"),
    "gemma2": stock("Gemma2", num_key_value_heads=1, head_dim=8),
    "falcon": stock("Falcon"),
    "mixtral": stock("Mixtral", num_key_value_heads=1, num_local_experts=4),
    "t5": stock("T5", batch=BOTH, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=LAYERS),
    "vit": stock("ViT", batch=picture(), **SEEN),
    "dit": diffuser(
        "DiTTransformer2DModel",
        {"hidden_states": LATENTS, "timestep": TIMES, "class_labels": torch.tensor([0, 1])},
        **{**HEADED, "sample_size": 8, "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 10},
    ),
    "sd3": diffuser(
        "SD3Transformer2DModel",
        {
            "hidden_states": LATENTS,
            "encoder_hidden_states": noise(BATCH, 5, 12),
            "pooled_projections": noise(BATCH, 6),
            "timestep": TIMES,
        },
        **SD3,
    ),
    "torch-encoder": torch_encoder(),
    "torch-both": torch_both,
    **{f"own-{merge}": own_stack(merge) for merge in MERGES if merge != "mv_split_attn"},
    "own-dit": own_dit,
}
"""Name -> how it is made."""

MORE: dict[str, Callable[[], Made]] = {
    "roberta": stock("Roberta", max_position_embeddings=20),
    "distilbert": stock("DistilBert", dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=32),
    "electra": stock("Electra", embedding_size=8),
    "gptj": stock("GPTJ", n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=16, rotary_dim=4),
    "opt": stock("OPT", ffn_dim=32, word_embed_proj_dim=WIDTH),
    "bloom": stock("Bloom", n_layer=LAYERS, n_head=HEADS),
    "mistral": stock("Mistral", num_key_value_heads=1),
    "qwen2": stock("Qwen2", num_key_value_heads=1),
    "qwen3": stock("Qwen3", num_key_value_heads=1, head_dim=8),
    "qwen2-moe": stock(
        "Qwen2Moe",
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=20,
    ),
    "phi": stock("Phi"),
    "olmo2": stock("Olmo2"),
    "cohere": stock("Cohere"),
    "bart": stock("Bart", batch=BOTH, **SEQ2SEQ),
    "whisper": stock(
        "Whisper",
        batch={"input_features": noise(BATCH, 8, 20), "decoder_input_ids": ids(7)},
        **SEQ2SEQ,
        num_mel_bins=8,
        max_source_positions=10,
        decoder_start_token_id=0,
    ),
    "wav2vec2": stock("Wav2Vec2", batch={"input_values": noise(BATCH, 200)}, **SPEECH),
    "musicgen": musicgen,
    "deit": stock("DeiT", batch=picture(), **SEEN),
    "dinov2": stock("Dinov2", batch=picture(), **SEEN),
    "beit": stock("Beit", batch=picture(), **SEEN),
    "swin": stock(
        "Swin",
        batch=picture(16),
        image_size=16,
        patch_size=2,
        embed_dim=WIDTH,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=2,
        vocab_size=None,
        hidden_size=None,
        num_hidden_layers=None,
        num_attention_heads=None,
        intermediate_size=None,
    ),
    "clip": stock(
        "CLIP",
        batch={"input_ids": ids(), **picture()},
        text_config=TEXT,
        vision_config=VISION,
        projection_dim=8,
        **dict.fromkeys(TEXT),
    ),
    "siglip": stock(
        "Siglip",
        batch={"input_ids": ids(), **picture()},
        text_config={**TEXT, "projection_size": WIDTH},
        vision_config=VISION,
        **dict.fromkeys(TEXT),
    ),
    "pixart": diffuser(
        "PixArtTransformer2DModel",
        {"hidden_states": LATENTS, "encoder_hidden_states": noise(BATCH, 5, 12), "timestep": TIMES},
        **{**HEADED, "sample_size": 8, "in_channels": 4, "out_channels": 8, "caption_channels": 12},
        cross_attention_dim=WIDTH,
        use_additional_conditions=False,
    ),
    "flux": diffuser("FluxTransformer2DModel", FLUX_BATCH, **FLUX),
    "modernbert": stock("ModernBert", cls_token_id=0, sep_token_id=1),
    "mamba": stock("Mamba", state_size=4, num_attention_heads=None, intermediate_size=None),
    "deepseek-v3": stock(
        "DeepseekV3",
        **{"moe_intermediate_size": 8, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1},
        **{
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
        },
        **{"topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 0, "num_key_value_heads": 2},
    ),
    "torch-pre": torch_encoder(norm_first=True, batch_first=True),
}
"""As `CORE`: relatives of those, and rarer arrangements."""


WRITERS = {
    ("modernbert",): "layers.#.attn.Wo layers.#.mlp.Wo",
    ("mamba",): "layers.#.mixer.out_proj",
    ("deepseek-v3",): "layers.#.self_attn.o_proj layers.#.mlp.experts.down_proj",
    (
        "bert",
        "deberta-v2",
        "roberta",
        "electra",
    ): ("encoder.layer.#.attention.output.dense encoder.layer.#.output.dense"),
    ("albert",): (
        "encoder.albert_layer_groups.#.albert_layers.#.attention.dense "
        "encoder.albert_layer_groups.#.albert_layers.#.ffn_output"
    ),
    ("gpt2",): ("h.#.attn.c_proj h.#.mlp.c_proj"),
    ("gpt-neox",): ("layers.#.attention.dense layers.#.mlp.dense_4h_to_h"),
    (
        "llama",
        "gemma2",
        "mistral",
        "qwen2",
        "qwen3",
        "olmo2",
        "cohere",
    ): ("layers.#.self_attn.o_proj layers.#.mlp.down_proj"),
    (
        "falcon",
        "bloom",
    ): ("h.#.self_attention.dense h.#.mlp.dense_4h_to_h"),
    (
        "mixtral",
        "qwen2-moe",
    ): ("layers.#.self_attn.o_proj layers.#.mlp.experts.down_proj"),
    ("t5",): (
        "encoder.block.#.layer.#.SelfAttention.o encoder.block.#.layer.#.DenseReluDense.wo "
        "decoder.block.#.layer.#.SelfAttention.o decoder.block.#.layer.#.EncDecAttention.o "
        "decoder.block.#.layer.#.DenseReluDense.wo"
    ),
    (
        "vit",
        "deit",
        "beit",
    ): ("layers.#.attention.o_proj layers.#.mlp.fc2"),
    ("dit",): ("transformer_blocks.#.attn1.to_out.0 transformer_blocks.#.ff.net.2"),
    ("sd3",): (
        "transformer_blocks.#.attn.to_out.0 transformer_blocks.#.ff.net.2 "
        "transformer_blocks.#.attn.to_add_out*1 transformer_blocks.#.ff_context.net.2*1"
    ),
    (
        "torch-encoder",
        "torch-pre",
    ): ("layers.#.self_attn.out_proj layers.#.linear2"),
    ("torch-both",): (
        "encoder.layers.#.self_attn.out_proj encoder.layers.#.linear2 "
        "decoder.layers.#.self_attn.out_proj decoder.layers.#.multihead_attn.out_proj "
        "decoder.layers.#.linear2"
    ),
    ("own-dit",): ("blocks.#.operator.proj blocks.#.ffn.w2"),
    ("distilbert",): ("transformer.layer.#.attention.out_lin transformer.layer.#.ffn.lin2"),
    ("gptj",): ("h.#.attn.out_proj h.#.mlp.fc_out"),
    ("opt",): ("decoder.layers.#.self_attn.out_proj decoder.layers.#.fc2"),
    ("phi",): ("layers.#.self_attn.dense layers.#.mlp.fc2"),
    (
        "bart",
        "whisper",
    ): (
        "encoder.layers.#.self_attn.out_proj encoder.layers.#.fc2 "
        "decoder.layers.#.self_attn.out_proj decoder.layers.#.encoder_attn.out_proj "
        "decoder.layers.#.fc2"
    ),
    ("wav2vec2",): ("encoder.layers.#.attention.out_proj encoder.layers.#.feed_forward.output_dense"),
    ("musicgen",): (
        "decoder.layers.#.self_attn.out_proj decoder.layers.#.encoder_attn.out_proj decoder.layers.#.fc2"
    ),
    ("dinov2",): ("encoder.layer.#.attention.o_proj encoder.layer.#.mlp.fc2"),
    ("swin",): ("encoder.layers.#.blocks.#.attention.o_proj*4 encoder.layers.#.blocks.#.mlp.fc2*4"),
    ("clip",): (
        "vision_model.encoder.layers.#.self_attn.out_proj vision_model.encoder.layers.#.mlp.fc2 "
        "text_model.encoder.layers.#.self_attn.out_proj text_model.encoder.layers.#.mlp.fc2"
    ),
    ("siglip",): (
        "vision_model.encoder.layers.#.self_attn.out_proj vision_model.encoder.layers.#.mlp.fc2 "
        "vision_model.head.mlp.fc2*1 text_model.encoder.layers.#.self_attn.out_proj "
        "text_model.encoder.layers.#.mlp.fc2"
    ),
    ("pixart",): (
        "transformer_blocks.#.attn1.to_out.0 transformer_blocks.#.attn2.to_out.0 "
        "transformer_blocks.#.ff.net.2"
    ),
    ("flux",): (
        "transformer_blocks.#.attn.to_out.0 transformer_blocks.#.ff.net.2 "
        "transformer_blocks.#.attn.to_add_out transformer_blocks.#.ff_context.net.2 "
        "single_transformer_blocks.#.proj_out*3"
    ),
}
"""Families -> the writers that the code of the model has, read from it: # stands for the number of a layer.

Each occurs twice, or as often as its multiple says; layers that are shared, as in ALBERT, count by call.
"""

EXPECTED = {name: writers for names, writers in WRITERS.items() for name in names}


def expected(name: str) -> Counter[str]:
    """Names of the writers of a family, with how often each occurs."""
    family = "own-dit" if name.startswith("own-") else name
    entries = (entry.partition("*") for entry in EXPECTED[family].split())
    return Counter({writer: int(times or 2) for writer, _, times in entries})


def general(parameter: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", parameter.removesuffix(".weight"))


FAMILIES = [
    *(pytest.param(name, make, id=name) for name, make in CORE.items()),
    *(pytest.param(name, make, id=name) for name, make in MORE.items()),
]


@pytest.mark.filterwarnings("ignore")  # of the libraries, about the tiny sizes
@pytest.mark.parametrize(("name", "make"), FAMILIES)
def test_every_writer_is_found_and_nothing_else(name: str, make: Callable[[], Made]) -> None:
    model, batch = make()
    found = discover(model, batch)
    assert Counter(general(writer.parameter) for writer in found.writers) == expected(name)
    found.check(model)
    assert Anatomy.of_document(found.document()) == found
    assert {writer.block for writer in found.writers} == set(range(1, len(found.blocks) + 1))
    assert all(block.module and block.outputs for block in found.blocks)
    softmax = [number for number, writer in enumerate(found.writers) if writer.kind == "attention"]
    assert [reader.writer for reader in found.readers] == softmax
    assert {reader.heads for reader in found.readers} <= ({2, 4} if name == "swin" else {HEADS})
    assert not found.unsure or name == "wav2vec2"
    check_products(model, batch, found)


def check_functional(model: nn.Module, found: Anatomy, graph: Graph) -> Callable[[], None]:
    """The same for writers that no hook of a module sees, by nodes of the graph; call it after the pass."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    writers = [writer for writer in found.writers if not writer.hooked and not writer.experts]
    sums = {writer.parameter: torch.zeros(writer.shape) for writer in writers}

    def add(name: str, y: Tensor, adjoints: tuple[Tensor, ...]) -> None:
        sums[name] += adjoints[0].mT @ y

    for product in graph.products.values():
        for name in sums:
            if product.weights[0] is parameters[name]:
                node = graph.nodes[product.node]
                node.register_prehook(functools.partial(add, name, node._saved_mat1))

    def compare() -> None:
        for name, total in sums.items():
            true = parameters[name].grad
            assert (total - true).norm() <= 1e-4 * true.norm() and true.norm() > 0, name

    return compare


def check_products(model: nn.Module, batch: Any, found: Anatomy) -> None:
    """At every writer whose module can be hooked: output = W y + b, and the sum of d y^T is W's gradient."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    hooked = {writer.module: writer for writer in found.writers if writer.hooked}
    gradients = {module: torch.zeros(writer.shape) for module, writer in hooked.items()}
    calls = Counter[str]()

    def watch(writer: Writer, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = parameters[writer.parameter]
        y = inputs[0].detach()
        calls[writer.module] += 1
        product = y @ weight if writer.transposed else y @ weight.mT
        bias = getattr(module, "bias", None)
        torch.testing.assert_close(output, product if bias is None else product + bias, rtol=1e-2, atol=1e-2)

        def add(adjoint: Tensor) -> None:
            outer = torch.einsum("...m,...n->mn", adjoint, y)
            gradients[writer.module] += outer.mT if writer.transposed else outer

        output.register_hook(add)

    for module, writer in hooked.items():
        model.get_submodule(module).register_forward_hook(functools.partial(watch, writer))
    model.eval()
    out = (
        model(**batch)
        if isinstance(batch, dict)
        else model(*batch)
        if isinstance(batch, tuple)
        else model(batch)
    )
    ends = [end for _, end in tensors_in(out) if end.grad_fn is not None]
    compare = check_functional(model, found, Graph([end.grad_fn for end in ends]))
    sum((end * noise(*end.shape)).sum() for end in ends).backward()
    assert calls == Counter(writer.module for writer in found.writers if writer.hooked)
    compare()
    for module, gradient in gradients.items():
        true = parameters[hooked[module].parameter].grad
        assert (gradient - true).norm() <= 1e-4 * true.norm() and true.norm() > 0, module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "placements", "streams", "sources"),
    [
        ("bert", {"post"}, ["main"], {("main",)}),
        ("gpt2", {"pre"}, ["main"], {("main",)}),
        ("gemma2", {"pre+branch"}, ["main"], {("main",)}),
        ("t5", {"pre"}, ["encoder", "decoder"], {("encoder",), ("decoder",)}),
        ("sd3", {"pre"}, ["image", "context"], {("image", "context")}),
        ("torch-both", {"post"}, ["encoder", "decoder"], {("encoder",), ("decoder",)}),
        ("own-plain", {"post"}, ["main"], {("main",)}),
        ("own-highway", {"branch+post"}, ["main"], {("main",)}),
        ("flux", {"pre"}, ["image", "context", "joint"], {("image", "context"), ("joint",)}),
    ],
)
def test_norms_streams_and_sources_of_keys(
    name: str, placements: set[str], streams: list[str], sources: set[tuple[str, ...]]
) -> None:
    found = discover(*{**CORE, **MORE}[name]())
    assert {writer.norms.placement for writer in found.writers} == placements
    assert [stream.name for stream in found.streams] == streams
    assert {reader.source for reader in found.readers} == sources
    joint = found.streams[-1]
    assert [(part.stream, part.tokens) for part in joint.parts] == (
        [("context", 5), ("image", 16)] if name == "flux" else []
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "q", "k", "heads"),
    [
        ("gpt2", ((0, 16),), ((16, 32),), (2, 2)),
        ("gpt-neox", ((0, 8), (24, 32)), ((8, 16), (32, 40)), (2, 2)),
        ("falcon", ((0, 16),), ((16, 24),), (2, 1)),
        ("torch-both", ((0, 16),), ((16, 32),), (2, 2)),
        ("mixtral", (), (), (2, 1)),
    ],
)
def test_rows_of_queries_and_keys(name: str, q: object, k: object, heads: tuple[int, int]) -> None:
    for reader in discover(*CORE[name]()).readers:
        assert (reader.q.rows, reader.k.rows, (reader.heads, reader.kv_heads)) == (q, k, heads)
