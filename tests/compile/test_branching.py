"""What the other side of a branch does, by the byte code of all forms of branches.

PYTEST_DONT_REWRITE: it would change the byte code.
"""

import logging
import sys
import warnings

import pytest

from probdl.compile.tracing.branching import Side, may_be_caught, other_side

LOG = logging.getLogger(__name__)


class Asked:
    """A value whose truth is asked for."""

    def __init__(self, truth, sides):
        self.truth, self.sides = truth, sides

    def __bool__(self):
        frame = sys._getframe(1)
        self.sides.append(other_side(frame.f_code, frame.f_lasti, self.truth, frame.f_globals))
        return self.truth

    def __lt__(self, other):
        return self

    __gt__ = __eq__ = __lt__
    __hash__ = None


def plain(yes, no):
    if no:
        raise ValueError
    if not yes:
        raise ValueError
    if no > 2:
        raise ValueError("no") from None
    if bool(no):
        raise ValueError
    if yes:
        pass
    else:
        raise ValueError


def joined(yes, no):
    if no or no > 2 or not yes:
        raise ValueError
    if not (yes and yes > 2):
        raise ValueError


def asserted(yes, no):
    assert yes
    assert 0 < yes < 1, "outside"
    assert yes and not no, f"{yes is no}"  # noqa: PT018


def of_several(yes, no):
    if any([no, no > 2]):
        raise ValueError
    if not all(x > 2 for x in [yes, yes]):
        raise ValueError


def with_message(yes, no):
    for i in range(2):
        if no:
            numbers = [x for x in range(3) if x]
            raise ValueError(f"{numbers} in step {i}")


def after_a_message(yes, no):
    if no:
        print("no", yes)  # noqa: T201
        raise ValueError
    if not yes:
        LOG.error("not %s", yes)
        warnings.warn("not yes", stacklevel=1)
        raise ValueError


def either_way(yes, no):
    if no:
        if yes is no:
            raise ValueError("one")
        raise ValueError("two")


RAISES = (plain, joined, asserted, of_several, with_message, after_a_message, either_way)


def warned(yes, no):
    for i in range(2):
        if no:
            warnings.warn(f"step {i}", stacklevel=1)
    if yes:
        print("yes")  # noqa: T201
        LOG.debug("yes %s", 1)
    if no:
        logging.critical("no")


WARNS = (warned,)


def computed(yes, no):
    x = 1
    if no:
        x = 2
    x = 1 if yes else x
    x = yes and x
    while no:
        x += 1
    return [x for _ in range(2) if no]


def half(yes, no):
    if yes > 2 and no:  # asks yes, whose other answer does not raise, and no
        raise ValueError
    return yes


def changed(yes):
    yes.sides.append(None)
    return yes


def warned_with_effects(yes, no, items=None):
    items = [1, 2] if items is None else items
    if no:
        print("dropped", items.pop())  # noqa: T201
    if no:
        print("now", items := [])  # noqa: T201
    if no:
        LOG.info("%s", yes.sides)
    if no:
        print(len(items), sys.exit())  # noqa: T201


def with_effects(yes, no):
    if no:
        print(changed(yes))  # noqa: T201
    if no:
        print(yes.sides)  # noqa: T201
        raise ValueError
    if no:
        yes.sides = []
        raise ValueError
    if no:
        sys.exit()
    if no:
        LOG.setLevel(10)
    if no:
        return


def of_others(yes, no):
    if max(no, no) is None:
        raise ValueError
    if no in [1]:
        raise ValueError


NEITHER = (computed, warned_with_effects, with_effects, of_others)


@pytest.mark.parametrize(
    ("function", "side"),
    [*((f, Side.RAISES) for f in RAISES), *((f, Side.WARNS) for f in WARNS)]
    + [(f, None) for f in NEITHER],
)
def test_the_other_side(function, side):
    sides = []
    function(Asked(True, sides), Asked(False, sides))
    assert sides
    assert {*sides} == {side}


def tried(fail):
    try:  # noqa: SIM105
        fail()
    except KeyError:
        pass


def finally_done(fail):
    with warnings.catch_warnings():
        try:
            fail()
        finally:
            print("done")  # noqa: T201


def tried_around_with(fail):
    try:
        with warnings.catch_warnings(), warnings.catch_warnings():
            fail()
    except KeyError:
        pass


def with_statements(fail):
    with warnings.catch_warnings():
        for _ in range(2):
            with warnings.catch_warnings() as _:
                [fail() for _ in range(2)]


def tried_before(fail):
    try:
        int("1")
    except ValueError:
        raise
    fail()


@pytest.mark.parametrize(
    ("function", "caught"),
    [
        (tried, True),
        (finally_done, True),
        (tried_around_with, True),
        (with_statements, False),
        (tried_before, False),
    ],
)
def test_errors_that_reach_a_try_statement(function, caught):
    found = []

    def fail():
        frame = sys._getframe(1)
        while frame.f_code.co_name != function.__name__:  # out of a list comprehension
            frame = frame.f_back
        found.append(may_be_caught(frame.f_code, frame.f_lasti))

    function(fail)
    assert {*found} == {caught}


def test_only_the_last_of_two_conditions_raises():
    sides = []
    half(Asked(True, sides), Asked(False, sides))
    assert sides == [None, Side.RAISES]
