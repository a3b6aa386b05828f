r"""The ELBO of a model and a guide, as a loss for training on minibatches.

.. math:: \log p(x) \ge E_{q(z)}[\log p(x, z) - \log q(z)]   \qquad\text{(Eqs. 20 to 22)}

The estimators are Pyro's. While model and guide run, their parameters (in the param store, in a
module or in a closure) are replaced by other tensors, so the caller's parameters never change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pyro.util
import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probdl.errors import ProbdlError
from probdl.methods.variational.guides import check_values, compare_sites
from probdl.model.program import Program
from probdl.model.sites import Structure, own_parameter

__all__ = ["ELBOS", "Objective", "Trainable", "first_not_finite", "resolve_elbo"]

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
    depth = structure.plate_depth if elbo == "enum" else math.inf
    return ELBOS[elbo](num_particles=num_particles, max_plate_nesting=depth)


class _Scale(Messenger):
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


class _ItemAsTensor(TorchFunctionMode):
    """Make ``tensor.item()`` return a tensor, because values are not known while recording."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is Tensor.item:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def _without_nan_checks() -> Any:
    """Turn off the NaN checks of Pyro's estimators; the training loop checks once per step."""
    return patch.object(pyro.util, "torch_isnan", lambda x: False)


def first_not_finite(names: Sequence[str], values: Sequence[Tensor]) -> str | None:
    """Name the first tensor that holds NaN or infinite numbers; None if all are finite."""
    named = zip(names, values, strict=True)
    return next((name for name, value in named if not torch.isfinite(value).all()), None)


class Trainable:
    """A model, with or without a guide, that runs with given values of its parameters.

    Attributes:
        names: names of the parameters, by Pyro's rules.
        leaves: the parameters of the programs themselves, unconstrained.
        parameters: those that are parameters of modules, by name.
    """

    def __init__(self, program: Program, guide: Program, structure: Structure) -> None:
        self.program = program
        self.guide = guide
        self.structure = structure
        self.leaves: list[Tensor] = []
        self.aliases: dict[int, int] = {}  # from ids of tensors in the store to those in modules
        self.parameters: dict[str, nn.Parameter] = {}
        self.names = self._find_parameters()

    @property
    def buffers(self) -> list[Tensor]:
        """The buffers of the modules, such as running statistics, which may change at each run."""
        return [b for m in (*self.program.modules, *self.guide.modules) for b in m.buffers()]

    def callables(self) -> tuple[Any, Any]:
        """Return the model and the guide, with their effect handlers."""
        return self.program.handled(), self.guide.handled()

    def _find_parameters(self) -> list[str]:
        """Run both programs once; list the parameters that they use, and those of their modules."""
        try:
            self.traces(())  # automatic guides create their parameters in their first run
        except ProbdlError:
            raise
        except Exception as error:
            raise self.guide.explain(error) from None
        found: dict[str, Tensor] = {}
        with poutine.trace(param_only=True) as capture:
            self.traces(())
        nodes: Mapping[str, Any] = capture.trace.nodes
        for name, node in nodes.items():
            value = node["value"]
            leaf = getattr(value, "unconstrained", lambda value=value: value)()
            if leaf.requires_grad and all(leaf is not other for other in found.values()):
                found[name] = leaf
                if (own := own_parameter(node)) is not None:
                    self.parameters[name] = own
                    self.aliases[id(leaf)] = id(own)
        # Plain torch modules have no param statements; their parameters are trained, too.
        known = {*map(id, found.values()), *self.aliases.values()}
        for module in (*self.program.modules, *self.guide.modules):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad and id(parameter) not in known:
                    known.add(id(parameter))
                    name = name if name not in found else f"guide.{name}"
                    found[name] = self.parameters[name] = parameter
        self.leaves = list(found.values())
        return list(found)

    def swap(self, values: Sequence[Tensor]) -> dict[int, Tensor]:
        """Map the ids of the programs' parameters to the values that replace them."""
        swap = {id(leaf): v for leaf, v in zip(self.leaves, values, strict=bool(values))}
        return swap | {self.aliases[i]: v for i, v in swap.items() if i in self.aliases}

    def traces(self, values: Sequence[Tensor], data: Sequence[Tensor] | None = None) -> Any:
        """Run guide and model at values of the parameters, and return their traces."""
        program = self.program if data is None else self.program.with_tensors(data)
        model, guide = self.callables()
        swap = self.swap(values)
        with self.program.replaced(swap):
            of_guide = poutine.trace(guide).get_trace(*program.args, **program.kwargs)
            if data is None:  # minibatches have other shapes
                check_values(self.guide, self.structure, of_guide)
            replayed: Any = poutine.replay(model, trace=of_guide)
            if self.structure.of("discrete"):
                first = -1 - self.structure.plate_depth
                replayed = poutine.enum(replayed, first_available_dim=first)
            of_model = poutine.trace(replayed).get_trace(*program.args, **program.kwargs)
        return of_guide, of_model

    def finish(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Write trained values to the modules that belong to the fit.

        Returns:
            By name, the constrained values of the parameters of both programs.
        """
        own = {id(p) for m in [*self.program.modules, *self.guide.modules] for p in m.parameters()}
        params = {}
        with torch.no_grad():
            for name, leaf, value in zip(self.names, self.leaves, values, strict=True):
                params[name] = value.detach().clone()
                if id(leaf) in own:
                    leaf.copy_(value)
            with self.program.replaced(self.swap(values)):
                with poutine.trace(param_only=True) as capture:
                    self.traces(values)
                nodes: Mapping[str, Any] = capture.trace.nodes
                return params | {n: node["value"].clone().detach() for n, node in nodes.items()}


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
    ) -> None:
        self.elbo = elbo
        self.plate = plate
        self.size = size
        self.annealed = annealed
        super().__init__(program, guide, structure)

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
        items = _ItemAsTensor() if traced else nullcontext()
        with self.program.replaced(swap), _without_nan_checks(), items:
            return estimator.loss_and_grads(model, guide, *program.args, **program.kwargs)

    def _scaled(self, temperature: Tensor | None) -> tuple[Any, Any]:
        scale = _Scale(self.plate, self.size, temperature)
        model: Callable[..., Any] = self.program.handled(scale)
        if self.structure.of("discrete"):
            model = config_enumerate(model)
        return model, self.guide.handled(scale)

    def callables(self) -> tuple[Any, Any]:
        """Return the model and the guide, with their effect handlers."""
        return self._scaled(None)

    def check_sites(self) -> None:
        """Check that the guide samples exactly the latent sites of the model.

        Raises:
            ModelError: the sites differ; the message names both sets.
        """
        try:
            of_guide, of_model = self.traces(())
        except Exception as error:
            raise self.guide.explain(error) from None
        compare_sites(self.program, self.guide, self.structure, of_guide, of_model)

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
