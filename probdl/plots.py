"""Plots of what ArviZ has no plot for: how training went, and what a latent variable holds.

Each returns matplotlib axes, and draws on those that it is given.
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from probdl.errors import ModelError, SettingError
from probdl.fit import Fit

MARKERS = "ox"  # of the first ten labels, and of ten more

__all__ = ["plot_elbo", "plot_images", "plot_latent", "plot_reconstructions"]


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
