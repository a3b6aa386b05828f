r"""Feedforward networks: layers and their initialization, Bayesian versions, Lipschitz bounds.

A feedforward network is a composition of affine maps and element-wise activations,

.. math:: f(x) = W_L\, a(\cdots a(W_1 x + b_1) \cdots) + b_L

with N × M weights for a layer from N to M, and for a convolution as many as its filters have.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from probdl.errors import ModelError, SettingError

__all__ = [
    "MLP",
    "ConvNet",
    "TransposedConvNet",
    "bayesian",
    "initialize",
    "lipschitz_bound",
    "lipschitz_estimate",
]

SMALL = 0.01  # standard deviation of small random weights
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)

_Sequential: Any = PyroModule[nn.Sequential]
_Linear: Any = PyroModule[nn.Linear]
_Conv2d: Any = PyroModule[nn.Conv2d]
_ConvTranspose2d: Any = PyroModule[nn.ConvTranspose2d]

SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    "small_normal": lambda w: nn.init.normal_(w, std=SMALL),
    "xavier": nn.init.xavier_normal_,
    "he": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
}


def initialize(module: nn.Module, scheme: str = "he", bias: float = 0.0) -> nn.Module:
    r"""Set the weights of all layers at random, and the biases to a constant.

    ``"small_normal"`` draws weights from N(0, 0.01²); ``"xavier"`` gives them the variance
    2 / (N + M), which keeps that of signals and gradients through linear and tanh layers; ``"he"``
    the variance 2 / N, which does so through ReLU.

    Args:
        module: what to initialize, in place.
        scheme: how.
        bias: of all layers: zero, or a small positive number that keeps ReLUs alive at first.

    Returns:
        The module.

    Raises:
        SettingError: there is no such scheme.

    >>> import torch
    >>> layer = initialize(torch.nn.Linear(100, 50), "xavier", bias=0.1)
    >>> bool((layer.bias == 0.1).all()), 0.09 < layer.weight.std() < 0.14   # sqrt(2 / 150) = 0.115
    (True, tensor(True))

    Source: Glorot and Bengio (2010); He, Zhang, Ren and Sun (2015).
    """
    if scheme not in SCHEMES:
        raise SettingError(f"initialize={scheme!r} must be one of {', '.join(map(repr, SCHEMES))}.")
    for layer in module.modules():
        if isinstance(layer, _LAYERS):
            with torch.no_grad():
                SCHEMES[scheme](layer.weight)
                if layer.bias is not None:
                    layer.bias.fill_(bias)
    return module


class _Network(_Sequential):
    def __getitem__(self, index: Any) -> Any:
        """Return a layer, or a sequence of some: torch would call the class with those layers."""
        if isinstance(index, slice):
            return _Sequential(*list(self)[index])
        return super().__getitem__(index)


class MLP(_Network):
    """A network of fully connected layers with an activation between.

    Args:
        sizes: of the input, the hidden layers and the output: (N, M) makes one layer with N × M
            weights and M biases.
        activation: makes the activation.
        initialize: ``"small_normal"``, ``"xavier"`` or ``"he"``.
        bias: of all layers, before training.
        dropout: the share of each hidden layer's outputs that training leaves out at random.

    Raises:
        SettingError: there are fewer than two sizes, or no such scheme.

    >>> import torch
    >>> net = MLP([3, 16, 2])
    >>> [tuple(p.shape) for p in net.parameters()]
    [(16, 3), (16,), (2, 16), (2,)]
    >>> net(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[], nn.Module] = nn.ReLU,
        initialize: str = "he",
        bias: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        if len(sizes) < 2 or any(not isinstance(n, int) or n < 1 for n in sizes):
            raise SettingError(
                f"sizes={list(sizes)!r}: give the size of the input, those of hidden layers and "
                "that of the output, whole numbers of at least 1."
            )
        layers: list[nn.Module] = []
        for n, m in itertools.pairwise(sizes):
            layers += [_Linear(n, m), activation()]
            layers += [nn.Dropout(dropout)] if dropout else []
        super().__init__(*layers[: -2 if dropout else -1])
        _initialize(self, initialize, bias)


