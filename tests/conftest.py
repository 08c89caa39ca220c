"""Shapes are checked by beartype in the test run; one thread, since the tensors are small."""

import contextlib
import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)
# all but configurations, which take JSON's lists for tuples; an int is a float, as to every type checker
CHECKED = ["meanmode.sim", *(f"meanmode.dit.{storey}" for storey in ("model", "data", "train", "evaluate"))]
TRACED = {
    *(f"meanmode.sim.watch.{name}" for name in ("compiled_hooks", "compiled_steps")),
    *(f"meanmode.sim.watch.{name}" for name in ("hook_points", "intercepted")),
    "meanmode.sim.trunk.onednn",
}
"""Modules with functions that `torch.compile` traces, which it cannot do through the type checker."""
with_shapes = jaxtyping.jaxtyped
ARRAYS = (torch.Tensor, np.ndarray)


def _is_shaped(hint: Any) -> bool:
    """Whether an annotation is an array of a shape, or contains one."""
    own = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return own or any(map(_is_shaped, get_args(hint)))


def _computes_sizes(hint: Any) -> bool:
    """Whether an annotation has a size that is computed from the value of an argument."""
    own = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray) and "{" in hint.dim_str
    return own or any(map(_computes_sizes, get_args(hint)))


def _kind(value: Any) -> Any:
    """All of a value that a check of its annotation can depend on."""
    kind = type(value)
    if isinstance(value, ARRAYS):
        return kind, value.dtype, value.shape
    if kind in (list, tuple):
        return kind, tuple(map(_kind, value))
    if kind is dict:
        return kind, tuple((key, _kind(item)) for key, item in value.items())
    return value if isinstance(value, str | type) else kind


