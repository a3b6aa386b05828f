"""A model, with or without a guide, as a function of its parameters.

While the programs run, their parameters (in the param store, in a module or in a closure) are
replaced by other tensors, so the caller's parameters never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from probdl.errors import ProbdlError
from probdl.methods.guide_sites import check_values
from probdl.model.messengers import replaced
from probdl.model.precision import Precision
from probdl.model.program import Program
from probdl.model.sites import Structure, own_parameter

__all__ = ["Trainable", "first_not_finite"]


def first_not_finite(names: Sequence[str], values: Sequence[Tensor]) -> str | None:
    """Name the first tensor that holds NaN or infinite numbers; None if all are finite."""
    named = zip(names, values, strict=True)
    return next((name for name, value in named if not torch.isfinite(value).all()), None)


class Trainable:
    """A model, with or without a guide, that runs with given values of its parameters.

    ``observing`` is whether the guide may have observed sites.

    Attributes:
        names: names of the parameters, by Pyro's rules.
        leaves: the parameters of the programs themselves, unconstrained.
        parameters: those that are parameters of modules, by name.
    """

    observing = False

    def __init__(self, program: Program, guide: Program, structure: Structure) -> None:
        self.program = program
        self.guide = guide
        self.structure = structure
        self.precision = Precision(program.dtype)
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
            # Automatic guides create their parameters in their first run, in which they notice the
            # plates that take a part of the rows.
            partial = bool(self.program.subsampled)
            try:
                self.traces((), subsampled=partial)
            except RuntimeError as error:
                if not self.precision.explains(error):
                    raise
                self.traces((), subsampled=partial)
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

    @contextmanager
    def replaced(self, swap: Mapping[int, Tensor], *, subsampled: bool = False) -> Iterator[None]:
        """Replace tensors by their ids in both programs, which compute in one dtype.

        Args:
            swap: the replacements.
            subsampled: whether plates with ``subsample_size`` take a random part of the rows.
        """
        rows = nullcontext() if subsampled else self.program.all_rows()
        with self.precision.enforced(), rows, replaced(swap):
            yield

    def traces(
        self,
        values: Sequence[Tensor],
        data: Sequence[Tensor] | Program | None = None,
        *,
        subsampled: bool = False,
    ) -> Any:
        """Run guide and model at values of the parameters, and return their traces.

        The data are tensors, a program with other arguments, or None for those of the program.
        """
        if data is None or isinstance(data, Program):
            program = data or self.program
        else:
            program = self.program.with_tensors(data)
        model, guide = self.callables()
        swap = self.swap(values)
        with self.replaced(swap, subsampled=subsampled):
            of_guide = poutine.trace(guide).get_trace(*program.args, **program.kwargs)
            if data is None and not subsampled:  # minibatches have other shapes
                check_values(self.guide, self.structure, of_guide, observing=self.observing)
            if self.structure.of("discrete"):  # within the replay, as in Pyro's estimators
                first = -1 - self.structure.plate_depth
                model = poutine.enum(model, first_available_dim=first)
            replayed: Any = poutine.replay(model, trace=of_guide)
            of_model = poutine.trace(replayed).get_trace(*program.args, **program.kwargs)
        return of_guide, of_model

    def finish(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Write trained values to the modules that belong to the fit.

        Returns:
            By name, the constrained values of the parameters of both programs.
        """
        own = {id(p) for m in [*self.program.modules, *self.guide.modules] for p in m.parameters()}
        with torch.no_grad():
            for leaf, value in zip(self.leaves, values, strict=True):
                if id(leaf) in own:
                    leaf.copy_(value)
        return self.unconstrained(values) | self.constrained(values)

    def constrained(
        self, values: Sequence[Tensor], program: Program | None = None
    ) -> dict[str, Tensor]:
        """Return the constrained values of the parameters by name, as statements declare them.

        Args:
            values: the unconstrained values.
            program: the model on other arguments, on which it runs once.
        """
        with torch.no_grad(), self.replaced(self.swap(values)):
            with poutine.trace(param_only=True) as capture:
                self.traces(values, program)
            nodes: Mapping[str, Any] = capture.trace.nodes
            return {n: node["value"].clone().detach() for n, node in nodes.items()}

    def unconstrained(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return copies of values by the names of the parameters."""
        return {n: v.detach().clone() for n, v in zip(self.names, values, strict=True)}
