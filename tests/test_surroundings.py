"""What a model may read around it, and whether it has changed."""

import dataclasses
import sys
import types
from decimal import Decimal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probdl
from probdl.io.surroundings import surroundings

CAP = 1000.0
CONFIG = {"cap": 1000.0, "deep": {"levels": [1.0, 2.0]}}
LEVELS = [1000.0]
SPACE = types.SimpleNamespace(cap=1000.0)
ARRAY = np.ones(3)
UNUSED = [1.0]


@dataclasses.dataclass
class Settings:
    cap: float = 1000.0


SETTINGS = Settings()


class Constants:
    cap = 1000.0

    @staticmethod
    def twice():
        return 2 * CAP


class Slots:
    __slots__ = ("__hidden", "cap")

    def set(self, hidden):
        self.__hidden = hidden

    def __call__(self):
        return self.__hidden


SLOTS = Slots()
SLOTS.cap = 1000.0
DTYPE, PRIOR, LINK, PRICE = torch.float32, dist.Normal, torch.exp, Decimal(1)


class Parent:
    shared = 1000.0

    def __init__(self):
        self._cap, self.inner = 1000.0, types.SimpleNamespace(cap=1000.0)

    @property
    def cap(self):
        return LEVELS[0]


class Child(Parent):
    def __call__(self):
        return self._cap, self.inner.cap, self.shared, self.cap


CHILD = Child()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self._cap = 1000.0

    def forward(self, x):
        return self.norm(self.linear(x)) * self._cap


NETWORK = Network()
OTHER = types.ModuleType("other_module")
sys.modules["other_module"] = OTHER
exec("CAP = 1000.0\ndef cap():\n    return CAP", OTHER.__dict__)
cap_of_other = OTHER.cap


def helper():
    return CONFIG["deep"]["levels"]


def with_default(levels=LEVELS):
    return levels


def wrapped():
    return CAP


def closure():
    own = {"cap": 1000.0}
    return lambda: own["cap"], own


OF_CLOSURE, CELL = closure()

CASES = {
    "global number": (lambda: CAP, lambda x: globals().update(CAP=x)),
    "dictionary": (lambda: CONFIG["cap"], lambda x: CONFIG.update(cap=x)),
    "list": (lambda: LEVELS[0], lambda x: LEVELS.__setitem__(0, x)),
    "list by a default": (with_default, lambda x: LEVELS.__setitem__(0, x)),
    "namespace": (lambda: SPACE.cap, lambda x: setattr(SPACE, "cap", x)),
    "data class": (lambda: SETTINGS.cap, lambda x: setattr(SETTINGS, "cap", x)),
    "attribute of a class": (lambda: Constants.cap, lambda x: setattr(Constants, "cap", x)),
    "method of a class": (lambda: Constants.twice(), lambda x: globals().update(CAP=x)),
    "slots": (lambda: SLOTS.cap, lambda x: setattr(SLOTS, "cap", x)),
    "hidden slot": (SLOTS, lambda x: SLOTS.set(x)),
    "dtype": (
        lambda: DTYPE,
        lambda x: globals().update(DTYPE=torch.float32 if x == 3 else torch.float64),
    ),
    "class of a library": (
        lambda: PRIOR(0.0, 1.0),
        lambda x: globals().update(PRIOR=dist.Normal if x == 3 else dist.Laplace),
    ),
    "function of a library": (
        lambda: LINK(torch.ones(())),
        lambda x: globals().update(LINK=torch.exp if x == 3 else torch.nn.functional.softplus),
    ),
    "object without attributes": (lambda: PRICE, lambda x: globals().update(PRICE=Decimal(x))),
    "private attribute": (CHILD, lambda x: setattr(CHILD, "_cap", x)),
    "inner object": (CHILD, lambda x: setattr(CHILD.inner, "cap", x)),
    "attribute of its class": (CHILD, lambda x: setattr(Child, "shared", x)),
    "property": (CHILD, lambda x: LEVELS.__setitem__(0, x)),
    "network": (NETWORK, lambda x: setattr(NETWORK, "_cap", x)),
    "function of it": (NETWORK.forward, lambda x: setattr(NETWORK, "_cap", x)),
    "module": (lambda: OTHER.CAP, lambda x: setattr(OTHER, "CAP", x)),
    "function of a module": (lambda: cap_of_other(), lambda x: setattr(OTHER, "CAP", x)),
    "another function": (lambda: helper(), lambda x: CONFIG["deep"]["levels"].append(x)),
    "array": (lambda: ARRAY.sum(), lambda x: ARRAY.__setitem__(1, x)),
    "closure": (OF_CLOSURE, lambda x: CELL.update(cap=x)),
    "handler": (pyro.poutine.scale(wrapped, 2.0), lambda x: globals().update(CAP=x)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_changes_is_seen(name):
    function, change = CASES[name]
    change(3.0)
    before = surroundings(function)
    assert surroundings(function) == before
    UNUSED.append(2.0)
    assert surroundings(function) == before
    change(4.0)
    assert surroundings(function) != before


def test_training_and_calls_of_a_network_change_nothing():
    before = surroundings(NETWORK)
    NETWORK(torch.randn(3, 2))  # running statistics
    with torch.no_grad():
        NETWORK.linear.weight.add_(1.0)
    assert surroundings(NETWORK) == before


def test_the_settings_of_a_handler_are_seen():
    models = [pyro.poutine.scale(wrapped, scale) for scale in (1.0, 2.0)]
    assert surroundings(models[0]) != surroundings(models[1])


def test_what_cannot_be_seen_equals_nothing():
    class Hidden:
        @property
        def __dict__(self):
            raise RuntimeError("hidden")

        def __call__(self):
            pass

    hidden = Hidden()
    assert surroundings(hidden) != surroundings(hidden)
    large = [[i] for i in range(100_000)]
    assert surroundings(lambda: large) != surroundings(lambda: large)


def test_objects_that_hold_one_another_end():
    class Node:
        pass

    node = Node()
    node.parent, node.children = node, [node]
    function = lambda: node  # noqa: E731
    assert surroundings(function) == surroundings(function)


def test_only_values_of_the_user_count_as_a_state():
    class Model(pyro.nn.PyroModule):
        calls = 0

        def __init__(self):
            super().__init__()
            self.losses, self.last = [], None

        def forward(self):
            self.losses.append(1.0)
            self.last = pyro.sample("x", dist.Normal(0.0, 1.0))

    model = Model()
    before = surroundings(model)
    model()
    model()
    assert before.changed(surroundings(model)) == []
    model.calls = 3
    later = surroundings(model)
    model.calls = 4
    assert later.changed(surroundings(model)) == ["calls"]


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_changed_dictionary_is_in_force_in_the_next_fit():
    x = np.linspace(0.1, 1.5, 60)
    y = np.minimum(14 * x, 12.0)

    def model(x, y):
        slope = pyro.sample("slope", dist.HalfNormal(20.0))
        with pyro.plate("rows", len(y)):
            mean = (slope * x).clamp(max=CONFIG["cap"])
            pyro.sample("y", dist.Normal(mean, 5.0), obs=y)

    def fitted():
        return probdl.infer(model, x, y, method="map", seed=1).draws["slope"].item()

    CONFIG["cap"] = 1000.0
    before = fitted()
    CONFIG["cap"] = 12.0
    after = fitted()
    assert before < 12.0
    assert after > 12.8
