"""Run configurations: the published presets, refused values, options given as text, JSON documents."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.presets import PRESETS, PUBLISHED_RATE
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.model.network import DiT

PUBLISHED = [name for name in PRESETS if name.startswith("dit-")]
DIGITS = [name for name in PRESETS if name.startswith("digits-")]


def built(model: DiTConfig) -> int:
    """Number of parameters, counted on the meta device."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in DiT(model).parameters())


def parameters(model: DiTConfig) -> int:
    """Number of parameters, extrapolated from one and two blocks, since all blocks are alike."""
    one, two = (built(dataclasses.replace(model, depth=depth)) for depth in (1, 2))
    return one + (model.depth - 1) * (two - one)


@pytest.mark.parametrize(
    ("name", "stated", "counted"),
    [
        ("dit-400l-baseline", 5.45, 5.453),
        ("dit-400l-baseline-half", 5.45, 5.453),
        ("dit-400l-layerscale", 5.45, 5.454),
        ("dit-400l-mvsplit", 5.45, 5.454),
        ("dit-1000l-mvsplit", 13.64, 13.64),
    ],
)
def test_published_networks_have_the_published_size(name: str, stated: float, counted: float) -> None:
    """Billions of parameters (arXiv:2605.06169 Table 3)."""
    billions = parameters(PRESETS[name].model) / 1e9
    assert round(billions, 2) == stated
    assert float(f"{billions:.4g}") == counted


def test_the_deepest_network_is_built_without_memory() -> None:
    model = PRESETS["dit-1000l-mvsplit"].model
    assert built(model) == parameters(model) == 13_635_847_296


@pytest.mark.parametrize("name", DIGITS)
def test_every_other_preset_is_a_network(name: str) -> None:
    """On the meta device: L blocks of 4 D^2 + 3 D F weights, and the gains of MV-Split."""
    model = PRESETS[name].model
    width, hidden = model.width, model.setting().ffn_width
    block = 4 * width**2 + 3 * width * hidden + (4 * width if model.merge == "mv_split" else 0)
    ends = 2 * model.patch_features * width + width + model.patch_features
    assert model.text_width == width
    assert parameters(model) == model.depth * block + ends


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_are_those_of_the_table(name: str) -> None:
    """arXiv:2605.06169 Table 3 and section 3."""
    model, training = PRESETS[name].model, PRESETS[name].training
    assert (model.width, model.heads, model.setting().head_width, model.setting().ffn_width) == (
        1024,
        8,
        128,
        3072,
    )
    assert (model.image_tokens, model.channels, model.patch, model.text_tokens) == (256, 128, 1, 256)
    assert (model.weight_std, model.head_std, model.rope, model.mixer) == (0.02, 0.02, True, "softmax")
    assert (training.betas, training.eps, training.weight_decay, training.clip) == (
        (0.9, 0.999),
        1e-8,
        0.1,
        1.0,
    )
    assert (training.warmup, training.batch, training.null_text, training.time_shift) == (
        1000,
        1024,
        0.1,
        4.0,
    )
    rate = 1.5625e-4 / (2 if name.endswith("half") else 1)
    schedule = training.learning_rate(model.depth)
    assert [schedule.rate(step) for step in (500, 1000, 50_000)] == pytest.approx([rate / 2, rate, rate])
    zero = model.writer_std == 0
    assert zero == ("layerscale" not in name) and (zero or model.writer_std is None)
    gains = {"dit-400l-mvsplit": (0.0, 1.0), "dit-1000l-mvsplit": (0.0, 0.03)}
    assert (model.merge == "mv_split") == (name in gains)
    assert (model.alpha, model.beta) == gains.get(name, (model.alpha, model.beta))


def test_the_published_rate_follows_mu_p() -> None:
    assert PUBLISHED_RATE == pytest.approx(1.5625e-4, rel=1e-12)