class ConvNet(_Network):
    """A network of convolutions, each of which shrinks the image, and fully connected layers.

    A convolution with F filters of k × k over C channels has F × k × k × C weights and F biases.

    Args:
        shape: of one image, (height, width) or (channels, height, width).
        channels: how many filters each convolution has.
        sizes: of the fully connected layers after them, the output last; none for the features.
        kernel: the side of a filter.
        stride: by how much each convolution shrinks the image, which is padded to that end.
        activation: makes the activation.
        initialize: ``"small_normal"``, ``"xavier"`` or ``"he"``.
        bias: of all layers, before training.

    Raises:
        SettingError: the image cannot be shrunk so often.

    >>> import torch
    >>> net = ConvNet((8, 8), channels=[16], sizes=[10], kernel=2)
    >>> [p.numel() for p in net.parameters()]         # 16 filters of 2 × 2 × 1, and 256 × 10
    [64, 16, 2560, 10]
    >>> net(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        sizes: Sequence[int] = (),
        kernel: int = 4,
        stride: int = 2,
        activation: Callable[[], nn.Module] = nn.ReLU,
        initialize: str = "he",
        bias: float = 0.0,
    ) -> None:
        image, small = _shrunk(shape, channels, stride)
        layers: list[nn.Module] = [] if len(shape) == 3 else [nn.Unflatten(1, (1, shape[0]))]
        padding, extra = _padding(kernel, stride)
        for a, b in itertools.pairwise([image[0], *channels]):
            layers += [nn.ZeroPad2d((0, extra, 0, extra))] if extra else []
            layers += [_Conv2d(a, b, kernel, stride, padding), activation()]
        layers.append(nn.Flatten())
        for a, b in itertools.pairwise([math.prod(small), *sizes]):
            layers += [_Linear(a, b), activation()]
        super().__init__(*(layers[:-1] if sizes else layers))
        _initialize(self, initialize, bias)
        self.features = sizes[-1] if sizes else math.prod(small)


class TransposedConvNet(_Network):
    """The mirror image of a ``ConvNet``: from numbers to images.

    Args:
        sizes: of the input and of the fully connected layers.
        shape: of one image, (height, width) or (channels, height, width).
        channels: those of the ``ConvNet``, in its order: the last come first here.
        kernel: the side of a filter; kernel - stride must be even and not negative.
        stride: by how much each layer enlarges the image.
        activation: makes the activation.
        initialize: ``"small_normal"``, ``"xavier"`` or ``"he"``.
        bias: of all layers, before training.

    Raises:
        SettingError: the image cannot be made by so many layers.

    >>> import torch
    >>> TransposedConvNet([20, 64], (28, 28), channels=[8, 16])(torch.zeros(5, 20)).shape
    torch.Size([5, 28, 28])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        kernel: int = 4,
        stride: int = 2,
        activation: Callable[[], nn.Module] = nn.ReLU,
        initialize: str = "he",
        bias: float = 0.0,
    ) -> None:
        image, small = _shrunk(shape, channels, stride)
        padding, extra = _padding(kernel, stride)
        if extra:
            raise SettingError(
                f"kernel={kernel}, stride={stride}: kernel - stride must be even and not negative."
            )
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise([*sizes, math.prod(small)]):
            layers += [_Linear(a, b), activation()]
        layers.append(nn.Unflatten(1, small))
        for a, b in itertools.pairwise([image[0], *channels][::-1]):
            layers += [_ConvTranspose2d(a, b, kernel, stride, padding), activation()]
        super().__init__(*layers[:-1], *([] if len(shape) == 3 else [nn.Flatten(1, 2)]))
        _initialize(self, initialize, bias)


_initialize = initialize  # classes have an argument of that name


