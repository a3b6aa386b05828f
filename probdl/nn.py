r"""Feedforward networks: architectures, initialization, Bayesian versions, Lipschitz constants.

A feedforward network is a composition of affine maps and element-wise activations,

.. math:: f(x) = W_L\, a(\cdots a(W_1 x + b_1) \cdots) + b_L

with N × M weights for a fully connected layer from N to M units.
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
from probdl.model.advice import explained
from probdl.util.memory import machine_memory
from probdl.util.settings import check_choice, is_int, is_real, setting_error

__all__ = [
    "MLP",
    "ConvNet",
    "TransposedConvNet",
    "bayesian",
    "initialize",
    "lipschitz_bound",
    "lipschitz_estimate",
]

SMALL_WEIGHT_SD = 0.01  # of the scheme "small_normal"
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)

_Sequential: Any = PyroModule[nn.Sequential]
_Linear: Any = PyroModule[nn.Linear]
_Conv2d: Any = PyroModule[nn.Conv2d]
_ConvTranspose2d: Any = PyroModule[nn.ConvTranspose2d]

SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    "small_normal": lambda w: nn.init.normal_(w, std=SMALL_WEIGHT_SD),
    "xavier": nn.init.xavier_normal_,
    "he": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
}


@explained("initialize()")
def initialize(module: nn.Module, scheme: str = "he", bias: float = 0.0) -> nn.Module:
    r"""Initialize the weights of all layers randomly, and the biases to a constant.

    ``"small_normal"`` draws the weights from N(0, 0.01²). ``"xavier"`` uses the variance
    2 / (N + M), which preserves the variance of signals and gradients through linear and tanh
    layers. ``"he"`` uses the variance 2 / N, which does the same through ReLU layers.

    Args:
        module: the module to initialize, in place.
        scheme: ``"small_normal"``, ``"xavier"`` or ``"he"``.
        bias: the biases of all layers: zero, or a small positive number so that ReLUs start
            active.

    Returns:
        The module.

    Raises:
        SettingError: the scheme does not exist.

    >>> import torch
    >>> layer = initialize(torch.nn.Linear(100, 50), "xavier", bias=0.1)
    >>> bool((layer.bias == 0.1).all()), 0.09 < layer.weight.std() < 0.14   # sqrt(2 / 150) = 0.115
    (True, tensor(True))

    Source: Glorot and Bengio (2010); He, Zhang, Ren and Sun (2015).
    """
    check_choice("initialize", scheme=(scheme, SCHEMES))
    for layer in module.modules():
        if isinstance(layer, _LAYERS):
            with torch.no_grad():
                SCHEMES[scheme](layer.weight)
                if layer.bias is not None:
                    layer.bias.fill_(bias)
    return module


def _check_memory(owner: str, sizes: Sequence[int]) -> None:
    """Check that fully connected layers fit into memory, twice, since a fit has its own copy."""
    needed = 2 * 4 * sum(n * m for n, m in itertools.pairwise(sizes))
    if needed > (available := machine_memory(unknown=2**36)):
        rule = (
            f"would need {needed / 2**30:.3g} GiB for the weights and a copy, and this machine has "
            f"{available / 2**30:.3g} GiB of memory"
        )
        raise setting_error(owner, "sizes", list(sizes), rule)


class _Network(_Sequential):
    def _initialize(self, scheme: str, bias: float) -> None:
        check_choice(type(self).__name__, initialize=(scheme, SCHEMES))
        initialize(self, scheme, bias)

    def __getitem__(self, index: Any) -> Any:
        """Return a layer, or a sequence of layers: torch would call this class with the layers."""
        if isinstance(index, slice):
            return _Sequential(*list(self)[index])
        return super().__getitem__(index)


class MLP(_Network):
    """A network of fully connected layers with activations in between.

    Args:
        sizes: the sizes of the input, the hidden layers and the output: (N, M) makes one layer
            with N × M weights and M biases.
        activation: the class of the activation, or a function that makes one.
        initialize: ``"small_normal"``, ``"xavier"`` or ``"he"``; see :func:`initialize`.
        bias: the initial biases of all layers.
        dropout: the probability of dropping each hidden unit in training.

    Raises:
        SettingError: there are fewer than two sizes, or the scheme does not exist.

    >>> import torch
    >>> net = MLP([3, 16, 2])
    >>> [tuple(p.shape) for p in net.parameters()]
    [(16, 3), (16,), (2, 16), (2,)]
    >>> net(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    @explained("MLP()")
    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[], nn.Module] = nn.ReLU,
        initialize: str = "he",
        bias: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        if len(sizes) < 2 or any(not is_int(n) or n < 1 for n in sizes):
            rule = (
                "must hold the sizes of the input, the hidden layers and the output, integers "
                "of at least 1"
            )
            raise setting_error("MLP", "sizes", list(sizes), rule)
        _check_memory("MLP", sizes)
        layers: list[nn.Module] = []
        for n, m in itertools.pairwise(sizes):
            layers += [_Linear(n, m), activation()]
            layers += [nn.Dropout(dropout)] if dropout else []
        super().__init__(*layers[: -2 if dropout else -1])
        self._initialize(initialize, bias)