@pytest.mark.parametrize("width", [16, 64, 1024, 4096])
def test_widths_are_matched_at_the_published_one(width: int) -> None:
    """N(0, 0.02^2) at width 1024, and the same gain sqrt(D) std = 0.64 at every width."""
    matched = DiTConfig(width=width, text_width=8)
    assert matched.weight_std * math.sqrt(width) == pytest.approx(0.64)
    assert dataclasses.replace(matched, initialisation="published").weight_std == 0.02
    assert (matched.weight_std == 0.02) == (width == 1024)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 18, "heads": 4}, "heads must divide width: width 18"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"heads": 8}, "2-D rope needs a head width divisible by 4, got 2"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"side": 7}, "patches of side 2 do not tile a latent of side 7"),
        ({"side": 2, "patch": 2}, "tokens must be at least 2, got 1"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"text_width": 0}, "text_width must be at least 1, got 0"),
        ({"text_tokens": -1}, "text_tokens must be at least 0, got -1"),
        ({"ffn_ratio": 0.3}, "ffn_ratio 0.3 times width 16 must be a whole number"),
        ({"merge": "sum"}, "unknown merge 'sum': choose one of plain"),
        ({"mixer": "lstm"}, "unknown mixer 'lstm': choose one of softmax"),
        ({"initialisation": "he"}, "unknown initialisation 'he': choose one of published, width_matched"),
        ({"writer_std": -0.1}, r"writer_std must be in \[0, 1e\+12\], got -0.1"),
        ({"head_std": math.nan}, "head_std must be at least 0, got nan"),
        ({"merge_eps": -1e-6}, "merge_eps must be at least 0, got -1e-06"),
        ({"beta": math.inf}, r"beta must be finite and at most 1e\+12, got inf"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": 10**11}, "width must be at most 1048576, got 100000000000"),
        ({"depth": 10**10}, "depth must be at most 65536, got 10000000000"),
        ({"depth": None}, "depth must be a whole number, got None"),
        ({"ffn_ratio": math.nan}, "ffn_ratio must be positive and finite, got nan"),
        ({"mixer_share": 2.0}, r"mixer_share must be in \[0, 1\], got 2.0"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiTConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"warmup": 0}, "warmup must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"rate": 0.0}, "rate must be positive and finite, got 0.0"),
        ({"rate": math.nan}, "rate must be positive and finite, got nan"),
        ({"rate": None}, "a warm-up needs a final learning rate: set rate"),
        ({"clip": math.inf}, "clip must be positive and finite, got inf"),
        ({"slope": -1e-5}, "slope must be positive and finite, got -1e-05"),
        ({"time_shift": 0.0}, "time_shift must be positive and finite, got 0.0"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"null_text": math.nan}, r"null_text must be in \[0, 1\), got nan"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"event_ratio": 0.5}, "event_ratio must be at least 1, got 0.5"),
        ({"schedule": "step"}, "unknown schedule 'step': choose one of warmup, cosine, jump, ramp"),
        ({"schedule": "cosine", "rate": None}, "a warm-up needs a final learning rate: set rate"),
        ({"precision": "fp8"}, "unknown precision 'fp8': choose one of float32, bf16"),
        ({"sharding": "half"}, "unknown sharding 'half': choose one of replicated, full"),
        ({"stop_on": "success"}, "unknown stop_on 'success': choose one of never, divergence, collapse"),
        (
            {"stop_on": "collapse", "telemetry_every": 0},
            "stop_on=collapse reads the telemetry: set telemetry_every",
        ),
        ({"batch": 4, "accumulation": 3}, "accumulation must divide the batch: 4 samples, 3 micro-batches"),
        ({"recompute": 3, "recompute_of": 2}, "recompute must be at most recompute_of, 2, got 3"),
        (
            {"interventions": ((0, "freeze:queries-keys"),)},
            r"must be \[step, text\] with a step of at least 1, got \(0, .freeze:queries-keys.\)",
        ),
        ({"interventions": ((5, "thaw:queries-keys"),)}, "unknown action .thaw."),
        (
            {"interventions": ((401, "freeze:queries-keys"),)},
            "freeze:queries-keys at step 401 never acts: the run ends at 400",
        ),
        ({"interventions": 3}, r"interventions must be a list of \[step, text\], got 3"),
        ({"schedule": "jump"}, "a jump needs a learning rate before and after it: set first_rate"),
        ({"schedule": "jump", "first_rate": 1e-3, "first_steps": 2, "rate": None}, "before and after it"),
        ({"first_rate": -1.0}, "first_rate must be at least 0, got -1.0"),
        ({"first_rate": math.nan}, "first_rate must be at least 0, got nan"),
        ({"first_steps": -1}, "first_steps must be at least 0, got -1"),
        ({"event_ratio": math.nan}, "event_ratio must be at least 1, got nan"),
        ({"rate": 1e13}, r"rate must be at most 1e\+12, got 1"),
        ({"seed": 2**63}, f"seed must be at most {2**63 - 1}, got {2**63}"),
        ({"steps": 10**25}, "steps must be at most 10000000, got 1000"),
        ({"interval": 10**9}, "interval must be at most 10000, got 1000000000"),
        ({"event_window": 10**12}, "event_window must be at most 10000"),
        ({"steps": "400"}, "steps must be a whole number, got '400'"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"steps": 4.0}, "steps must be a whole number, got 4.0"),
        ({"steps": 10**5000}, "steps must be at most 10000000, got a long int"),
        ({"rate": [1]}, r"rate must be a number, got \[1\]"),
        ({"compile": 1}, "compile must be true or false, got 1"),
        ({"schedule": 7}, "schedule must be text, got 7"),
        (
            {"observables": ("g_men",)},
            "unknown observable 'g_men': choose one of tcs, rho, .*functional_step$",
        ),
        ({"observables": ("rho_image",)}, "unknown observable 'rho_image': choose one of tcs"),
        ({"observables": ("",)}, "unknown observable '': choose one of tcs"),
        ({"observables": ([],)}, r"unknown observable \[\]: choose one of tcs"),
        ({"observables": "tcs"}, "observables must be a list of names, got 'tcs'"),
    ],
)
def test_impossible_trainings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


