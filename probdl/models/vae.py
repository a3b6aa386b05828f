"""Variational autoencoders: a model with a latent variable per row of the data, and its guide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam, pyro_method
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn
from torch.distributions import constraints

from probdl.errors import DataError
from probdl.model.advice import explained
from probdl.model.recorder import ControlFlowError
from probdl.nn import MLP, ConvNet, TransposedConvNet, initialize
from probdl.util.settings import check_choice, check_int, setting_error

__all__ = ["VAE"]

LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "normal", "poisson")


class VAE(PyroModule):
    r"""A variational autoencoder: a module with a ``model`` and a ``guide``.

    .. math:: z_i \sim N(0, I), \quad x_i \sim p(x | \mathrm{decoder}(z_i)), \qquad
        q(z_i | x_i) = N(\mu(x_i), \mathrm{diag}\, \sigma(x_i)^2)

    where mu and log sigma are the two halves of the encoder's output (Eqs. 15, 20 to 22).
    ``probdl.infer(vae, x, method="svi")`` trains both; the rows of x are the plate ``data``.

    Args:
        encoder: a network from x (n, *shape) to (n, 2 * latent_dim). With ``num_classes`` it also
            receives the one-hot labels (n, num_classes).
        decoder: a network from z (n, latent_dim) to (n, *shape): logits for ``"bernoulli"`` and
            ``"continuous_bernoulli"``, means for ``"normal"``, log rates for ``"poisson"``. With
            ``num_classes`` it also receives the one-hot labels.
        latent_dim: the dimension of z.
        likelihood: the distribution of x given the decoder's output: ``"bernoulli"`` for pixels
            that are 0 or 1, ``"continuous_bernoulli"`` for pixels in between, ``"normal"`` with a
            learned standard deviation ``noise`` that all pixels share, or ``"poisson"``.
        num_classes: the number of classes of a conditional VAE, whose model and guide have the
            argument ``label`` (n,), integers from 0 to ``num_classes`` - 1. None makes an
            unconditional VAE.

    Raises:
        SettingError: the likelihood does not exist, or a number is not an integer of at least 1.
        DataError: (model and guide) the labels are of another shape, or outside their range.

    Example:
        >>> import torch, probdl
        >>> x = (torch.rand(64, 8, 8) < 0.5).float()
        >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
        >>> fit = probdl.infer(vae, x, method=probdl.SVI(epochs=2, batch_size=32), seed=1)
        >>> fit.encode(x)["z"].shape, fit.reconstruct(x)["x"].shape
        ((64, 2), (64, 8, 8))
        >>> fit.predict(size=5)["x"].shape            # five new images
        (1, 1, 5, 8, 8)

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014); Sohn, Lee and Yan,
    "Learning structured output representation" (2015), for the conditional one.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        likelihood: str = "bernoulli",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("VAE", likelihood=(likelihood, LIKELIHOODS))
        check_int("VAE", latent_dim=(latent_dim, 1))
        if num_classes is not None:
            check_int("VAE", num_classes=(num_classes, 1))
        for role, module in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(module, nn.Module):
                raise setting_error("VAE", role, module, "must be a torch.nn.Module")
            to_pyro_module_(module)  # makes each weight a named param site
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.num_classes = num_classes
        if likelihood == "normal":
            self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    @classmethod
    @explained("VAE.mlp()")
    def mlp(
        cls,
        shape: Sequence[int],
        latent_dim: int = 20,
        hidden: int | Sequence[int] = 400,
        likelihood: str = "bernoulli",
        num_classes: int | None = None,
    ) -> VAE:
        """Return a VAE of fully connected ReLU layers; the decoder mirrors the encoder.

        Args:
            shape: the shape of one row of the data, such as (28, 28).
            latent_dim: the dimension of z.
            hidden: the width of the hidden layer, or the widths of several.
            likelihood: the likelihood, as in :class:`VAE`.
            num_classes: the number of classes, as in :class:`VAE`.
        """
        widths = [hidden] if isinstance(hidden, int) else list(hidden)
        pixels, labels = math.prod(shape), num_classes or 0
        encoder = _Labelled(
            nn.Flatten(), _with_small_last_layer(MLP([pixels + labels, *widths, 2 * latent_dim]))
        )
        layers = _with_small_last_layer(MLP([latent_dim + labels, *reversed(widths), pixels]))
        decoder = _Labelled(nn.Identity(), nn.Sequential(layers, nn.Unflatten(1, tuple(shape))))
        return cls(encoder, decoder, latent_dim, likelihood, num_classes)

    @classmethod
    @explained("VAE.conv()")
    def conv(
        cls,
        shape: Sequence[int],
        latent_dim: int = 20,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        likelihood: str = "bernoulli",
        num_classes: int | None = None,
    ) -> VAE:
        """Return a VAE of convolutions that halve the image, with a transposed decoder.

        Args:
            shape: the shape of one image, (height, width) or (channels, height, width); height and
                width must be divisible by 2 to the power of the number of convolutions.
            latent_dim: the dimension of z.
            channels: the number of channels after each convolution (4 × 4, stride 2).
            hidden: the width of the fully connected layer.
            likelihood: the likelihood, as in :class:`VAE`.
            num_classes: the number of classes, as in :class:`VAE`.

        Raises:
            SettingError: the sides of the image are not divisible often enough.
        """
        labels = num_classes or 0
        features = ConvNet(shape, channels)
        head = _with_small_last_layer(MLP([features.features + labels, hidden, 2 * latent_dim]))
        encoder = _Labelled(features, head)
        layers = _with_small_last_layer(
            TransposedConvNet([latent_dim + labels, hidden], shape, channels)
        )
        return cls(encoder, _Labelled(nn.Identity(), layers), latent_dim, likelihood, num_classes)

    @pyro_method
    def model(
        self, x: Tensor | None = None, label: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Sample z and x for each row.

        Args:
            x: the data (n, *shape); None samples them.
            label: the classes (n,) of a conditional VAE.
            size: the number of rows if x and label are None.
        """
        given = x if x is not None else label
        rows = (size or 1) if given is None else len(given) if given.ndim else 0
        labels = self._one_hot(label, rows)
        with pyro.plate("data", rows):
            prior = dist.Normal(torch.tensor(0.0), torch.tensor(1.0)).expand([self.latent_dim])
            z = pyro.sample("z", prior.to_event(1))
            output = self.decoder(z, *(one_hot.to(z.dtype) for one_hot in labels))
            likelihood = self._distribution(output)
            return pyro.sample("x", likelihood.to_event(output.ndim - 1), obs=x)

    @pyro_method
    def guide(
        self, x: Tensor | None = None, label: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Sample z given x for each row.

        Args:
            x: the data (n, *shape).
            label: the classes (n,) of a conditional VAE.
            size: not used; model and guide have the same arguments.
        """
        if x is None:
            raise ValueError("The guide of a VAE encodes data. Pass x.")
        labels = self._one_hot(label, len(x))
        with pyro.plate("data", len(x)):
            like = next(self.encoder.parameters())
            output = self.encoder(x.to(like.dtype), *(one_hot.to(like.dtype) for one_hot in labels))
            loc, log_scale = output.chunk(2, -1)
            return pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model."""
        return self.model(*args, **kwargs)

    def _one_hot(self, label: Tensor | None, rows: int) -> list[Tensor]:
        """Return the one-hot labels (rows, num_classes) of a conditional VAE."""
        if self.num_classes is None:
            if label is None:
                return []
            raise DataError(
                "The argument label was given, but this VAE is not conditional and does not use "
                "it. Make the VAE with num_classes=, or leave label out."
            )
        if label is None:
            raise ValueError(
                "This VAE is conditional (num_classes=). Pass label=, an integer array of shape "
                "(n,)."
            )
        if label.shape != (rows,):
            raise DataError(
                f"Argument 'label' has shape {tuple(label.shape)}; it must be ({rows},), one "
                "integer for each row. Use label[:, 0] for a column, and label.argmax(1) for "
                "one-hot labels."
            )
        one_hot = label[:, None] == torch.arange(self.num_classes)
        valid = one_hot.any(1)
        _check_labels(label, valid, self.num_classes)
        # A label of a later batch, unseen while the step was recorded, makes the loss NaN.
        return [torch.where(valid[:, None], one_hot.to(torch.float64), torch.nan)]

    def _distribution(self, output: Tensor) -> Any:
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=output)
        if self.likelihood == "continuous_bernoulli":
            return dist.ContinuousBernoulli(logits=output)
        if self.likelihood == "poisson":
            return dist.Poisson(output.exp())
        return dist.Normal(output, self.noise)  # type: ignore[arg-type]


def _check_labels(label: Tensor, valid: Tensor, num_classes: int) -> None:
    """Raise DataError for labels that are no integers from 0 to num_classes - 1."""
    try:
        if valid.all():
            return
    except ControlFlowError:  # while a training step is recorded, the values are not known
        return
    index = int((~valid).nonzero()[0])
    raise DataError(
        f"Argument 'label': {int((~valid).sum())} of {len(label)} values are not integers from 0 "
        f"to {num_classes - 1} (first: index {index} = {label[index].item()}). Number the "
        f"classes from 0, or raise num_classes={num_classes}."
    )


class _Labelled(nn.Module):
    """A network in two parts, with labels, if any, as additional input of the second part."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor, *label: Tensor) -> Tensor:
        features = self.first(x)
        return self.second(torch.cat([features, *label], -1) if label else features)


def _with_small_last_layer(net: nn.Sequential) -> nn.Sequential:
    """Initialize the last layer with small weights: initial scales are 1 and logits are 0."""
    layers = [layer for layer in net if hasattr(layer, "weight")]
    initialize(layers[-1], "small_normal")
    return net
