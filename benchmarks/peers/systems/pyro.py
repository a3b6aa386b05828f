"""Pyro's NUTS, whose gradients take milliseconds: how long one takes, from a minute's sampling."""

from __future__ import annotations

import contextlib
import time
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops import integrator
from torch.distributions import transform_to

BUDGET_S = 20.0
FEW = 5  # transitions, and gradients, that are left out: the first compile and specialize
TRANSITIONS = 50  # of warm-up, and as many after it


class OutOfBudget(Exception):  # noqa: N818 - no error, but the end
    """The time is up."""


class Meter:
    """In the place of ``potential_grad``: notes when each gradient was done."""

    def __init__(self) -> None:
        self._evaluate = integrator.potential_grad
        self._transitions = 0
        self.ends: list[float] = []
        self.skip = FEW

    def __call__(self, potential_fn: Any, z: Any) -> Any:
        result = self._evaluate(potential_fn, z)
        self.ends.append(time.perf_counter())
        if len(self.ends) > FEW and self.ends[-1] - self.ends[FEW] > BUDGET_S:
            raise OutOfBudget
        return result

    def hook(self, *_: Any) -> None:
        """Leave out what came before the end of the first transitions, if they do end."""
        self._transitions += 1
        if self._transitions == FEW:
            self.skip = len(self.ends)


def cost(task: ModuleType, data: dict[str, np.ndarray], jit: bool) -> dict[str, Any]:
    """Time a gradient, with what the sampler does around it; at Pyro's own precision."""
    model, args = task.pyro(data)
    tensors = [_tensor(a) for a in args]
    meter = Meter()
    integrator.potential_grad = meter
    # The last two settings are Pyro's own values; to find them, it draws from the prior, which
    # it cannot where that is flat.
    kernel = NUTS(
        model,
        jit_compile=jit,
        ignore_jit_warnings=True,
        max_plate_nesting=1,
        init_strategy=_start,
    )
    mcmc = MCMC(
        kernel,
        num_samples=TRANSITIONS,
        warmup_steps=TRANSITIONS,
        disable_progbar=True,
        hook_fn=meter.hook,
    )
    warnings.simplefilter("ignore")
    torch.manual_seed(1)
    begin = time.perf_counter()
    with contextlib.suppress(OutOfBudget):
        mcmc.run(*tensors)
    if len(meter.ends) <= meter.skip + 1:
        meter.skip = FEW
    between = np.diff(meter.ends[meter.skip :])
    return {
        "gradient_s": float(np.median(between)),  # TorchScript may stop to specialize once more
        "gradients": len(between),
        "compile_s": meter.ends[FEW - 1] - begin,
        "jit": jit,
    }


def _start(site: dict[str, Any]) -> torch.Tensor:
    """Start uniformly on (-2, 2) of the unconstrained space, as Pyro does."""
    transform = transform_to(site["fn"].support)
    return transform(4 * torch.rand(transform.inverse_shape(site["fn"].shape())) - 2)


def _tensor(value: Any) -> Any:
    """Turn arrays into tensors of the default precision, labels into whole numbers."""
    if not isinstance(value, np.ndarray):
        return value
    whole = value.dtype.kind in "iu"
    return torch.as_tensor(value, dtype=torch.long if whole else torch.get_default_dtype())
