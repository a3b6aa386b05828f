"""An extension of griffe: makes Markdown of the RST that the docstrings hold.

They are read at the prompt as well, so formulas, roles and examples are written as Sphinx and
doctest have them.
"""

from __future__ import annotations

import inspect
import operator
import re
import textwrap
from typing import Any

import griffe

import probdl

FORMULA = re.compile(r"^( *)\.\. math:: ?(.*(?:\n+\1 +\S.*)*)", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod|attr):`~?([^`]+)`")
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 +\S.*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites each docstring before griffe looks for its sections."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    r"""Turn RST into Markdown.

    >>> print(markdown(".. math:: x\n    + y\n\nSee :func:`infer`, :math:`z`:"))
    $$
    x
    + y
    $$
    <BLANKLINE>
    See [`infer`][probdl.infer.infer], $z$:
    """
    text = EXAMPLE.sub(_example, text)
    text = FORMULA.sub(_formula, text)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = ROLE.sub(_role, text)
    return re.sub(r"(?<=\w)::$", ":", text, flags=re.MULTILINE)  # a literal block is indented too


def _formula(match: re.Match[str]) -> str:
    body = textwrap.dedent(" " * 80 + match[2]).strip()
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    return textwrap.indent("\n".join(["$$", *lines, "$$"]), match[1])


def _role(match: re.Match[str]) -> str:
    """Link to what is public, under the name of the module that defines it."""
    name = match[1]
    try:
        found = operator.attrgetter(name.removeprefix("probdl."))(probdl)
    except AttributeError:
        return f"`{name}`"
    if not (inspect.isfunction(found) or inspect.isclass(found)):  # a module of the same name
        return f"`{name}`"
    return f"[`{name}`][{found.__module__}.{found.__qualname__}]"


def _example(match: re.Match[str]) -> str:
    """Fence an example, and leave out what it tells doctest."""
    lines = re.sub(r" *# doctest:.*", "", match[0]).splitlines()
    return "\n".join([f"{match[1]}```pycon", *lines, f"{match[1]}```"])
