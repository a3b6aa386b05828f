"""What the other side of a branch does, by the byte code of all forms of branches.

PYTEST_DONT_REWRITE: it would change the byte code.
"""

import logging
import sys
import warnings

import pytest

from probdl.compile.tracing.branching import Side, other_side

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


def either_way(yes, no):
    if no:
        if yes is no:
            raise ValueError("one")
        raise ValueError("two")


RAISES = (plain, joined, asserted, of_several, with_message, either_way)


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


def with_effects(yes, no):
    if no:
        print(changed(yes))  # noqa: T201
    if no:
        print("no")  # noqa: T201
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


NEITHER = (computed, with_effects, of_others)


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


def test_only_the_last_of_two_conditions_raises():
    sides = []
    half(Asked(True, sides), Asked(False, sides))
    assert sides == [None, Side.RAISES]
