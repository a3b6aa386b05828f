"""The table of methods: names, and what happens if a name is used twice."""

from dataclasses import dataclass

import pytest

import probdl
from probdl.methods import METHODS, base, resolve


@pytest.fixture
def methods(monkeypatch):
    """Replace the table of methods by a copy."""
    copy = dict(METHODS)
    monkeypatch.setattr(base, "METHODS", copy)
    return copy


def define(name, *, qualname="Mine", draws=10):
    """Define a method in this module, as a notebook cell does."""
    namespace = {"__module__": __name__, "__qualname__": qualname}
    namespace |= {"__annotations__": {"draws": int}, "draws": draws, "run": lambda self: None}
    return dataclass(frozen=True, repr=False)(
        type(probdl.Method)("Mine", (probdl.Method,), namespace, name=name)
    )


def test_a_name_of_a_built_in_method_cannot_be_used_again(methods):
    with pytest.raises(
        probdl.SettingError,
        match=r"The method name 'nuts' is already taken by probdl\.methods\.mcmc\.nuts\.NUTS\. "
        r"Choose another name for Mine: class Mine\(\.\.\., name=\.\.\.\)\.",
    ):
        define("nuts")
    assert methods == METHODS
    assert resolve("nuts") == probdl.NUTS()


def test_a_module_can_be_reloaded(methods):
    class Again(probdl.NUTS):
        pass

    assert Again.name == "nuts"  # a subclass that gives no name= is not registered
    assert methods["nuts"] is probdl.NUTS
    namespace = {"__module__": probdl.NUTS.__module__, "__qualname__": probdl.NUTS.__qualname__}
    again = type(probdl.Method)("NUTS", (probdl.Method,), namespace, name="nuts")
    assert methods["nuts"] is again


def test_a_user_can_define_a_method_again(methods):
    define("mine")
    again = define("mine", draws=20)
    assert methods["mine"] is not METHODS.get("mine")
    assert resolve("mine") == again()
    assert resolve("mine").draws == 20


def test_two_classes_of_a_user_cannot_share_a_name(methods):
    first = define("mine")
    with pytest.raises(probdl.SettingError, match=rf"'mine' is already taken by {__name__}\.Mine"):
        define("mine", qualname="Other.Mine")
    assert methods["mine"].__qualname__ == first.__qualname__ == "Mine"


def test_the_abstract_base_class_is_not_a_method():
    with pytest.raises(probdl.SettingError, match="Method is an abstract base class; use a"):
        probdl.Method()
