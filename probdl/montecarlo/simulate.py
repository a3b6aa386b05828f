"""Data sets drawn from a model, in the form in which the model takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probdl.errors import ModelError, SettingError
from probdl.model import predictive
from probdl.model.program import Program
from probdl.model.sites import discover

__all__ = ["Simulator", "read_arguments"]


def read_arguments(arguments: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read what stands for a model's arguments: a tuple, a dict by name, or one array."""
    if isinstance(arguments, Mapping):
        return (), dict(arguments)
    return (tuple(arguments) if isinstance(arguments, (tuple, list)) else (arguments,)), {}


class Simulator:
    """Draws the observed arguments of a model anew, and leaves the others as they are.

    Args:
        model: a Pyro program.
        arguments: its arguments, with any data of the right shape in the place of what it observes.

    Attributes:
        program: the model on these arguments.
        structure: its sites there.

    Raises:
        ModelError: what the model observes is not one of its arguments, but computed of them.
    """

    def __init__(self, model: Callable[..., Any], arguments: Any) -> None:
        self.program = Program(model, *read_arguments(arguments))
        self.structure = discover(self.program)
        tensors = self.program.tensors()
        self.places: dict[str, int] = {}
        for site in self.structure.of("observed"):
            found = [
                i
                for i, t in enumerate(tensors)
                if t.data_ptr() == site.value.data_ptr() and t.shape == site.value.shape
            ]
            if not found:
                raise ModelError(
                    f"site '{site.name}' of '{self.program.name}' observes something computed of "
                    "its arguments, so drawing it does not give arguments. Pass generator=, a "
                    "function that makes whole data sets."
                )
            self.places[site.name] = found[0]
        if not self.places:
            raise ModelError(
                f"the model '{self.program.name}' observes no site on these arguments, so there "
                "are no data to simulate. Pass arrays of the right shape in the place of its data."
            )

    def values(self, truth: Mapping[str, Any], count: int) -> dict[str, Tensor]:
        """Repeat the true values of sites, each (count, *shape).

        Raises:
            SettingError: a name is not one of the model's sites, or a shape is wrong.
        """
        sites = {s.name: s for s in self.structure.of("latent", "param", "discrete")}
        values = {}
        for name, value in truth.items():
            if name not in sites:
                raise SettingError(
                    f"truth names {name!r}, which the model does not have. Its sites are "
                    f"{', '.join(map(repr, sites))}."
                )
            tensor = torch.as_tensor(value, dtype=torch.float64)
            try:
                tensor = tensor.expand(sites[name].shape)
            except RuntimeError:
                raise SettingError(
                    f"truth[{name!r}] has the shape {tuple(tensor.shape)}, and the site "
                    f"{sites[name].shape}."
                ) from None
            values[name] = tensor.expand(count, *tensor.shape)
        return values

    def data(self, draws: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """Put drawn observed sites, (count, *shape) by name, into copies of the arguments."""
        tensors = self.program.tensors()
        count = len(next(iter(draws.values())))
        sets = []
        for i in range(count):
            made = list(tensors)
            for name, place in self.places.items():
                made[place] = draws[name][i].detach().to(tensors[place].dtype).contiguous()
            sets.append(made)
        return sets

    def at(self, truth: Mapping[str, Any], count: int) -> list[list[Tensor]]:
        """Draw data sets from the model at true values; sites without one are drawn as well."""
        values = self.values(truth, count)
        if not values:
            values = {"": torch.zeros(count)}
        return self.data(predictive.sample(self.program, self.structure, values))

    def joint(self, count: int) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
        """Draw parameters from the prior, and data sets at them."""
        draws = predictive.sample_prior(self.program, self.structure, count)
        return draws, self.data(draws)

    def made_by(self, generator: Callable[..., Any], seeds: Sequence[int]) -> list[list[Tensor]]:
        """Read the data sets that a generator makes, one for each seed."""
        sets = []
        for seed in seeds:
            args, kwargs = read_arguments(generator(seed))
            made = self.program.with_arguments(args, kwargs).tensors()
            shapes = [tuple(t.shape) for t in made]
            if shapes != [tuple(t.shape) for t in self.program.tensors()]:
                raise SettingError(
                    f"the generator made data of the shapes {shapes}, and the model has "
                    f"{[tuple(t.shape) for t in self.program.tensors()]} at this size."
                )
            sets.append(made)
        return sets
