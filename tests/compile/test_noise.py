"""Random numbers drawn in C: their distribution, and that they depend on key and counter only."""

import ctypes

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import fx

from probdl.compile.kernels.noise import NoiseSpec, draw_noise, specify_noise

COUNT = 10_000_000
aten = torch.ops.aten


def draw(normal, count=COUNT, key=1, shape=(), shift=0.0, scale=1.0):
    size = int(np.prod(shape, dtype=int))
    specs = [(NoiseSpec(size, normal, shift, scale), torch.Size(shape))]
    (drawn,) = draw_noise(specs, key, count)
    return drawn.numpy()


@pytest.fixture(scope="module", params=[(COUNT, ()), (10, (COUNT // 10,))], ids=["steps", "array"])
def numbers(request):
    """Uniform and normal numbers, many steps of one number or few of many."""
    count, shape = request.param
    return {normal: draw(normal, count, 7, shape).ravel() for normal in (0, 1)}


@pytest.mark.parametrize("normal", [0, 1])
def test_moments(numbers, normal):
    x = numbers[normal]
    law = stats.norm if normal else stats.uniform
    for order in range(1, 7):
        expected, twice = law.moment(order), law.moment(2 * order)
        error = np.sqrt((twice - expected**2) / len(x))
        assert abs((x**order).mean() - expected) < 4.5 * error


@pytest.mark.parametrize("normal", [0, 1])
def test_distribution_function(numbers, normal):
    law = stats.norm if normal else stats.uniform
    x = np.sort(numbers[normal])
    ranks = law.cdf(x)
    grid = np.arange(len(x)) / len(x)
    distance = max((ranks - grid).max(), (grid + 1 / len(x) - ranks).max())
    assert stats.kstwobign.sf(distance * np.sqrt(len(x))) > 1e-4


def test_extremes(numbers):
    """The smallest of n uniform numbers is exponential with mean 1 / n."""
    u, x = numbers[0], numbers[1]
    assert 0 < u.min() < 12 / len(u)
    assert 0 < 1 - u.max() < 12 / len(u)
    assert 4.8 < x.max() < 6.5
    assert 4.8 < -x.min() < 6.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 100, 1024])
def test_serial_correlation(numbers, lag):
    for x in numbers.values():
        for y in (x - x.mean(), (x - x.mean()) ** 2):
            centred = (y - y.mean()) / y.std()
            assert abs((centred[lag:] * centred[:-lag]).mean()) < 4.5 / np.sqrt(len(y))


def test_neighbours_fill_the_cube(numbers):
    """Chi-squared test of the cells of the unit cube in which successive triples lie."""
    cells = (numbers[0][: COUNT // 3 * 3].reshape(-1, 3) * 16).astype(int)
    counts = np.bincount(cells @ [256, 16, 1], minlength=4096)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_the_bits_are_balanced(numbers):
    bits = (numbers[0] * 2**52).astype(np.uint64)
    for position in range(52):
        ones = ((bits >> np.uint64(position)) & np.uint64(1)).mean()
        assert abs(ones - 0.5) < 4.5 * 0.5 / np.sqrt(len(bits))


def test_streams_of_keys_steps_and_arrays_are_uncorrelated():
    streams = [draw(1, 100_000, key) for key in (1, 2, 3, 2**40)]
    specs = [(NoiseSpec(1, 1, 0.0, 1.0), torch.Size(()))] * 4
    streams += [x.numpy() for x in draw_noise(specs, 9, 100_000)]
    correlations = np.corrcoef(streams)[np.triu_indices(len(streams), 1)]
    assert abs(correlations).max() < 4.5 / np.sqrt(100_000)


def test_known_answers_of_philox():
    """Random123 gives 6627e8d5 e169c58d bc57ac4c 9b00dbd8 for counter 0 and key 0."""
    words = [0x6627E8D5E169C58D, 0xBC57AC4C9B00DBD8]
    expected = [((word >> 12) + 0.5) / 2**52 for word in words]
    assert draw(0, 1, 0, (2,))[0].tolist() == expected


def test_normal_numbers_are_quantiles_of_the_uniform_ones():
    u, x = (draw(normal, 1, 5, (100_001,))[0] for normal in (0, 1))
    np.testing.assert_allclose(x, special.ndtri(u), rtol=1e-13, atol=1e-15)


def test_noise_does_not_depend_on_the_number_of_steps():
    assert np.array_equal(draw(1, 100, shape=(3,))[:17], draw(1, 17, shape=(3,)))


def test_shift_and_scale():
    plain, moved = draw(1, 50), draw(1, 50, shift=2.0, scale=3.0)
    np.testing.assert_allclose(moved, 2.0 + 3.0 * plain, rtol=0, atol=1e-14)


def graph(*operations):
    built = fx.Graph()
    results = [operation(built) for operation in operations]
    built.output(results)
    return built


def normals(shape, dtype=torch.float64):
    return lambda g: g.call_function(aten.randn.default, (shape,), {"dtype": dtype})


def scaled(g):
    node = g.call_function(aten.rand.default, ([4],), {"dtype": torch.float64})
    node = g.call_function(aten.mul.Tensor, (node, 3.0))
    return g.call_function(aten.add.Tensor, (node, -1.0))


def test_what_can_be_drawn_in_c():
    (first, second) = specify_noise(graph(normals([2, 3]), scaled))
    assert (first[0].size, first[0].normal, first[1]) == (6, 1, torch.Size([2, 3]))
    assert (second[0].normal, second[0].shift, second[0].scale) == (0, -1.0, 3.0)
    assert ctypes.sizeof(NoiseSpec) == 32


def test_what_cannot_be_drawn_in_c():
    def exponentials(g):
        return g.call_function(aten.exponential.default, (scaled(g),))

    assert specify_noise(graph(exponentials)) is None
    assert specify_noise(graph(normals([2], torch.float32))) is None
    built = fx.Graph()
    node = normals([2])(built)
    built.output([node, built.call_function(aten.mul.Tensor, (node, 2.0))])
    assert specify_noise(built) is None  # the two are the same numbers
