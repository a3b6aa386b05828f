r"""The losses of adversarial training, of the discriminator and of the generator.

With D = sigmoid(l) and logits l of data x and of draws g (Eq. 6):

- minimax: the discriminator maximises log D(x) + log(1 - D(g)), the generator minimises it;
- non-saturating: the generator maximises log D(g), whose gradient does not vanish while it loses;
- Wasserstein: the critic l maximises l(x) - l(g), held to slope one by a gradient penalty;
- hinge: margins of one, the critic held to slope one by spectral normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu, softplus
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from probdl.methods.variational.objective import Trainable

__all__ = ["LOSSES", "Critic", "DiscriminatorLoss", "GeneratorLoss", "normalised"]

LOSSES = ("minimax", "non_saturating", "wasserstein", "hinge")


class Critic:
    """A discriminator whose weights are given from outside as it runs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.names, self.leaves = list(named), list(named.values())
        self.buffers = list(module.buffers())

    def __call__(self, values: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the logits (n,) of rows."""
        weights = dict(zip(self.names, values, strict=True))
        return functional_call(self.module, weights, (x,)).reshape(len(x))


def normalised(module: nn.Module) -> nn.Module:
    """Divide the weights of all layers by their spectral norms, in place."""
    for layer in list(module.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)) and not (
            parametrize.is_parametrized(layer, "weight")
        ):
            spectral_norm(layer)
    return module


class _Game:
    """What both losses share. Data are the model's tensors, then the opponent's weights."""

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
        self.sample = sample  # (weights of the generator, the model's tensors) to draws
        self.index = index  # of the data among the model's tensors
        self.loss = loss
        self.penalty = penalty
        self.count = len(generator.program.tensors())

    @property
    def buffers(self) -> list[Tensor]:
        return [*self.critic.buffers, *self.generator.buffers]

    def __call__(
        self, values: Sequence[Tensor], data: Sequence[Tensor], *, traced: bool = False
    ) -> Tensor:
        raise NotImplementedError

    def split(self, data: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return data[: self.count], data[self.count :]


class DiscriminatorLoss(_Game):
    """The discriminator's loss; told with it are mean D(x), mean D(g) and the value function."""

    def __call__(
        self, values: Sequence[Tensor], data: Sequence[Tensor], *, traced: bool = False
    ) -> Tensor:
        """Evaluate, and run backward."""
        tensors, weights = self.split(data)
        x = tensors[self.index]
        with torch.no_grad():
            g = self.sample(weights, tensors)
        real, fake = self.critic(values, x), self.critic(values, g)
        if self.loss == "wasserstein":
            value = real.mean() - fake.mean()
            loss = -value + self.penalty * self._slope(values, x, g)
        elif self.loss == "hinge":
            value = real.mean() - fake.mean()
            loss = relu(1 - real).mean() + relu(1 + fake).mean()
        else:
            value = -softplus(-real).mean() - softplus(fake).mean()
            loss = -value
        loss.backward()
        told = [loss, real.sigmoid().mean(), fake.sigmoid().mean(), value]
        return torch.stack([t.detach() for t in told])

    def _slope(self, values: Sequence[Tensor], x: Tensor, g: Tensor) -> Tensor:
        """Return by how much the critic's slope is above one between data and draws, squared.

        Slopes below one are Lipschitz too. A penalty on them as well, the first form of this idea,
        is a wall at slope zero, which the critic cannot pass when it should turn round.
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
        """Evaluate, and run backward."""
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
