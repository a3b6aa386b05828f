"""The Python code of the README and of docs/ runs, block after block on each page."""

import ast
import re
import textwrap
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pytest
import torch

import probdl
from probdl.io.idata import ARVIZ_1

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)```python(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)
OTHERS = ("PyMC", "Stan")  # titles of blocks for libraries that are not installed here
SMALLER = {
    "docs/tour.md": [
        ("torch.rand(1000, 28, 28)", "torch.rand(228, 28, 28)"),
        ("fit.log_evidence(x)", "fit.log_evidence(x, num_samples=50)"),
        ("sizes=[10, 100, 1000])", "sizes=[10, 100], replicates=20, workers=1)"),
        ("(np.zeros(10),))", "(np.zeros(10),), simulations=40, workers=1)"),
    ],
    "docs/coming-from.md": [
        ("num_samples=1000, warmup_steps=1000", "num_samples=20, warmup_steps=20")
    ],
}


class Block(NamedTuple):
    line: int
    title: str
    code: str


def blocks(page):
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]*)"', match["info"])
        line = text[: match.start("code")].count("\n")
        yield Block(line, title[1] if title else "", textwrap.dedent(match["code"]))


def name(page):
    return page.relative_to(ROOT).as_posix()


OURS = [p for p in PAGES if any(b.title not in OTHERS for b in blocks(p))]
THEIRS = [
    pytest.param(b, id=f"{name(p)}:{b.line}") for p in PAGES for b in blocks(p) if b.title in OTHERS
]


@pytest.mark.parametrize("page", OURS, ids=name)
def test_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    smaller = list(SMALLER.get(name(page), ()))
    namespace = {"__name__": "docs"}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", probdl.FindingWarning)
        for block in blocks(page):
            if block.title in OTHERS:
                continue
            code = block.code
            for large, small in [s for s in smaller if s[0] in code]:
                code = code.replace(large, small)
                smaller.remove((large, small))
            if block.title == "ArviZ 1" and not ARVIZ_1:
                continue
            # Leading blank lines, so that tracebacks show line numbers of the page.
            exec(compile("\n" * block.line + code, str(page), "exec"), namespace)
    plt.close("all")
    assert not smaller, "the page no longer contains text that SMALLER replaces"


@pytest.mark.parametrize("block", THEIRS)
def test_code_for_another_library_is_python(block):
    ast.parse(block.code)
    pytest.skip(f"{block.title} is not installed here: the block was parsed, not run")
