"""Two-sample tests: a closed form, the level under the null hypothesis, and the power."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import probdl
from probdl.nn import MLP
from probdl.results.twosample import classifier_test, mmd_test


def normal(rows, dim=1, mean=0.0, seed=0):
    return mean + torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def test_mmd_of_two_normals_in_closed_form():
    h, gap = 1.3, 0.7

    def kernel_mean(distance):  # E k(x, y) for normals with variance 1
        total = h**2 + 2
        return math.sqrt(h**2 / total) * math.exp(-(distance**2) / (2 * total))

    expected = 2 * kernel_mean(0.0) - 2 * kernel_mean(gap)
    found = [
        mmd_test(
            normal(300, seed=i), normal(200, mean=gap, seed=1000 + i), bandwidth=h, permutations=1
        ).statistic
        for i in range(100)
    ]
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / 10
    same = [
        mmd_test(normal(100, seed=i), normal(100, seed=500 + i), permutations=1).statistic
        for i in range(200)
    ]
    assert min(same) < 0 < max(same)
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(200)


def test_p_values_for_equal_distributions_are_uniform():
    p = [
        mmd_test(
            normal(30, 3, seed=i), normal(40, 3, seed=900 + i), permutations=199, seed=i
        ).p_value
        for i in range(300)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert min(p) >= 1 / 200


def test_the_classifier_test_keeps_its_level():
    below = sum(
        classifier_test(
            normal(200, 2, seed=i), normal(200, 2, seed=700 + i), steps=150, seed=i
        ).p_value
        < 0.1
        for i in range(40)
    )
    assert below <= stats.binom.ppf(0.999, 40, 0.1)


def test_both_tests_detect_a_difference():
    x, y = normal(600, 2, seed=1), normal(600, 2, seed=2) * torch.tensor([1.0, 1.6])
    assert mmd_test(x, y).p_value < 0.01
    assert classifier_test(x, y).p_value < 0.01
    # For normals with means at a distance d, the best accuracy is Phi(d / 2).
    found = classifier_test(normal(4000, 1, seed=3), normal(4000, 1, mean=2.0, seed=4))
    best = stats.norm.cdf(1.0)
    assert abs(found.statistic - best) < 4 * math.sqrt(best * (1 - best) / 2000)


def test_a_given_network_is_copied_and_results_are_reproducible():
    net = MLP([2, 8, 1])
    before = [p.clone() for p in net.parameters()]
    x, y = normal(100, 2, seed=1), normal(100, 2, seed=2, mean=1.0)
    assert classifier_test(x, y, net, seed=3) == classifier_test(x, y, net, seed=3)
    assert all(map(torch.equal, net.parameters(), before))
    assert mmd_test(x, y, seed=3) == mmd_test(x, y, seed=3)


def test_images_and_draws_with_chain_and_draw_dimensions():
    images = np.random.default_rng(0).normal(size=(60, 4, 4))
    found = probdl.mmd_test(images, images[None, None, ::-1].copy() + 1.0, max_rows=50)
    assert found.rows == 50
    assert found.p_value < 0.01
    assert "MMD² = " in repr(found)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (normal(50, 2), normal(50, 3), r"shapes \(50, 2\) and \(50, 3\)"),
        (normal(50), normal(5), "needs at least 20 of each"),
        (normal(50) * math.nan, normal(50), "NaN or infinite"),
    ],
)
def test_invalid_samples_are_errors(x, y, message):
    for test in (mmd_test, classifier_test):
        with pytest.raises(probdl.SettingError, match=message):
            test(x, y)


def test_a_bandwidth_must_be_positive():
    same = torch.ones(30, 2)
    with pytest.raises(probdl.SettingError, match="median distance between rows is 0"):
        mmd_test(same, same)
    with pytest.raises(probdl.SettingError, match="bandwidth must be a number above 0"):
        mmd_test(normal(50), normal(50), bandwidth=-1.0)
    with pytest.raises(probdl.SettingError, match="permutations=0"):
        mmd_test(normal(50), normal(50), permutations=0)
