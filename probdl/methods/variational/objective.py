r"""The ELBO of a model and a guide, as a loss for training on minibatches.

.. math:: \log p(x) \ge E_{q(z)}[\log p(x, z) - \log q(z)]   \qquad\text{(Eqs. 20 to 22)}

The estimators are Pyro's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro.contrib.cevae import TraceCausalEffect_ELBO
from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.util import Dice
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.overrides import TorchFunctionMode

from probdl.errors import ProbdlError
from probdl.methods.guide_sites import compare_sites, is_scored
from probdl.methods.training.trainable import Trainable, first_not_finite
from probdl.model.program import Program
from probdl.model.recorder import without_nan_checks
from probdl.model.sites import Structure

__all__ = ["ELBOS", "Objective", "Scale", "resolve_elbo"]

ELBOS: dict[str, type[ELBO]] = {
    "trace": Trace_ELBO,
    "mean_field": TraceMeanField_ELBO,
    "enum": TraceEnum_ELBO,
    "renyi": RenyiELBO,
}


def resolve_elbo(elbo: str | ELBO, num_particles: int, structure: Structure) -> ELBO:
    """Make Pyro's estimator of a name; ``"auto"`` sums out discrete sites if there are any."""
    if isinstance(elbo, ELBO):
        return elbo
    if elbo == "auto":
        elbo = "enum" if structure.of("discrete") else "trace"
    if elbo == "trace" and any(site.is_discrete for site in structure.of("latent")):
        # Score-function gradients, of a variance that the structure of the model reduces.
        return TraceGraph_ELBO(num_particles=num_particles)
    depth = structure.plate_depth if elbo == "enum" else math.inf
    return ELBOS[elbo](num_particles=num_particles, max_plate_nesting=depth)


class Scale(Messenger):
    """Scale the sites in the data plate to all the data, and the latent sites by a temperature."""

    def __init__(self, plate: str | None, size: int, temperature: Tensor | None) -> None:
        super().__init__()
        self.plate = plate
        self.size = size
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate and frame.size != self.size:
                msg["scale"] = msg["scale"] * (self.size / frame.size)
        if self.temperature is not None and not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.temperature


class _WithoutValues(TorchFunctionMode):
    """Let Pyro's estimators run while values are not known, since operations are being recorded.

    ``tensor.item()`` returns a tensor. Expectations over enumerated values leave out those of
    probability 0; here they stay, with a term of 0.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is Tensor.item:
            return args[0].detach()
        if func in _SELECT and sys._getframe(1).f_code is _EXPECTATION:
            if func is Tensor.all:
                return False
            values, mask = args
            return torch.where(mask, values, values.new_zeros(()))
        return func(*args, **(kwargs or {}))


_SELECT = (Tensor.all, Tensor.masked_select)
_EXPECTATION = Dice.compute_expectation.__code__


class Objective(Trainable):
    """Minus the ELBO of all data, in nats, as a loss with parameters.

    Attributes:
        plate: name of the plate along which minibatches are taken.
        size: size of that plate with all data.
    """

    def __init__(
        self,
        program: Program,
        guide: Program,
        structure: Structure,
        elbo: ELBO,
        *,
        plate: str | None = None,
        size: int = 0,
        annealed: bool = False,
        automatic: bool = False,
    ) -> None:
        self.elbo = elbo
        self.observing = automatic or not isinstance(elbo, tuple(ELBOS.values()))
        self.plate = plate
        self.size = size
        self.annealed = annealed
        super().__init__(program, guide, structure)
        if automatic and self._guide_observes():
            self.elbo = TraceCausalEffect_ELBO(num_particles=elbo.num_particles)

    def _guide_observes(self) -> bool:
        of_guide, _ = self.traces(())
        return any(
            node["type"] == "sample" and node["is_observed"] and is_scored(node)
            for node in of_guide.nodes.values()
        )

    def __call__(
        self, values: Sequence[Tensor], data: Sequence[Tensor], *, traced: bool = False
    ) -> Any:
        """Evaluate the loss at values of the parameters on a minibatch, and backpropagate.

        With annealing, the last tensor of ``data`` is the temperature.
        """
        temperature = data[-1] if self.annealed else None
        program = self.program.with_tensors(data[:-1] if self.annealed else data)
        model, guide = self._scaled(temperature)
        swap = self.swap(values)
        estimator: Any = self.elbo
        items = _WithoutValues() if traced else nullcontext()
        # The training loop checks for NaN once per step.
        with self.replaced(swap, subsampled=True), without_nan_checks(), items:
            declared = self._declared(guide)
            try:
                return estimator.loss_and_grads(model, declared, *program.args, **program.kwargs)
            except (ProbdlError, LinAlgError):
                raise
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
                raise program.explain(error) from None

    def _scaled(self, temperature: Tensor | None) -> tuple[Any, Any]:
        scale = Scale(self.plate, self.size, temperature)
        model: Callable[..., Any] = self.program.handled(scale)
        if self.structure.of("discrete"):
            model = config_enumerate(model)
        return model, self.guide.handled(scale)

    def callables(self) -> tuple[Any, Any]:
        """Return the model and the guide, with their effect handlers."""
        return self._scaled(None)

    @staticmethod
    def _declared(guide: Callable[..., Any]) -> Callable[..., Any]:
        """Add a param statement: without any, Pyro's estimators do not backpropagate.

        The parameters of plain torch modules, which make no statements, would stay as they are.
        """

        def with_statement(*args: Any, **kwargs: Any) -> Any:
            pyro.param("probdl: at least one", torch.zeros(()))
            return guide(*args, **kwargs)

        return with_statement

    def check_sites(self) -> None:
        """Check that the guide samples exactly the latent sites of the model.

        Raises:
            ModelError: the sites differ; the message names both sets.
        """
        try:
            of_guide, of_model = self.traces(())
        except Exception as error:
            raise self.guide.explain(error) from None
        compare_sites(
            self.program,
            self.guide,
            self.structure,
            of_guide,
            of_model,
            observing=self.observing,
        )

    def blame(self, values: Sequence[Tensor], data: Sequence[Tensor]) -> str:
        """Describe the first cause of a loss that is not finite."""
        if (name := first_not_finite(self.names, values)) is not None:
            return f"the parameter '{name}' is not finite"
        tensors = data[:-1] if self.annealed else data
        with torch.no_grad():
            try:
                traces = self.traces(values, tensors)
            except Exception as error:
                return f"model or guide fails at these parameters ({str(error).splitlines()[0]})"
            for trace, role in zip(traces, ("guide", "model"), strict=True):
                for name, node in trace.nodes.items():
                    if node["type"] != "sample" or site_is_subsample(node):
                        continue
                    if not torch.isfinite(torch.as_tensor(node["value"])).all():
                        return f"the value of site '{name}' in the {role} is not finite"
                    log_prob = node["fn"].log_prob(node["value"])
                    if not torch.isfinite(log_prob).all():
                        return f"the log probability of site '{name}' in the {role} is not finite"
        return "all sites are finite in a new draw, so a rare draw caused it"
