"""Plots of what ArviZ has no plot for: how training went, and what a latent variable holds.

Each returns matplotlib axes, and draws on those that it is given.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probdl.errors import ModelError, SettingError
from probdl.io.idata import PLOTS, ecdf_band, plot, variables
from probdl.montecarlo import Calibration
from probdl.results.fit import Fit
from probdl.util.lazy import pyplot as plt
from probdl.util.lazy import xarray as xr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "ox"  # of the first ten labels, and of ten more

__all__ = [
    "plot_calibration",
    "plot_elbo",
    "plot_fit",
    "plot_images",
    "plot_latent",
    "plot_reconstructions",
    "plot_study",
]


def plot_fit(fit: Fit, kind: str, sites: Sequence[str] | None = None) -> Figure:
    """Draw one of ArviZ's plots, which have other names and options in ArviZ 0.x and 1.x.

    Args:
        fit: a fit with draws.
        kind: ``"trace"``, ``"forest"``, ``"ppc"`` (the posterior predictive beside the data),
            ``"rank"``, ``"energy"`` or ``"pair"``.
        sites: which sites to draw; None draws all.

    Returns:
        The matplotlib figure.

    Raises:
        SettingError: there is no such plot or site, or the fit has nothing to draw.

    Example:
        >>> import numpy as np, probdl
        >>> from probdl.models import normal_normal
        >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
        >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
        >>> len(probdl.plots.plot_fit(fit, "ppc").axes)
        1
    """
    if kind not in PLOTS:
        near = difflib.get_close_matches(str(kind), PLOTS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingError(f"there is no plot {kind!r}; {hint}({', '.join(PLOTS)})")
    if fit.is_point:
        raise SettingError(
            f"the fit is a point estimate by {fit.method.name}, and has no draws to plot."
        )
    group = getattr(fit.idata, PLOTS[kind], None)
    if group is None or (kind == "energy" and "energy" not in group):
        raise SettingError(f"the fit by {fit.method.name} has nothing for the plot {kind!r}.")
    held = variables(fit.idata, PLOTS[kind])
    unknown = [name for name in sites or () if name not in held]
    if unknown and kind != "energy":
        near = difflib.get_close_matches(unknown[0], [*held], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingError(f"there is no site {unknown[0]!r}; {hint}({', '.join(held)})")
    scalars = sum(fit.draws[n][0, 0].size for n in sites or fit.draws) if kind == "pair" else 0
    if kind == "pair" and not 2 <= scalars <= 12:
        raise SettingError(
            f"a plot of pairs is of 2 to 12 scalars, and these are {scalars}. Name the sites to "
            "draw: fewer of them (or --site in the shell)."
        )
    return plot(fit.idata, kind, sites)


def plot_elbo(fit: Fit, ax: Axes | None = None, window: int = 100) -> Axes:
    """Plot the ELBO over the steps of a fit by SVI, in nats, with its moving average.

    Args:
        fit: a fit by SVI.
        ax: where to draw; None makes a figure.
        window: how many steps the average is taken over.

    Raises:
        ModelError: the fit has no ELBO of each step.

    >>> import torch, pyro, pyro.distributions as dist, probdl
    >>> from probdl.plots import plot_elbo
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> fit = probdl.infer(model, torch.tensor(1.0), method=probdl.SVI(steps=2000), seed=1)
    >>> plot_elbo(fit).get_xlabel()
    'step'
    """
    elbo = np.asarray(fit.stats.get("elbo", ()))
    if fit.method.name != "svi" or not elbo.size:
        raise ModelError(
            f"a fit by {fit.method.name} has no ELBO of each step. Fit by method='svi'."
        )
    ax = ax or plt.subplots(figsize=(7, 4))[1]
    window = max(1, min(window, len(elbo) // 2))
    smooth = np.convolve(elbo, np.ones(window) / window, "valid")
    steps = np.arange(1, len(elbo) + 1)
    ax.plot(steps, elbo, color="C0", alpha=0.25, lw=0.5, label="each step")
    ax.plot(steps[window - 1 :], smooth, color="C0", label=f"mean of {window}")
    # The first steps are far below all others, and would press the rest into a line.
    low, high = np.quantile(elbo[len(elbo) // 10 :], [0.005, 1.0])
    ax.set_ylim(low - 0.1 * (high - low), high + 0.05 * (high - low))
    best = fit.stats["best_step"]
    ax.axvline(best, color="k", lw=0.8, ls=":", label=f"kept: step {best}")
    ax.set(xlabel="step", ylabel="ELBO (nats)")
    ax.legend()
    return ax


def plot_images(images: Any, ax: Axes | None = None, columns: int | None = None) -> Axes:
    """Draw images in one grid.

    Args:
        images: (n, height, width), or (n, channels, height, width) with 1 or 3 channels; values
            in [0, 1]. Leading dimensions of 1, as in predictions, are dropped.
        ax: where to draw; None makes a figure.
        columns: how many images there are in a row; None makes the grid square.

    Raises:
        SettingError: these are no images.

    >>> import numpy as np
    >>> from probdl.plots import plot_images
    >>> plot_images(np.zeros((6, 8, 8)), columns=3).get_images()[0].get_array().shape
    (19, 28)
    """
    array = np.asarray(images, dtype=float)
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise SettingError(
            f"images of shape {np.shape(images)} cannot be drawn: give (n, height, width), or "
            "(n, channels, height, width) with 1 or 3 channels."
        )
    count, channels, height, width = array.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.ones((channels, rows * (height + 1) + 1, columns * (width + 1) + 1))
    for i, image in enumerate(array):
        top, left = 1 + i // columns * (height + 1), 1 + i % columns * (width + 1)
        grid[:, top : top + height, left : left + width] = image
    ax = ax or plt.subplots(figsize=(columns * 0.7, rows * 0.7))[1]
    picture = grid[0] if channels == 1 else grid.transpose(1, 2, 0)
    ax.imshow(picture.clip(0, 1), cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    return ax


def plot_reconstructions(
    fit: Fit, x: Any, *args: Any, ax: Axes | None = None, columns: int = 10, **kwargs: Any
) -> Axes:
    """Draw images above what a fit makes of them, row by row.

    Args:
        fit: a fit of a model of images with a latent variable for each.
        x: the images (n, height, width) or (n, channels, height, width).
        args: the model's other arguments.
        ax: where to draw; None makes a figure.
        columns: how many images there are in a row.
        kwargs: the model's keyword arguments.

    >>> import torch, probdl
    >>> from probdl.plots import plot_reconstructions
    >>> x = (torch.rand(32, 8, 8) < 0.5).float()
    >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
    >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
    >>> plot_reconstructions(fit, x[:6], columns=3).get_images()[0].get_array().shape
    (37, 28)
    """
    means = next(iter(fit.reconstruct(x, *args, **kwargs).values()))
    images = np.asarray(x, dtype=float).reshape(means.shape)
    pairs: list[NDArray[Any]] = []
    for start in range(0, len(images), columns):
        for part in (images[start : start + columns], means[start : start + columns]):
            blank = np.ones((columns - len(part), *part.shape[1:]))
            pairs += [part, blank]
    return plot_images(np.concatenate(pairs), ax, columns)


def plot_latent(
    fit: Fit,
    *args: Any,
    color: Any = None,
    dims: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw where the guide puts each row of data in two dimensions of the latent space.

    Args:
        fit: a fit with a latent variable for each row.
        args: the model's arguments with the data.
        color: a label or a number for each row.
        dims: which two dimensions; one that the model does not use looks like the prior's mean.
        ax: where to draw; None makes a figure.
        kwargs: the model's keyword arguments.

    Raises:
        SettingError: the latent space has no such dimensions.

    >>> import torch, probdl
    >>> from probdl.plots import plot_latent
    >>> x = (torch.rand(32, 8, 8) < 0.5).float()
    >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
    >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
    >>> plot_latent(fit, x).get_xlabel()
    'z[0]'
    """
    name, codes = next(iter(fit.encode(*args, **kwargs).items()))
    codes = codes.reshape(len(codes), -1)
    if max(dims) >= codes.shape[1] or min(dims) < 0:
        raise SettingError(
            f"dims={dims}: the latent site '{name}' has {codes.shape[1]} dimensions, numbered "
            "from 0."
        )
    ax = ax or plt.subplots(figsize=(6, 6))[1]
    points = codes[:, list(dims)].T
    labels = None if color is None else np.asarray(color)
    if labels is not None and labels.dtype.kind in "iu" and len(np.unique(labels)) <= 20:
        for i, label in enumerate(np.unique(labels)):
            chosen = labels == label
            x, y = points[:, chosen]
            ax.scatter(x, y, s=6, color=f"C{i % 10}", marker=MARKERS[i // 10], label=str(label))
        ax.legend(markerscale=3, fontsize="small")
    else:
        ax.scatter(points[0], points[1], s=6, c=labels)
    ax.set(xlabel=f"{name}[{dims[0]}]", ylabel=f"{name}[{dims[1]}]", aspect="equal")
    return ax


def plot_study(study: xr.Dataset, parameters: Sequence[str] | None = None) -> NDArray[Any]:
    """Plot what a study found over sample size, with two standard errors on each side.

    Above, the variance, the squared bias and the mean squared error on log axes, where a rate of
    1/n is a line of slope -1; below, the coverage of intervals.

    Args:
        study: of :func:`probdl.montecarlo.study`.
        parameters: which; None takes the first three.

    Returns:
        The axes, (2, parameters).

    Raises:
        SettingError: there is no such parameter.

    >>> import torch, pyro, pyro.distributions as dist
    >>> from probdl.montecarlo import study
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("obs", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> found = study(model, "mle", {"mu": 2.0}, sizes=[4, 16], replicates=20, seed=1)
    >>> plot_study(found).shape
    (2, 1)
    """
    known = [str(p) for p in study.parameter.values]
    names = list(parameters) if parameters is not None else known[:3]
    if wrong := [n for n in names if n not in known]:
        raise SettingError(f"the study has no parameter {wrong[0]!r}, but {', '.join(known)}.")
    _, axes = plt.subplots(
        2, len(names), figsize=(4.5 * len(names), 6), squeeze=False, sharex=True,
        gridspec_kw={"height_ratios": [2, 1]}, layout="constrained",
    )  # fmt: skip
    n = study["size"].values
    for column, name in enumerate(names):
        of = study.sel(parameter=name)
        ax, below = axes[:, column]
        squared = (of.bias**2).values
        # The square of an unbiased estimate is on average its variance too large.
        noise = (of.bias_se**2).values
        ax.errorbar(n, of.mse, 2 * of.mse_se, marker="o", label="mean squared error")
        rate = f", slope {of.variance_rate:.2f} ± {of.variance_rate_se:.2f}" if len(n) > 1 else ""
        ax.errorbar(n, of.variance, 2 * of.variance_se, marker="s", label=f"variance{rate}")
        ax.plot(n, np.where(squared > noise, squared - noise, np.nan), "^", label="squared bias")
        ax.plot(n, of.variance.values[0] * n[0] / n, "k:", lw=0.8, label="slope -1")
        ax.set(xscale="log", yscale="log", title=name)
        below.errorbar(n, of.coverage, 2 * of.coverage_se, marker="o")
        below.axhline(study.attrs.get("interval_prob", np.nan), color="k", lw=0.8, ls=":")
        below.set(xlabel="sample size", ylim=(None, 1.02))
        below.set_xticks(n, [str(size) for size in n])
        below.minorticks_off()
        ax.legend()
    axes[0, 0].set_ylabel(f"squared error, of {study.attrs.get('method', 'the estimator')}")
    axes[1, 0].set_ylabel("coverage")
    return np.asarray(axes)


def plot_calibration(calibration: Calibration, ax: Axes | None = None, prob: float = 0.95) -> Axes:
    """Plot how far the empirical CDFs of the ranks are from uniform, with a simultaneous band.

    Of a method that is right all curves stay in the band with probability ``prob``, each by
    itself. A curve that rises first and falls then has draws that are too narrow on both sides
    (ranks at the ends); one that lies on one side only has draws that are shifted.

    Args:
        calibration: of :func:`probdl.montecarlo.calibrate`.
        ax: where to draw; None makes a figure.
        prob: the probability of the band.

    >>> import torch, pyro, pyro.distributions as dist, probdl
    >>> from probdl.montecarlo import calibrate
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> method = probdl.Laplace(draws=99)
    >>> found = calibrate(model, method, (torch.tensor(0.0),), simulations=40, seed=1)
    >>> plot_calibration(found).get_xlabel()
    'rank of the true value, as a share'
    """
    ax = ax or plt.subplots(figsize=(7, 4))[1]
    count, draws = calibration.ranks.sizes["simulation"], calibration.num_draws
    points, low, high = ecdf_band(count, draws, prob)
    ax.fill_between(points, low - points, high - points, color="0.85", label=f"{prob:.0%} band")
    parameters = calibration.ranks.parameter.values
    for name in parameters:
        ecdf = calibration.ecdf(name, points)
        ax.plot(points, ecdf - points, lw=1, label=str(name) if len(parameters) <= 10 else None)
    ax.set(xlabel="rank of the true value, as a share", ylabel="ECDF - uniform")
    ax.legend(fontsize="small")
    return ax
