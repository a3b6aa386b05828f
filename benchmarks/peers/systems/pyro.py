"""Pyro's NUTS: the time per gradient, measured during a short run because gradients are slow."""

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
SKIPPED = 5  # initial transitions and gradients not counted, because they compile and specialize
TRANSITIONS = 50  # number of warm-up transitions, and of transitions after it


class OutOfBudget(Exception):  # noqa: N818 - a signal, not an error
    """The time budget is used up."""


class Meter:
    """A replacement of ``potential_grad`` that records the end time of each gradient."""

    def __init__(self) -> None:
        self._evaluate = integrator.potential_grad
        self._transitions = 0
        self.ends: list[float] = []
        self.skip = SKIPPED

    def __call__(self, potential_fn: Any, z: Any) -> Any:
        result = self._evaluate(potential_fn, z)
        self.ends.append(time.perf_counter())
        if len(self.ends) > SKIPPED and self.ends[-1] - self.ends[SKIPPED] > BUDGET_S:
            raise OutOfBudget
        return result

    def hook(self, *_: Any) -> None:
        """Exclude the gradients of the first transitions."""
        self._transitions += 1
        if self._transitions == SKIPPED:
            self.skip = len(self.ends)


def cost(task: ModuleType, data: dict[str, np.ndarray], jit: bool) -> dict[str, Any]:
    """Time a gradient, including the sampler's overhead, in Pyro's default precision."""
    model, args = task.pyro(data)
    tensors = [_tensor(a) for a in args]
    meter = Meter()
    integrator.potential_grad = meter
    # The last two settings equal Pyro's own values. They are explicit because Pyro finds them by
    # drawing from the prior, which is impossible for flat priors.
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
        meter.skip = SKIPPED
    between = np.diff(meter.ends[meter.skip :])
    return {
        "gradient_s": float(np.median(between)),  # TorchScript may stop to specialize once more
        "gradients": len(between),
        "compile_s": meter.ends[SKIPPED - 1] - begin,
        "jit": jit,
    }


def _start(site: dict[str, Any]) -> torch.Tensor:
    """Start uniformly on (-2, 2) of the unconstrained space, as Pyro does."""
    transform = transform_to(site["fn"].support)
    return transform(4 * torch.rand(transform.inverse_shape(site["fn"].shape())) - 2)


def _tensor(value: Any) -> Any:
    """Convert arrays to tensors of the default dtype, integer arrays to torch.long."""
    if not isinstance(value, np.ndarray):
        return value
    whole = value.dtype.kind in "iu"
    return torch.as_tensor(value, dtype=torch.long if whole else torch.get_default_dtype())
