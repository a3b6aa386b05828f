"""Runs that restore all global state of torch, Pyro, NumPy and Python.

This state belongs to the process, not to a thread, so only one thread at a time can run isolated.
A thread that waits for compiled code suspends its lock: it restores the user's state, and other
threads can run. Only this file accesses Pyro's private state.
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

from probdl.util.interrupts import interrupts_kept
from probdl.util.lock import GLOBAL_LOCK

__all__ = [
    "evaluation",
    "generator_states",
    "isolated",
    "lock_suspended",
    "rewinding",
    "seed_all",
    "sheltered",
]

_IMPORTING_PROCESS = os.getpid()

_CONTEXTS: Any = _Context  # its attributes are the defaults of contexts without state


@dataclass
class _Globals:
    """A snapshot of the global state that a run may change."""

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
        """Take a snapshot."""
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
        """Restore the state of this snapshot."""
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


# The state at the start of each nested isolated run, outermost first, of the lock's holder.
_outside: list[_Globals] = []


def _store_parts() -> tuple[dict[Any, Any], ...]:
    store: Any = pyro.get_param_store()
    return store._params, store._constraints, store._param_to_name


def _set_param_state(state: Any) -> None:
    if state is not None:
        _CONTEXTS.param_state = state
    elif "param_state" in vars(_CONTEXTS):
        del _CONTEXTS.param_state


def generator_states(*, torch_too: bool = True) -> Any:
    """Return the states of the global random number generators, to be compared.

    Args:
        torch_too: whether to include torch's generator besides those of NumPy and Python.
    """
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = (kind, np.asarray(keys).tobytes(), rest, random.getstate())
    return (*states, torch.get_rng_state().numpy().tobytes()) if torch_too else states


def seed_all(seed: int) -> None:
    """Seed the generators of torch (on the CPU), NumPy and Python.

    ``torch.manual_seed`` would also seed the generators of the GPUs, which probdl does not use.
    """
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def rewinding() -> Iterator[None]:
    """Restore the states of the generators at the end, so that what follows draws the same."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


@contextmanager
def _without_handlers() -> Iterator[None]:
    """Hide Pyro's active handlers and plates, which belong to another model of the user."""
    stacks: tuple[list[Any], ...] = runtime._PYRO_STACK, runtime._DIM_ALLOCATOR._stack
    saved = [list(stack) for stack in stacks]
    for stack in stacks:
        stack.clear()
    try:
        yield
    finally:
        for stack, items in zip(stacks, saved, strict=True):
            stack[:] = items


def _on_cpu() -> AbstractContextManager[Any]:
    """Create tensors on the CPU, where the data are, for any default device of torch."""
    default = torch.empty(0).device.type  # torch 2.4 has no function that sees all ways to set it
    return nullcontext() if default == "cpu" else torch.device("cpu")


@contextmanager
def _plain_modes() -> Iterator[None]:
    """Run in torch's default modes, whatever the user has switched on in this thread."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autograd.set_detect_anomaly(False),  # a sampler handles NaN itself
        _on_cpu(),
    ):
        yield


@contextmanager
def sheltered() -> Iterator[None]:
    """Run under the lock, without the user's torch modes and Pyro handlers; seed no generator."""
    with interrupts_kept(), GLOBAL_LOCK, _plain_modes(), _without_handlers():
        yield


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run with a seed, and restore all global state at the end, also after an exception.

    This covers the random number generators of torch (with CUDA), NumPy and Python; Pyro's param
    store (the run works on a copy), settings, handlers and plates; the default dtype and device;
    the validation flags; the modes of autograd and autocast; and the number of threads.
    """
    with interrupts_kept(), GLOBAL_LOCK, _plain_modes():
        _outside.append(_Globals.captured())
        try:
            params, _, names = _store_parts()
            for name, value in list(params.items()):
                copied = value.detach().clone().requires_grad_()
                names.pop(value, None)
                params[name], names[copied] = copied, name
            if os.getpid() != _IMPORTING_PROCESS:
                torch.set_num_threads(1)  # a fork has no threads of OpenMP's pool
            seed_all(seed % 2**32)
            with _without_handlers():
                yield
        finally:
            _outside.pop().install()


@contextmanager
def lock_suspended() -> Iterator[None]:
    """Let other threads run while this one waits in an isolated run, then restore its state."""
    if not (GLOBAL_LOCK.held and _outside):
        yield
        return
    outside, inside = list(_outside), _Globals.captured()
    outside[0].install()
    _outside.clear()
    depth = GLOBAL_LOCK.suspend()
    try:
        yield
    finally:
        try:
            GLOBAL_LOCK.resume(depth)
        finally:
            outside[0] = _Globals.captured()
            _outside[:] = outside
            inside.install()


def _forget_other_threads() -> None:
    """In a forked process, undo the isolated run of a thread that does not exist there."""
    if _outside and not GLOBAL_LOCK.held:
        _outside[0].install()
        _outside.clear()


if hasattr(os, "register_at_fork"):  # runs after GLOBAL_LOCK.after_fork, registered before
    os.register_at_fork(after_in_child=_forget_other_threads)


def _accept(self: Distribution, value: torch.Tensor) -> None:
    """Replace ``Distribution._validate_sample``."""


@contextmanager
def evaluation(*, dtype: torch.dtype = torch.float64, validate: bool = False) -> Iterator[None]:
    """Evaluate a Pyro program in a dtype, without Pyro's and torch's own validation.

    Validation is off because a sampler must get a log density of -inf or NaN at invalid points,
    not an exception. Distributions built earlier, such as the priors of a ``PyroSample``, have
    their own validation flag, so the method itself is replaced. Modules keep their parameters
    local (``module_local_params``), so that no run writes to the param store; modules made
    without this setting start from a copy of the store.

    Args:
        dtype: the default dtype of torch.
        validate: whether to validate after all.
    """
    with interrupts_kept(), GLOBAL_LOCK:
        outermost = GLOBAL_LOCK.depth == 1
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
