"""Interventions: what each changes, by how much, and that everything else stays bitwise the same."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from meanmode.sim.intervene.grammar import GROUPS, Intervention
from meanmode.sim.intervene.interventions import Interventions
from meanmode.sim.observe import observables
from meanmode.sim.observe.functional_step import block_states
from meanmode.sim.observe.layer_hooks import watch_writer
from meanmode.sim.observe.probe import Probe
from meanmode.sim.simulate import ADJOINT_STREAM, stream
from meanmode.sim.trunk.ensemble import stack_members, unstack_member
from meanmode.sim.trunk.linear import Linear
from meanmode.sim.trunk.segments import replicate_tokens
from meanmode.sim.trunk.stack import Stack, blocks_of, synthetic_adjoint, synthetic_input
from meanmode.theory.setting import Setting

SETTING = Setting(
    depth=4,
    tokens=9,
    text_tokens=3,
    batch=2,
    width=16,
    heads=2,
    weight_std=0.25,
    input_cosine=0.2,
    adjoint_cosine=0.3,
    merge="mv_split",
    alpha=0.3,
    rope=True,
)
KINDS = ("single", "checkpointed", "ensemble")
CHOSEN = (2, 3)
ACTS = ("delete", "scale=0.25", "replace", "control:delete", "control:scale=0.25", "control:replace")


def changes(targets: tuple[str, ...], acts: tuple[str, ...] = ACTS) -> list[str]:
    """Every act on both parts of the targets."""
    cases = itertools.product(acts, ("mean", "centered"), targets)
    return [f"{act}:{part}:{target}@blocks=2-3" for act, part, target in cases]


def with_kinds(targets: tuple[str, ...]) -> list[tuple[str, str]]:
    """All changes on a single network, and some on the other kinds."""
    some = changes(targets, ("delete", "control:delete"))
    return [("single", text) for text in changes(targets)] + list(itertools.product(KINDS[1:], some))


GRADIENTS, FIELDS = ("writer-gradient", "reader-gradient"), ("branch", "trunk")
WRITERS = ("operator.proj", "ffn.w2")
READERS = ("operator.q_proj", "operator.k_proj", "operator.v_proj", "ffn.w13")


class Checkpointed(nn.Module):
    """A stack whose blocks are recomputed in the backward pass."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        for block in self.stack.blocks:
            x = checkpoint(block, x, self.stack.setting.segments, use_reentrant=False)
        return x


class Network(NamedTuple):
    """A model with its input and the adjoint of its output."""

    model: nn.Module
    x: Tensor
    adjoint: Tensor


def resident(setting: Setting, seed: int) -> Network:
    stack = Stack(setting)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, seed, index))
    x = synthetic_input(setting, stream(setting, seed, 0))
    return Network(stack, x, synthetic_adjoint(setting, stream(setting, seed, ADJOINT_STREAM)))


def network(kind: str, *, setting: Setting = SETTING, dtype: torch.dtype = torch.float64) -> Network:
    members = [resident(setting, seed) for seed in range(3 if kind == "ensemble" else 1)]
    if kind == "ensemble":
        model: nn.Module = stack_members([member.model for member in members])
        x, adjoint = (torch.stack([member[part] for member in members]) for part in (1, 2))
    else:
        model, x, adjoint = members[0]
    if kind == "checkpointed":
        model = Checkpointed(model)
    return Network(model.to(dtype), x.to(dtype), adjoint.to(dtype))


class Pass(NamedTuple):
    """Output, input gradient, parameter gradients and handed-on sizes of one forward and backward pass."""

    output: Tensor
    at_input: Tensor
    gradients: dict[str, Tensor | None]
    handed_on: dict[str, np.ndarray]


def asked(*texts: str) -> list[Intervention]:
    return [Intervention.parse(text) for text in texts]