def _shrunk(
    shape: Sequence[int], channels: Sequence[int], stride: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the shape of an image with its channels, and what the convolutions leave of it."""
    *depth, height, width = shape
    factor = stride ** len(channels)
    if not channels or len(depth) > 1 or height % factor or width % factor:
        raise SettingError(
            f"shape={tuple(shape)}: {len(channels)} convolutions of stride {stride} need an image "
            f"(height, width) or (channels, height, width) whose sides {factor} divides. Pad it, "
            "or give fewer channels."
        )
    return (
        ((depth or [1])[0], height, width),
        (channels[-1], height // factor, width // factor),
    )


def _padding(kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding on all sides, and what is missing on two, to shrink by the stride."""
    if kernel < stride:
        raise SettingError(f"kernel={kernel} must be at least stride={stride}.")
    return (kernel - stride) // 2, (kernel - stride) % 2


def bayesian(
    module: nn.Module, prior: float | Any | Callable[[str, Tensor], Any] = 1.0
) -> PyroModule:
    r"""Make a network whose weights and biases are sample sites.

    .. math:: w \sim N(0, \sigma^2) \quad\Rightarrow\quad
        -\log p(w) = \frac{1}{2 \sigma^2} \lVert w \rVert^2 + \mathrm{const}

    so that its MAP estimate is that of weight decay, the usual regularization. Call it inside a
    model; each call samples all weights once.

    Args:
        module: any network; it is copied, not changed.
        prior: the standard deviation of independent normal priors; a distribution of one weight
            such as ``dist.Laplace(0.0, 1.0)``; or a function of the parameter's name and value to
            a distribution of its shape.

    Returns:
        The network, with a site for each parameter, by its name in the module.

    Raises:
        SettingError: the prior is no such thing.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> net = probdl.nn.bayesian(torch.nn.Linear(1, 1), prior=2.0)
        >>> def model(x, y=None):
        ...     mean = net(x)[:, 0]
        ...     with pyro.plate("obs", len(x)):
        ...         pyro.sample("y", dist.Normal(mean, 0.5), obs=y)
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> fit = probdl.infer(model, x, 3 * x[:, 0], method="map", seed=1)
        >>> sorted(fit.draws), fit.draws["weight"].shape
        (['bias', 'weight'], (1, 1, 1, 1))

    Source: Neal, *Bayesian Learning for Neural Networks* (1996).
    """
    made: Any = copy.deepcopy(module)
    to_pyro_module_(made)
    for path, layer in made.named_modules():
        for name, value in list(layer.named_parameters(recurse=False)):
            full = f"{path}.{name}" if path else name
            setattr(layer, name, PyroSample(_prior(prior, full, value.detach())))
    return made


def _prior(prior: Any, name: str, value: Tensor) -> Callable[[Any], Any]:
    shape = value.shape
    if isinstance(prior, (int, float)) and not isinstance(prior, bool) and prior > 0:
        scale = float(prior)
        return lambda _: dist.Normal(0.0, scale).expand(shape).to_event(len(shape))
    if hasattr(prior, "log_prob"):
        return lambda _: prior.expand(shape).to_event(len(shape))
    if callable(prior):
        made = prior(name, value)
        if made.shape() != shape:
            raise SettingError(
                f"the prior of '{name}' has the shape {tuple(made.shape())}, and the parameter "
                f"{tuple(shape)}. Use .expand(value.shape)."
            )
        return lambda _: made.to_event(len(shape) - made.event_dim)
    raise SettingError(
        f"prior={prior!r} must be a positive number, a distribution, or a function of a "
        "parameter's name and value to a distribution."
    )


# The largest slope of activations and other maps without weights.
_SLOPES: dict[type[nn.Module], float] = {
    nn.Identity: 1.0, nn.Flatten: 1.0, nn.Unflatten: 1.0, nn.ReLU: 1.0, nn.ReLU6: 1.0,
    nn.Tanh: 1.0, nn.Sigmoid: 0.25, nn.Softplus: 1.0, nn.Softsign: 1.0, nn.LogSigmoid: 1.0,
    nn.Hardtanh: 1.0, nn.SELU: 1.7581, nn.GELU: 1.1290, nn.SiLU: 1.0999, nn.Mish: 1.0885,
    nn.Dropout: 1.0, nn.ZeroPad2d: 1.0, nn.Softmax: 1.0,
}  # fmt: skip


def lipschitz_bound(module: nn.Module) -> float:
    r"""Bound the Lipschitz constant of a feedforward network, in Euclidean norm.

    .. math:: |f(x_1) - f(x_2)| \le K |x_1 - x_2|, \qquad
        K \le \prod_l \lVert W_l \rVert_2 \, \max |a_l'|

    The product of the spectral norms of the layers and the largest slopes of the activations. For
    one linear map it is exact; for a network it is an upper bound, often a loose one.
    A convolution is bounded by the norms of its kernel (Singla and Feizi, 2021). Dropout counts as
    in evaluation.

    Raises:
        ModelError: a layer is not one of a chain of linear layers, convolutions and activations.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    >>> round(lipschitz_bound(torch.nn.Sequential(layer, torch.nn.Sigmoid())), 6)
    0.75
    """
    if isinstance(module, nn.Sequential):
        return math.prod(lipschitz_bound(layer) for layer in module)
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        return float(_norm(module))
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope))
    if isinstance(module, nn.ELU):
        return max(1.0, abs(module.alpha))
    for kind, slope in _SLOPES.items():
        if isinstance(module, kind):
            return slope
    raise ModelError(
        f"a {type(module).__name__} is not one of the layers whose Lipschitz constant is known "
        "(linear, convolutional, activations, in a torch.nn.Sequential). lipschitz_estimate() "
        "gives a lower bound for any function."
    )


