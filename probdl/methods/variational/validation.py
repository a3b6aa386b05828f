"""The ELBO of held-out data along a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from probdl.errors import DataError, ProbdlError, SettingError
from probdl.methods.variational.objective import Objective
from probdl.model.arguments import batch_arguments
from probdl.model.program import Program
from probdl.model.sites import Structure, data_plates, discover
from probdl.model.streaming import count_rows
from probdl.results.latent import MAX_SCORED_ELEMENTS, Proposal, elbo
from probdl.util.clock import timed

__all__ = ["Validation", "held_out"]

DRAWS_MAX = 100  # of the latent sites in one evaluation


def held_out(program: Program, data: Any) -> Program:
    """Return a program on held-out data, given as a batch of a DataLoader is, or as a DataLoader.

    Raises:
        SettingError: the model does not run on the data.
    """
    try:
        if isinstance(data, DataLoader):
            other = program.on_loader(data)
            count_rows(other, discover(other))
        else:
            other = program.with_arguments(*batch_arguments(data, program.signature))
            discover(other)
    except ProbdlError as error:
        raise _unusable(error) from None
    return other


def _unusable(error: ProbdlError) -> SettingError:
    return SettingError(
        f"SVI(validation=...): the held-out ELBO cannot be computed. {error} The held-out data are "
        "the model's arguments as a tuple, validation=(x_test, y_test), a dict of them by name, or "
        "a DataLoader."
    )


class Validation:
    """The ELBO of held-out rows at parameters of model and guide.

    It leaves out the KL terms of the sites that all rows share, which belong to the training data.

    Args:
        program: the model on the held-out data.
        guide: the guide.
        objective: the loss of the training.
        local: names of the latent sites in the data plate.
        seed: of the draws, which are the same in each evaluation, so that differences between
            evaluations are those of the parameters.
        selects: whether the best state is the one with the highest ELBO of the held-out rows. It
            is not where the guide is a distribution of sites that all rows share: without their KL
            terms a guide that is too narrow would win.
    """

    def __init__(
        self,
        program: Program,
        guide: Program,
        objective: Objective,
        local: tuple[str, ...],
        seed: int,
        selects: bool,
    ) -> None:
        self.selects = selects
        self._program = program
        self._structure: Structure = discover(program)
        self._guide = guide
        self._objective = objective
        self._local = local
        self._seed = seed
        size = max((t.numel() for t in program.tensors()), default=1)
        # One evaluation of all draws at once, so that Ctrl-C ends it as a whole.
        self._draws = max(1, min(DRAWS_MAX, MAX_SCORED_ELEMENTS // max(size, 1)))

    def check(self, values: list[Tensor]) -> None:
        """Check that the ELBO of the held-out data can be computed.

        Raises:
            SettingError: it cannot.
        """
        try:
            if not len(self.elbo_of_rows(values)):
                raise DataError("All their observations are missing.")
        except ProbdlError as error:
            raise _unusable(error) from None

    def elbo_of_rows(self, values: list[Tensor]) -> NDArray[np.float64]:
        """Return the ELBO of each row with an observation, (rows,), in nats.

        Raises:
            ModelError: the model has no data plate, or fails on the held-out data.
        """
        objective = self._objective
        with torch.random.fork_rng(devices=[]), self._in_evaluation_mode():
            torch.default_generator.manual_seed(self._seed)
            try:
                constrained = objective.constrained(values, self._program)
            except ProbdlError:
                raise
            except Exception as error:
                raise self._program.explain(error) from None
            params = objective.unconstrained(values) | constrained
            proposal = Proposal(self._guide, params, objective.parameters, self._local)
            with timed("validation", whole=True):
                found = elbo(self._program, self._structure, proposal, self._draws)
        elbos = np.asarray(found.pointwise, dtype=np.float64)
        return elbos if self._program.loader is not None else elbos[self._observed_rows()]

    def _observed_rows(self) -> NDArray[np.bool_]:
        """Return which rows have an observation that is not missing, plate after plate."""
        rows = {n: np.zeros(size, bool) for n, size in data_plates(self._structure).items()}
        for site in self._structure.of("observed"):
            if site.dims and site.dims[0] in rows:
                mask = torch.ones(site.shape[0], 1) if site.mask is None else site.mask
                rows[site.dims[0]] |= mask.bool().reshape(len(mask), -1).any(1).numpy()
        return np.concatenate([*rows.values()])

    @contextmanager
    def _in_evaluation_mode(self) -> Iterator[None]:
        """Let networks neither drop units nor update running statistics."""
        owners = (*self._program.modules, *self._guide.modules)
        training = [m for owner in owners for m in owner.modules() if m.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
