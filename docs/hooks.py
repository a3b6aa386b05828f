"""Extend mkdocs: pages from outside docs/, notebooks as pages, and formulas as MathML.

The README, the results of the benchmarks and the notebooks are read where they are as well, so they
stay there; ``PAGES`` says where each goes in the site. Links between files of the repository are
rewritten to links between pages.
"""

from __future__ import annotations

import base64
import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
FORMULA = re.compile(
    r'<(div|span) class="arithmatex">\s*\\[\[(](?P<tex>.*?)\\[\])]\s*</\1>', re.DOTALL
)
NAME = re.compile(r"(<mi>[a-z]{2,}</mi>)(?=<mi>|<mn>|<msub>)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
STYLE = re.compile(r"<style.*?</style>|<script.*?</script>", re.DOTALL)


def pages() -> dict[str, str]:
    """Map files of the repository that become pages or images to their place in the site."""
    found = {
        "README.md": "index.md",
        "CONTRIBUTING.md": "developer/contributing.md",
        "CHANGELOG.md": "changelog.md",
    }
    for pattern in ("benchmarks/results/*.md", "benchmarks/results/*.png", "examples/*.png"):
        found |= {path: path for path in _files(pattern)}
    found |= {path: path.replace(".ipynb", ".md") for path in _files("notebooks/*.ipynb")}
    return found


def _files(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


PAGES = pages()
SOURCES = {place: source for source, place in PAGES.items()}  # by place in the site


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and images from outside docs/."""
    notebooks = {}
    for source, place in PAGES.items():
        path = ROOT / source
        if path.suffix == ".png":
            files.append(File.generated(config, place, abs_src_path=str(path)))
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text, images = notebook(json.loads(text), Path(place).stem)
            notebooks[place] = (text, next(iter(images), None))
            for name, content in images.items():
                files.append(File.generated(config, f"notebooks/{name}", content=content))
        files.append(File.generated(config, place, content=text))
    front = files.get_file_from_path("index.md")
    files.remove(front)
    content = f"{front.content_string}\n{gallery(notebooks)}"
    files.append(File.generated(config, "index.md", content=content))
    return files


def notebook(cells: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Write a notebook as Markdown; return it with its images by file name."""
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in cells["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                parts.append(_output(output, name, images))
    return "\n\n".join(filter(None, parts)) + "\n", images


def _output(output: dict[str, Any], name: str, images: dict[str, bytes]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        file = f"{name}_{len(images) + 1}.png"
        images[file] = base64.b64decode("".join(data["image/png"]))
        return f"![Output of the code above]({file})"
    if "text/html" in data:
        shown = STYLE.sub("", "".join(data["text/html"]))
        return f'<div class="output">{" ".join(shown.split())}</div>'
    text = "".join(data.get("text/plain", output.get("text", output.get("traceback", ""))))
    text = COLOURS.sub("", text).rstrip()
    return f"```text\n{text}\n```" if text else ""


def gallery(notebooks: dict[str, tuple[str, str | None]]) -> str:
    """Write the gallery of the front page: the first plot of each notebook, with its title."""
    shown = []
    for place, (text, image) in notebooks.items():
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        label = title[1] if title else Path(place).stem
        picture = f'<img src="notebooks/{image}" alt="{label}"><br>' if image else ""
        shown.append(f'<li><a href="{place.replace(".md", ".html")}">{picture}{label}</a></li>')
    return f'## Gallery\n\n<ul class="gallery">{"".join(shown)}</ul>\n'


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links between files of the repository to links between pages."""
    place = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(place, f"docs/{place}"))

    def replace(match: re.Match[str]) -> str:
        mark, text, link, anchor = match[1], match[2], match[3], match[4] or ""
        target = posixpath.normpath(posixpath.join(folder, link))
        if place.startswith("notebooks/") and mark:
            return match[0]
        if target.startswith("docs/"):
            found = target.removeprefix("docs/")
        elif target in PAGES:
            found = PAGES[target]
        else:  # a folder, or a file that is no page
            return text
        relative = posixpath.relpath(found, posixpath.dirname(place) or ".")
        return f"{mark}[{text}]({relative}{anchor})"

    return LINK.sub(replace, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script or a font."""
    return FORMULA.sub(_formula, content)


def _formula(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    formula = convert(html.unescape(match["tex"]).strip(), display=display)
    # "log p" instead of "logp": keep a name of several letters apart from the letter after it.
    return NAME.sub(r'\1<mspace width="0.2em"/>', formula)
