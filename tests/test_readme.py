"""The README says what the code gives: its tables are regenerated, its commands and its Python are run."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from sweeps import cli
from sweeps.compare import compare, markdown
from theory import LAWS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STORES = [
    ROOT / "paper_figs" / "data" / f"{name}.zarr" for name in ("collapse_front", "collapse_front_alpha_one")
]


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)


COMMANDS = [line.split("#")[0].strip() for line in blocks("The command line", "sh")[0].splitlines()]


def test_the_table_of_laws_is_the_registry() -> None:
    lines = ["| tag | law | statement | source |", "| --- | --- | --- | --- |"]
    for law in LAWS.values():
        statement = law.statement.replace("|", "\\|")
        lines.append(f"| {law.tag} | {law.title} | `{statement}` | {law.source} |")
    assert "\n".join(lines) in section("The laws")


def test_the_table_of_fronts_is_made_from_the_committed_stores() -> None:
    assert markdown(compare(STORES)) in section("Predicted against measured")


def test_the_committed_sweep_meets_what_the_theory_promises() -> None:
    """Mean |error| at most 4 %, each within 3 standard errors + 3 %, spread within [2/3, 3/2] in 10 of 12."""
    rows = [row for row in compare(STORES[:1])["rows"] if row["merge"] == "plain"]
    assert len(rows) == 12 and all(row["n"] == 32 for row in rows)
    assert sum(abs(row["relative_error"]) for row in rows) / 12 <= 0.04
    for row in rows:
        assert abs(row["predicted"] - row["measured"]) <= 3 * row["measured_sem"] + 0.03 * row["measured"]
    assert sum(2 / 3 <= row["spread_ratio"] <= 3 / 2 for row in rows) >= 10
    split = [row for row in compare(STORES[:1])["rows"] if row["merge"] == "mv_split"]
    assert len(split) == 12 and all(row["quantity"] == "no_front" for row in split)
    (full,) = compare(STORES[1:])["rows"]
    assert full["predicted"] is not None and full["n_collapsed"] == 32


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paper_figs").symlink_to(ROOT / "paper_figs")
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 8
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, command
    assert (tmp_path / "small.zarr").exists() and (tmp_path / "figures" / "collapse_front.png").exists()


def test_the_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = blocks("Reading a store", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert "('cell', 'block')" in capsys.readouterr().out
