r"""Are two samples draws of one distribution? Tests that need no network trained elsewhere.

They judge a generator where it has no density: draws of the model against data held out. The
hypothesis is that both samples are of one distribution; a small p-value speaks against it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probdl.errors import SettingError
from probdl.nn import MLP
from probdl.results.divergence import learn_apart
from probdl.util.isolation import isolated, sheltered
from probdl.util.lazy import stats

__all__ = ["TwoSample", "classifier_test", "mmd_test"]

_FEWEST = 20  # rows of each sample


@dataclass(frozen=True)
class TwoSample:
    """What a two-sample test found.

    Attributes:
        name: what the statistic is.
        statistic: its value.
        expected: its value where the samples are of one distribution.
        p_value: how probable so large a value is there.
        rows: how many rows of each sample were compared.
        scale: the bandwidth of the kernel, of a test that has one.
    """

    name: str
    statistic: float
    expected: float
    p_value: float
    rows: int
    scale: float | None = None

    def __repr__(self) -> str:
        return (
            f"TwoSample({self.name} = {self.statistic:.4g}, {self.expected:g} expected of one "
            f"distribution, p = {self.p_value:.3g}, {self.rows} rows of each)"
        )


@sheltered()
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

    estimated without bias, so that it may be a little below 0. It is 0 where the distributions
    are the same and positive where they are not. The p-value comes from permutations of the rows
    between the samples, and holds for any number of rows.

    Args:
        x: a sample (n, *shape), such as data held out.
        y: the other (m, *shape); ``fit.predict(m)["x"]`` may keep its dimensions of chain and draw.
        bandwidth: h, in the units of x; None takes the median distance between rows.
        permutations: how many.
        max_rows: of each sample at most so many are compared, taken at random; memory grows with
            their square.
        seed: of all that is random.

    Raises:
        SettingError: the rows are of different shapes, too few, not finite or all the same.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(2, 200, 3, generator=generator)
    >>> mmd_test(x, y).p_value > 0.05, mmd_test(x, y + 0.5).p_value < 0.01
    (True, True)

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola, "A kernel two-sample test" (2012).
    """
    if permutations < 1:
        raise SettingError(f"permutations={permutations} must be at least 1.")
    with isolated(seed):
        a, b = (_some(part, max_rows) for part in _samples(x, y))
        pooled = torch.cat([a, b]).flatten(1)
        distances = torch.cdist(pooled, pooled)
        h = _median(distances) if bandwidth is None else float(bandwidth)
        if not h > 0:
            what = "the median distance between rows is 0" if bandwidth is None else f"{bandwidth=}"
            raise SettingError(f"{what}, and a bandwidth must be positive: give bandwidth=.")
        kernel = distances.div_(h).square_().mul_(-0.5).exp_()
        kernel.fill_diagonal_(0.0)
        n, m = len(a), len(b)
        labels = torch.zeros(n + m, permutations + 1, dtype=kernel.dtype)
        labels[:n, 0] = 1
        for i in range(1, permutations + 1):
            labels[torch.randperm(n + m)[:n], i] = 1
        # With 1 for rows of x and 0 for those of y, all sums of the kernel are products.
        product = kernel @ labels
        within_x = (labels * product).sum(0)
        between = product.sum(0) - within_x
        within_y = kernel.sum() - within_x - 2 * between
        found = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)
    statistic = float(found[0])
    larger = int((found[1:] >= statistic - 1e-12).sum())
    return TwoSample("MMD²", statistic, 0.0, (1 + larger) / (1 + permutations), min(n, m), h)


@sheltered()
def classifier_test(
    x: Any, y: Any, classifier: nn.Module | None = None, *, steps: int = 2000, seed: int = 0
) -> TwoSample:
    r"""Test by a classifier: of rows it has not seen, how many does it assign to their sample?

    Of one distribution it is half of them, and the number is binomial. Three quarters of the
    rows are for training and for stopping it in time.

    Args:
        x: a sample (n, *shape), such as data held out.
        y: the other (m, *shape); ``fit.predict(m)["x"]`` may keep its dimensions of chain and draw.
        classifier: maps (n, *shape) to logits (n,) or (n, 1), such as a ``ConvNet`` for images; a
            copy, its weights drawn anew. None is an MLP with two layers of 64.
        steps: how many steps of training at most.
        seed: of all that is random.

    Raises:
        SettingError: the rows are of different shapes, too few or not finite.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(2, 1000, 3, generator=generator)
    >>> classifier_test(x, y).p_value > 0.05, classifier_test(x, y + 1.0).statistic > 0.7
    (True, True)

    Source: Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (2017).
    """
    a, b = _samples(x, y)
    with isolated(seed):
        rows = min(len(a), len(b))
        a, b = _some(a, rows), _some(b, rows)
        net = classifier
        if net is None:
            net = nn.Sequential(nn.Flatten(), MLP([a[0].numel(), 64, 64, 1]))
            pooled = torch.cat([a, b])
            scale = pooled.std(0).clamp_min(torch.finfo(a.dtype).tiny ** 0.5)
            a, b = ((part - pooled.mean(0)) / scale for part in (a, b))
        net = copy.deepcopy(net).to(torch.float32)
        of_x, of_y = learn_apart(a.float(), b.float(), net, steps=steps)
    right, count = int((of_x > 0).sum() + (of_y <= 0).sum()), len(of_x) + len(of_y)
    p_value = float(stats.binomtest(right, count, 0.5, alternative="greater").pvalue)
    return TwoSample("accuracy", right / count, 0.5, p_value, rows)


def _samples(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Read two samples of rows of one shape."""
    a, b = (torch.as_tensor(np.asarray(part)).to(torch.float64) for part in (x, y))
    if b.shape[:2] == (1, 1) and b.ndim == a.ndim + 2:  # as fit.predict returns it
        b = b[0, 0]
    if not a.ndim or not b.ndim or a.shape[1:] != b.shape[1:]:
        raise SettingError(
            f"the samples have the shapes {tuple(a.shape)} and {tuple(b.shape)}: both must be "
            "(rows, *shape of a row)."
        )
    if min(len(a), len(b)) < _FEWEST:
        raise SettingError(f"{len(a)} and {len(b)} rows: a test needs {_FEWEST} of each.")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise SettingError("a sample holds NaN or infinite numbers.")
    return (a[:, None], b[:, None]) if a.ndim == 1 else (a, b)


def _some(sample: Tensor, count: int) -> Tensor:
    """Take rows at random."""
    return sample[torch.randperm(len(sample))[:count]]


def _median(distances: Tensor) -> float:
    upper = torch.triu_indices(len(distances), len(distances), offset=1)
    return float(distances[upper[0], upper[1]].median())