def _checked_once(plain: Callable[..., Any], check: Callable[[Any], Any]) -> Callable[..., Any]:
    """Check only calls whose arguments and results differ in type, shape or precision from earlier ones.

    Args:
        plain: the function.
        check: adds the checks of jaxtyping to a function; called for the first call, since it takes long.
    """
    results: dict[Any, set[Any]] = {}
    returned: list[Any] = []
    checked = functools.cache(lambda: check(plain))
    checked_result = functools.cache(lambda: check(functools.wraps(plain)(lambda *_, **__: returned.pop())))

    @functools.wraps(plain)
    def call(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return plain(*arguments, **options)
        key = tuple(map(_kind, arguments)), tuple((name, _kind(value)) for name, value in options.items())
        known = results.get(key)
        result = (checked() if known is None else plain)(*arguments, **options)
        kind = _kind(result)
        if known is None:
            results.setdefault(key, set()).add(kind)
        elif kind not in known:
            returned.append(result)
            checked_result()(*arguments, **options)
            known.add(kind)
        return result

    return call


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """Check calls as jaxtyping does, but those of functions without shapes by the type checker alone.

    jaxtyping binds the arguments of each call to collect sizes, which doubles the time of a training step; so
    calls like an earlier one are not checked again.
    """

    def decorate(checked: Any) -> Any:
        if checked.__module__ in TRACED:
            return checked
        if isinstance(checked, type):
            if dataclasses.is_dataclass(checked) and "__init__" in vars(checked):
                checked.__init__ = decorate(checked.__init__)
            return checked
        check = functools.partial(with_shapes, typechecker=typechecker)
        # of a name that only type checkers import, or of a class that only they subscript
        with contextlib.suppress(NameError, TypeError):
            if isinstance(checked, FunctionType):
                hints = get_type_hints(checked, include_extras=True).values()
                if not any(map(_is_shaped, hints)):
                    return typechecker(checked)
                if not any(map(_computes_sizes, hints)):
                    return _checked_once(checked, check)
        return check(checked)

    return decorate


jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from meanmode.sim.store.sweep_store import DONE  # noqa: E402 (after the import hook)
from meanmode.sim.store.sweep_writer import SweepWriter  # noqa: E402
from meanmode.sweeps.cli import main as cli  # noqa: E402
from meanmode.sweeps.engine.execution import run_sweep  # noqa: E402
from meanmode.sweeps.engine.store_layout import lay_out  # noqa: E402
from meanmode.sweeps.engine.study import Study  # noqa: E402
from meanmode.sweeps.engine.study_variables import KINDS  # noqa: E402
from meanmode.sweeps.engine.sweep import Sweep  # noqa: E402
from meanmode.sweeps.engine.trained import StudyCell  # noqa: E402
from meanmode.sweeps.named.mixers_and_merges import MIXERS_AND_MERGES  # noqa: E402
from meanmode.sweeps.named.structure.structured_fronts import (  # noqa: E402
    STRUCTURED_FRONTS,
    STRUCTURED_GRADIENTS,
)
from meanmode.sweeps.named.token_law import TOKEN_LAW  # noqa: E402
from meanmode.theory.setting import INPUTS, Setting  # noqa: E402

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """What a test draws from global streams is the same on its own, in any order and after any other test."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


@pytest.fixture
def mms(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Exit status, stdout and stderr of one command, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mms", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


class Forks:
    """A process that has imported everything, and runs commands in forks of itself (`zygote.py`)."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("zygote.py")
        self._process = subprocess.Popen(
            [sys.executable, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None and self._process.stdin is not None
        self._answers, self._requests = self._process.stdout, self._process.stdin
        assert json.loads(self._answers.readline()) == "ready"

    def ask(self, function: str, **arguments: object) -> Any:
        """Call a function of the process and return its answer."""
        self._requests.write(json.dumps([function, arguments]) + "\n")
        self._requests.flush()
        return json.loads(self._answers.readline())

    def close(self) -> None:
        """Let the process end."""
        self._requests.close()
        self._process.wait()
        self._answers.close()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Started once per test process, since it imports for some seconds what a command then need not."""
    found = Forks()
    yield found
    found.close()


class Started:
    """A command that runs in a process of its own, or in several.

    Attributes:
        pids: numbers of the processes.
    """

    def __init__(
        self, forks: Forks, arguments: Sequence[object], printed: Path, environments: Any, before: str
    ) -> None:
        self._forks, self._printed = forks, printed
        self.pids: list[int] = forks.ask(
            "start",
            arguments=[str(word) for word in arguments],
            folder=str(printed.parent),
            printed=str(printed),
            environments=environments,
            before=before,
        )
        self._codes: dict[int, int] = {}

    def codes(self, seconds: float = 120.0) -> list[int | None]:
        """Exit codes of the processes, None of those that still run after some seconds."""
        until = time.monotonic() + seconds
        for pid in self.pids:
            if pid not in self._codes:
                code = self._forks.ask("end", process=pid, seconds=max(0.0, until - time.monotonic()))
                self._codes |= {} if code is None else {pid: code}
        return [self._codes.get(pid) for pid in self.pids]

    @property
    def running(self) -> bool:
        """Whether any of the processes runs."""
        return None in self.codes(0.0)

    @property
    def said(self) -> str:
        """What they have printed."""
        return self._printed.read_text(errors="replace")

    def kill(self) -> list[int | None]:
        """Kill all processes that still run, and return the exit codes."""
        for pid in self.pids:
            if pid not in self._codes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        return self.codes()


@pytest.fixture
def start(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """Start `mms` with some arguments in an empty folder, after some code; killed at the end of the test.

    It runs once per environment, all at the same time.
    """
    begun: list[Started] = []

    def run(*arguments: object, environments: Sequence[dict[str, str]] = ({},), before: str = "") -> Started:
        printed = tmp_path_factory.mktemp("started") / "printed.txt"
        begun.append(Started(forks, arguments, printed, environments, before))
        return begun[-1]

    yield run
    for started in begun:
        started.kill()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of twenty pictures in two classes."""
    for number in range(20):
        file = tmp_path / "pictures" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * number, 0, 255)).save(file)
    return tmp_path / "pictures"


class Inception(torch.nn.Module):
    """The calling convention of the file that is shared; what it gives shows what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tensor([5.0, 0.0, 0.0]))

    def forward(
        self,
        img: torch.Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> torch.Tensor:
        assert img.dtype == torch.uint8 and img.shape[1] == 3
        means = img.float().mean((2, 3))
        if return_features:
            return means
        logits = means / 100
        return logits.softmax(1) if no_output_bias else (logits + self.bias).softmax(1)


@pytest.fixture(scope="session")
def scripted() -> Callable[[torch.nn.Module, Path], Path]:
    """Write a module as TorchScript."""

    def save(module: torch.nn.Module, path: Path) -> Path:
        with warnings.catch_warnings():
            # as `extractor`: the shared network is TorchScript
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
            torch.jit.script(module).save(path)
        return path

    return save


@pytest.fixture(scope="session")
def inception(
    scripted: Callable[[torch.nn.Module, Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A file for `--extractor inception:PATH`: features are the means of the colours, in bytes."""
    return scripted(Inception(), tmp_path_factory.mktemp("extractor") / "inception.pt")


@pytest.fixture(scope="session")
def tiny_sweep() -> Sweep:
    """32 cells in a second or two: two depths; plain merges collapse, MV-Split does not."""
    return Sweep(
        name="collapse_front",
        claim="tiny",
        base=Setting(width=32, heads=2, alpha=0.1, beta=1.0),
        axes={
            "depth": (6, 24),
            "tokens": (4, 9),
            "weight_std": (0.2,),
            "input_cosine": (0.3,),
            "merge": ("plain", "mv_split"),
        },
        seeds=4,
        laws=("P1",),
    )


@pytest.fixture(scope="session")
def tiny_token_law(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `token_law` of twelve cells, in a folder that serves `mms figures --data`."""
    path = tmp_path_factory.mktemp("backward") / "token_law.zarr"
    base = dataclasses.replace(TOKEN_LAW.base, width=32, heads=2, weight_std=0.15, depth=26)
    axes = {"tokens": (4, 9), "adjoint_cosine": (0.0, 0.5)}
    run_sweep(dataclasses.replace(TOKEN_LAW, base=base, axes=axes, seeds=3), path)
    return path


@pytest.fixture(scope="session")
def tiny_mixers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `mixers` sweep of five small cases: a front, none, and where the theory is silent."""
    path = tmp_path_factory.mktemp("mixers") / "mixers.zarr"
    base = dataclasses.replace(MIXERS_AND_MERGES.base, width=32, heads=2, weight_std=0.2, tokens=8)
    cases = (
        {"mixer": "softmax", "depth": 30},
        {"mixer": "lazy", "mixer_share": 0.25, "depth": 8},
        {"mixer": "gated", "depth": 8, "input_cosine": 0.5},
        {"merge": "highway", "residual_gain": 2.0, "depth": 20, "ffn_ratio": 0.5},
        {"merge": "hard_centering", "depth": 8},
    )
    run_sweep(dataclasses.replace(MIXERS_AND_MERGES, base=base, cases=cases, seeds=4), path)
    return path


@pytest.fixture(scope="session")
def tiny_structured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished `structured_fronts` and `structured_gradients` of one small setting."""
    folder = tmp_path_factory.mktemp("structured")
    cases = tuple({"input": name, "frames": 4 if name == "video" else 1, "depth": 12} for name in INPUTS)
    for sweep in (STRUCTURED_FRONTS, STRUCTURED_GRADIENTS):
        base = dataclasses.replace(sweep.base, width=16, heads=1, weight_std=0.3, tokens=4, depth=12)
        small = dataclasses.replace(sweep, base=base, cases=cases, seeds=3, ensemble=1)
        run_sweep(small, folder / f"{sweep.name}.zarr")
    return folder


@pytest.fixture(scope="session")
def tiny_store(tiny_sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished store of `tiny_sweep`, in a folder that serves `mms figures --data`."""
    path = tmp_path_factory.mktemp("data") / "collapse_front.zarr"
    run_sweep(tiny_sweep, path)
    return path


ENDS = 10
"""Steps from the onset of a crafted run to its last one."""


@pytest.fixture(scope="session")
def crafted_study() -> Callable[[Study, Path, Mapping[str, Sequence[int | None]]], Path]:
    """A store of a study whose runs were not made: of every case, the onset steps of its seeds.

    None is a run without an onset, a negative step a plain divergence there; other cases are to do. Losses
    are the case's position less a hundredth of the seed, Delta is ten times the rate at every second step.
    """

    def craft(study: Study, path: Path, onsets: Mapping[str, Sequence[int | None]]) -> Path:
        lay_out(study, path)
        writer = SweepWriter(path)
        for place, cell in enumerate(study.cells):
            case, seed = divmod(place, study.seeds)
            onset = onsets.get(study.cases[case].label)
            if onset is not None:
                writer.write(place, _crafted(cell, case - cell.seed / 100, onset[seed]), DONE)
        return path

    return craft


def _crafted(cell: StudyCell, loss: float, onset: int | None) -> dict[str, Any]:
    count = cell.run.training.steps
    last = count if onset is None else min(abs(onset) + ENDS, count)
    steps = np.arange(1, last + 1)
    schedule = cell.run.training.learning_rate(cell.run.model.depth)
    rates = np.array([schedule.rate(int(step)) for step in steps])
    collapsed = onset is not None and onset > 0
    kind = "none" if onset is None else "mean_mode" if collapsed else "plain_divergence"
    return {
        "onset_step": np.array(np.nan if onset is None else abs(onset)),
        "onset_kind": np.array(KINDS.index(kind)),
        "critical_rate": np.array(rates[abs(onset) - 1] if collapsed else np.nan),
        "last_step": np.array(last),
        "last_rate": np.array(rates[-1] if onset is None else np.nan),
        "loss": np.full(last, loss),
        "functional_step": np.where(steps % 2, np.nan, 10 * rates),
    }
