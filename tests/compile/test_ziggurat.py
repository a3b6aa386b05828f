"""Normal numbers by the ziggurat method: their distribution, and what they depend on."""

import numpy as np
import pytest
from scipy import stats

from probdl.compile.kernels.ziggurat import draw_normals

COUNT = 10_000_000


@pytest.fixture(scope="module", params=[(COUNT, 1), (10, COUNT // 10)], ids=["steps", "array"])
def numbers(request):
    """Many steps of one number, or few of many."""
    return draw_normals(7, *request.param).ravel()


def test_moments(numbers):
    for order in range(1, 9):
        expected, twice = stats.norm.moment(order), stats.norm.moment(2 * order)
        error = np.sqrt((twice - expected**2) / COUNT)
        assert abs((numbers**order).mean() - expected) < 4.5 * error


def test_distribution_function(numbers):
    ranks = stats.norm.cdf(np.sort(numbers))
    grid = np.arange(COUNT) / COUNT
    distance = max((ranks - grid).max(), (grid + 1 / COUNT - ranks).max())
    assert stats.kstwobign.sf(distance * np.sqrt(COUNT)) > 1e-4


def test_cells_of_equal_probability(numbers):
    """A wrong layer, wedge or seam would fill some of 5,000 cells too much."""
    edges = stats.norm.ppf(np.arange(1, 5000) / 5000)
    counts = np.bincount(np.searchsorted(edges, numbers), minlength=5000)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("beyond", [3.6541528853610088, 4.0, 4.5, 5.0])
def test_tails(numbers, beyond):
    for side in (numbers, -numbers):
        expected = COUNT * stats.norm.sf(beyond)
        count = (side > beyond).sum()
        assert stats.poisson.sf(count - 1, expected) > 1e-5
        assert stats.poisson.cdf(count, expected) > 1e-5
    assert np.abs(numbers).max() < 6.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 100, 1024])
def test_serial_correlation(numbers, lag):
    for y in (numbers, numbers**2, np.abs(numbers)):
        centred = (y - y.mean()) / y.std()
        assert abs((centred[lag:] * centred[:-lag]).mean()) < 4.5 / np.sqrt(COUNT)


def test_numbers_depend_on_the_key_and_the_step_only():
    whole = draw_normals(5, 20, 7)
    np.testing.assert_array_equal(draw_normals(5, 6, 7, first=14), whole[14:])
    np.testing.assert_array_equal(draw_normals(5, 20, 3), whole[:, :3])
    assert (draw_normals(6, 20, 7) != whole).all()
    assert len(np.unique(whole)) == whole.size


def test_steps_far_apart_are_unrelated():
    near, far = draw_normals(5, 1, 10**6), draw_normals(5, 1, 10**6, first=2**40)
    correlation = (near * far).mean()
    assert abs(correlation) < 4.5e-3
