"""A Pyro program with its arguments, ready to run in one dtype."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.contrib.forecast import ForecastingModel
from pyro.contrib.forecast.util import PrefixConditionMessenger
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map
from torch.utils.data import DataLoader

from probdl.errors import DataError, ModelError, ProbdlError
from probdl.model.advice import explain_failure, without_trace_shapes
from probdl.model.arguments import all_finite, batch_arguments, cast_argument, check_finite
from probdl.model.callables import (
    callable_name,
    cast_modules,
    owner_module,
    runnable,
    signature,
)
from probdl.model.encoding import (
    Encoding,
    check_index,
    encode,
    is_array,
    is_raw,
    shared_key,
)
from probdl.model.loader import LoaderRows
from probdl.model.messengers import (
    CastObservations,
    FreshTransforms,
    LeaveOut,
    MinibatchPlates,
    ParallelEnumeration,
    replaced,
)
from probdl.model.obs_mask import ObsMask
from probdl.model.precision import Precision
from probdl.model.subsampling import all_rows
from probdl.util.deadline import within_time_limit
from probdl.util.isolation import evaluation

__all__ = ["Program"]

T = TypeVar("T")

MANY_NUMBERS = 10_000_000  # of the data, which a model reads in about a second


class Program:
    """A model (callable or ``nn.Module``) and the arguments, its data, that it runs on.

    Floating-point tensors and arrays among the arguments become tensors of one dtype on the CPU,
    and modules become copies in that dtype; the caller's own objects are not changed.

    A DataLoader may be the only argument. The program then runs on the first batch of the dataset,
    a method that trains on minibatches reads the others from ``loader``, and figures of all the
    data are computed part by part (``model/streaming.py``).

    Texts and categoricals become codes. Lists of numbers and tables become arrays with ``raw``, and
    are passed to the model as they are otherwise; see :func:`~probdl.model.preparing.prepared`.

    Attributes:
        masks_missing: whether observations that are NaN are left out of the density.
        encodings: how arguments that are categories or tables became numbers, by name.
        loader: the source of all rows; None if the arguments are all the data.
        minibatch: whether the arguments may be a part of the rows, so that a plate of all rows,
            ``plate("data", N, subsample_size=len(x))``, holds those of the arguments.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
        *,
        dtype: torch.dtype = torch.float64,
        raw: bool | frozenset[str] = False,
        masks_missing: bool = False,
    ) -> None:
        self.given = model
        model = runnable(model)
        self.encodings: dict[str, Encoding] = {}
        self.shared: dict[str, str] = {}  # the common name of arguments that have the same codes
        self.raw = raw
        self.masks_missing = masks_missing
        self.loader: LoaderRows | None = None
        self.signature = signature(model)
        if len(args) == 1 and isinstance(args[0], DataLoader) and not kwargs:
            self.loader = LoaderRows(args[0])
            args, kwargs = batch_arguments(self.loader.first(), self.signature)
        self.minibatch = self.loader is not None
        self.name = callable_name(model)
        self.original = model
        self.dtype = dtype
        self._copies: dict[int, Any] = {}
        self.model = cast_modules(model, dtype, self._copies)
        self.precision = Precision(dtype)
        self.fills: dict[str, Tensor] = {}
        self.used: dict[str, Tensor] = {}  # elements of the latent sites that obs_mask makes
        # A plate, which rows of it count, and which elements of sites count in any case.
        self.kept: tuple[str, Tensor, Mapping[str, Tensor]] | None = None
        self.subsampled: dict[str, int] = {}  # plates of which the model takes a random part
        self._bind(args, kwargs or {})

    def to(self, dtype: torch.dtype) -> Program:
        """Return the same program in another dtype, made from the caller's own objects."""
        other = Program(
            self.given,
            self.args,
            self.kwargs,
            dtype=dtype,
            raw=self.raw,
            masks_missing=self.masks_missing,
        )
        other.encodings, other.shared = dict(self.encodings), self.shared
        other.loader, other.minibatch = self.loader, self.minibatch
        other.fills = {name: fill.to(dtype) for name, fill in self.fills.items()}
        other.used, other.kept = self.used, self.kept
        return other

    def in_minibatches(self) -> Program:
        """Return the same program, to be run on parts of its rows."""
        other = copy.copy(self)
        other.minibatch, other.used = True, {}
        return other

    def own(self, other: Any) -> Any:
        """Return a module or callable whose modules are this program's copies, on the CPU."""
        return cast_modules(other, self.dtype, self._copies)

    def companion(self, guide: Callable[..., Any], *, copied: bool = True) -> Program:
        """Return a program of another callable on the same arguments.

        Modules that it shares with this program stay shared. With ``copied=False`` the callable
        was made for this program, and is used as it is.
        """
        other = copy.copy(self)
        other.signature = signature(guide)
        other.name = callable_name(guide)
        other.given = other.original = guide
        other.model = self.own(guide) if copied else guide
        other.precision = Precision(self.dtype)
        other._bind(self.args, self.kwargs)
        return other

    @property
    def training_dtype(self) -> torch.dtype:
        """The dtype of the caller's networks; float64 if the model is no module."""
        module = owner_module(self.original)
        if module is not None:
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    return parameter.dtype
        return torch.float64

    @property
    def modules(self) -> list[nn.Module]:
        """This program's own copies of the caller's modules."""
        module = owner_module(self.model)
        return [] if module is None else [module]

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            given = [f"{len(args)} positional"] + [f"'{k}'" for k in kwargs]
            table = next((x for x in args if type(x).__name__ == "DataFrame"), None)
            columns = [] if table is None else [*map(str, table.columns)]
            by_name = bool({*columns} & {*self.signature.parameters})
            raise ModelError(
                f"{self.name}{self.signature}: {error}. Given: {', '.join(given)}. "
                + ("Pass the columns of the table by name, as in (**table). " if by_name else "")
                + "Pass the data as the model's own arguments. Give arguments that hold only "
                "observed data the default None, so that they can be omitted for prediction."
            ) from None
        bound.arguments.update(self._encoded(bound.arguments))
        for name, value in bound.arguments.items():
            cast = functools.partial(
                cast_argument, dtype=self.dtype, what=f"Argument '{name}' of the model"
            )
            try:
                bound.arguments[name] = tree_map(cast, value)
            except RecursionError:
                raise DataError(
                    f"Argument '{name}' of the model is nested too deeply, or contains itself. "
                    "Pass flat lists or dicts of tensors."
                ) from None
        self.args, self.kwargs = bound.args, bound.kwargs
        self.arguments: dict[str, Any] = dict(bound.arguments)

    def _encoded(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Encode categories and, with ``raw``, tables and lists; keep how in ``encodings``."""
        known = {self.shared.get(n, n): e for n, e in self.encodings.items()}
        in_fit, shared = dict(known), dict(self.shared)
        before = self._parts(getattr(self, "arguments", {}))
        self.encodings = {}
        found: dict[str, Any] = {}
        encoded: list[str] = []
        for name, value in self._parts(arguments).items():
            key = self.shared.get(name, name)
            found[name] = value
            if not isinstance(value, Tensor):
                what = f"Argument '{name}' of the model"
                raw = self._takes_raw(name) or isinstance(before.get(name), Tensor)
                absent = key not in known and before.get(name) is None
                if absent and (of_other := shared_key(value, in_fit, what)) is not None:
                    shared[name] = key = of_other
                    raw = True
                found[name], encoding = encode(value, known.get(key), what, raw=raw)
                if encoding is not None:
                    are_texts = encoding.kind == "categories" and key not in in_fit
                    if are_texts and isinstance(before.get(name), Tensor):
                        raise DataError(
                            f"{what} holds categories ({encoding.labels[0]!r}, ...), and in the "
                            "fit it holds numbers. Pass numbers, or fit with categories."
                        )
                    known[key] = encoding
                elif not is_array(value):
                    continue
            if key in known:
                encoded.append(name)
        self.shared = shared
        self.encodings = {name: known[shared.get(name, name)] for name in encoded}
        for name, value in self._parts(arguments).items():
            check_index(name, value, self.encodings)
        return self._packed(arguments, found)

    def _takes_raw(self, name: str) -> bool:
        return self.raw if isinstance(self.raw, bool) else name in self.raw

    def _parts(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, those of *args and **kwargs one by one."""
        parts: dict[str, Any] = {}
        for argument, given in arguments.items():
            parameter = self.signature.parameters.get(argument)  # those of a guide may be others
            kind = None if parameter is None else parameter.kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                parts |= {f"{argument}[{i}]": value for i, value in enumerate(given)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                parts |= given
            else:
                parts[argument] = given
        return parts

    def _packed(self, arguments: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
        """Undo ``_parts``, with other values."""
        found: dict[str, Any] = {}
        for argument, given in arguments.items():
            kind = self.signature.parameters[argument].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                found[argument] = tuple(parts[f"{argument}[{i}]"] for i in range(len(given)))
            elif kind is inspect.Parameter.VAR_KEYWORD:
                found[argument] = {name: parts[name] for name in given}
            else:
                found[argument] = parts[argument]
        return found

    def has_raw(self) -> bool:
        """Return whether an argument is a list or a table that the model was given as it is."""
        return not self.raw and any(map(is_raw, self._parts(self.arguments).values()))

    def with_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        """Return the same program on other arguments."""
        other = copy.copy(self)
        other.loader = None
        other.fills, other.used, other.kept = {}, {}, None
        other._bind(args, kwargs)
        return other

    def without_rows(
        self, plate: str, rows: Any, size: int, imputed: Mapping[str, Tensor]
    ) -> Program:
        """Return the program with the likelihood of some rows left out, in their places.

        Args:
            plate: the data plate.
            rows: the rows.
            size: the number of all rows.
            imputed: by observed site, which elements of its batch are latent values; they stay.
        """
        kept = torch.ones(size, dtype=torch.bool)
        kept[torch.as_tensor(rows)] = False
        other = copy.copy(self)
        other.kept = (plate, kept, imputed)
        return other

    def on_loader(self, loader: DataLoader[Any]) -> Program:
        """Return the same program on the rows of another DataLoader."""
        rows = LoaderRows(loader)
        other = self.with_arguments(*batch_arguments(rows.first(), self.signature))
        other.loader, other.minibatch = rows, True
        return other

    def alongside(self, model: Program) -> Program:
        """Return this program, a guide, on the arguments of a model."""
        other = copy.copy(self)
        if other.dtype != model.dtype:
            other.dtype, other.precision = model.dtype, Precision(model.dtype)
        other = other.with_arguments(model.args, model.kwargs)
        other.used = model.used
        return other

    def on_batch(self, batch: Any) -> Program:
        """Return the same program on another batch of the DataLoader.

        Raises:
            DataError: the batches differ in more than their tensors, which is all that a minibatch
                replaces.
        """
        other = self.with_arguments(*batch_arguments(batch, self.signature))
        other.fills = self.fills
        _check_batch(self.arguments, other.arguments)
        return other

    @property
    def all_arguments(self) -> dict[str, Any]:
        """The arguments by name, with the defaults of those that were not passed."""
        parameters = self.signature.parameters.items()
        defaults = {name: p.default for name, p in parameters if p.default is not p.empty}
        return defaults | self.arguments

    def tensors(self) -> list[Tensor]:
        """List the tensors among the arguments, in a fixed order."""
        return [leaf for leaf in tree_leaves(self.arguments) if isinstance(leaf, Tensor)]

    @property
    def is_large(self) -> bool:
        """Whether the data are so many that the model takes about a second to read them."""
        return sum(x.numel() for x in self.tensors()) > MANY_NUMBERS

    def with_values(self, values: Mapping[str, Any]) -> Program:
        """Return the same program on other values of the arguments, by name."""
        bound = self.signature.bind_partial()
        bound.arguments.update(values)
        return self.with_arguments(bound.args, bound.kwargs)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Program:
        """Return the same program with its tensors replaced, in the order of :meth:`tensors`."""
        remaining = iter(tensors)
        other = self._with_leaves(
            lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf
        )
        if self.used and [t.shape for t in tensors] != [t.shape for t in self.tensors()]:
            other.used = {}  # the known ones are of other rows
        return other

    def shortened(self, length: int, to: int) -> Program | None:
        """Return the same program on the first steps of a series.

        Args:
            length: the number of steps. It is the size of the dimensions that are cut, and integer
                arguments that are equal to it are replaced.
            to: the number of steps that are left.

        Returns:
            The program; None if what is known of its data holds for all steps only.
        """
        if self.loader is not None or self.fills or self.used or self.kept or self.subsampled:
            return None

        def cut(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return to if type(leaf) is int and leaf == length else leaf
            for dim, size in enumerate(leaf.shape):
                leaf = leaf.narrow(dim, 0, to) if size == length else leaf
            return leaf.clone()

        other = self._with_leaves(cut)
        other.fills, other.used, other.subsampled = {}, {}, {}
        return other

    def _with_leaves(self, replaced: Callable[[Any], Any]) -> Program:
        """Return the same program with each leaf of its arguments replaced."""
        other = copy.copy(self)
        other.arguments = tree_map(replaced, self.arguments)
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

    def check_finite(self, exempt: Collection[str] = ()) -> None:
        """Raise DataError if an argument, except some, holds NaN or infinite values."""
        for name, tensor in self.named_data():
            if name not in exempt:
                check_finite(tensor, f"Argument '{name}'", masked=self.masks_missing)

    def not_finite(self) -> list[str]:
        """List the arguments that hold NaN or infinite values."""
        return [name for name, tensor in self.named_data() if not all_finite(tensor)]

    def run(
        self,
        read: Callable[[Trace], T],
        *messengers: Messenger | Callable[..., Any],
        parameters: Mapping[nn.Parameter, Tensor] | None = None,
        validate: bool = False,
    ) -> T:
        """Run the program under effect handlers and return what ``read`` takes from its trace.

        Args:
            read: a function of the trace; it runs in the program's dtype as well.
            messengers: the effect handlers, the first one innermost.
            parameters: values to use instead of a module's own parameters.
            validate: whether Pyro and torch validate arguments and values.

        Raises:
            ModelError: the program or ``read`` raised an exception. Failures of linear algebra
                are not converted.
        """
        model: Any = poutine.trace(self.handled(*messengers))  # type: ignore[arg-type]
        replacements = {id(p): v for p, v in (parameters or {}).items()}
        try:
            with evaluation(dtype=self.dtype, validate=validate):
                try:
                    return self._read(read, model, replacements)
                except (RuntimeError, ValueError) as error:
                    if not self.precision.explains(error):
                        raise
                    return self._read(read, model, replacements)
        except LinAlgError:
            raise
        except ProbdlError as error:  # Pyro has appended the shapes of its trace to the message
            plain = type(error)(without_trace_shapes(error))
            raise plain.with_traceback(error.__traceback__) from None
        except Exception as error:
            raise self.explain(error) from None

    def handled(self, *messengers: Messenger | Callable[..., Any]) -> Callable[..., Any]:
        """Return the model under effect handlers, the first one innermost."""
        model: Callable[..., Any] = self.model
        if isinstance(model, EasyGuide):
            model = _with_new_plates(model)
        if isinstance(model, ForecastingModel):
            model = _with_forecast(model)
        if isinstance(model, GuideMessenger):  # a guide that runs the model, with its data
            model = poutine.block(model, hide_fn=lambda msg: bool(msg.get("is_observed")))
        model = FreshTransforms()(ParallelEnumeration()(model))
        model = self.reduced(model)
        model = CastObservations(self.dtype, self.fills, masks_missing=self.masks_missing)(model)
        if self.minibatch:
            model = MinibatchPlates()(model)
        for messenger in messengers:
            model = messenger(model)
        return model

    def reduced(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """Return a model without rows that are left out and unused elements of ``obs_mask``."""
        reduced: Callable[..., Any] = ObsMask(self.used, minibatch=self.minibatch)(model)
        return reduced if self.kept is None else LeaveOut(*self.kept)(reduced)

    def all_rows(self) -> AbstractContextManager[None]:
        """Let plates with ``subsample_size`` hold all rows, unless the rows are a minibatch."""
        return nullcontext() if self.minibatch else all_rows(self.subsampled)

    def _read(self, read: Callable[[Trace], T], model: Any, values: Mapping[int, Tensor]) -> T:
        with self.precision.enforced(), self.all_rows():
            with replaced(values), within_time_limit():
                trace = model.get_trace(*self.args, **self.kwargs)
            return read(trace)

    def explain(self, error: Exception) -> ModelError:
        """Return an error that says where the model failed, on which data, and what to try."""
        explained = explain_failure(error, self.name, self.arguments, self.named_data())
        advice = self.row_advice if "plate" in str(error) else ""
        for name, encoding in self.encodings.items():
            if encoding.kind == "categories":
                advice += f" {encoding.explained(name)}"
                if isinstance(error, IndexError):
                    advice += " An argument with a value for each of them has them in this order."
        return ModelError(f"{explained}{advice}") if advice else explained

    @property
    def row_advice(self) -> str:
        """How to write a plate with ``subsample_size``, as a part of a message; '' without one."""
        if not self.subsampled:
            return ""
        plate, size = next(iter(self.subsampled.items()))
        return (
            f" The model ran with all {size} rows of plate '{plate}', which has subsample_size: "
            "index the data by the plate, or pass a DataLoader of minibatches with method='svi'."
        )


def _with_new_plates(guide: EasyGuide) -> Callable[..., Any]:
    """Return a guide that forgets its plates, which it keeps if a run ends with an error."""

    def run(*args: Any, **kwargs: Any) -> Any:
        guide.plates.clear()
        return guide(*args, **kwargs)

    return run


def _with_forecast(model: ForecastingModel) -> Callable[..., Any]:
    """Return a model with a site ``forecast``, if its covariates are longer than its data.

    It conditions the noise on the data, as Pyro's ``Forecaster`` does.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        with PrefixConditionMessenger(model._prefix_condition_data):
            forecast = model(*args, **kwargs)
        if forecast.size(-2):
            pyro.deterministic("forecast", forecast, event_dim=2)
        return forecast

    return run


def _check_batch(first: Any, other: Any) -> None:
    """Check that two batches have the same structure, and differ in their tensors only."""
    found = []
    for tree in (first, other):
        leaves, _ = tree_flatten_with_path(tree)
        # Text is no input of a density; lists of it may have one item for each row.
        found.append([(keystr(path), x) for path, x in leaves if not isinstance(x, str)])
    for (name, a), (other_name, b) in itertools.zip_longest(*found, fillvalue=("", None)):
        same = isinstance(b, Tensor) if isinstance(a, Tensor) else a is b or a == b
        if name != other_name or not same:
            raise DataError(
                f"The batches of the DataLoader differ in more than the values of their tensors: "
                f"{name or other_name} is a {type(a).__name__} in the first and a "
                f"{type(b).__name__} in another, of another value. Return tensors of the same "
                "structure from the dataset or collate_fn, numbers included."
            )