def test_a_jump_is_one_step_between_two_rates() -> None:
    held = TrainingConfig(schedule="jump", first_rate=1e-3, first_steps=3, rate=0.02).learning_rate(64)
    assert [held.rate(step) for step in (1, 3, 4, 100)] == [1e-3, 1e-3, 0.02, 0.02]


@pytest.mark.parametrize(
    ("preset", "options", "sizes"),
    [
        ("digits-16l", {"width": "64"}, (64, 4, 64)),
        ("digits-16l", {"width": "64", "heads": "2"}, (64, 2, 64)),
        ("digits-16l", {"width": "64", "text_width": "16"}, (64, 4, 16)),
        ("digits-16l", {"width": "8"}, (8, 1, 8)),
        ("dit-400l-baseline", {"width": "512"}, (512, 4, 512)),
        ("latents-samples", {"width": "192"}, (192, 12, 16)),
        ("digits-event", {}, (64, 4, 64)),
    ],
)
def test_heads_and_text_follow_a_width(
    preset: str, options: dict[str, str], sizes: tuple[int, int, int]
) -> None:
    model = PRESETS[preset].with_options(options).model
    assert (model.width, model.heads, model.text_width) == sizes


def test_unknown_data_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown data 'imagenet': choose one of digits, none"):
        RunConfig(data="imagenet")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("depth", "12", 12),
        ("ffn_ratio", "2", 2.0),
        ("merge", "mv_split", "mv_split"),
        ("rope", "False", False),
        ("compile", "true", True),
        ("writer_std", "none", None),
        ("writer_std", "0.1", 0.1),
        ("rate", "1e-3", 1e-3),
        ("clip", "None", None),
        ("betas", "[0.8, 0.9]", (0.8, 0.9)),
        ("interventions", '[[3, "freeze:queries-keys"]]', ((3, "freeze:queries-keys"),)),
        ("observables", "g_ctr, rho,tcs,rho", ("tcs", "rho", "g_ctr")),
        ("observables", "functional_step", ("tcs", "functional_step")),
        ("observables", "", ()),
        ("data", "none", "none"),
    ],
)
def test_options_are_read_from_text(name: str, text: str, value: Any) -> None:
    """Exactly one field changes, in the part of the configuration that has it."""
    base = RunConfig()
    changed = base.with_options({name: text})
    part = next((part for part in ("model", "training") if hasattr(getattr(base, part), name)), None)
    before, after = (run if part is None else getattr(run, part) for run in (base, changed))
    assert getattr(after, name) == value and type(getattr(after, name)) is type(value)
    assert after == dataclasses.replace(before, **{name: value})
    others = {"model", "training", "data"} - {part or "data"}
    assert all(getattr(changed, other) == getattr(base, other) for other in others)


