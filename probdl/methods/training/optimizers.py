"""Optimizers with learning rate schedules: torch's by name or class, or Pyro's wrappers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from probdl.compile.step import Parameters
from probdl.errors import SettingError
from probdl.methods.training.checkpoint import copy_saved
from probdl.model.advice import explained

__all__ = ["SCHEDULES", "FlatAdam", "ScheduledOptimizer", "check_optimizer", "check_schedule"]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of torch.optim.Adam

# Optimizers that update each element independently: all parameters can then form one vector, which
# is faster for many small parameters.
ELEMENTWISE = {
    "Adam",
    "AdamW",
    "SGD",
    "RMSprop",
    "Adagrad",
    "Adadelta",
    "Adamax",
    "NAdam",
    "RAdam",
}

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "constant": lambda done: 1.0 + 0.0 * done,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1 + np.cos(math.pi * done)),
    "exponential": lambda done: 0.01**done,
}
"""Factor of the learning rate, as a function of the share of the steps that is done, or of many."""

Schedule = str | Callable[[Optimizer], Any]
OptimizerSetting = str | Callable[..., Optimizer] | PyroOptim


def check_optimizer(optimizer: Any) -> str:
    """Return what an optimizer must be if a setting is not one, or '' if it is valid."""
    if isinstance(optimizer, str):
        of_torch = getattr(torch.optim, optimizer, None)
        if isinstance(of_torch, type) and issubclass(of_torch, Optimizer):
            return ""
        return "must be a class of torch.optim, its name such as 'Adam', or a PyroOptim"
    if isinstance(optimizer, Optimizer):
        return (
            "must be the class, such as torch.optim.Adam, not an instance; set its options with "
            "learning_rate= or functools.partial"
        )
    if isinstance(optimizer, type) and not issubclass(optimizer, Optimizer):
        return "must be a class of torch.optim, its name such as 'Adam', or a PyroOptim"
    if callable(optimizer):
        return ""
    return "must be a class of torch.optim, its name such as 'Adam', or a PyroOptim"


def check_schedule(schedule: Any) -> str:
    """Return what a schedule must be if a setting is not one, or '' if it is valid."""
    if isinstance(schedule, type) and issubclass(schedule, LRScheduler):
        return (
            f"must say how long the schedule is: schedule=lambda o: {schedule.__name__}(o, ...), "
            "with the number of steps"
        )
    if schedule in SCHEDULES if isinstance(schedule, str) else callable(schedule):
        return ""
    return (
        f"must be one of {', '.join(map(repr, SCHEDULES))}, or a function that makes a "
        "torch.optim.lr_scheduler of an optimizer"
    )


class FlatAdam:
    """Adam with the defaults of ``torch.optim.Adam``, which trains parameters as one vector.

    The classes of ``torch.optim`` import torch's compiler, which takes more than a second.

    Args:
        parameters: the parameters to train.
        rates: the learning rate, given the share of the steps that is done.
        clip_norm: gradients are clipped to this norm; None leaves them.
    """

    def __init__(
        self,
        parameters: Parameters,
        rates: Callable[[Any], Any],
        clip_norm: float | None,
    ) -> None:
        self._parameters = parameters
        self._rates = rates
        self._clip_norm = clip_norm
        self._first, self._second = (torch.zeros_like(parameters.flat) for _ in range(2))
        self._taken = 0

    @property
    def elementwise(self) -> bool:
        """Whether each parameter is updated from its own gradient alone."""
        return self._clip_norm is None

    def step(self, done: float) -> None:
        """Update the parameters by their gradients.

        Args:
            done: the share of the steps that is done.
        """
        parameters, grad = self._parameters, self._parameters.grad()
        if parameters.units is not None:
            grad = grad * parameters.units
        if self._clip_norm is not None:
            grad = grad * min(1.0, self._clip_norm / (float(grad.norm()) + 1e-6))
        self._taken += 1
        self._first.lerp_(grad, 1 - BETA1)
        self._second.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        root = math.sqrt(1 - BETA2**self._taken)
        change = self._first / (self._second.sqrt() / root + EPSILON)
        if parameters.units is not None:
            change *= parameters.units
        rate = float(self._rates(done)) / (1 - BETA1**self._taken)
        parameters.flat.sub_(change, alpha=rate)

    def end_epoch(self) -> None:
        """Do nothing: the learning rate depends on the share of the steps."""

    def state(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"first": self._first, "second": self._second, "taken": self._taken}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            ValueError: it is of other parameters.
        """
        copy_saved(self._first, state["first"])
        copy_saved(self._second, state["second"])
        if type(state["taken"]) is not int or state["taken"] < 0:
            raise ValueError(f"it took {state['taken']!r} steps")
        self._taken = state["taken"]


