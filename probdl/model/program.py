"""A Pyro program with its arguments, ready to run: in one dtype, and with errors that teach."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import os
import sysconfig
import textwrap
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map
from torch.utils.data import DataLoader

from probdl.errors import DataError, ModelError, ProbdlError
from probdl.util.isolation import evaluation

__all__ = ["Program", "Substitute", "WithoutModel", "arguments", "fingerprint", "runnable", "where"]

T = TypeVar("T")

_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_INT_MAX = np.iinfo(np.int64).max
_ARRAYS = ("Series", "Index", "DataArray")  # of pandas and xarray
_DTYPES_DIFFER = ("dtype", "scalar type")  # what torch says of them, in one way or the other
_HERE = os.path.dirname(os.path.dirname(__file__))
_LIBRARIES = (
    os.path.dirname(torch.__file__),
    os.path.dirname(pyro.__file__),
    sysconfig.get_path("stdlib"),
)


_CHECK_SHAPES = (
    "Check that these are the shapes and types that the model expects, and that each plate is as "
    "long as the sites inside it."
)
_ADVICE = {  # by what Pyro and torch say
    "Multiple sample sites named": "Each site needs a name of its own: f'y{i}' in a loop, or "
    "better one site in a pyro.plate.",
    "size cannot be zero": "The data are empty, and a plate needs at least one row.",
    "Shape mismatch inside plate": "The plate and what is sampled in it differ in length. Where "
    "one observation is a vector, .to_event(1) says so.",
    "Can't call numpy() on Tensor that requires grad": "NumPy knows no gradients: use torch's "
    "function of that name on the values of sites.",
}


class Substitute(Messenger):
    """Give latent and param sites these values, and leave the others to be sampled.

    A latent site keeps its own distribution; it only does not sample from it. A value whose
    shape is not the shape of the site (a group effect, at new data with other groups) is
    not used: the site is then sampled from its conditional prior, and ``self.resampled``
    names it.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.resampled: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        value = self.values.get(msg["name"])
        if value is None or msg["is_observed"] or msg["done"]:
            return
        if value.shape == msg["fn"].shape():
            msg["value"] = value
        else:
            self.resampled.add(msg["name"])

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class _Observations(Messenger):
    """Turn observed values into tensors of the program's dtype, whatever the model was given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def _pyro_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not msg["is_observed"] or value is None:
            return
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise DataError(
                    f"site '{msg['name']}': the observed value is a {type(value).__name__} that "
                    f"does not convert to a tensor ({error}). Pass a tensor or a numeric array."
                ) from None
        # Labels of a Bernoulli are usually integers; torch wants them in floating point. It has
        # no arithmetic of truth values.
        check_dense(value, f"site '{msg['name']}', the observed data,")
        truth = value.dtype == torch.bool or isinstance(
            base_distribution(msg["fn"]), dist.Bernoulli
        )
        if value.is_floating_point() or truth:
            value = value.to(self.dtype)
        msg["value"] = value


class _Replace(TorchFunctionMode):
    """Let torch see other tensors in the place of a module's parameters.

    A network reads its parameters as attributes, not through Pyro, so the values at which
    the program is to be evaluated are put in where torch is called. ``promote`` also brings
    tensors that the program holds itself (data in a closure) to this dtype.
    """

    def __init__(self, values: Mapping[int, Tensor], promote: torch.dtype | None) -> None:
        super().__init__()
        self.values = values
        self.promote = promote

    def _swap(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = self.values.get(id(x), x)
        if self.promote and x.is_floating_point() and x.dtype != self.promote:
            x = x.to(self.promote)
        return x

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func == _REQUIRES_GRAD:  # by which Pyro tells what is a parameter
            return func(*args)
        return func(*tree_map(self._swap, args), **tree_map(self._swap, kwargs or {}))


class Program:
    """A model (callable or ``nn.Module``) and the arguments, its data, that it runs on.

    Floating-point tensors and arrays among the arguments become tensors of one dtype on the CPU,
    modules become copies of that dtype; the caller's own objects are left as they were.

    The one argument may be a DataLoader: its first batch then stands for the data, and a method
    that trains on minibatches finds the rest in ``loader``.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        model = runnable(model)
        self.loader: DataLoader[Any] | None = None
        if len(args) == 1 and isinstance(args[0], DataLoader) and not kwargs:
            self.loader = args[0]
            args, kwargs = _first_batch(self.loader)
        self.signature = signature(model)
        self.name = _name(model)
        self.original = model
        self.dtype = dtype
        self._copies: dict[int, Any] = {}
        self.model = _cast_model(model, dtype, self._copies)
        self.promote = False
        self._bind(args, kwargs or {})

    def to(self, dtype: torch.dtype) -> Program:
        """Make the same program in another dtype, from the caller's own objects."""
        other = Program(self.original, self.args, self.kwargs, dtype=dtype)
        other.loader = self.loader
        return other

    def companion(self, guide: Callable[..., Any], *, copied: bool = True) -> Program:
        """Make a program of another callable, on the same arguments.

        Modules that it shares with this program stay shared. With ``copied=False`` the callable
        was made for this program, and is taken as it is.
        """
        other = copy.copy(self)
        other.signature = signature(guide)
        other.name = _name(guide)
        other.original = guide
        other.model = _cast_model(guide, self.dtype, self._copies) if copied else guide
        other._bind(self.args, self.kwargs)
        return other

    @property
    def training_dtype(self) -> torch.dtype:
        """The dtype of the caller's networks; float64 where the model is no module."""
        module = _owner(self.original)
        if module is not None:
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    return parameter.dtype
        return torch.float64

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that are copies of the caller's, for this program alone."""
        module = _owner(self.model)
        return [] if module is None else [module]

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            given = [f"{len(args)} positional"] + [f"'{k}'" for k in kwargs]
            raise ModelError(
                f"{self.name}{self.signature}: {error}. It was given: {', '.join(given)}. Pass "
                "the data as the model's own arguments; one that is only observed needs the "
                "default None to be left out in predictions."
            ) from None
        for name, value in bound.arguments.items():
            cast = functools.partial(self._cast_value, what=f"argument '{name}' of the model")
            bound.arguments[name] = tree_map(cast, value)
        self.args, self.kwargs = bound.args, bound.kwargs
        self.arguments: dict[str, Any] = dict(bound.arguments)

    def _cast_value(self, x: Any, what: str) -> Any:
        if isinstance(x, nn.Module):
            return _cast_model(x, self.dtype, {})
        if isinstance(x, (np.ndarray, np.generic)) or type(x).__name__ in _ARRAYS:
            x = _from_array(x, what)
        if isinstance(x, Iterator):
            raise DataError(
                f"{what} is a {type(x).__name__}, which is used up once the "
                "model has run, and it runs many times. Pass np.array(list(...)) of it."
            )
        if isinstance(x, Tensor):
            check_dense(x, what)
            x = x.detach().cpu()
            if x.is_inference():  # autograd refuses those
                x = x.clone()
            return x.to(self.dtype) if x.is_floating_point() else x
        return x

    def with_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        """Return the same program on other arguments."""
        other = copy.copy(self)
        other._bind(args, kwargs)
        return other

    def tensors(self) -> list[Tensor]:
        """List the tensors among the arguments, in a fixed order."""
        return [leaf for leaf in tree_leaves(self.arguments) if isinstance(leaf, Tensor)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Program:
        """Return the same program with other tensors in the places of those it has."""
        left = iter(tensors)
        other = copy.copy(self)
        other.arguments = tree_map(
            lambda leaf: next(left) if isinstance(leaf, Tensor) else leaf, self.arguments
        )
        bound = self.signature.bind_partial()
        bound.arguments.update(other.arguments)
        other.args, other.kwargs = bound.args, bound.kwargs
        return other

    def named_data(self) -> list[tuple[str, Tensor]]:
        """List the tensors among the arguments, each with a name for messages and outputs."""
        leaves, _ = tree_flatten_with_path(self.arguments)
        return [
            (path[0].key + keystr(path[1:]), leaf)  # type: ignore[attr-defined]
            for path, leaf in leaves
            if isinstance(leaf, Tensor)
        ]

    def check_finite(self) -> None:
        """Raise DataError where an argument holds NaN or infinite values."""
        for name, tensor in self.named_data():
            check_finite(tensor, f"argument '{name}'")

    def run(
        self,
        read: Callable[[Trace], T],
        *messengers: Messenger | Callable[..., Any],
        parameters: Mapping[nn.Parameter, Tensor] | None = None,
        validate: bool = False,
    ) -> T:
        """Run the program under effect handlers, the first one innermost, and read its trace.

        ``read`` takes what is wanted from the trace; it runs in the program's dtype as well.
        ``parameters`` maps a module's own parameters to the values to use in their place.

        Raises:
            ModelError: the program or ``read`` raised. Failures of linear algebra pass.
        """
        model: Any = poutine.trace(self.handled(*messengers))  # type: ignore[arg-type]
        swap = {id(p): v for p, v in (parameters or {}).items()}
        try:
            with evaluation(dtype=self.dtype, validate=validate):
                try:
                    return read(self._trace(model, swap))
                except RuntimeError as error:
                    # A float32 tensor in a closure meets float64 in a matrix product.
                    if self.promote or not any(words in str(error) for words in _DTYPES_DIFFER):
                        raise
                    self.promote = True
                    return read(self._trace(model, swap))
        except LinAlgError:
            raise
        except ProbdlError as error:  # Pyro makes it anew, with the shapes of its trace below
            plain = type(error)(_first_part(error))
            raise plain.with_traceback(error.__traceback__) from None
        except Exception as error:
            raise self.explain(error) from None

    def handled(self, *messengers: Messenger | Callable[..., Any]) -> Callable[..., Any]:
        """Return the model under effect handlers, the first one innermost."""
        model: Callable[..., Any] = _Observations(self.dtype)(self.model)
        for messenger in messengers:
            model = messenger(model)
        return model

    def replaced(self, swap: Mapping[int, Tensor]) -> AbstractContextManager[Any]:
        """Let torch see other tensors in the place of those with these ids, within a context."""
        if not (swap or self.promote):
            return nullcontext()
        return _Replace(swap, self.dtype if self.promote else None)

    def _trace(self, model: Any, swap: Mapping[int, Tensor]) -> Trace:
        with self.replaced(swap):
            return model.get_trace(*self.args, **self.kwargs)

    def explain(self, error: Exception) -> ModelError:
        """Turn an exception from inside the model into one that says where and what to try."""
        shapes = ", ".join(
            f"{name} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"
            for name, t in self.named_data()
        )
        odd = [
            f"{name} a {type(value).__name__}"
            for name, value in self.arguments.items()
            if not isinstance(value, (Tensor, type(None), bool, str, int, float, dict, tuple))
        ]
        shapes = ", ".join(filter(None, [textwrap.shorten(shapes, 300), *odd]))
        reason = textwrap.shorten(_first_part(error), 300)
        advice = next((text for sign, text in _ADVICE.items() if sign in reason), _CHECK_SHAPES)
        if odd:
            advice += (
                " Lists, data frames and iterators come to the model as they are: np.asarray() or "
                ".to_numpy() makes an array of them, which comes as a tensor."
            )
        return ModelError(
            f"the model '{self.name}' failed{where(error)}: {type(error).__name__}: {reason}. "
            f"It ran on {shapes or 'no tensors'}. {advice}"
        )


def _from_array(x: Any, what: str) -> Tensor:
    """Make a tensor of what NumPy reads as an array; it shares no memory with it."""
    array = np.asarray(x)
    if np.ma.isMaskedArray(x) and np.ma.getmaskarray(x).any():
        raise DataError(
            f"{what} is a masked array, and torch has none. Fill it with finite "
            "numbers, pass the mask beside it, and leave those elements out with poutine.mask."
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:  # long double
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{what} is an array of dtype {array.dtype}, which torch "
            "does not hold. Encode categories as integers and leave out text; "
            "numbers among objects become an array by .astype(float)."
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch has little arithmetic of them
        if array.size and array.max() > _INT_MAX:
            raise DataError(
                f"{what} holds the whole number {array.max()}, and torch holds none of 2**63 and "
                "more. Count from another origin, or pass it as floating point."
            )
        array = array.astype(np.int64)
    # A copy in the machine's byte order, row by row: torch has no others.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))


def check_dense(tensor: Tensor, what: str) -> None:
    """Raise DataError where a tensor is of a kind that no density can be computed of."""
    odd = {
        "nested": tensor.is_nested,
        "sparse": tensor.layout != torch.strided,
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "meta": tensor.is_meta,
    }
    kinds = [kind for kind, is_so in odd.items() if is_so]
    if kinds:
        raise DataError(
            f"{what} is a {kinds[0]} tensor. Pass a dense one of real numbers, on a device."
        )


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """Return a hash of data."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class WithoutModel(Program):
    """The place of the program in a fit that was loaded without its model: it has only the data.

    Args:
        name: of the model.
        arguments: its arguments by name, as they were.
        dtype: in which the program ran.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.name = name
        self.arguments = dict(arguments)
        self.dtype = dtype
        self.loader = None
        self.promote = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying looks for these
            raise AttributeError(name)
        raise ModelError(
            f"the fit of '{self.name}' was loaded without its model, and this needs it: "
            "probdl.load(folder, model=...)."
        )

    def with_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        """Raise the error that says that the model is not there."""
        return self.model

    def with_tensors(self, tensors: Sequence[Tensor]) -> Program:
        """Raise the error that says that the model is not there."""
        return self.model

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Raise the error that says that the model is not there."""
        return self.model


def _first_part(error: Exception) -> str:
    return str(error).split("Trace Shapes:")[0].strip()


def where(error: BaseException) -> str:
    """Tell at which line of the user's code an exception was raised, as part of a sentence."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _is_library(frame.filename):
            return f" at {os.path.basename(frame.filename)}:{frame.lineno}, `{frame.line}`"
    return ""


def signature(model: Any) -> inspect.Signature:
    """Return what arguments a model takes."""
    if not callable(model):
        raise ModelError(
            f"the model is a {type(model).__name__}, which cannot be called. Pass a function "
            "with pyro.sample statements or an nn.Module."
        )
    try:
        return inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    except (TypeError, ValueError):
        raise ModelError(
            f"{model!r} does not tell what arguments it takes. Pass a function of Python with "
            "pyro.sample statements or an nn.Module."
        ) from None


def takes(model: Any, name: str) -> bool:
    """Tell whether a model takes a keyword argument of this name."""
    parameters = signature(model).parameters
    return name in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def base_distribution(fn: Any) -> Any:
    """Take off what only reshapes or masks a distribution: ``to_event``, ``expand``, ``mask``."""
    while isinstance(fn, (dist.Independent, ExpandedDistribution, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def is_deterministic(msg: Any) -> bool:
    """Tell whether a site only records a value: ``pyro.deterministic``, or what a reparam leaves.

    Pyro's reparameterisations put an observed Delta in the place of the site, without its density.
    """
    if msg["infer"].get("_deterministic"):
        return True
    fn = msg["fn"]
    unscored = isinstance(fn, MaskedDistribution) and fn._mask is False
    return bool(msg["is_observed"]) and unscored and isinstance(base_distribution(fn), dist.Delta)


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise DataError, with the first index, where a tensor holds NaN or infinite values."""
    bad = ~torch.isfinite(tensor)
    if not bad.any():
        return
    index = tuple(bad.nonzero()[0].tolist())
    raise DataError(
        f"{what}: {int(bad.sum())} of {bad.numel()} values are NaN or infinite (first: index "
        f"{format_index(index)} = {tensor[index].item()}). Drop them, or put a finite number in "
        "their place and leave those elements out with poutine.mask."
    )


def format_index(index: Iterable[int]) -> str:
    """Write an index as a user would: ``4`` or ``(4, 0)``."""
    items = tuple(index)
    return str(items[0]) if len(items) == 1 else str(items)


def _is_library(filename: str) -> bool:
    if filename.startswith(os.path.join(_HERE, "models")):  # ready programs are users' code
        return False
    return filename.startswith((_HERE, *_LIBRARIES))


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read a DataLoader's batch as a model's arguments."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    return (batch,), {}


def _first_batch(loader: DataLoader[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        return arguments(next(iter(loader)))
    except StopIteration:
        raise DataError("the DataLoader is empty: it has no batch to train on.") from None


def _owner(model: Any) -> nn.Module | None:
    """Return the module that a model is, or is a method of."""
    owner = getattr(model, "__self__", model)
    return owner if isinstance(owner, nn.Module) else None


def _name(model: Any) -> str:
    owner = _owner(model)
    return (
        type(owner).__name__
        if owner is not None
        else getattr(model, "__name__", type(model).__name__)
    )


def runnable(model: Any) -> Any:
    """Take the method `model` of a module that has one, and a `guide` beside it."""
    if isinstance(model, nn.Module) and callable(getattr(model, "guide", None)):
        return getattr(model, "model", model)
    return model


def _cast_model(model: Any, dtype: torch.dtype, copies: dict[int, Any]) -> Any:
    owner = getattr(model, "__self__", None)
    if isinstance(model, nn.Module):
        return copy.deepcopy(model, copies).to("cpu", dtype)
    if isinstance(owner, nn.Module):  # a method of a module, such as `vae.model`
        return types.MethodType(model.__func__, _cast_model(owner, dtype, copies))
    return model
