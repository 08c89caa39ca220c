"""Hook of mkdocs: the site shows the pictures that lie in paper_figs, without a copy in docs."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PICTURES = Path(__file__).parents[1] / "paper_figs"


def on_files(files: Files, config: Any) -> Files:
    """Add every picture to the site, under the name of its folder."""
    for path in sorted(PICTURES.glob("*.png")):
        files.append(File.generated(config, f"{PICTURES.name}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links to pictures, which are relative to the repository, into the site."""
    return re.sub(r"\]\(\.\./((?:\.\./)*paper_figs/\w+\.png\))", r"](\1", markdown)
