"""Each public name has a docstring with an example, and types."""

import dataclasses
import inspect
import re
from types import FunctionType, ModuleType

import pytest

import probdl
import probdl.plots
from probdl.methods import METHODS
from probdl.models import markov

MODULES = (probdl, probdl.montecarlo, probdl.nn, probdl.models, markov, probdl.plots)
# Errors, and what functions return, are shown by the examples of what raises and returns them.
RETURNED = (
    "AdversarialFit",
    "Calibration",
    "DataError",
    "Divergence",
    "Expectation",
    "FindingWarning",
    "Findings",
    "Fit",
    "GuidedFit",
    "LogPredictive",
    "Method",
    "ModelError",
    "SettingError",
    "TimeLimitError",
    "TwoSample",
)


def public():
    """Make pairs of the name and the thing of all that is public and can be called."""
    found = {}
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if not isinstance(thing, ModuleType):
                found[f"{module.__name__}.{name}"] = thing
    for cls in (probdl.Fit, probdl.GuidedFit, probdl.AdversarialFit, probdl.LogDensity):
        for name, thing in vars(cls).items():
            if not name.startswith("_") and isinstance(
                thing, (FunctionType, classmethod, staticmethod)
            ):
                found[f"probdl.{cls.__name__}.{name}"] = getattr(cls, name)
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_it_has_a_docstring(name):
    assert inspect.getdoc(PUBLIC[name])


def needs_example(name):
    return name.split(".")[-1] not in RETURNED and not name.startswith("probdl.LogDensity.")


@pytest.mark.parametrize("name", filter(needs_example, PUBLIC))
def test_it_has_an_example(name):
    assert ">>> " in inspect.getdoc(PUBLIC[name])


@pytest.mark.parametrize("name", PUBLIC)
def test_it_is_typed(name):
    thing = PUBLIC[name]
    if inspect.isclass(thing) and issubclass(thing, (Exception, tuple)):
        return  # their constructors are those of the built-in types
    function = thing.__init__ if inspect.isclass(thing) else thing
    parameters = list(inspect.signature(function).parameters.values())
    untyped = [
        p.name for p in parameters if p.annotation is p.empty and p.name not in ("self", "cls")
    ]
    assert not untyped
    if not inspect.isclass(thing):
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_settings_of_a_method_are_visible_with_their_defaults(name):
    kind = METHODS[name]
    settings = {f.name: f.default for f in dataclasses.fields(kind)}
    shown = inspect.signature(kind).parameters
    for setting, default in settings.items():
        if default is not dataclasses.MISSING:
            assert shown[setting].default == default
    described = re.split(r"\n {4}(?=\w+: )", inspect.getdoc(kind).partition("Args:")[2])
    entries = {entry.strip().partition(":")[0]: entry for entry in described}
    for setting, default in settings.items():
        if default is not dataclasses.MISSING and setting != "discriminator":
            assert "efault" in entries[setting], f"{name}: {setting} without its default"