def test_options_that_go_together_are_checked_together() -> None:
    """Each option alone would be refused."""
    changed = RunConfig().with_options({"width": "24", "heads": "6", "steps": "7"})
    assert (changed.model.width, changed.model.heads, changed.training.steps) == (24, 6, 7)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dept", "3", "unknown option 'dept': choose from depth, width"),
        ("model", "3", "unknown option 'model'"),
        ("depth", "3.5", "depth must be a whole number, got '3.5'"),
        ("depth", "none", "depth must be a whole number, got 'none'"),
        ("rate", "fast", "rate must be a number, got 'fast'"),
        ("rope", "1", "rope must be true or false, got '1'"),
        ("betas", "0.9", "betas must be a JSON list, got '0.9'"),
        ("betas", "0.9, 0.99", "betas must be a JSON list, got '0.9, 0.99'"),
        ("heads", "3", "heads must divide width: width 16"),
        ("data", "imagenet", "unknown data 'imagenet'"),
    ],
)
def test_options_that_cannot_be_read_are_named(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig().with_options({name: text})


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_comes_back_from_its_document(name: str) -> None:
    """Through JSON text, which turns tuples into lists."""
    options = {
        "interventions": '[[3, "freeze:queries-keys"]]',
        "betas": "[0.8, 0.9]",
        "observables": "g_mean",
    }
    run = PRESETS[name].with_options(options)
    found = RunConfig.of_document(json.loads(json.dumps(run.document())))
    assert found == run and hash(found) == hash(run)


def other_field(document: dict[str, Any]) -> None:
    document["model"]["colour"] = "red"


@pytest.mark.parametrize(
    "change", [other_field, lambda document: document.pop("training"), lambda document: document.pop("data")]
)
def test_a_document_of_another_version_is_named(change: Any) -> None:
    document = RunConfig().document()
    change(document)
    with pytest.raises(ValueError, match="this configuration was written by another version: "):
        RunConfig.of_document(document)


NUMBERS = [
    (kind, name)
    for kind in (DiTConfig, TrainingConfig)
    for name, value in dataclasses.asdict(kind()).items()
    if isinstance(value, int | float) and not isinstance(value, bool)
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "1", None, [1]])
def test_no_number_takes_nonsense(kind: Any, name: str, value: Any) -> None:
    """Every numeric field has a type and bounds, also those that will be added."""
    if (name, value) in (("rate", None), ("clip", None), ("writer_std", None)):
        pytest.skip("None has a meaning here")
    with pytest.raises(ValueError, match=name):
        kind(**{name: value})


@pytest.mark.parametrize("document", [[], None, "x", {"model": [], "training": 3, "data": 1}])
def test_what_is_no_configuration_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="configuration"):
        RunConfig.of_document(document)


@pytest.mark.parametrize(
    ("options", "depth", "rates"),
    [
        ({"schedule": "warmup", "rate": 1e-3, "warmup": 10}, 64, (1e-4, 1e-3, 1e-3)),
        ({"schedule": "cosine", "rate": 2e-3, "warmup": 4, "steps": 16}, 64, (5e-4, 1e-3, 0.0)),
        ({"schedule": "ramp", "rate": None, "slope": 1e-5}, 64, (1e-5, 1e-4, 1e-2)),
        ({"schedule": "ramp", "rate": 5e-5, "slope": 1e-5}, 64, (1e-5, 5e-5, 5e-5)),
        ({"schedule": "depth_ramp", "rate": None, "slope": 1e-5}, 16, (1e-5, 1e-4, 1e-2)),
        ({"schedule": "depth_ramp", "rate": None, "slope": 1e-5}, 64, (5e-6, 5e-5, 5e-3)),
    ],
)
def test_schedules_have_the_stated_rates(
    options: dict[str, Any], depth: int, rates: tuple[float, ...]
) -> None:
    """Rates at steps 1, 10 and 1000."""
    schedule = TrainingConfig(**options).learning_rate(depth)
    assert [schedule.rate(step) for step in (1, 10, 1000)] == pytest.approx(rates)
