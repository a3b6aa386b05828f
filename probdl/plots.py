"""Plots that ArviZ does not have: training, images, latent spaces and Monte Carlo studies.

The functions return matplotlib axes, and most can draw on given axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from probdl.errors import ModelError, SettingError
from probdl.io.idata import KINDS, PLOTS, ecdf_band, plot, variables
from probdl.model.advice import explained
from probdl.montecarlo import Calibration
from probdl.results.fit import Fit
from probdl.results.training_curve import draw_elbo
from probdl.util.lazy import pyplot as plt
from probdl.util.lazy import xarray as xr
from probdl.util.suggestions import suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The least and largest number of scalars; each has a panel or a row.
SCALARS = {"pair": (2, 12), "rank": (1, 100), "trace": (1, 2000), "forest": (1, 2000)}
MARKERS = "ox"  # for the first ten labels and the next ten, which repeat the ten colours

__all__ = [
    "plot_calibration",
    "plot_elbo",
    "plot_fit",
    "plot_images",
    "plot_latent",
    "plot_reconstructions",
    "plot_study",
]


@explained("plot_fit()")
def plot_fit(fit: Fit, kind: str, sites: Sequence[str] | None = None) -> Figure:
    """Draw one of ArviZ's plots, with ArviZ 0.x or 1.x, or the ELBO of training.

    Args:
        fit: a fit with draws.
        kind: ``"trace"``, ``"forest"``, ``"ppc"`` (the posterior predictive and the data),
            ``"rank"``, ``"energy"`` or ``"pair"``; or ``"elbo"``, see :func:`plot_elbo`.
        sites: the names of the sites to plot; None plots all.

    Returns:
        The matplotlib figure.

    Raises:
        SettingError: there is no such plot or site, or the fit has no data for the plot.

    Example:
        >>> import numpy as np, probdl
        >>> from probdl.models import normal_normal
        >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
        >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
        >>> len(probdl.plots.plot_fit(fit, "ppc").axes)
        1
    """
    if kind not in KINDS:
        raise SettingError(f"There is no plot {kind!r}; {suggest(str(kind), KINDS)}")
    if kind == "elbo":
        return cast("Figure", plot_elbo(fit).figure)
    if fit.is_point:
        raise SettingError(
            f"The fit is a point estimate by {fit.method.name} and has no draws to plot. Use a "
            "method with draws, such as method='nuts'."
        )
    group = getattr(fit.idata, PLOTS[kind], None)
    if group is None or (kind == "energy" and "energy" not in group):
        raise SettingError(
            f"The fit by {fit.method.name} has no data for the plot {kind!r}. Choose another plot."
        )
    held = variables(fit.idata, PLOTS[kind])
    if sites and kind == "energy":
        raise SettingError("The plot 'energy' is of the whole model, so it takes no sites.")
    for name in (name for name in sites or () if name not in held):
        shows = ", ".join(map(repr, held))
        if name in fit.structure.sites:
            raise SettingError(f"The plot {kind!r} shows {shows}, and not {name!r}.")
        raise SettingError(f"There is no site {name!r}; {suggest(name, held)}")
    if kind in SCALARS:
        least, most = SCALARS[kind]
        scalars = sum(math.prod(held[name].shape[2:]) for name in sites or held)
        if not least <= scalars <= most:
            raise SettingError(
                f"A {kind} plot shows {least} to {most} scalars, but the sites have {scalars}. "
                "Select sites with sites= (in the shell: --site), or elements by ArviZ's own plots "
                "of fit.idata, with coords=."
            )
    return plot(fit.idata, kind, sites)


@explained("plot_elbo()")
def plot_elbo(fit: Fit, ax: Axes | None = None, window: int = 100) -> Axes:
    """Plot the ELBO (nats) at each step of a fit by SVI, with its moving average.

    With ``validation``, all curves are in nats per row, and one is that of the held-out data. It
    leaves out the KL terms of sites that all rows share, such as the weights of a Bayesian network,
    which the curve of the training includes.

    Args:
        fit: a fit by SVI.
        ax: the axes to draw on; None makes a figure.
        window: the number of steps in the moving average.

    Raises:
        ModelError: the fit has no ELBO at each step.

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
            f"Fits with {fit.method.name} do not record the ELBO at each step. Use method='svi'."
        )
    ax = ax or plt.subplots(figsize=(7, 4))[1]
    draw_elbo(fit, ax, window)
    return ax