class ConvNet(_Network):
    """A network of convolutions, each of which downsamples the image, and fully connected layers.

    A convolution with F filters of k × k over C channels has F × k × k × C weights and F biases.

    Args:
        shape: the shape of one image, (height, width) or (channels, height, width).
        channels: the number of filters of each convolution.
        sizes: the sizes of the fully connected layers after the convolutions, the output last;
            if empty, the network returns the features of the convolutions.
        kernel: the width and height of a filter.
        stride: the factor by which each convolution divides the sides of the image; the image is
            padded accordingly.
        activation: the class of the activation, or a function that makes one.
        initialize: ``"small_normal"``, ``"xavier"`` or ``"he"``; see :func:`initialize`.
        bias: the initial biases of all layers.

    Raises:
        SettingError: the sides of the image are not divisible often enough, or a setting is
            invalid.

    >>> import torch
    >>> net = ConvNet((8, 8), channels=[16], sizes=[10], kernel=2)
    >>> [p.numel() for p in net.parameters()]         # 16 filters of 2 × 2 × 1, and 256 × 10
    [64, 16, 2560, 10]
    >>> net(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    @explained("ConvNet()")
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
        image, small = _image_shapes("ConvNet", shape, channels, stride)
        layers: list[nn.Module] = [] if len(shape) == 3 else [nn.Unflatten(1, (1, shape[0]))]
        padding, extra = _padding("ConvNet", kernel, stride)
        for a, b in itertools.pairwise([image[0], *channels]):
            layers += [nn.ZeroPad2d((0, extra, 0, extra))] if extra else []
            layers += [_Conv2d(a, b, kernel, stride, padding), activation()]
        layers.append(nn.Flatten())
        _check_memory("ConvNet", [math.prod(small), *sizes])
        for a, b in itertools.pairwise([math.prod(small), *sizes]):
            layers += [_Linear(a, b), activation()]
        super().__init__(*(layers[:-1] if sizes else layers))
        self._initialize(initialize, bias)
        self.features = sizes[-1] if sizes else math.prod(small)


class TransposedConvNet(_Network):
    """The reverse of a ``ConvNet``: a network from vectors to images.

    Args:
        sizes: the sizes of the input and of the fully connected layers.
        shape: the shape of one image, (height, width) or (channels, height, width).
        channels: the channels of the corresponding ``ConvNet``, in its order; here the last
            come first.
        kernel: the width and height of a filter; kernel - stride must be even and not negative.
        stride: the factor by which each layer multiplies the sides of the image.
        activation: the class of the activation, or a function that makes one.
        initialize: ``"small_normal"``, ``"xavier"`` or ``"he"``; see :func:`initialize`.
        bias: the initial biases of all layers.

    Raises:
        SettingError: the sides of the image are not divisible often enough, or a setting is
            invalid.

    >>> import torch
    >>> TransposedConvNet([20, 64], (28, 28), channels=[8, 16])(torch.zeros(5, 20)).shape
    torch.Size([5, 28, 28])
    """

    @explained("TransposedConvNet()")
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
        image, small = _image_shapes("TransposedConvNet", shape, channels, stride)
        padding, extra = _padding("TransposedConvNet", kernel, stride)
        if extra:
            rule = f"- stride must be even and not negative, and stride is {stride}"
            raise setting_error("TransposedConvNet", "kernel", kernel, rule)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise([*sizes, math.prod(small)]):
            layers += [_Linear(a, b), activation()]
        layers.append(nn.Unflatten(1, small))
        for a, b in itertools.pairwise([image[0], *channels][::-1]):
            layers += [_ConvTranspose2d(a, b, kernel, stride, padding), activation()]
        super().__init__(*layers[:-1], *([] if len(shape) == 3 else [nn.Flatten(1, 2)]))
        self._initialize(initialize, bias)


def _image_shapes(
    owner: str, shape: Sequence[int], channels: Sequence[int], stride: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the shapes (channels, height, width) before and after the convolutions."""
    *depth, height, width = shape
    factor = stride ** len(channels)
    if not channels or len(depth) > 1 or height % factor or width % factor:
        rule = (
            "must be (height, width) or (channels, height, width) with height and width divisible "
            f"by {factor}, for {len(channels)} convolutions of stride {stride}. Pad the image, or "
            "use fewer channels"
        )
        raise setting_error(owner, "shape", tuple(shape), rule)
    return (
        ((depth or [1])[0], height, width),
        (channels[-1], height // factor, width // factor),
    )


def _padding(owner: str, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding on all sides, and additional padding on two, to divide by the stride."""
    if kernel < stride:
        raise setting_error(owner, "kernel", kernel, f"must be at least the stride, {stride}")
    return (kernel - stride) // 2, (kernel - stride) % 2


@explained("bayesian()")
def bayesian(
    module: nn.Module, prior: float | Any | Callable[[str, Tensor], Any] = 1.0
) -> PyroModule:
    r"""Make a network whose weights and biases are sample sites.

    .. math:: w \sim N(0, \sigma^2) \quad\Rightarrow\quad
        -\log p(w) = \frac{1}{2 \sigma^2} \lVert w \rVert^2 + \mathrm{const}

    so the MAP estimate is the estimate with weight decay, the usual regularization. The network is
    no model yet, since it has no likelihood. Call it inside a model; each call samples all weights
    once.

    Args:
        module: any network; it is copied, not changed.
        prior: the standard deviation of independent normal priors; a distribution of one weight
            such as ``dist.Laplace(0.0, 1.0)``; or a function from a parameter's name and value to
            a distribution of its shape.

    Returns:
        The network, with a site for each parameter, named as in the module.

    Raises:
        SettingError: the prior is of another type, or its shape is wrong.

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
    network: Any = copy.deepcopy(module)
    to_pyro_module_(network)
    for path, layer in network.named_modules():
        for name, value in list(layer.named_parameters(recurse=False)):
            full = f"{path}.{name}" if path else name
            setattr(layer, name, PyroSample(_prior(prior, full, value.detach())))
    network.probdl_network = True  # recognised by is_network()
    return network


def is_network(module: Any) -> bool:
    """Return whether a module is a network, by ``bayesian`` or of a class of torch or this file."""
    of_library = type(module).__module__.startswith(("torch.nn.", "pyro.nn.", "probdl.nn"))
    return isinstance(module, nn.Module) and (of_library or hasattr(module, "probdl_network"))


def _prior(prior: Any, name: str, value: Tensor) -> Callable[[Any], Any]:
    shape = value.shape
    if is_real(prior) and prior > 0:
        scale = float(prior)
        return lambda _: dist.Normal(0.0, scale).expand(shape).to_event(len(shape))
    if hasattr(prior, "log_prob"):
        return lambda _: prior.expand(shape).to_event(len(shape))
    if callable(prior):
        of_parameter = prior(name, value)
        if of_parameter.shape() != shape:
            raise SettingError(
                f"The prior of '{name}' has shape {tuple(of_parameter.shape())}, but the parameter "
                f"has shape {tuple(shape)}. Use .expand(value.shape)."
            )
        return lambda _: of_parameter.to_event(len(shape) - of_parameter.event_dim)
    rule = (
        "must be a positive number, a distribution, or a function from a parameter's name and "
        "value to a distribution"
    )
    raise setting_error("bayesian", "prior", prior, rule)


# Lipschitz constants of activations and other maps without weights.
_MAX_SLOPES: dict[type[nn.Module], float] = {
    nn.Identity: 1.0, nn.Flatten: 1.0, nn.Unflatten: 1.0, nn.ReLU: 1.0, nn.ReLU6: 1.0,
    nn.Tanh: 1.0, nn.Sigmoid: 0.25, nn.Softplus: 1.0, nn.Softsign: 1.0, nn.LogSigmoid: 1.0,
    nn.Hardtanh: 1.0, nn.SELU: 1.7581, nn.GELU: 1.1290, nn.SiLU: 1.0999, nn.Mish: 1.0885,
    nn.Dropout: 1.0, nn.ZeroPad2d: 1.0, nn.Softmax: 1.0,
}  # fmt: skip


@explained("lipschitz_bound()")
def lipschitz_bound(module: nn.Module) -> float:
    r"""Bound the Lipschitz constant of a feedforward network, in Euclidean norm.

    .. math:: |f(x_1) - f(x_2)| \le K |x_1 - x_2|, \qquad
        K \le \prod_l \lVert W_l \rVert_2 \, \max |a_l'|

    This is the product of the spectral norms of the layers and the largest slopes of the
    activations. It is exact for one linear map, and an upper bound for a network, often a loose
    one. The norm of a convolution is bounded by the norms of its kernel (Singla and Feizi, 2021).
    Dropout is treated as in evaluation mode.

    Args:
        module: a linear or convolutional layer, an activation, or an ``nn.Sequential`` of these.

    Raises:
        ModelError: the Lipschitz constant of a layer is unknown.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    >>> round(lipschitz_bound(torch.nn.Sequential(layer, torch.nn.Sigmoid())), 6)
    0.75
    """
    if isinstance(module, nn.Sequential):
        return math.prod(lipschitz_bound(layer) for layer in module)
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        return float(_norm_bound(module))
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope))
    if isinstance(module, nn.ELU):
        return max(1.0, abs(module.alpha))
    for kind, slope in _MAX_SLOPES.items():
        if isinstance(module, kind):
            return slope
    raise ModelError(
        f"The Lipschitz constant of a {type(module).__name__} is unknown. Use linear and "
        "convolutional layers and activations in a torch.nn.Sequential, or lipschitz_estimate(), "
        "which gives a lower bound for any function."
    )


