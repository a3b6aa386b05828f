"""What docs/operations.md says is native."""

import inspect

import pyro.distributions as dist
import pytest

from tests.compile import census


@pytest.fixture(scope="module")
def found():
    return census.census()


def test_the_page_is_that_of_the_census(found):
    text = census.PAGE.read_text(encoding="utf-8")
    if census.VERSION not in text:
        pytest.skip(f"the page is of another version than {census.VERSION}")
    assert text == census.page(found)


def test_nearly_all_are_native(found):
    forms = [form for form, _ in found.values() if form != census.NO_GRADIENT]
    assert forms.count(census.NOT_NATIVE) <= 0.05 * len(forms)


def test_no_distribution_is_left_out():
    classes = {
        name
        for name, value in vars(dist).items()
        if inspect.isclass(value) and issubclass(value, dist.Distribution)
    }
    assert classes - census.WITHOUT <= set(census.DISTRIBUTIONS)
