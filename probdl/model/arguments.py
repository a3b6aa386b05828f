"""A model's arguments: conversion to tensors of one dtype, and checks of their values."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from probdl.errors import DataError
from probdl.model.callables import cast_modules

__all__ = [
    "all_finite",
    "batch_arguments",
    "cast_argument",
    "check_dense",
    "check_finite",
    "format_index",
]

_INT64_MAX = np.iinfo(np.int64).max
_ARRAY_TYPES = ("Series", "Index", "DataArray")  # of pandas and xarray, which are not imported here


def batch_arguments(
    batch: Any, signature: inspect.Signature
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a DataLoader's batch as a model's positional and keyword arguments.

    A tuple or list is spread over the arguments, and a mapping over those of the same names. If
    the model does not take them so, but a single argument, that is the batch as a whole.

    >>> batch_arguments((1, 2), inspect.signature(lambda x, y=None: None))
    ((1, 2), {})
    >>> batch_arguments((1, 2), inspect.signature(lambda batch: None))
    (((1, 2),), {})
    """
    if isinstance(batch, Mapping) and all(isinstance(key, str) for key in batch):
        spread: tuple[tuple[Any, ...], dict[str, Any]] = ((), dict(batch))
    elif isinstance(batch, (tuple, list)):
        spread = (tuple(batch), {})
    else:
        return (batch,), {}
    if not _binds(signature, *spread) and _binds(signature, (batch,), {}):
        return (batch,), {}
    return spread


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def cast_argument(x: Any, dtype: torch.dtype, what: str) -> Any:
    """Convert one argument of a model to a tensor or a module in a dtype, on the CPU.

    Args:
        x: arrays and tensors are copied to tensors, so that the fit keeps its data whatever the
            caller does to them; packed sequences are cast; modules are copied; all else is
            returned as it is.
        dtype: of floating-point values.
        what: the name of the argument in messages.

    Raises:
        DataError: torch cannot hold the values, or they are an iterator, which runs out.
    """
    if isinstance(x, nn.Module):
        return cast_modules(x, dtype, {})
    if isinstance(x, np.str_):
        return str(x)
    if isinstance(x, (np.ndarray, np.generic)) or type(x).__name__ in _ARRAY_TYPES:
        x = _from_array(x, what)
    elif isinstance(x, Tensor):
        check_dense(x, what)
        x = x.detach().to("cpu", copy=True)
    if isinstance(x, Iterator):
        raise DataError(
            f"{what} is a {type(x).__name__}, which is exhausted after one run of the model, and "
            "the model runs many times. Pass np.array(list(...)) instead."
        )
    if isinstance(x, PackedSequence):
        return x._replace(data=cast_argument(x.data, dtype, what))
    if isinstance(x, Tensor):
        if x.dtype in (torch.int8, torch.int16):  # as of pandas' codes; torch cannot index by them
            return x.long()
        return x.to(dtype) if x.is_floating_point() else x
    return x


def _from_array(x: Any, what: str) -> Tensor:
    """Copy anything that NumPy reads as an array into a new tensor."""
    nullable = getattr(getattr(x, "dtype", None), "kind", "") in "biuf" and hasattr(x, "isna")
    if nullable and x.isna().any():  # pandas' NA, which NumPy keeps as an object
        x = x.to_numpy(np.float64, na_value=np.nan)
    array = np.asarray(x)
    if np.ma.isMaskedArray(x) and np.ma.getmaskarray(x).any():
        raise DataError(
            f"{what} is a masked array, which torch does not support. Observed data: pass "
            "x.filled(np.nan) with infer(..., missing='mask'). Others: fill it with numbers and "
            "exclude those elements with poutine.mask."
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:  # long double
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{what} is an array of dtype {array.dtype}, which torch does not support. Convert "
            "numbers stored as texts or objects with .astype(float), and wrap labels in "
            "pd.Categorical()."
        )
    # torch has few operations on these, and takes bytes as masks.
    if array.dtype.kind == "u":
        if array.size and array.max() > _INT64_MAX:
            raise DataError(
                f"{what} holds the integer {array.max()}, and the largest that torch holds is "
                "2**63 - 1. Subtract an offset, or pass floating-point numbers."
            )
        array = array.astype(np.int64)
    # torch needs the machine's byte order and rejects negative strides.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))


def check_dense(tensor: Tensor, what: str) -> None:
    """Raise DataError for tensors that have no density: sparse, nested, complex and so on."""
    unsupported = {
        "nested": tensor.is_nested,
        "sparse": tensor.layout != torch.strided,
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "meta": tensor.is_meta,
    }
    kind = next((kind for kind, applies in unsupported.items() if applies), None)
    if kind is not None:
        raise DataError(
            f"{what} is a {kind} tensor. Pass a dense tensor of real numbers on a real device."
        )


def all_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinite values.

    A finite sum shows it in one pass, without a mask of the size of the data.
    """
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def check_finite(tensor: Tensor, what: str, *, masked: bool = False) -> None:
    """Raise DataError, with the first index, if a tensor holds NaN or infinite values.

    Args:
        tensor: the tensor.
        what: its name in the message.
        masked: whether missing observations are left out, so that these values are no observations.
    """
    if all_finite(tensor):
        return
    bad = ~torch.isfinite(tensor)
    index = tuple(bad.nonzero()[0].tolist())
    raise DataError(
        f"{what}: {int(bad.sum())} of {bad.numel()} values are NaN or infinite (first: index "
        f"{format_index(index)} = {tensor[index].item()}). "
        + (
            "Only observations can be left out. Predictors, and earlier values of a series that "
            "predict later ones, need a distribution: impute the missing ones by a latent site "
            "(see the page on missing data), or drop these rows."
            if masked
            else "Drop them, replace them by a finite number and exclude those elements with "
            "poutine.mask, or leave out missing observations by infer(..., missing='mask')."
        )
    )


def format_index(index: Iterable[int]) -> str:
    """Format an index as in code: ``4`` or ``(4, 0)``."""
    items = tuple(index)
    return str(items[0]) if len(items) == 1 else str(items)