def passed(net: Network, interventions: Iterable[Intervention] = ()) -> Pass:
    net.model.zero_grad()
    x = net.x.clone().requires_grad_()
    with Interventions(net.model, interventions) as active:
        output = net.model(x)
        output.backward(net.adjoint)
        gradients = {
            name: None if weight.grad is None else weight.grad.clone()
            for name, weight in net.model.named_parameters()
        }
    return Pass(output.detach(), x.grad, gradients, active.handed_on())


def layers(model: nn.Module, names: Iterable[str], blocks: Iterable[int] = CHOSEN) -> dict[str, Linear]:
    """Full parameter name -> layer, for the chosen blocks."""
    chosen = {id(blocks_of(model)[number - 1]) for number in blocks}
    return {
        f"{path}.{name}.weight": block.get_submodule(name)
        for path, block in model.named_modules()
        if id(block) in chosen
        for name in names
    }


def gradient_parts(net: Network, names: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """DW_mu and DW_c of the layers' weights without any intervention, summed token by token."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        watch_writer(layer, lambda y, delta, name=name: seen.update({name: (y, delta)}))
        for name, layer in layers(net.model, names).items()
    ]
    net.model(net.x.clone().requires_grad_()).backward(net.adjoint)
    for handle in handles:
        handle.remove()
    found = {}
    for name in layers(net.model, names):
        y, delta = (x.detach() for x in seen[name])
        whole = torch.einsum("...btm,...btn->...mn", delta, y)
        mean = y.shape[-2] * torch.einsum("...bm,...bn->...mn", delta.mean(-2), y.mean(-2))
        found[name] = (mean, whole - mean)
    return found


def close(found: Tensor, expected: Tensor, beside: Tensor | None = None) -> None:
    """Equal up to rounding, relative to `beside` if they are differences of something larger."""
    scale = float((expected if beside is None else beside).abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * scale)


def sizes(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=(-2, -1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("delete:mean:trunk@blocks=3-5", "the model has blocks 1 to 4"),
        ("freeze:alpha", "these blocks have no such parameters"),
        ("freeze:queries-keys", "these blocks have no such parameters"),
    ],
)
def test_what_the_model_lacks_is_refused(text: str, message: str) -> None:
    setting = dataclasses.replace(SETTING, merge="plain", mixer="uniform", rope=False)
    with pytest.raises(ValueError, match=message):
        Interventions(Stack(setting), asked(text))


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no meanmode\.sim\.trunk\.stack\.Block"):
        Interventions(nn.Linear(2, 2), [])


@pytest.mark.parametrize(("kind", "text"), with_kinds(GRADIENTS))
def test_one_part_of_the_gradient_changes(kind: str, text: str) -> None:
    """The other part stays; the change has the defined size, and a random direction where it should."""
    (change,) = asked(text)
    net = network(kind)
    names = WRITERS if change.target == "writer-gradient" else READERS
    parts, found = gradient_parts(net, names), passed(net, [change])
    uncontrolled = passed(net, [dataclasses.replace(change, control=False)]).gradients
    for name, both in parts.items():
        part, kept = both if change.part == "mean" else both[::-1]
        handed = found.gradients[name] - kept
        if change.control:
            moved, aimed_at = handed - part, uncontrolled[name] - kept - part
            torch.testing.assert_close(sizes(moved), sizes(aimed_at), rtol=1e-6, atol=0)
            assert (sizes(moved - aimed_at) > 0.5 * sizes(aimed_at)).all()
        elif change.action == "replace":
            close(torch.linalg.svdvals(handed), torch.linalg.svdvals(part))
            cosines = (handed * part).sum((-2, -1)) / sizes(part).square()
            assert cosines.abs().max() < 0.6
        else:
            close(handed, (change.factor or 0.0) * part, beside=part)


@pytest.mark.parametrize(("kind", "text"), with_kinds(GRADIENTS))
def test_a_changed_gradient_leaves_all_else_bitwise(kind: str, text: str) -> None:
    net = network(kind, dtype=torch.float32)
    untouched, found = passed(net), passed(net, asked(text))
    assert torch.equal(found.output, untouched.output)
    assert torch.equal(found.at_input, untouched.at_input)
    moved = {
        name for name in found.gradients if not torch.equal(found.gradients[name], untouched.gradients[name])
    }
    assert moved == set(layers(net.model, WRITERS if "writer" in text else READERS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ["delete", "scale=0.25", "replace"])
def test_what_was_handed_on_is_reported(kind: str, act: str) -> None:
    net = network(kind)
    found = passed(net, asked(f"{act}:mean:writer-gradient@blocks=2-3")).handed_on
    left = {"delete": 0.0, "scale=0.25": 0.25, "replace": 1.0}[act]
    shape = (3, 5, 2) if kind == "ensemble" else (5, 2)
    assert found["g_mean"].shape == found["g_ctr"].shape == shape
    for place, (mean, rest) in enumerate(gradient_parts(net, WRITERS).values()):
        index = (..., 2 + place // 2, place % 2)
        np.testing.assert_allclose(found["g_mean"][index], left * sizes(mean), rtol=1e-6)
        np.testing.assert_allclose(found["g_ctr"][index], sizes(rest), rtol=1e-6)
    elsewhere = np.isin(np.arange(5), CHOSEN, invert=True)
    assert (np.isnan(found["g_mean"]) == elsewhere[:, None]).all()


def test_no_report_without_a_change() -> None:
    found = passed(network("single"), asked("delete:mean:reader-gradient", "delete:mean:trunk")).handed_on
    assert all(np.isnan(values).all() for values in found.values())


def test_changes_are_applied_in_order() -> None:
    net = network("single")
    texts = ("scale=3:mean", "scale=0.5:mean", "delete:centered")
    found = passed(net, asked(*(f"{text}:writer-gradient@blocks=2-3" for text in texts)))
    for name, (mean, _) in gradient_parts(net, WRITERS).items():
        close(found.gradients[name], 1.5 * mean)


def test_control_and_replacement_change_by_the_size_of_the_part() -> None:
    """Original, control, delete and replace cross two factors: the part, and a random part of its size."""
    net = network("single")
    name = next(iter(layers(net.model, WRITERS)))
    acts = ("scale=1", "control:delete", "delete", "replace")
    original, control, deleted, replaced = (
        passed(net, asked(f"{act}:mean:writer-gradient")).gradients[name] for act in acts
    )
    part = sizes(original - deleted)
    close(sizes(original - control), part)
    close(sizes(replaced - deleted), part)
    close(original, passed(net).gradients[name])


@pytest.mark.parametrize("probe_first", [True, False])
@pytest.mark.parametrize("text", ["delete:mean:writer-gradient", "replace:centered:reader-gradient@blocks=2"])
def test_a_probe_sees_the_gradient_of_the_loss(probe_first: bool, text: str) -> None:
    """Whichever context is entered first; a probe does not change the gradients that are handed on."""
    net = network("single", dtype=torch.float32)
    alone, probe = passed(net, asked(text)), Probe(net.model)
    with probe:
        net.model(net.x.clone().requires_grad_()).backward(net.adjoint)
    expected = probe.values()
    active, probe = Interventions(net.model, asked(text)), Probe(net.model)
    outer, inner = (probe, active) if probe_first else (active, probe)
    with outer:
        net.model(net.x.clone().requires_grad_()).backward(net.adjoint)
        net.model.zero_grad()
        with inner:
            net.model(net.x.clone().requires_grad_()).backward(net.adjoint)
    for name, values in probe.values().items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    for name, weight in net.model.named_parameters():
        assert torch.equal(weight.grad, alone.gradients[name]), name


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("passes", ["two calls, one backward", "two backwards"])
def test_all_calls_of_a_backward_pass_count(passes: str, kind: str) -> None:
    net = network(kind)
    change = asked("scale=0.25:mean:writer-gradient@blocks=2-3")
    halves = [Network(net.model, net.x[half], net.adjoint[half]) for half in (slice(0, 1), slice(1, 2))]
    expected = passed(net, change).gradients
    net.model.zero_grad()
    with Interventions(net.model, change):
        outputs = [half.model(half.x.clone().requires_grad_()) for half in halves]
        if passes == "two backwards":
            for output, half in zip(outputs, halves, strict=True):
                output.backward(half.adjoint)
        else:
            torch.autograd.backward(outputs, [half.adjoint for half in halves])
    for name, weight in net.model.named_parameters():
        close(weight.grad, expected[name])


def test_a_backward_without_its_forward_is_refused() -> None:
    net = network("single")
    before = net.model(net.x)
    with Interventions(net.model, asked("delete:mean:writer-gradient")):
        net.model(net.x)
        with pytest.raises(ValueError, match="run its forward pass inside the context too"):
            before.backward(net.adjoint)


def test_one_context_for_all_changes_of_a_gradient() -> None:
    net = network("single")
    with Interventions(net.model, asked("delete:mean:writer-gradient@blocks=3")) as first:
        twice = asked("freeze:readers", "delete:centered:writer-gradient")
        with (
            pytest.raises(ValueError, match="of block 3 is already changed"),
            Interventions(net.model, twice),
        ):
            pass
        assert all(weight.requires_grad for weight in net.model.parameters())
        net.model(net.x).backward(net.adjoint)
    assert first.handed_on()["g_mean"][3].tolist() == [0, 0]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and centered part."""
    mean = x.mean(-2, keepdim=True).expand_as(x)
    return mean, x - mean


@pytest.mark.parametrize("text", changes(FIELDS))
def test_a_changed_field_follows_its_definition(text: str) -> None:
    """Sample by sample: the other part stays, and a random part has the defined size and inner products."""
    (change,) = asked(text)
    block = blocks_of(network("single").model)[1].requires_grad_(False)
    trunk, branch = (
        torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
        for seed in range(2)
    )
    seen: dict[str, Tensor] = {}
    plain = block.merge_ffn(trunk, branch, SETTING.segments) if change.target == "trunk" else branch
    with Interventions(block, [dataclasses.replace(change, blocks=None)]):
        merge = block.merge_ffn
        merge.register_forward_pre_hook(lambda _, given: seen.update(branch=given[1]))
        changed = merge(trunk, branch, SETTING.segments)
    found = changed if change.target == "trunk" else seen["branch"]
    before, after = (halves(plain), halves(found))
    index = ("mean", "centered").index(change.part)
    close(after[1 - index], before[1 - index], beside=plain)
    part, new = before[index], after[index]
    if change.control:
        twin = {"delete": 1.0, "scale": 0.75, "replace": None}[change.action]
        if twin is not None:
            close((new - part).norm(dim=-1), twin * part.norm(dim=-1))
        assert (new - part).norm() > 0.5 * part.norm()
    elif change.action == "replace":
        close(new @ new.mT, part @ part.mT)
        assert abs((new * part).sum() / part.square().sum()) < 0.6
    else:
        close(new, (change.factor or 0.0) * part, beside=part)


def by_hand(stack: Stack, x: Tensor, change: Intervention) -> Tensor:
    """The final trunk of a stack whose chosen blocks delete or scale a part, computed explicitly."""

    def after(field: Tensor) -> Tensor:
        mean, rest = halves(field)
        factor = change.factor or 0.0
        return factor * mean + rest if change.part == "mean" else mean + factor * rest

    segments = stack.setting.segments
    for number, block in enumerate(stack.blocks, start=1):
        for branch, merge in ((block.operator, block.merge_attn), (block.ffn, block.merge_ffn)):
            written = branch(x, segments) if branch is block.operator else branch(x)
            chosen = change.acts_on(number)
            x = merge(x, after(written) if chosen and change.target == "branch" else written, segments)
            x = after(x) if chosen and change.target == "trunk" else x
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", changes(FIELDS, ("delete", "scale=0.25")))
def test_a_changed_field_makes_a_different_network_differentiated_as_such(kind: str, text: str) -> None:
    (change,) = asked(text)
    net = network(kind)
    found = passed(net, [change])
    net.model.zero_grad()
    x = net.x.clone().requires_grad_()
    output = by_hand(net.model.stack if kind == "checkpointed" else net.model, x, change)
    output.backward(net.adjoint)
    close(found.output, output.detach())
    close(found.at_input, x.grad)
    for name, weight in net.model.named_parameters():
        close(found.gradients[name], weight.grad)


@pytest.mark.parametrize(("kind", "text"), with_kinds(FIELDS))
def test_the_forward_pass_before_a_changed_field_stays_bitwise(kind: str, text: str) -> None:
    net = network(kind, dtype=torch.float32)
    plain = block_states(net.model, lambda: net.model(net.x))
    with Interventions(net.model, asked(text)):
        found = block_states(net.model, lambda: net.model(net.x))
    assert [torch.equal(*states) for states in zip(found, plain, strict=True)] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("text", changes(FIELDS))
def test_recomputation_repeats_a_changed_field_bitwise(text: str) -> None:
    change = asked(text)
    once, twice = (passed(network(kind, dtype=torch.float32), change) for kind in KINDS[:2])
    assert torch.equal(once.output, twice.output) and torch.equal(once.at_input, twice.at_input)
    for found, expected in zip(twice.gradients.values(), once.gradients.values(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("probe_first", [True, False])
def test_a_probe_sees_the_forward_pass_as_changed(probe_first: bool) -> None:
    """A trunk without its mean has rho 0, a branch without its centered part VarGain 0."""
    net = network("single", dtype=torch.float32)
    texts = ("delete:mean:trunk@blocks=2", "delete:centered:branch@blocks=4")
    active, probe = Interventions(net.model, asked(*texts)), Probe(net.model, names=("rho", "var_gain"))
    outer, inner = (probe, active) if probe_first else (active, probe)
    with outer, inner:
        net.model(net.x)
    found = probe.values()
    assert [value < 1e-6 for value in found["rho"]] == [False, False, True, False, False]
    assert (found["var_gain"][4] < 1e-6).all() and (found["var_gain"][1:4] > 0.01).all()


def test_existing_hooks_see_the_changed_tensor() -> None:
    net = network("single", dtype=torch.float32)
    block, seen = blocks_of(net.model)[1], {}
    block.merge_attn.register_forward_hook(lambda _, __, x: seen.update(written=x))
    block.ffn.register_forward_pre_hook(lambda _, given: seen.update(read=given[0]))
    with Interventions(net.model, asked("delete:mean:trunk")):
        net.model(net.x)
    assert torch.equal(seen["written"], seen["read"]) and observables.rho(seen["read"]).max() < 1e-6


@pytest.mark.parametrize("text", ["control:delete:mean:branch", "replace:centered:writer-gradient@seed=5"])
def test_members_of_an_ensemble_equal_single_runs(text: str) -> None:
    net = network("ensemble")
    together = passed(net, asked(text))
    for run in range(3):
        member = Network(unstack_member(net.model, run), net.x[run], net.adjoint[run])
        alone = passed(member, asked(text))
        close(together.output[run], alone.output)
        for name, gradient in alone.gradients.items():
            close(together.gradients[name][run].reshape(gradient.shape), gradient)
        for name, values in alone.handed_on.items():
            np.testing.assert_allclose(together.handed_on[name][run], values, rtol=1e-5)


FROZEN = {
    "readers": READERS,
    "writers": WRITERS,
    "queries-keys": READERS[:2],
    "values": READERS[2:3],
    "attention": (*READERS[:3], WRITERS[0]),
    "ffn": ("ffn.w13", "ffn.w2"),
    "gates": ("merge_attn.alpha", "merge_attn.beta", "merge_ffn.alpha", "merge_ffn.beta"),
    "alpha": ("merge_attn.alpha", "merge_ffn.alpha"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_frozen_parameters_stand_still_under_adamw(kind: str, group: str) -> None:
    """Despite earlier moments and weight decay; afterwards they continue where they stopped."""
    net = network(kind, dtype=torch.float32)
    weights = dict(net.model.named_parameters())
    names = {
        name
        for name in weights
        for end in FROZEN[group]
        for block in CHOSEN
        if f"blocks.{block - 1}.{end}" in name
    }
    assert len(names) == 2 * len(FROZEN[group])
    optimiser = torch.optim.AdamW(weights.values(), lr=0.01, weight_decay=0.5)
    passed(net)
    optimiser.step()
    untouched = passed(net)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    gradients = {name: weight.grad for name, weight in weights.items()}
    with Interventions(net.model, asked(f"freeze:{group}@blocks=2-3")):
        assert {name for name, weight in weights.items() if weight.grad is None} == names
        found = passed(net)
        assert {name for name, weight in weights.items() if weight.grad is None} == names
        optimiser.step()
    assert torch.equal(found.output, untouched.output) and torch.equal(found.at_input, untouched.at_input)
    for name, weight in weights.items():
        assert torch.equal(weight, before[name]) is (name in names), name
        assert weight.requires_grad
        assert optimiser.state[weight]["step"] == (1 if name in names else 2)
        if name in names:
            assert weight.grad is gradients[name] and torch.equal(weight.grad, untouched.gradients[name])
        else:
            assert torch.equal(found.gradients[name], untouched.gradients[name])


EVERYTHING = (
    *("scale=0.5:mean:writer-gradient", "replace:centered:reader-gradient", "delete:mean:trunk"),
    *("control:delete:mean:branch", "freeze:gates"),
)


def hooks(model: nn.Module) -> int:
    """Number of hooks on modules and weights."""
    on_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return on_modules + sum(len(weight._backward_hooks or {}) for weight in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_left_behind(kind: str, failing: bool) -> None:
    net = network(kind, dtype=torch.float32)
    untouched = passed(net)
    try:
        with Interventions(net.model, asked(*EVERYTHING)) as active:
            net.model(net.x.clone().requires_grad_()).backward(net.adjoint)
            assert hooks(net.model) > 0
            if failing:
                raise RuntimeError
    except RuntimeError:
        assert failing
    assert hooks(net.model) == 0
    with active:
        assert hooks(net.model) > 0
    found = passed(net)
    assert torch.equal(found.output, untouched.output) and torch.equal(found.at_input, untouched.at_input)
    for name, gradient in untouched.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name


COPIES = 3


@pytest.mark.parametrize("texts", [(), ("delete:mean:writer-gradient", "scale=0.5:mean:branch")], ids=str)
@pytest.mark.parametrize("kind", ["single", "ensemble"])
def test_replicated_tokens_change_only_the_amplification(kind: str, texts: tuple[str, ...]) -> None:
    """X1 with two segments and interventions: each part of a gradient is invariant on its own."""
    net = network(kind)
    targets = net.adjoint
    found = []
    for copies in (1, COPIES):
        x, segments = replicate_tokens(net.x, SETTING.segments, copies)
        wanted, _ = replicate_tokens(targets, SETTING.segments, copies)
        assert segments == (copies * 9, copies * 3)
        net.model.zero_grad()
        probe = Probe(net.model, names=("amplification", "g_mean", "g_ctr"))
        with Interventions(net.model, asked(*texts)) as active, probe:
            for block in blocks_of(net.model):
                x = block(x, segments)
            loss = mse_loss(x, wanted)
            loss.backward()
        gradients = [weight.grad for weight in net.model.parameters()]
        found.append((x.detach(), loss.detach(), gradients, active.handed_on(), probe.values()))
    (x, loss, gradients, handed, seen), (long, long_loss, long_gradients, long_handed, long_seen) = found
    close(long, replicate_tokens(x, SETTING.segments, COPIES)[0])
    close(long_loss, loss)
    for gradient, expected in zip(long_gradients, gradients, strict=True):
        close(gradient, expected, beside=torch.cat([g.flatten() for g in gradients]))
    for name in handed:
        np.testing.assert_allclose(long_handed[name], handed[name], rtol=1e-5)
    for name, factor in (("amplification", COPIES), ("g_mean", 1), ("g_ctr", 1)):
        np.testing.assert_allclose(long_seen[name], factor * seen[name], rtol=1e-5)
