"""Variational autoencoders: a latent variable for each row of the data, and a guide beside it."""

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

from probdl.nn import MLP, ConvNet, TransposedConvNet, initialize

__all__ = ["VAE"]

LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "normal", "poisson")


class VAE(PyroModule):
    r"""A variational autoencoder, with its ``model`` and its ``guide``.

    .. math:: z_i \sim N(0, I), \quad x_i \sim p(x | \mathrm{decoder}(z_i)), \qquad
        q(z_i | x_i) = N(\mu(x_i), \mathrm{diag}\, \sigma(x_i)^2)

    with mu and log sigma the two halves of what the encoder returns (Eqs. 15, 20 to 22).
    ``probdl.infer(vae, x, method="svi")`` trains both; the rows of x are the plate ``data``.

    Args:
        encoder: maps x (n, *shape) to (n, 2 * latent_dim). With ``num_classes`` it is called
            with the one-hot labels (n, num_classes) too.
        decoder: maps z (n, latent_dim) to (n, *shape): logits of ``"bernoulli"`` and
            ``"continuous_bernoulli"``, means of ``"normal"``, log rates of ``"poisson"``. With
            ``num_classes`` it is called with the one-hot labels too.
        latent_dim: the dimension of z.
        likelihood: of x given the decoder's output. ``"bernoulli"`` is for pixels that are 0 or
            1, ``"continuous_bernoulli"`` for those between; ``"normal"`` has one standard
            deviation for all, ``noise``, which is learned.
        num_classes: makes a conditional VAE: ``label`` (n,), integers, is an argument of both.

    Raises:
        ValueError: the likelihood is unknown.

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
        if likelihood not in LIKELIHOODS:
            raise ValueError(
                f"likelihood={likelihood!r} must be one of {', '.join(map(repr, LIKELIHOODS))}."
            )
        for module in (encoder, decoder):
            to_pyro_module_(module)  # so that each weight is a param site with a name
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.num_classes = num_classes
        if likelihood == "normal":
            self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    @classmethod
    def mlp(
        cls,
        shape: Sequence[int],
        latent_dim: int = 20,
        hidden: int | Sequence[int] = 400,
        likelihood: str = "bernoulli",
        num_classes: int | None = None,
    ) -> VAE:
        """Make a VAE of fully connected layers with ReLU; the decoder mirrors the encoder.

        Args:
            shape: of one row of the data, such as (28, 28).
            latent_dim: the dimension of z.
            hidden: the width of the hidden layer, or of each.
            likelihood: as above.
            num_classes: as above.
        """
        widths = [hidden] if isinstance(hidden, int) else list(hidden)
        pixels, labels = math.prod(shape), num_classes or 0
        encoder = _Labelled(nn.Flatten(), _calm(MLP([pixels + labels, *widths, 2 * latent_dim])))
        layers = _calm(MLP([latent_dim + labels, *reversed(widths), pixels]))
        decoder = _Labelled(nn.Identity(), nn.Sequential(layers, nn.Unflatten(1, tuple(shape))))
        return cls(encoder, decoder, latent_dim, likelihood, num_classes)

    @classmethod
    def conv(
        cls,
        shape: Sequence[int],
        latent_dim: int = 20,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        likelihood: str = "bernoulli",
        num_classes: int | None = None,
    ) -> VAE:
        """Make a VAE of convolutions, each of which halves the image, and a transposed decoder.

        Args:
            shape: of one image, (height, width) or (channels, height, width); height and width
                must be divisible by 2 to the number of convolutions.
            latent_dim: the dimension of z.
            channels: the channels after each convolution (4 × 4, stride 2).
            hidden: the width of the fully connected layer between.
            likelihood: as above.
            num_classes: as above.

        Raises:
            SettingError: the image cannot be halved so often.
        """
        labels = num_classes or 0
        features = ConvNet(shape, channels)
        head = _calm(MLP([features.features + labels, hidden, 2 * latent_dim]))
        encoder = _Labelled(features, head)
        layers = _calm(TransposedConvNet([latent_dim + labels, hidden], shape, channels))
        return cls(encoder, _Labelled(nn.Identity(), layers), latent_dim, likelihood, num_classes)

    @pyro_method
    def model(
        self, x: Tensor | None = None, label: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Draw z and x for each row.

        Args:
            x: the data (n, *shape); None draws them.
            label: the classes (n,) of a conditional VAE.
            size: how many rows there are, where neither x nor a label tells.
        """
        rows = len(x) if x is not None else len(label) if label is not None else (size or 1)
        with pyro.plate("data", rows):
            prior = dist.Normal(torch.tensor(0.0), torch.tensor(1.0)).expand([self.latent_dim])
            z = pyro.sample("z", prior.to_event(1))
            output = self.decoder(z, *self._one_hot(label, z))
            likelihood = self._distribution(output)
            return pyro.sample("x", likelihood.to_event(output.ndim - 1), obs=x)

    @pyro_method
    def guide(
        self, x: Tensor | None = None, label: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Draw z given x for each row.

        Args:
            x: the data (n, *shape).
            label: the classes (n,) of a conditional VAE.
            size: is not needed here; the arguments are those of the model.
        """
        if x is None:
            raise ValueError("the guide of a VAE encodes data: pass x.")
        with pyro.plate("data", len(x)):
            like = next(self.encoder.parameters())
            output = self.encoder(x.to(like.dtype), *self._one_hot(label, like))
            loc, log_scale = output.chunk(2, -1)
            return pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model."""
        return self.model(*args, **kwargs)

    def _one_hot(self, label: Tensor | None, like: Tensor) -> list[Tensor]:
        if self.num_classes is None:
            return []
        if label is None:
            raise ValueError("this VAE is conditional (num_classes): pass label, integers (n,).")
        classes = torch.arange(self.num_classes)
        return [(label.reshape(-1, 1) == classes).to(like.dtype)]

    def _distribution(self, output: Tensor) -> Any:
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=output)
        if self.likelihood == "continuous_bernoulli":
            return dist.ContinuousBernoulli(logits=output)
        if self.likelihood == "poisson":
            return dist.Poisson(output.exp())
        return dist.Normal(output, self.noise)  # type: ignore[arg-type]


class _Labelled(nn.Module):
    """A network in two parts, between which labels, if there are any, join in."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor, *label: Tensor) -> Tensor:
        features = self.first(x)
        return self.second(torch.cat([features, *label], -1) if label else features)


def _calm(net: nn.Sequential) -> nn.Sequential:
    """Give the last layer small weights: scales start at one, and pixels undecided."""
    layers = [layer for layer in net if hasattr(layer, "weight")]
    initialize(layers[-1], "small_normal")
    return net
