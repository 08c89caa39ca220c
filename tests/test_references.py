"""What the project says of itself is there: every module, name and file that docstrings and pages name."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("theory", "sim", "dit", "sweeps", "paper_figs")
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
).stdout.splitlines()
TEXTS = [name for name in LISTED if name.endswith((".py", ".md", ".toml")) and (ROOT / name).is_file()]

NAME = re.compile(r"\bmeanmode(?:\.(?!__)[A-Za-z_]\w*)+")
BARE = re.compile(rf"`(?:{'|'.join(ROOMS)})\.(?!py`)[a-z]\w*(?:\.\w+)*`")
IN_ROOMS = rf"(?:{'|'.join((*ROOMS, 'tests', 'docs'))})/[\w/.-]+\.(?:py|md|zarr|json|png)"
FILE = re.compile(rf"(?<![\w/.-])(?:{IN_ROOMS}|[A-Z]\w+\.md)\b")
INVENTED = ("meanmode.predict_onset",)
"""Names that tests speak of because they are not there."""

NAMES_MODULES = "tests/test_references.py"


def known(name: str) -> bool:
    """Whether a dotted name is a module, or a name that stands in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[1:count]) if count > 1 else ROOT / "meanmode"
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if module.is_file():
            rest = parts[count:]
            return not rest or re.search(rf"\b{rest[0]}\b", module.read_text()) is not None
    return False


@pytest.mark.skipif(not TEXTS, reason="git lists no files: this is no checkout")
@pytest.mark.parametrize("text", [name for name in TEXTS if name != NAMES_MODULES])
def test_what_is_named_is_there(text: str) -> None:
    content = (ROOT / text).read_text()
    unknown = {name for name in NAME.findall(content) if name not in INVENTED and not known(name)}
    assert not unknown, "no such module or name"
    assert text == "CHANGELOG.md" or not BARE.findall(content), "modules are named as they are imported"
    if not text.startswith("tests/"):
        missing = {
            file
            for file in FILE.findall(content)
            if not (ROOT / file).exists() and not (ROOT / text).parent.joinpath(file).exists()
        }
        assert not missing, "no such file"
