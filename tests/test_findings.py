"""The table of findings is what the code raises: every name in it is used, and no other."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import probdl
from probdl.findings import CHECKS, SEVERITIES, Finding, Findings, pareto_k_max

PACKAGE = Path(probdl.__file__).parent


def constants(node):
    """List the strings that an expression may be."""
    if isinstance(node, ast.IfExp):
        return [*constants(node.body), *constants(node.orelse)]
    return [node.value] if isinstance(node, ast.Constant) else []


def raised():
    """Make pairs of severity and name of all findings that the code makes."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                severities, names = map(constants, node.args[:2])
                assert severities, f"{path}:{node.lineno}: the severity is not a constant"
                assert names, f"{path}:{node.lineno}: the name is not a constant"
                found |= {(severity, name) for severity in severities for name in names}
    return found


def test_every_check_is_raised_with_each_of_its_severities():
    table = {(severity, name) for name, check in CHECKS.items() for severity in check.severities}
    assert raised() == table


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_says_what_it_means(name):
    check = CHECKS[name]
    assert check.meaning.endswith(".")
    assert set(check.severities) <= set(SEVERITIES)


def test_a_name_that_is_not_in_the_table_cannot_be_raised():
    with pytest.raises(ValueError, match="no check is named 'rhats'"):
        Finding("warning", "rhats", "The chains disagree.")
    with pytest.raises(ValueError, match="no severity 'info'"):
        Finding("info", "rhat", "The chains disagree.")


def test_the_limit_of_k_hat_depends_on_the_number_of_draws():
    """1 - 1/log10(S) up to S = 10^(10/3), which is 2154."""
    assert pareto_k_max(100) == pytest.approx(0.5)
    assert pareto_k_max(1000) == pytest.approx(2 / 3)
    assert pareto_k_max(2154) < 0.7 == pareto_k_max(2155) == pareto_k_max(10**6)


def test_findings_of_a_later_release_can_be_read():
    later = {"severity": "info", "check": "new", "message": "Seen.", "remedy": "", "sites": ["a"]}
    (found,) = Findings([Finding.saved(later)])
    assert str(found) == "info (new): Seen."
    assert found.sites == ("a",)


def test_the_page_of_the_documentation_is_made_from_the_table():
    path = PACKAGE.parent / "docs" / "findings.py"
    spec = importlib.util.spec_from_file_location("docs_findings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run `python docs/findings.py`"


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_is_tested(name):
    own = Path(__file__)
    files = [path for path in own.parent.rglob("*.py") if path != own]
    texts = [path.read_text(encoding="utf-8") for path in files]
    quoted = re.compile(rf'"{name}"|\\?\({name}\\?\)')
    assert any(quoted.search(text) for text in texts)


def test_each_threshold_is_used_where_the_check_is_made():
    tree = ast.parse((PACKAGE / "findings.py").read_text(encoding="utf-8"))
    thresholds = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if not target.id.startswith("_")
    }
    others = [path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "findings.py"]
    unused = {name for name in thresholds if not any(name in text for text in others)}
    assert len(thresholds) > 15
    assert not unused
