"""The pages say what is there: Python and commands run, paths and links exist, the site builds."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from meanmode.sweeps.cli import main as cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted(DOCS.glob("**/*.md")),
]
ROOMS = ("theory", "sim", "dit", "sweeps", "paper_figs", "tests", "docs", "meanmode")


def code(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def lines(page: Path) -> list[str]:
    """The shell commands of a page, without comments and with continued lines joined."""
    text = re.sub(r"\s#.*|^#.*", "", "".join(code(page, "sh")), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


COMMANDS = lines(DOCS / "command_line.md")
TRAINING = [
    line
    for page in ("training.md", "results/training_ramps.md")
    for whole in lines(DOCS / page)
    for line in whole.split(" ; ")
    if "train" in line
]


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one command of `mms` in this process; it must succeed."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code, command


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those for which a log and a model of the user's own are written here."""
    (tmp_path / "paper_figs").symlink_to(ROOT / "paper_figs")
    monkeypatch.chdir(tmp_path)
    log = [{"step": step, "loss": 2.0 - step / 100, "tcs/4": 0.01 * step} for step in range(1, 61)]
    (tmp_path / "my_model.py").write_text(code(DOCS / "your_model.md", "python")[0])
    (tmp_path / "training.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    assert len(COMMANDS) == 28
    for command in COMMANDS:
        run(command, monkeypatch)
    assert (tmp_path / "small.zarr").exists() and (tmp_path / "figures" / "token_law.png").exists()


@pytest.mark.parametrize("line", TRAINING)
def test_the_examples_of_training_are_what_can_be_trained(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    run(shlex.join(["mms", *words[words.index("train") :], "--dry-run"]), monkeypatch)
    assert json.loads(capsys.readouterr().out)["memory_bytes"]["total"] > 0


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("stores.md", "('cell', 'block')"),
        ("stores.md", "('step',)"),
        ("your_own.md", "tensor("),
        ("your_model.md", "layers.11.linear2.weight"),
        ("your_merge.md", "layers.0.merge_attn.alpha"),
        ("theory.md", "front at block"),
        ("watch/plain_loop.md", "'tcs': "),
        ("watch/accelerate.md", "'tcs': "),
    ],
)
def test_the_python_runs(
    page: str,
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a page writes goes to a temporary folder."""
    monkeypatch.chdir(ROOT)
    text = "\n".join(code(DOCS / page, "python")).replace('out="runs/', f'out="{tmp_path}/')
    exec(compile(text, page, "exec"), {})
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize("page", [page for page in PAGES if code(page, "python")], ids=lambda page: page.name)
def test_what_the_python_imports_is_there(page: Path) -> None:
    """Also of examples that need runs which are not committed."""
    for text in code(page, "python"):
        imports = re.findall(r"^(?:from|import) .*$", text, re.MULTILINE)
        names: dict[str, object] = {}
        exec("\n".join(imports), names)
        assert not imports or len(names) > 1


def paths_in(page: Path) -> set[str]:
    """Paths of the repository in backticks."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M))
    words = [word.rstrip(".,;:") for span in spans for word in span.split()]
    names = {word for word in words if "<" not in word and not word.isupper()}
    return {
        name
        for name in names
        if (name.split("/")[0] in ROOMS and "/" in name) or name.endswith((".md", ".toml", ".yml", ".cff"))
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_and_link_leads_somewhere(page: Path) -> None:
    assert [name for name in sorted(paths_in(page)) if not list(ROOT.glob(name.rstrip("/")))] == []
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in links if link and not link.startswith("https://")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_pictures_are_shown_and_nothing_is_left_to_fill_in() -> None:
    whole = "".join(page.read_text() for page in PAGES)
    shown = set(re.findall(r"!\[[^\]]*\]\([./]*paper_figs/(\w+\.png)\)", whole))
    assert shown == {path.name for path in (ROOT / "paper_figs").glob("*.png")}
    prose = re.sub(r"```.*?```|`[^`]*`", "", whole, flags=re.DOTALL)
    assert re.findall(r"\b[A-Z]{3,}_[A-Z]{3,}\b", prose) == []


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="the extra docs is not installed")
def test_the_site_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list((tmp_path / "site").glob("**/*.html"))
    assert len(pages) > len(list(DOCS.glob("**/*.md")))
    loaded = re.compile(r"""<(?:script|img|link)\b[^>]*(?:src|href)=["'](?:https?:)?//""")
    assert [page.name for page in pages if loaded.search(page.read_text())] == []
    for name in ("collapse_front", "half_rate"):
        assert (tmp_path / "site" / "paper_figs" / f"{name}.png").is_file()
    front = (tmp_path / "site" / "results" / "front.html").read_text()
    assert "../paper_figs/collapse_front.png" in front and "<td>47.9 +- 3.6</td>" in front
    api = (tmp_path / "site" / "api.html").read_text()
    for name in ("Setting", "Probe", "open_sweep", "DiT", "writer_amplification"):
        assert re.search(rf'id="meanmode\.[\w.]*\.{name}"', api), name
    shutil.rmtree(tmp_path / "site")
