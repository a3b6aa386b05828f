"""Guards for what torch, Pyro, NumPy and Python keep globally: all of it is put back on exit."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.nn.module import _Context
from threadpoolctl import ThreadpoolController
from torch.distributions import Distribution

__all__ = ["evaluation", "isolated", "machine_memory", "one_blas_thread", "stream"]


def machine_memory(*, unknown: float) -> float:
    """Return the bytes of memory of this machine, or ``unknown`` where it does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows does not tell this way
        return unknown


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def one_blas_thread() -> Any:
    """Run NumPy's and SciPy's linear algebra on one thread, which for small matrices is faster.

    Where other work has the cores, their threads wait for one another: a step of L-BFGS in three
    dimensions then takes a millisecond and a half.
    """
    return _libraries().limit(limits=1, user_api="blas")


def _accept(self: Distribution, value: torch.Tensor) -> None:
    """Stand in for ``Distribution._validate_sample``."""


@contextmanager
def evaluation(*, dtype: torch.dtype = torch.float64, validate: bool = False) -> Iterator[None]:
    """Evaluate a Pyro program in a dtype, without Pyro's and torch's own validation.

    Validation is off because a sampler must see a rejected point (log density -inf or
    NaN) rather than an exception. Distributions that were built before, such as the
    priors of a ``PyroSample``, keep a validation flag of their own, hence the stand-in.
    Modules keep their parameters to themselves (``module_local_params``), so that no
    run writes to the param store; those that were made without it start from a copy of it.
    """
    store = pyro.get_param_store()
    default_dtype = torch.get_default_dtype()
    validate_args = Distribution._validate_args
    validate_sample = Distribution._validate_sample
    torch.set_default_dtype(dtype)
    if not validate:
        Distribution._validate_sample = _accept  # type: ignore[method-assign]
    contexts: Any = _Context  # a default, for a context that has no state of its own
    default = vars(contexts).get("param_state")
    state = {"params": dict(store._params), "constraints": dict(store._constraints)}
    contexts.param_state = state
    try:
        with (
            pyro.validation_enabled(validate),
            pyro.settings.context(module_local_params=True),
        ):
            yield
    finally:
        if default is None:
            del contexts.param_state
        else:
            contexts.param_state = default
        torch.set_default_dtype(default_dtype)
        Distribution._validate_sample = validate_sample  # type: ignore[method-assign]
        Distribution._validate_args = validate_args


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run seeded, and leave every global as it was found, also after an exception.

    Guarded are the random number generators of torch (with CUDA), NumPy and Python,
    Pyro's param store (the run works on a copy), the default dtype, the validation
    flags and the number of threads.
    """
    store = pyro.get_param_store()
    copied = {
        "params": {k: v.detach().clone().requires_grad_() for k, v in store._params.items()},
        "constraints": dict(store._constraints),
    }
    dtype = torch.get_default_dtype()
    validate_args = Distribution._validate_args
    threads = torch.get_num_threads()
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with (
            torch.random.fork_rng(),
            pyro.validation_enabled(pyro.settings.get("validate_poutine")),
            store.scope(copied),  # type: ignore[arg-type]
        ):
            pyro.set_rng_seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.set_default_dtype(dtype)
        Distribution._validate_args = validate_args
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def stream(seed: int, purpose: str, *index: int) -> int:
    """Derive the seed of a purpose, such as one block of steps, independent of all others."""
    sequence = np.random.SeedSequence([seed, *purpose.encode(), *index])
    return int(sequence.generate_state(1, np.uint32)[0])
