r"""Two-sample tests: are two samples from the same distribution?

They evaluate a generator that has no density by comparing its draws with held-out data, and need no
pretrained network. The null hypothesis is that both samples come from the same distribution.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probdl.errors import SettingError
from probdl.model.advice import explained
from probdl.nn import MLP
from probdl.results.divergence import train_discriminator
from probdl.util.isolation import isolated, sheltered
from probdl.util.lazy import stats
from probdl.util.settings import check_int, check_real, check_seed, setting_error

__all__ = ["TwoSample", "classifier_test", "mmd_test"]

MIN_ROWS = 20  # of each sample
MAX_ROWS = 20_000  # whose distances take 13 GB
MAX_PERMUTATIONS = 100_000  # more take minutes; the p-value is exact to their inverse
PERMUTATIONS_AT_ONCE = 1000


@dataclass(frozen=True)
class TwoSample:
    """The result of a two-sample test.

    Attributes:
        name: the name of the statistic.
        statistic: the value of the statistic.
        expected: the expected value if both samples are from the same distribution.
        p_value: the probability of a value at least as large under the null hypothesis.
        rows: number of rows of each sample that were compared.
        scale: the bandwidth of the kernel, if the test has one.
    """

    name: str
    statistic: float
    expected: float
    p_value: float
    rows: int
    scale: float | None = None

    def __repr__(self) -> str:
        return (
            f"TwoSample({self.name} = {self.statistic:.4g}, {self.expected:g} expected for equal "
            f"distributions, p = {self.p_value:.3g}, {self.rows} rows of each)"
        )


@sheltered()
@explained("mmd_test()")
def mmd_test(
    x: Any,
    y: Any,
    *,
    bandwidth: float | None = None,
    permutations: int = 1000,
    max_rows: int = 2000,
    seed: int = 0,
) -> TwoSample:
    r"""Test by the maximum mean discrepancy with a Gaussian kernel.

    .. math:: MMD^2 = E\,k(x, x') + E\,k(y, y') - 2\,E\,k(x, y),
        \qquad k(a, b) = \exp(-|a - b|^2 / 2 h^2)

    MMD² is 0 if the distributions are equal, and positive otherwise. Its estimate is unbiased, so
    it can be slightly negative. The p-value is from a permutation test, which is valid for any
    number of rows.

    Args:
        x: a sample (n, *shape), for example held-out data.
        y: the other sample (m, *shape), or with leading dimensions (chain, draw) of size 1, as
            ``fit.predict()`` returns it.
        bandwidth: h, in the units of x; None means the median distance between rows.
        permutations: number of permutations, at most 100,000.
        max_rows: the maximum number of rows of each sample; from larger samples, this number is
            chosen at random. Memory grows with its square.
        seed: the seed for subsets and permutations.

    Raises:
        SettingError: the rows have different shapes, are fewer than 20, not finite or all equal, or
            a setting is out of range.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(2, 200, 3, generator=generator)
    >>> mmd_test(x, y).p_value > 0.05, mmd_test(x, y + 0.5).p_value < 0.01
    (True, True)

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola, "A kernel two-sample test" (2012).
    """
    check_int("mmd_test", high=MAX_PERMUTATIONS, permutations=(permutations, 1))
    check_int("mmd_test", high=MAX_ROWS, max_rows=(max_rows, MIN_ROWS))
    check_seed("mmd_test", seed)
    if bandwidth is not None:
        check_real("mmd_test", bandwidth=(bandwidth, 0, math.inf))
    with isolated(seed):
        a, b = (_subsample(part, max_rows) for part in _samples(x, y))
        pooled = torch.cat([a, b]).flatten(1)
        distances = torch.cdist(pooled, pooled)
        h = _median_distance(distances) if bandwidth is None else float(bandwidth)
        if not h > 0:
            raise SettingError(
                "The median distance between rows is 0, so it cannot be the bandwidth. Pass a "
                "positive bandwidth=."
            )
        kernel = distances.div_(h).square_().mul_(-0.5).exp_()
        kernel.fill_diagonal_(0.0)
        n, m = len(a), len(b)
        total = kernel.sum()
        parts = []
        for first in range(0, permutations + 1, PERMUTATIONS_AT_ONCE):
            count = min(PERMUTATIONS_AT_ONCE, permutations + 1 - first)
            labels = torch.zeros(n + m, count, dtype=kernel.dtype)
            for i in range(count):
                rows = torch.randperm(n + m)[:n] if first + i else torch.arange(n)
                labels[rows, i] = 1
            # A column of labels has 1 for rows of x and 0 for rows of y, so one product gives the
            # sums of the kernel for all permutations.
            product = kernel @ labels
            within_x = (labels * product).sum(0)
            between = product.sum(0) - within_x
            within_y = total - within_x - 2 * between
            part = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)
            parts.append(part)
        values = torch.cat(parts)
    statistic = float(values[0])
    larger = int((values[1:] >= statistic - 1e-12).sum())
    return TwoSample("MMD²", statistic, 0.0, (1 + larger) / (1 + permutations), min(n, m), h)


@sheltered()
@explained("classifier_test()")
def classifier_test(
    x: Any, y: Any, classifier: nn.Module | None = None, *, steps: int = 2000, seed: int = 0
) -> TwoSample:
    r"""Test by the accuracy of a classifier that is trained to separate the samples.

    The statistic is the accuracy on held-out rows, a quarter of all. If the distributions are
    equal, the number of correct predictions is binomial with probability 1/2. The other rows are
    used for training and early stopping.

    Args:
        x: a sample (n, *shape), for example held-out data.
        y: the other sample (m, *shape), or with leading dimensions (chain, draw) of size 1, as
            ``fit.predict()`` returns it.
        classifier: a module from (n, *shape) to logits (n,) or (n, 1), for example a ``ConvNet``
            for images. A copy with new weights is trained. None means an MLP with two hidden
            layers of 64 units.
        steps: the maximum number of training steps.
        seed: the seed for subsets, weights and training.

    Raises:
        SettingError: the rows have different shapes, are fewer than 20, or not finite.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(2, 1000, 3, generator=generator)
    >>> classifier_test(x, y).p_value > 0.05, classifier_test(x, y + 1.0).statistic > 0.7
    (True, True)

    Source: Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (2017).
    """
    check_int("classifier_test", steps=(steps, 1))
    check_seed("classifier_test", seed)
    if classifier is not None and not isinstance(classifier, nn.Module):
        rule = "must be a module from rows to logits, or None"
        raise setting_error("classifier_test", "classifier", classifier, rule)
    a, b = _samples(x, y)
    with isolated(seed):
        rows = min(len(a), len(b))
        a, b = _subsample(a, rows), _subsample(b, rows)
        net = classifier
        if net is None:
            net = nn.Sequential(nn.Flatten(), MLP([a[0].numel(), 64, 64, 1]))
            pooled = torch.cat([a, b])
            scale = pooled.std(0).clamp_min(torch.finfo(a.dtype).tiny ** 0.5)
            a, b = ((part - pooled.mean(0)) / scale for part in (a, b))
        net = copy.deepcopy(net).to(torch.float32)
        logits_x, logits_y = train_discriminator(a.float(), b.float(), net, steps=steps)
    correct = int((logits_x > 0).sum() + (logits_y <= 0).sum())
    count = len(logits_x) + len(logits_y)
    p_value = float(stats.binomtest(correct, count, 0.5, alternative="greater").pvalue)
    return TwoSample("accuracy", correct / count, 0.5, p_value, rows)


def _samples(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return two samples as float64 tensors (rows, *shape), after checks."""
    a, b = (_numbers(part) for part in (x, y))
    if b.shape[:2] == (1, 1) and b.ndim == a.ndim + 2:  # as fit.predict returns it
        b = b[0, 0]
    if not a.ndim or not b.ndim or a.shape[1:] != b.shape[1:]:
        raise SettingError(
            f"The samples have the shapes {tuple(a.shape)} and {tuple(b.shape)}. Both must have "
            "the shape (rows, *shape of a row), with rows of equal shape."
        )
    if min(len(a), len(b)) < MIN_ROWS:
        raise SettingError(
            f"The samples have {len(a)} and {len(b)} rows; a test needs at least {MIN_ROWS} of "
            "each."
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise SettingError("A sample has NaN or infinite values. Remove those rows.")
    return (a[:, None], b[:, None]) if a.ndim == 1 else (a, b)


def _numbers(sample: Any) -> Tensor:
    try:
        array = np.asarray(sample.detach() if isinstance(sample, Tensor) else sample)
        if array.dtype.kind in "biuf":
            return torch.as_tensor(array.astype(np.float64))
    except (TypeError, ValueError, RuntimeError):  # lists of different lengths, for example
        pass
    raise SettingError(f"A sample is a {type(sample).__name__}; it must be an array of numbers.")


def _subsample(sample: Tensor, count: int) -> Tensor:
    """Return at most ``count`` rows, chosen at random."""
    return sample[torch.randperm(len(sample))[:count]]


def _median_distance(distances: Tensor) -> float:
    upper = torch.triu_indices(len(distances), len(distances), offset=1)
    return float(distances[upper[0], upper[1]].median())
