"""The floors of the package: a file imports only from its own package and from floors below."""

import ast
from pathlib import Path

import pytest

import probdl

PACKAGE = Path(probdl.__file__).parent

# From the ground up. Packages that share a floor may import one another, in one direction.
FLOORS = (
    ("errors", "findings", "util"),
    ("model", "nn", "distributions"),
    ("compile", "io", "models"),
    ("results",),
    ("methods",),
    ("inference", "prior", "loading", "health", "montecarlo"),
    ("plots",),
    ("command", "__main__"),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def imported(path):
    """List the modules of the package that a file imports, with the names taken from each."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("probdl"):
            base = node.module.removeprefix("probdl").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield (full, "") if full in MODULES else (base, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "probdl":
                    yield alias.name.removeprefix("probdl").lstrip("."), ""


def package_of(module):
    return module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path):
    own = package_of(module_of(path))
    if own == "__init__":
        return
    for module, name in imported(path):
        other = package_of(module)
        if module == "":  # the public names
            assert FLOOR[own] >= FLOOR["command"] or name == "__version__", name
        elif other != own:
            assert FLOOR[other] <= FLOOR[own], f"{module_of(path)} imports {module}"
            assert not name.startswith("_"), f"{module_of(path)} imports {module}.{name}"


def circles(edges):
    """List the nodes that lie on a circle of edges."""
    left = set(edges)
    while True:
        free = {node for node in left if not (edges[node] & left) - {node}}
        if not free:
            return left
        left -= free


def test_there_are_no_circles():
    by_file = {module_of(path): {module for module, _ in imported(path)} for path in FILES}
    assert not circles(by_file)
    by_package = {}
    for module, targets in by_file.items():
        others = {".".join(target.split(".")[:2]) for target in targets} & set(MODULES)
        by_package.setdefault(package_of(module), set()).update(package_of(t) for t in others)
    assert not circles(by_package)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_stand_at_the_top(path):
    """An import inside a function may hide a circle; the border of the command may delay torch."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("probdl"):
                    assert module_of(path).startswith("command."), f"line {node.lineno}"