def _norm(layer: Any) -> Tensor:
    weight = layer.weight.detach().to(torch.float64)
    if isinstance(layer, nn.Linear):
        return torch.linalg.matrix_norm(weight, 2)
    if layer.groups != 1:
        raise ModelError("the Lipschitz constant of a convolution with groups is not known here.")
    # A transposed convolution is the adjoint of a convolution, and has its norm.
    out, into, height, width = weight.shape
    # Four ways of writing the kernel as a matrix; each times sqrt(height × width) is a bound.
    matrices = [
        weight.reshape(out, into * height * width),
        weight.permute(1, 0, 2, 3).reshape(into, out * height * width),
        weight.permute(0, 2, 1, 3).reshape(out * height, into * width),
        weight.permute(0, 3, 1, 2).reshape(out * width, into * height),
    ]
    norms = [torch.linalg.matrix_norm(m, 2) for m in matrices]
    return torch.stack(norms).min() * math.sqrt(height * width)


def lipschitz_estimate(
    fn: Callable[[Tensor], Tensor], x: Tensor, num_pairs: int = 10_000, seed: int = 0
) -> float:
    r"""Estimate the Lipschitz constant of any function from a sample: a lower bound.

    .. math:: K \ge \max_{i, j} \frac{|f(x_i) - f(x_j)|}{|x_i - x_j|}, \qquad
        K \ge \max_i \lVert \partial f(x_i) / \partial x \rVert_2

    Args:
        fn: maps a batch (n, *shape) to (n,) or (n, *shape); differentiable by torch, at the
            sample at least.
        x: the sample (n, *shape), of at least two points.
        num_pairs: how many pairs to compare; all, where there are no more.
        seed: which pairs.

    >>> import torch
    >>> lipschitz_estimate(torch.abs, torch.linspace(-1, 1, 101))   # not differentiable at 0
    1.0
    """
    if len(x) < 2:
        raise SettingError(f"x has {len(x)} points, and a Lipschitz constant compares two.")
    with torch.no_grad():
        y = fn(x)
        n = len(x)
        if n * (n - 1) // 2 <= num_pairs:
            i, j = torch.triu_indices(n, n, 1)
        else:
            generator = torch.Generator().manual_seed(seed)
            i, j = torch.randint(n, (2, num_pairs), generator=generator)
        apart = (x[i] - x[j]).reshape(len(i), -1).norm(dim=1)
        moved = (y[i] - y[j]).reshape(len(i), -1).norm(dim=1)
        ratios = (moved / apart)[apart > 0]
        largest = float(ratios.max()) if len(ratios) else 0.0
    inputs = x.detach().clone().requires_grad_()
    outputs = fn(inputs)
    flat = outputs.reshape(n, -1)
    rows = [
        torch.autograd.grad(flat[:, k].sum(), inputs, retain_graph=True)[0].reshape(n, -1)
        for k in range(flat.shape[1])
    ]
    slopes = torch.linalg.matrix_norm(torch.stack(rows, 1), 2)
    return max(largest, float(slopes.max()))
