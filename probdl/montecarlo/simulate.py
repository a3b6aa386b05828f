"""Data sets simulated from a model, as arguments of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probdl.errors import ModelError, SettingError
from probdl.model import predictive
from probdl.model.advice import explained
from probdl.model.program import Program
from probdl.model.sites import discover

__all__ = ["Simulator", "read_arguments"]


def read_arguments(arguments: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments from a tuple, a dict by name, or one array."""
    if isinstance(arguments, Mapping):
        return (), dict(arguments)
    return (tuple(arguments) if isinstance(arguments, (tuple, list)) else (arguments,)), {}


class Simulator:
    """Simulates the observed arguments of a model, and keeps the others.

    Args:
        model: a Pyro program.
        arguments: its arguments, with arbitrary data of the right shape in the place of the
            observed data.

    Attributes:
        program: the model on these arguments.
        structure: its sites.

    Raises:
        ModelError: an observed value is computed from the arguments, not one of them; or the
            model observes nothing.
    """

    def __init__(self, model: Callable[..., Any], arguments: Any) -> None:
        self.program = Program(model, *read_arguments(arguments))
        self.structure = discover(self.program)
        tensors = self.program.tensors()
        self.positions: dict[str, int] = {}  # among the tensors, by observed site
        for site in self.structure.of("observed"):
            found = [
                i
                for i, t in enumerate(tensors)
                if t.data_ptr() == site.value.data_ptr() and t.shape == site.value.shape
            ]
            if not found:
                raise ModelError(
                    f"Site '{site.name}' of '{self.program.name}' observes a value computed from "
                    "the model's arguments, so simulated values cannot be passed as arguments. "
                    "Pass generator=, a function that simulates whole data sets."
                )
            self.positions[site.name] = found[0]
        if not self.positions:
            raise ModelError(
                f"The model '{self.program.name}' observes no site on these arguments, so there "
                "are no data to simulate. Pass arrays of the right shape in the place of the data."
            )

    def values(self, truth: Mapping[str, Any], count: int) -> dict[str, Tensor]:
        """Return the true values of sites, repeated to (count, *shape).

        Raises:
            SettingError: a name is not one of the model's sites, or a shape is wrong.
        """
        sites = {s.name: s for s in self.structure.of("latent", "param", "discrete")}
        values = {}
        for name, value in truth.items():
            if name not in sites:
                raise SettingError(
                    f"truth names {name!r}, which is not a site of the model. Its sites are "
                    f"{', '.join(map(repr, sites))}."
                )
            with explained(f"truth[{name!r}]"):
                tensor = torch.as_tensor(value, dtype=torch.float64)
            try:
                tensor = tensor.expand(sites[name].shape)
            except RuntimeError:
                raise SettingError(
                    f"truth[{name!r}] has shape {tuple(tensor.shape)}, but the site has shape "
                    f"{sites[name].shape}."
                ) from None
            values[name] = tensor.expand(count, *tensor.shape)
        return values

    def data(self, draws: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """Return copies of the arguments with draws of the observed sites, (count, *shape)."""
        tensors = self.program.tensors()
        count = len(next(iter(draws.values())))
        sets = []
        for i in range(count):
            arguments = list(tensors)
            for name, position in self.positions.items():
                value = draws[name][i].detach()
                arguments[position] = value.to(tensors[position].dtype).contiguous()
            sets.append(arguments)
        return sets

    def at(self, truth: Mapping[str, Any], count: int) -> list[list[Tensor]]:
        """Simulate data sets at true values; sites without a true value are sampled."""
        values = self.values(truth, count)
        if not values:
            values = {"": torch.zeros(count)}
        return self.data(predictive.sample(self.program, self.structure, values))

    def joint(self, count: int) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
        """Sample parameters from the prior, and simulate a data set for each."""
        draws = predictive.sample_prior(self.program, self.structure, count)
        return draws, self.data(draws)

    def generated_by(
        self, generator: Callable[..., Any], seeds: Sequence[int]
    ) -> list[list[Tensor]]:
        """Return the data sets of a generator, one per seed."""
        sets = []
        for seed in seeds:
            with explained("generator"):
                args, kwargs = read_arguments(generator(seed))
            made = self.program.with_arguments(args, kwargs).tensors()
            shapes = [tuple(t.shape) for t in made]
            if shapes != [tuple(t.shape) for t in self.program.tensors()]:
                raise SettingError(
                    f"The generator returned data of shapes {shapes}, but the data of the model "
                    f"have shapes {[tuple(t.shape) for t in self.program.tensors()]} for this "
                    "sample size."
                )
            sets.append(made)
        return sets
