"""What belongs to a method, an operation or a page is there: the lists of docs/developer/.

Each assertion names the page that tells what to add.
"""

import re
from pathlib import Path

import pytest
import yaml

import probdl
from probdl import methods
from probdl.command.catalogue import catalogue
from probdl.methods import METHODS

ROOT = Path(__file__).parents[1]
GUIDE = "see docs/developer/adding-a-method.md"
OURS = {name: kind for name, kind in METHODS.items() if kind.__module__.startswith("probdl.")}
TABLES = ("tests/test_save.py", "tests/test_threads.py", "tests/test_time.py")


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def page_of(kind):
    """Return the page of a method: the one that ends with the link to its reference."""
    pages = [
        path.relative_to(ROOT / "docs").as_posix()
        for path in (ROOT / "docs" / "methods").glob("*.md")
        if f"reference/methods.md#probdl.{kind.__name__})" in path.read_text(encoding="utf-8")
    ]
    assert len(pages) == 1, f"{kind.__name__} needs one page in docs/methods/; {GUIDE}"
    return pages[0]


def navigation(nav):
    """List the files of mkdocs' navigation."""
    for entry in nav:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [target] if isinstance(target, str) else navigation(target)


NAVIGATION = [*navigation(yaml.safe_load(read("mkdocs.yml"))["nav"])]


def test_each_method_is_imported():
    missing = catalogue().keys() - OURS.keys()
    assert not missing, f"import it in probdl/methods/__init__.py; {GUIDE}"
    assert {kind.__name__ for kind in OURS.values()} <= {*methods.__all__}, GUIDE


@pytest.mark.parametrize("name", OURS)
def test_a_method_has_all_that_a_method_needs(name):
    kind = OURS[name]
    public = f"probdl.{kind.__name__}"
    assert getattr(probdl, kind.__name__, None) is kind, f"{public} is not public; {GUIDE}"
    assert kind.__name__ in probdl.__all__
    page = page_of(kind)
    assert page in NAVIGATION, f"{page} is not in the navigation of mkdocs.yml; {GUIDE}"
    for path, what in {
        "docs/methods/index.md": f"]({Path(page).name})",
        "docs/reference/methods.md": f"::: {public}\n",
        "docs/tour.md": f"`{public}(",
        **dict.fromkeys(TABLES, f"{public}("),
    }.items():
        assert what in read(path), f"{path} lacks {what!r}; {GUIDE}"
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests/methods").glob("*.py")]
    own = re.compile(rf"{re.escape(public)}\(|\"{name}\"")
    assert any(own.search(text) for text in tests), f"tests/methods/ has no {public}; {GUIDE}"


def test_every_page_is_in_the_navigation():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert pages <= set(NAVIGATION), "add the page to the navigation of mkdocs.yml"
