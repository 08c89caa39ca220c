"""The page of benchmarks is the one that the committed records give."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table", ROOT / "tests" / "bench" / "table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(table: ModuleType) -> None:
    records = json.loads(table.RECORDS.read_text())
    assert table.PAGE.read_text() == table.page(records)
    assert "-dirty" not in str([of["commit"] for of in records])


def test_a_range_is_over_the_last_records_that_hold_the_ratio(table: ModuleType) -> None:
    def run(minute: int, **ratios: float) -> dict[str, object]:
        when = f"2026-01-01T00:0{minute}+00:00"
        return {"date": when, "commit": "0" * 40, "processor": f"core {minute}", "ratios": {"a.py": ratios}}

    text = table.page([run(1, x=9.0), run(2, x=1.0), run(3, x=3.0, y=5.0), run(4, x=2.0, y=5.0)])
    assert "| x | 1.00 to 3.00 | 3 |" in text and "| y | 5.00 | 2 |" in text
    assert "core 4" in text and "core 1" not in text
    assert "| x | 9.00 | 1 |" in table.page([run(1, x=9.0)])


def test_ratios_are_read_from_documents_and_from_lines(table: ModuleType) -> None:
    document = json.dumps({"cpu": "x86", "a": {"b": 1.25}, "c": 2.0}, indent=1)
    assert table.ratios_of(document) == {"a: b": 1.25, "c": 2.0}
    assert table.ratios_of('6 layers\n{"a": 1.5}\n{"b": 2.5}\n') == {"a": 1.5, "b": 2.5}


def test_every_script_is_there(table: ModuleType) -> None:
    assert all((table.HERE / script).is_file() for script, *_ in table.SCRIPTS)