@explained("plot_images()")
def plot_images(images: Any, ax: Axes | None = None, columns: int | None = None) -> Axes:
    """Draw images in a grid.

    Args:
        images: (n, height, width), or (n, channels, height, width) with 1 or 3 channels; values
            in [0, 1]. Leading dimensions of length 1, as in predictions, are dropped.
        ax: the axes to draw on; None makes a figure.
        columns: the number of images in a row; None makes the grid square.

    Raises:
        SettingError: the array does not have the shape of images.

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
            f"An array of shape {np.shape(images)} cannot be drawn as images. Pass the shape "
            "(n, height, width), or (n, channels, height, width) with 1 or 3 channels."
        )
    count, channels, height, width = array.shape
    side = math.isqrt(width)
    if count == channels == 1 and side**2 == width and not 0.5 < height / width < 2:
        raise SettingError(
            f"An array of shape {np.shape(images)} looks like {height} flattened images. Reshape "
            f"it to (n, height, width), such as ({height}, {side}, {side})."
        )
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


@explained("plot_reconstructions()")
def plot_reconstructions(
    fit: Fit, x: Any, *args: Any, ax: Axes | None = None, columns: int = 10, **kwargs: Any
) -> Axes:
    """Draw images and, below each row of them, their reconstructions.

    Args:
        fit: a fit of a model of images with a latent variable for each image.
        x: the images (n, height, width) or (n, channels, height, width).
        args: the model's other arguments.
        ax: the axes to draw on; None makes a figure.
        columns: the number of images in a row.
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
    images = np.asarray(x, dtype=float)
    if images.ndim < 3:  # flattened by the user, not by the model
        images = images.reshape(means.shape)
    means = means.reshape(images.shape)
    pairs: list[NDArray[Any]] = []
    for start in range(0, len(images), columns):
        for part in (images[start : start + columns], means[start : start + columns]):
            blank = np.ones((columns - len(part), *part.shape[1:]))
            pairs += [part, blank]
    return plot_images(np.concatenate(pairs), ax, columns)


