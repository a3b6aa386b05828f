r"""The losses of discriminator and generator in adversarial training.

With D = sigmoid(l), where l are the logits of data x or of draws g (Eq. 6):

- minimax: the discriminator maximises log D(x) + log(1 - D(g)), the generator minimises it;
- non-saturating: the generator maximises log D(g), whose gradient does not vanish if D(g) is small;
- Wasserstein: the critic l maximises l(x) - l(g); a gradient penalty limits its slope to one;
- hinge: margins of one; spectral normalisation limits the slope of the critic to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu, softplus
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from probdl.methods.training.trainable import Trainable

__all__ = ["LOSSES", "Critic", "DiscriminatorLoss", "GeneratorLoss", "normalise_spectrally"]

LOSSES = ("minimax", "non_saturating", "wasserstein", "hinge")


class Critic:
    """A discriminator as a function of its weights."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.names, self.leaves = list(named), list(named.values())
        self.buffers = list(module.buffers())

    def __call__(self, values: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the logits (n,) of rows x (n, *shape)."""
        weights = dict(zip(self.names, values, strict=True))
        return functional_call(self.module, weights, (x,)).reshape(len(x))


def normalise_spectrally(module: nn.Module) -> nn.Module:
    """Apply spectral normalisation to all layers, in place, and return the module."""
    for layer in list(module.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)) and not (
            parametrize.is_parametrized(layer, "weight")
        ):
            spectral_norm(layer)
    return module


class _Game:
    """Base class of both losses. Their data are the model's tensors and the opponent's weights."""

    def __init__(
        self,
        generator: Trainable,
        critic: Critic,
        sample: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
        index: int,
        loss: str,
        penalty: float,
    ) -> None:
        self.generator = generator
        self.critic = critic
        self.sample = sample  # maps weights of the generator and the model's tensors to draws
        self.index = index  # position of the data among the model's tensors
        self.loss = loss
        self.penalty = penalty
        self.count = len(generator.program.tensors())

    @property
    def buffers(self) -> list[Tensor]:
        """The running statistics of both networks."""
        return [*self.critic.buffers, *self.generator.buffers]

    def __call__(
        self, values: Sequence[Tensor], data: Sequence[Tensor], *, traced: bool = False
    ) -> Tensor:
        """Evaluate the loss at the player's weights, and backpropagate."""
        raise NotImplementedError

    def split(self, data: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Split data into the model's tensors and the opponent's weights."""
        return data[: self.count], data[self.count :]


class DiscriminatorLoss(_Game):
    """The discriminator's loss, with the mean of D(x), the mean of D(g) and the value function."""

    def __call__(
        self, values: Sequence[Tensor], data: Sequence[Tensor], *, traced: bool = False
    ) -> Tensor:
        """Evaluate the loss, and backpropagate."""
        tensors, weights = self.split(data)
        x = tensors[self.index]
        with torch.no_grad():
            g = self.sample(weights, tensors)
        real, fake = self.critic(values, x), self.critic(values, g)
        if self.loss == "wasserstein":
            value = real.mean() - fake.mean()
            loss = -value + self.penalty * self._excess_slope(values, x, g)
        elif self.loss == "hinge":
            value = real.mean() - fake.mean()
            loss = relu(1 - real).mean() + relu(1 + fake).mean()
        else:
            value = -softplus(-real).mean() - softplus(fake).mean()
            loss = -value
        loss.backward()
        recorded = [loss, real.sigmoid().mean(), fake.sigmoid().mean(), value]
        return torch.stack([t.detach() for t in recorded])

    def _excess_slope(self, values: Sequence[Tensor], x: Tensor, g: Tensor) -> Tensor:
        """Return the mean square of what the critic's slope between data and draws exceeds one by.

        Slopes below one satisfy the Lipschitz condition and are not penalised. The original penalty
        also acts on them, and keeps the critic from changing the sign of its slope.
        """
        share = torch.rand((len(x),) + (1,) * (x.ndim - 1), dtype=x.dtype)
        between = (share * x + (1 - share) * g).requires_grad_()
        (slope,) = torch.autograd.grad(
            self.critic(values, between).sum(), between, create_graph=True
        )
        return relu(slope.reshape(len(x), -1).norm(dim=1) - 1).square().mean()


class GeneratorLoss(_Game):
    """The generator's loss."""

    def __call__(
        self, values: Sequence[Tensor], data: Sequence[Tensor], *, traced: bool = False
    ) -> Tensor:
        """Evaluate the loss, and backpropagate."""
        tensors, weights = self.split(data)
        fake = self.critic(weights, self.sample(values, tensors))
        if self.loss == "minimax":
            loss = -softplus(fake).mean()
        elif self.loss == "non_saturating":
            loss = softplus(-fake).mean()
        else:
            loss = -fake.mean()
        loss.backward()
        return loss.detach()