def _norm_bound(layer: Any) -> Tensor:
    """Bound the spectral norm of a layer: exact for a linear one."""
    weight = layer.weight.detach().to(torch.float64)
    if isinstance(layer, nn.Linear):
        return torch.linalg.matrix_norm(weight, 2)
    if layer.groups != 1:
        raise ModelError(
            "The Lipschitz constant of a convolution with groups is unknown. Use "
            "lipschitz_estimate(), which gives a lower bound for any function."
        )
    # A transposed convolution is the adjoint of a convolution and has the same norm.
    out, into, height, width = weight.shape
    # The norm of each matrix form of the kernel, times sqrt(height × width), is a bound.
    matrices = [
        weight.reshape(out, into * height * width),
        weight.permute(1, 0, 2, 3).reshape(into, out * height * width),
        weight.permute(0, 2, 1, 3).reshape(out * height, into * width),
        weight.permute(0, 3, 1, 2).reshape(out * width, into * height),
    ]
    norms = [torch.linalg.matrix_norm(m, 2) for m in matrices]
    return torch.stack(norms).min() * math.sqrt(height * width)


@explained("lipschitz_estimate()")
def lipschitz_estimate(
    fn: Callable[[Tensor], Tensor], x: Tensor, num_pairs: int = 10_000, seed: int = 0
) -> float:
    r"""Estimate the Lipschitz constant of any function from a sample; the result is a lower bound.

    .. math:: K \ge \max_{i, j} \frac{|f(x_i) - f(x_j)|}{|x_i - x_j|}, \qquad
        K \ge \max_i \lVert \partial f(x_i) / \partial x \rVert_2

    Args:
        fn: a function from a batch (n, *shape) to (n,) or (n, *shape), differentiable by torch at
            the points of the sample.
        x: the sample (n, *shape), at least two points.
        num_pairs: the number of random pairs to compare; all pairs if there are fewer.
        seed: the seed for the choice of pairs.

    Raises:
        SettingError: the sample has fewer than two points.

    >>> import torch
    >>> lipschitz_estimate(torch.abs, torch.linspace(-1, 1, 101))   # not differentiable at 0
    1.0
    """
    if len(x) < 2:
        raise SettingError(f"x has {len(x)} points. lipschitz_estimate() needs at least two.")
    with torch.no_grad():
        y = fn(x)
        n = len(x)
        if n * (n - 1) // 2 <= num_pairs:
            i, j = torch.triu_indices(n, n, 1)
        else:
            generator = torch.Generator().manual_seed(seed)
            i, j = torch.randint(n, (2, num_pairs), generator=generator)
        input_distance = (x[i] - x[j]).reshape(len(i), -1).norm(dim=1)
        output_distance = (y[i] - y[j]).reshape(len(i), -1).norm(dim=1)
        ratios = (output_distance / input_distance)[input_distance > 0]
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