@explained("plot_latent()")
def plot_latent(
    fit: Fit,
    *args: Any,
    color: Any = None,
    dims: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Plot the latent mean of each row of data in two dimensions of the latent space.

    Args:
        fit: a fit with a latent variable for each row.
        args: the model's arguments with the data.
        color: a label or a number for each row.
        dims: the two dimensions. Dimensions that the model does not use stay at the prior mean.
        ax: the axes to draw on; None makes a figure.
        kwargs: the model's keyword arguments.

    Raises:
        SettingError: the latent space does not have these dimensions.

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
    if codes.shape[1] < 2:
        raise SettingError(
            f"The latent site '{name}' has one dimension, and plot_latent() needs two."
        )
    if max(dims) >= codes.shape[1] or min(dims) < 0:
        raise SettingError(
            f"dims={dims}: the latent site '{name}' has {codes.shape[1]} dimensions. Pass two of "
            f"the numbers 0 to {codes.shape[1] - 1}."
        )
    ax = ax or plt.subplots(figsize=(6, 6))[1]
    points = codes[:, list(dims)].T
    labels = None if color is None else np.asarray(color)
    if labels is not None and labels.dtype.kind == "O":
        labels = labels.astype(str)
    if labels is not None and labels.shape[:1] != points.shape[1:]:
        raise SettingError(
            f"color= has {len(labels) if labels.ndim else 'no'} labels for {points.shape[1]} rows."
        )
    distinct = () if labels is None or labels.dtype.kind == "f" else np.unique(labels)
    if len(distinct) > len(MARKERS) * 10 and labels is not None and labels.dtype.kind not in "iu":
        raise SettingError(f"color= has {len(distinct)} labels; the plot has colours for 20.")
    if 0 < len(distinct) <= len(MARKERS) * 10:
        for i, label in enumerate(distinct):
            chosen = labels == label
            x, y = points[:, chosen]
            ax.scatter(x, y, s=6, color=f"C{i % 10}", marker=MARKERS[i // 10], label=str(label))
        ax.legend(markerscale=3, fontsize="small")
    else:
        ax.scatter(points[0], points[1], s=6, c=labels)
    ax.set(xlabel=f"{name}[{dims[0]}]", ylabel=f"{name}[{dims[1]}]", aspect="equal")
    return ax


@explained("plot_study()")
def plot_study(study: xr.Dataset, parameters: Sequence[str] | None = None) -> NDArray[Any]:
    """Plot the results of a study against sample size, with error bars of two standard errors.

    The upper row shows the variance, the squared bias and the mean squared error on log axes, where
    a rate of 1/n is a line of slope -1; the lower row shows the coverage of the intervals.

    Args:
        study: the result of :func:`probdl.montecarlo.study`.
        parameters: the parameters to plot; None plots the first three.

    Returns:
        The axes, an array of shape (2, parameters).

    Raises:
        SettingError: the study has no such parameter.

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
        raise SettingError(
            f"The study has no parameter {wrong[0]!r}. Its parameters are {', '.join(known)}."
        )
    _, axes = plt.subplots(
        2, len(names), figsize=(4.5 * len(names), 6), squeeze=False, sharex=True,
        gridspec_kw={"height_ratios": [2, 1]}, layout="constrained",
    )  # fmt: skip
    n = study["size"].values
    for column, name in enumerate(names):
        of = study.sel(parameter=name)
        ax, below = axes[:, column]
        squared = (of.bias**2).values
        # The square of an estimated bias overestimates by the variance of the estimate.
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


@explained("plot_calibration()")
def plot_calibration(calibration: Calibration, ax: Axes | None = None, prob: float = 0.95) -> Axes:
    """Plot the differences between the empirical CDFs of the ranks and the uniform CDF.

    If the method is correct, each curve stays inside the band with probability ``prob``. A curve
    that rises above zero and then falls below it means that the draws are too narrow (many ranks at
    both ends); a curve on one side of zero means that the draws are shifted.

    Args:
        calibration: the result of :func:`probdl.montecarlo.calibrate`.
        ax: the axes to draw on; None makes a figure.
        prob: the simultaneous coverage of the band for one curve.

    >>> import torch, pyro, pyro.distributions as dist, probdl
    >>> from probdl.montecarlo import calibrate
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> method = probdl.Laplace(draws=99)
    >>> found = calibrate(model, method, (torch.tensor(0.0),), simulations=40, seed=1)
    >>> plot_calibration(found).get_xlabel()
    'normalised rank of the true value'
    """
    if not hasattr(calibration, "ranks"):
        raise SettingError(
            f"plot_calibration() takes the result of probdl.montecarlo.calibrate, not a "
            f"{type(calibration).__name__}. For probabilities of classes, see "
            "Fit.predict_proba."
        )
    ax = ax or plt.subplots(figsize=(7, 4))[1]
    count, draws = calibration.ranks.sizes["simulation"], calibration.num_draws
    points, low, high = ecdf_band(count, draws, prob)
    ax.fill_between(points, low - points, high - points, color="0.85", label=f"{prob:.0%} band")
    parameters = calibration.ranks.parameter.values
    for name in parameters:
        ecdf = calibration.ecdf(name, points)
        ax.plot(points, ecdf - points, lw=1, label=str(name) if len(parameters) <= 10 else None)
    ax.set(xlabel="normalised rank of the true value", ylabel="ECDF - uniform")
    ax.legend(fontsize="small")
    return ax
