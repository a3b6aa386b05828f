"""``AdversarialFit``: a generator that was trained against a discriminator."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from probdl.results.divergence import Divergence, estimate_divergence
from probdl.results.fit import Fit
from probdl.results.state import FittedBy
from probdl.util.isolation import sheltered
from probdl.util.seeds import stream

__all__ = ["AdversarialFit"]

Array = NDArray[Any]


class _WithDiscriminator(FittedBy, Protocol):
    @property
    def discriminator(self) -> nn.Module | None: ...


_LOSSES = ("discriminator_loss", "generator_loss")


@dataclass(frozen=True, repr=False)
class AdversarialFit(Fit, needs="discriminator; Fit by method=probdl.GAN(...)."):
    """A fit by ``GAN``: the generator, with the discriminator in ``stats``."""

    method: _WithDiscriminator

    def _facts(self) -> list[str]:
        losses = {n: np.asarray(self.stats[n]) for n in _LOSSES if len(self.stats.get(n, ()))}
        if not losses:
            return []
        steps = max(map(len, losses.values()))
        shown = ", ".join(
            f"{name.replace('_', ' ')} {v[-max(1, len(v) // 20) :].mean():.4g}"
            for name, v in losses.items()
        )
        return [f"{steps} steps, in the last {max(1, steps // 20)}: {shown}"]

    @sheltered()
    def predict(
        self,
        *args: Any,
        num_samples: int | None = None,
        out: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Draw from the generator; the number of samples may be the only argument.

        See :meth:`Fit.predict`.

        Example:
            >>> import torch, pyro, pyro.distributions as dist, probdl
            >>> generator = torch.nn.Linear(1, 1)
            >>> def model(x=None, size=1):
            ...     pyro.module("generator", generator)
            ...     with pyro.plate("data", len(x) if x is not None else size):
            ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            ...         pyro.deterministic("x", generator(z), event_dim=1)
            >>> method = probdl.GAN(discriminator=probdl.nn.MLP([1, 8, 1]), steps=20)
            >>> fit = probdl.infer(model, torch.randn(500, 1), method=method, seed=1)
            >>> fit.predict(5)["x"].shape
            (1, 1, 5, 1)
        """
        if len(args) == 1 and isinstance(args[0], int):
            num_samples, args = args[0], ()
        return super().predict(*args, num_samples=num_samples, out=out, **kwargs)

    @sheltered()
    def divergence(self, x: Any, *, steps: int = 2000) -> Divergence:
        r"""Estimate the Jensen-Shannon divergence of draws from data (Eqs. 8 to 14).

        .. math:: JS \ge (V + \log 4) / 2

        V is the value function of a new discriminator. Half of the data, and of as many draws, are
        for training, a quarter for early stopping, and a quarter for the estimate.

        Args:
            x: data (n, *shape), at least 40 rows; preferably held-out data.
            steps: maximum number of training steps of the discriminator.

        Example:
            >>> import torch, pyro, pyro.distributions as dist, probdl
            >>> generator = torch.nn.Linear(1, 1)
            >>> def model(x=None, size=1):
            ...     pyro.module("generator", generator)
            ...     with pyro.plate("data", len(x) if x is not None else size):
            ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            ...         pyro.deterministic("x", generator(z), event_dim=1)
            >>> method = probdl.GAN(discriminator=probdl.nn.MLP([1, 8, 1]), steps=200)
            >>> fit = probdl.infer(model, torch.randn(500, 1), method=method, seed=1)
            >>> 0 <= fit.divergence(torch.randn(200, 1), steps=50).value <= 0.6932
            True

        Source: Goodfellow et al., "Generative adversarial nets" (2014), theorem 1.
        """
        real = torch.as_tensor(np.asarray(x)).to(self.program.dtype)
        fake = torch.as_tensor(self.predict(num_samples=len(real))[self.stats["site"]])
        fake = fake.reshape(real.shape)
        seed = stream(self.seed, "divergence")
        assert self.method.discriminator is not None
        opponent = copy.deepcopy(self.method.discriminator).to(real.dtype)
        return estimate_divergence(real, fake, opponent, steps=steps, seed=seed)