class ScheduledOptimizer:
    """An optimizer of parameters, with its schedule.

    Args:
        parameters: the parameters to train.
        names: their names.
        optimizer: a class of torch.optim or its name, or a PyroOptim.
        learning_rate: the initial learning rate.
        schedule: the schedule of the learning rate.
        clip_norm: gradients are clipped to this norm; None leaves them.
        flat: whether to train the parameters as one vector if the optimizer allows it.
    """

    def __init__(
        self,
        parameters: Parameters,
        names: Sequence[str],
        optimizer: OptimizerSetting,
        learning_rate: float,
        schedule: Schedule,
        clip_norm: float | None,
        flat: bool,
    ) -> None:
        self._parameters = parameters
        # In units other than 1, the optimizer trains a copy of the parameters.
        self._scaled = None if parameters.units is None else parameters.flat / parameters.units
        self._values: list[Tensor] = parameters.values
        if self._scaled is not None:
            self._values = [v.requires_grad_() for v in parameters.split(self._scaled)]
        self._clip_norm = clip_norm
        self._rate = learning_rate
        self._factor: Callable[[Any], Any] | None = None
        self._scheduler: Any = None
        self._flat: torch.nn.Parameter | None = None
        self._pyro: Any = None
        self._torch: Any = None
        if isinstance(optimizer, PyroOptim):
            # It has its own learning rate and schedule, and looks up names in the param store.
            self._pyro = copy.deepcopy(optimizer)
            store = pyro.get_param_store()
            for value, name in zip(self._values, names, strict=True):
                store._param_to_name[value] = name
            return
        made: Any = getattr(torch.optim, optimizer) if isinstance(optimizer, str) else optimizer
        function = getattr(made, "func", made)
        options: dict[str, Any] = {}
        with explained("optimizer"):
            if "fused" in inspect.signature(function).parameters:
                options["fused"] = True
        of_torch = function.__module__.startswith("torch.optim")
        if flat and of_torch and function.__name__ in ELEMENTWISE:
            self._flat = torch.nn.Parameter(
                parameters.flat if self._scaled is None else self._scaled
            )
        if "lr" not in getattr(made, "keywords", {}):
            options["lr"] = learning_rate
        if function is torch.optim.LBFGS:
            raise SettingError(
                "L-BFGS needs a loss without noise, and evaluates it several times a step. Use "
                "optimizer='Adam'; method='mle' and 'map' use L-BFGS."
            )
        with explained("optimizer(parameters, lr=...)"):
            self._torch = made([self._flat] if self._flat is not None else self._values, **options)
            self._rate = float(self._torch.param_groups[0]["lr"])
        if isinstance(schedule, str):
            self._factor = SCHEDULES[schedule]
            return
        with explained("schedule(optimizer)"):
            self._scheduler = schedule(self._torch)
        if isinstance(self._scheduler, ReduceLROnPlateau):
            raise SettingError(
                "ReduceLROnPlateau needs a loss without noise at each step. Use schedule='cosine', "
                "or patience= to end the training early."
            )
        if not hasattr(self._scheduler, "step"):
            raise SettingError(
                f"schedule= returned a {type(self._scheduler).__name__}. It must make a "
                "torch.optim.lr_scheduler of an optimizer: "
                "schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1000)."
            )

    @property
    def elementwise(self) -> bool:
        """Whether each parameter is updated from its own gradient alone."""
        kind = type(self._torch)
        of_torch = kind.__module__.startswith("torch.optim")
        return of_torch and kind.__name__ in ELEMENTWISE and self._clip_norm is None

    def step(self, done: float) -> None:
        """Update the parameters by their gradients.

        Args:
            done: the share of the steps that is done.
        """
        parameters = self._parameters
        if self._flat is not None or self._scaled is not None:
            grad = parameters.grad()
            if parameters.units is not None:
                grad = grad * parameters.units
            if self._flat is not None:
                self._flat.grad = grad
            else:
                for value, part in zip(self._values, parameters.split(grad), strict=True):
                    value.grad = part
        self._clip(self._values if self._flat is None else [self._flat])
        if self._pyro is not None:
            self._pyro(self._values)
        else:
            self._update(done)
        if self._scaled is not None and parameters.units is not None:
            parameters.flat.copy_(self._scaled * parameters.units)

    def _update(self, done: float) -> None:
        if self._factor is not None:
            for group in self._torch.param_groups:
                group["lr"] = self._rate * float(self._factor(done))
        with explained("The step of the optimizer"):
            self._torch.step()
            if self._scheduler is not None:
                self._scheduler.step()

    def end_epoch(self) -> None:
        """Update the schedule of one of Pyro's schedulers, which work epoch by epoch."""
        if self._pyro is not None and hasattr(self._pyro, "step"):
            self._pyro.step()

    def _clip(self, values: Sequence[Tensor]) -> None:
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(values, self._clip_norm)

    def state(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        if self._pyro is not None:
            return {"pyro": self._pyro.get_state()}
        state = {"torch": self._torch.state_dict()}
        if self._scheduler is not None:
            state["scheduler"] = self._scheduler.state_dict()
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        if self._pyro is not None:
            self._pyro.set_state(state["pyro"])
            return
        self._torch.load_state_dict(state["torch"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
