"""The classes of an observed site, and the data that put all rows in one class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

from probdl.errors import DataError, ModelError
from probdl.model.distributions import base_distribution
from probdl.model.program import Program
from probdl.model.sites import Site

__all__ = [
    "OF_CLASSES",
    "check_classes",
    "classes_of",
    "in_one_class",
    "name_codes",
    "observed_by",
    "unnamed_classes",
]

MAX_CLASSES = 1000
OF_CLASSES = ("Bernoulli", "Categorical", "OrderedLogistic")  # distributions


def observed_by(program: Program, site: Site) -> str | None:
    """Return the argument whose data a site observes; None if it is computed from them."""
    # Of several arguments with the same values, that of the site's name.
    for name in sorted(program.arguments, key=lambda name: name != site.name):
        value = program.arguments[name]
        if isinstance(value, torch.Tensor) and torch.equal(value.double(), site.value.double()):
            return name
    return None


def classes_of(program: Program, site: Site) -> list[Any]:
    """Return the categories of the data of a site, or the values of its distribution.

    Values of the distribution that the categories do not name follow them, as numbers.
    """
    categories = _categories_of(program, site) or []
    nodes: Any = program.run(lambda trace: trace.nodes)
    values = [int(value) for value in _support(nodes[site.name]["fn"]).tolist()]
    return [*categories, *values[len(categories) :]]


def check_classes(fitted: Program, now: Program, sites: Iterable[Site]) -> None:
    """Check that observed categories are those of a fit.

    Args:
        fitted: the model with the data of the fit.
        now: the model with the data to score.
        sites: the observed sites of the fit.

    Raises:
        DataError: a category is new, so that its code has no meaning.
    """
    for site in sites:
        name = observed_by(fitted, site)
        known, labels = (p.encodings.get(name or "") for p in (fitted, now))
        if known is None or labels is None or known.kind != "categories":
            continue
        new = [label for label in labels.labels if label not in known.labels]
        if new:
            raise DataError(
                f"The data of '{site.name}' have the class {new[0]!r}, which those of the fit have "
                f"not; its classes are {', '.join(map(repr, known.labels[:8]))}"
                f"{' …' if len(known.labels) > 8 else ''}. Leave out these rows, or fit with "
                "pd.Categorical(values, categories=[...]) of all classes."
            )


def unnamed_classes(program: Program, site: Site) -> list[int]:
    """List the classes of a site that are no category of its data, if these are texts."""
    categories = _categories_of(program, site)
    if categories is None or site.event_dim or site.distribution not in OF_CLASSES:
        return []
    return classes_of(program, site)[len(categories) :]


def _categories_of(program: Program, site: Site) -> list[Any] | None:
    encoding = (
        program.encodings.get(observed_by(program, site) or "") if program.encodings else None
    )
    if encoding is None or encoding.kind != "categories":
        return None
    return list(encoding.labels)


def name_codes(group: Any, program: Program, sites: Iterable[Site]) -> None:
    """Say in a dataset what the codes of variables mean, by the attributes of the CF conventions.

    Args:
        group: the dataset; its variables get ``flag_values`` and ``flag_meanings``, in which
            spaces are underscores.
        program: the model with its data.
        sites: the sites whose data may be categories.

    Reference:
        https://cfconventions.org/cf-conventions/cf-conventions.html#flags
    """
    for site in sites:
        categories = _categories_of(program, site) if site.name in group else None
        if categories is not None:
            meanings = ["_".join(str(category).split()) for category in categories]
            group[site.name].attrs["flag_values"] = np.arange(len(meanings))
            group[site.name].attrs["flag_meanings"] = " ".join(meanings)


def _support(fn: Any) -> torch.Tensor:
    values: torch.Tensor = base_distribution(fn).enumerate_support(expand=False)
    return values.reshape(-1)[:MAX_CLASSES]


def in_one_class(program: Program, name: str, argument: str) -> Iterator[Program]:
    """Yield the program with all rows in class 0, in class 1, and so on.

    Args:
        program: the model at the arguments to predict at.
        name: the observed site.
        argument: the argument with its data.

    Raises:
        ModelError: the site has no finite number of classes.
    """
    values = dict(program.arguments) | {argument: None}
    unobserved = program.with_values(values)
    nodes: Any = unobserved.run(lambda trace: trace.nodes)
    event_dim = nodes[name]["fn"].event_dim if name in nodes else 0
    if event_dim:
        raise ModelError(
            f"The site '{name}' has no classes: each row has several values, in {event_dim} event "
            "dimensions. Use predict(), whose mean over draws is the probability of each value."
        )
    fn = base_distribution(nodes[name]["fn"]) if name in nodes else None
    if not isinstance(fn, (dist.Bernoulli, dist.Categorical, dist.OrderedLogistic)):
        raise ModelError(
            f"The site '{name}' has no classes: its distribution is not Bernoulli, Categorical or "
            "OrderedLogistic. Use predict()."
        )
    shape = nodes[name]["fn"].batch_shape
    for value in _support(fn).tolist():
        yield program.with_values(values | {argument: torch.full(shape, int(value))})
