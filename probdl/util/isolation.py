"""Runs that leave every global as it was: of torch, Pyro, NumPy and Python.

Such globals belong to the process, not to a thread, so one thread at a time is inside. A thread
that waits for compiled code steps aside meanwhile: the globals are then as the user left them, and
other threads may pass. This file alone knows where Pyro keeps its state.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro.nn.module import _Context
from pyro.poutine import runtime
from torch.distributions import Distribution

from probdl.util.lock import TURN

__all__ = ["evaluation", "isolated", "seed_all", "sheltered", "stepped_aside"]

_CONTEXTS: Any = _Context  # a default, for a context that has no state of its own


@dataclass
class _Globals:
    """All that a run may change, as it is at one moment."""

    torch_state: torch.Tensor
    cuda_states: list[torch.Tensor]
    numpy_state: Any
    python_state: Any
    dtype: torch.dtype
    threads: int
    validate_args: bool
    validate_sample: Any
    settings: dict[str, Any]
    param_state: Any
    params: tuple[dict[Any, Any], ...]
    handlers: list[Any]
    plates: list[Any]
    enumeration: dict[str, Any]

    @classmethod
    def captured(cls) -> _Globals:
        """Read them."""
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            np.random.get_state(),  # noqa: NPY002
            random.getstate(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            Distribution._validate_args,
            Distribution._validate_sample,
            pyro.settings.get(),
            vars(_CONTEXTS).get("param_state"),
            tuple(dict(part) for part in _store_parts()),
            list(runtime._PYRO_STACK),
            list(runtime._DIM_ALLOCATOR._stack),
            dict(vars(runtime._ENUM_ALLOCATOR)),
        )

    def install(self) -> None:
        """Put them back."""
        torch.set_rng_state(self.torch_state)
        if self.cuda_states:
            torch.cuda.set_rng_state_all(self.cuda_states)
        np.random.set_state(self.numpy_state)  # noqa: NPY002
        random.setstate(self.python_state)
        torch.set_default_dtype(self.dtype)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        pyro.settings.set(**self.settings)
        Distribution._validate_args = self.validate_args
        Distribution._validate_sample = self.validate_sample  # type: ignore[method-assign]
        _set_param_state(self.param_state)
        for part, saved in zip(_store_parts(), self.params, strict=True):
            part.clear()
            part.update(saved)
        runtime._PYRO_STACK[:] = self.handlers
        runtime._DIM_ALLOCATOR._stack[:] = self.plates
        allocator = vars(runtime._ENUM_ALLOCATOR)
        allocator.clear()
        allocator.update(self.enumeration)


# What the user's globals were when each isolated run of the holder of the turn began.
_outside: list[_Globals] = []


def _store_parts() -> tuple[dict[Any, Any], ...]:
    store: Any = pyro.get_param_store()
    return store._params, store._constraints, store._param_to_name


def _set_param_state(state: Any) -> None:
    if state is not None:
        _CONTEXTS.param_state = state
    elif "param_state" in vars(_CONTEXTS):
        del _CONTEXTS.param_state


def seed_all(seed: int) -> None:
    """Seed the generators of torch (on the CPU), NumPy and Python.

    ``torch.manual_seed`` would seed those of each GPU as well, which nothing here draws from.
    """
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def _without_handlers() -> Iterator[None]:
    """Leave Pyro's active handlers and plates outside: they are the user's, of another model."""
    stacks: tuple[list[Any], ...] = runtime._PYRO_STACK, runtime._DIM_ALLOCATOR._stack
    before = [list(stack) for stack in stacks]
    for stack in stacks:
        stack.clear()
    try:
        yield
    finally:
        for stack, saved in zip(stacks, before, strict=True):
            stack[:] = saved


def _on_cpu() -> AbstractContextManager[Any]:
    """Make new tensors on the CPU, where the data are, whatever torch's default device."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


_PROCESS = os.getpid()


@contextmanager
def _plain_modes() -> Iterator[None]:
    """Leave the modes of torch that a user may have switched on: they are of this thread."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autograd.set_detect_anomaly(False),  # a sampler must see NaN, not an exception
        _on_cpu(),
    ):
        yield


@contextmanager
def sheltered() -> Iterator[None]:
    """Run out of reach of the user's modes and handlers; no generator is seeded."""
    with TURN, _plain_modes(), _without_handlers():
        yield


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run seeded, and leave every global as it was found, also after an exception.

    Guarded are the random number generators of torch (with CUDA), NumPy and Python,
    Pyro's param store (the run works on a copy), settings, handlers and plates, the default dtype
    and device, the validation flags, the modes of autograd and autocast and the number of threads.
    """
    with TURN, _plain_modes():
        _outside.append(_Globals.captured())
        try:
            params, _, names = _store_parts()
            for name, value in list(params.items()):
                copied = value.detach().clone().requires_grad_()
                names.pop(value, None)
                params[name], names[copied] = copied, name
            if os.getpid() != _PROCESS:
                torch.set_num_threads(1)  # the threads of OpenMP's pool are not there after a fork
            seed_all(seed % 2**32)
            with _without_handlers():
                yield
        finally:
            _outside.pop().install()


@contextmanager
def stepped_aside() -> Iterator[None]:
    """Let other threads pass within an isolated run, and find everything again as it was."""
    if not (TURN.held and _outside):
        yield
        return
    outside, inside = list(_outside), _Globals.captured()
    outside[0].install()
    _outside.clear()
    depth = TURN.give_up()
    try:
        yield
    finally:
        try:
            TURN.take_back(depth)
        finally:
            outside[0] = _Globals.captured()
            _outside[:] = outside
            inside.install()


def _forget_other_threads() -> None:
    """In a forked process, undo the isolated run of a thread that is not there any more."""
    if _outside and not TURN.held:
        _outside[0].install()
        _outside.clear()


if hasattr(os, "register_at_fork"):  # after TURN, which has forgotten a holder that is not there
    os.register_at_fork(after_in_child=_forget_other_threads)


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
    with TURN:
        outermost = TURN.depth == 1
        default_dtype = torch.get_default_dtype()
        validate_args = Distribution._validate_args
        validate_sample = Distribution._validate_sample
        torch.set_default_dtype(dtype)
        if not validate:
            Distribution._validate_sample = _accept  # type: ignore[method-assign]
        default = vars(_CONTEXTS).get("param_state")
        params, constraints, _ = _store_parts()
        _CONTEXTS.param_state = {"params": dict(params), "constraints": dict(constraints)}
        try:
            with (
                pyro.validation_enabled(validate),
                pyro.settings.context(module_local_params=True),
                _on_cpu() if outermost else nullcontext(),
                _without_handlers() if outermost else nullcontext(),
            ):
                yield
        finally:
            _set_param_state(default)
            torch.set_default_dtype(default_dtype)
            Distribution._validate_sample = validate_sample  # type: ignore[method-assign]
            Distribution._validate_args = validate_args
