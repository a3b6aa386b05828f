"""What mkdocs does beside: takes the README as the first page, and writes formulas as MathML.

``PAGES`` lie outside of docs/, where they are read on their own too; they and the images that
they show enter the site under their own paths, so that the links between them stay as they are.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md"}  # by their place in the site
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
FORMULA = re.compile(
    r'<(div|span) class="arithmatex">\s*\\[\[(](?P<tex>.*?)\\[\])]\s*</\1>', re.DOTALL
)
NAME = re.compile(r"(<mi>[a-z]{2,}</mi>)(?=<mi>|<mn>|<msub>)")


def on_files(files: Any, config: Any) -> Any:
    """Add the README, and all pages and images that it links to."""
    wanted = dict(PAGES)
    while wanted:
        place, source = wanted.popitem()
        path = ROOT / source
        if path.suffix != ".md":
            files.append(File.generated(config, place, abs_src_path=str(path)))
            continue
        text = path.read_text(encoding="utf-8")
        content = LINK.sub(_reachable(source), text).replace("](docs/", "](")
        files.append(File.generated(config, place, content=content))
        for _, _, target in LINK.findall(text):
            found = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if found.startswith("docs/"):  # is a page of the site already
                continue
            if (ROOT / found).is_file() and files.get_file_from_path(found) is None:
                wanted[found] = found
    return files


def _reachable(source: str) -> Any:
    """Make mere text of links to what is no page and no image, such as a folder."""

    def replace(match: re.Match[str]) -> str:
        target = ROOT / posixpath.dirname(source) / match[3]
        return match[0] if match[1] or target.is_file() else match[2]

    return replace


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML: browsers show it without a script or a font from elsewhere."""
    return FORMULA.sub(_formula, content)


def _formula(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    formula = convert(html.unescape(match["tex"]).strip(), display=display)
    # "log p", not "logp": a name of several letters keeps apart from the letter that follows.
    return NAME.sub(r'\1<mspace width="0.2em"/>', formula)
