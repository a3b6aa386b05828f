"""``load``: reads a fit from the folder that ``Fit.save`` wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from probdl.errors import DataError, ModelError, ProbdlError, SettingError, warn
from probdl.findings import Finding
from probdl.io import idata
from probdl.io.folders import folder_named, read_index
from probdl.io.packing import Opaque, opaque_parts, unpack
from probdl.io.saving import ARRAYS, IDATA, source_of
from probdl.methods import METHODS, Method
from probdl.model.program import Program, WithoutModel, fingerprint, runnable, signature
from probdl.model.sites import Site, Structure, discover
from probdl.results.fit import Fit
from probdl.results.latent import Proposal
from probdl.util.isolation import isolated, sheltered

__all__ = ["load"]


@dataclass(frozen=True, repr=False)
class _Recorded(Method):
    """The method of a loaded fit, where its settings could not all be saved."""

    recorded: str = ""
    shown: str = ""

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.recorded

    def __repr__(self) -> str:
        return self.shown

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Raise the error that says that the settings are not there."""
        raise ModelError(
            f"the settings of {self.shown} could not all be saved, and fitting again needs them: "
            "probdl.load(folder, model=..., method=...)."
        )


@sheltered()
def load(
    folder: str | os.PathLike[str],
    *args: Any,
    model: Callable[..., Any] | None = None,
    method: Method | None = None,
    **kwargs: Any,
) -> Fit:
    """Read a fit that :meth:`Fit.save` wrote.

    Without the model everything is there but what runs it: new predictions, scores of new data,
    guides. The data lie in the folder.

    Args:
        folder: where the fit was saved.
        args: the data again, for a model with arguments that could not be saved (a network, a
            function); all of the model's arguments, as they were passed to :func:`infer`.
        model: the model that was fitted, or one with the same sites.
        method: the method again, where its settings hold what cannot be saved: the guide of an
            ``SVI`` that is a function, the discriminator of a ``GAN``.
        kwargs: the model's keyword arguments.

    Returns:
        The fit, as it was: draws, stats, findings, the ArviZ container.

    Raises:
        DataError: there is no fit, its files are damaged or of a later version, or the data given
            are not those that were fitted.
        ModelError: the sites of the model are not those of the fit; the message names them.
        SettingError: the method is not that of the fit.

    Warns:
        UserWarning: the source of the model has changed since.

    Example:
        >>> import numpy as np, pyro, pyro.distributions as dist, probdl, tempfile
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("obs", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> x = np.array([1.0, 2.0, 3.0])
        >>> fit = probdl.infer(model, x, 2 * x, method="laplace", seed=1)
        >>> folder = fit.save(tempfile.mkdtemp())
        >>> again = probdl.load(folder, model=model)
        >>> (again.draws["slope"] == fit.draws["slope"]).all()
        np.True_
        >>> again.predict(np.array([4.0]))["y"].shape
        (1, 1000, 1)
    """
    path = folder_named(folder)
    if method is not None and not isinstance(method, Method):
        raise SettingError(
            f"method={method!r} is a {type(method).__name__}; pass the method with the settings of "
            "the fit, such as probdl.SVI(guide=guide)."
        )
    index, files = read_index(path)
    if model is None and (args or kwargs):
        raise SettingError("load() was given data, which it takes for a model only: model=.")
    try:
        arrays = safetensors.torch.load_file(files[ARRAYS])
        container = idata.read(files[IDATA])
        stored = _Stored(path, index, arrays, container)
        fit = stored.without_model(method)
        return fit if model is None else stored.with_model(fit, model, args, kwargs)
    except ProbdlError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DataError(
            f"the fit in {path} does not hold what a fit does ({type(error).__name__}: {error}). "
            "It was written by another program, or an early version; save the fit again."
        ) from None


class _Stored:
    """What was read, on its way to a fit."""

    def __init__(
        self, path: Path, index: dict[str, Any], arrays: dict[str, Tensor], container: Any
    ) -> None:
        self.path = path
        self.index = index
        self.arrays = arrays
        self.container = container
        self.arguments = unpack(index["data"]["arguments"], arrays)
        self.dtype = getattr(torch, index["data"]["dtype"])

    def without_model(self, method: Method | None) -> Fit:
        """Make the fit, with its data in the place of the program."""
        index = self.index
        posterior = idata.variables(self.container, "posterior")
        sites = {
            s["name"]: Site(
                s["name"],
                s["kind"],
                tuple(s["shape"]),
                tuple(s["dims"]),
                unpack(s["value"], self.arrays),
                s["distribution"],
                s["count"],
                flat=s["flat"],
            )
            for s in index["sites"]
        }
        fit = Fit(
            self.method(method),
            WithoutModel(index["model"]["name"], self.arguments, self.dtype),
            Structure(sites, index["plate_depth"]),
            {name: np.asarray(posterior[name]) for name in index["draws"]},
            unpack(index["stats"], self.arrays),
            index["seed"],
            [Finding.saved(f) for f in index["findings"]],
            {n: v for n, v in idata.labels(self.container).items() if n in index["coords"]},
            unpack(index["dims"], self.arrays),
            timings=index["timings"],
        )
        vars(fit)["idata"] = self.container  # where the cached property keeps it
        return fit

    def method(self, given: Method | None) -> Method:
        """Make the method of its settings, or check the one that was given against them."""
        told = self.index["method"]
        name, settings = told["name"], unpack({"dict": [*told["settings"].items()]}, self.arrays)
        if given is not None:
            if given.name != name:
                raise SettingError(f"the fit in {self.path} is by {name!r}, not {given.name!r}.")
            for setting, value in settings.items():
                if not isinstance(value, Opaque) and getattr(given, setting, value) != value:
                    raise SettingError(
                        f"the fit in {self.path} is by {told['shown']}, and the method given has "
                        f"{setting}={getattr(given, setting)!r}."
                    )
            return given
        kind = METHODS.get(name)
        known = {f.name for f in fields(kind)} if kind is not None else set()
        if kind is None or opaque_parts(settings, "") or not settings.keys() <= known:
            return _Recorded(name, told["shown"])
        return kind(**settings)

    def with_model(
        self, fit: Fit, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Fit:
        """Put the model into its place, with the parameters of the fit."""
        with isolated(fit.seed):
            return self._with_model(fit, model, args, kwargs)

    def _with_model(
        self, fit: Fit, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Fit:
        index = self.index
        program = self.program(model, args, kwargs)
        structure = discover(program)
        self.check_sites(program, structure, fit.structure)
        was, now = index["model"].get("source_sha256"), source_of(program.original)
        if was is not None and now["source_sha256"] not in (was, None):
            warn(
                f"the source of the model '{program.name}' is not what it was when {self.path} was "
                "saved. Its sites are the same; what it makes of them may differ."
            )
        _restore(program.modules, unpack(index["modules"], self.arrays) or ())
        values = {s.name: s.value for s in fit.structure.of("param")}
        structure = structure.with_values(values)
        proposal = None
        if index["proposal"] is not None:
            told = index["proposal"]
            first = {n: torch.from_numpy(np.array(v[0, 0])) for n, v in fit.draws.items()}
            proposal = fit.method.restore(
                program,
                structure,
                Proposal(None, unpack(told["values"], self.arrays), {}, tuple(told["local"])),
                first,
            )
            if proposal is not None and proposal.program is not None:
                _restore(proposal.program.modules, unpack(told["modules"], self.arrays))
        container = fit.idata
        fit = Fit(
            **{f.name: getattr(fit, f.name) for f in fields(fit)}
            | {"program": program, "structure": structure, "proposal": proposal}
        )
        vars(fit)["idata"] = container
        return fit

    def program(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Program:
        """Make the program, on the data of the folder or on those given again."""
        if args or kwargs:
            program = Program(model, args, kwargs, dtype=self.dtype)
            if fingerprint(program.tensors()) != self.index["data"]["fingerprint"]:
                raise DataError(
                    f"the data given are not those of the fit in {self.path}. Pass what was "
                    "passed to infer(); for predictions at other data, load the fit first."
                )
            return program
        if lost := opaque_parts(self.arguments, "the arguments"):
            name, what = next(iter(lost.items()))
            raise ModelError(
                f"{name} is {what!r}: the model's arguments could not all be saved. Pass them "
                "again: probdl.load(folder, *args, model=model), as they were passed to infer()."
            )
        wanted = signature(runnable(model))
        if unknown := self.arguments.keys() - wanted.parameters.keys():
            raise ModelError(
                f"the model takes {', '.join(wanted.parameters) or 'no arguments'}, and the fit in "
                f"{self.path} has data for {', '.join(self.arguments)}: it does not take "
                f"{', '.join(sorted(unknown))}. Pass the model that was fitted."
            )
        bound = wanted.bind_partial()
        bound.arguments.update(self.arguments)
        return Program(model, bound.args, bound.kwargs, dtype=self.dtype)

    def check_sites(self, program: Program, found: Structure, saved: Structure) -> None:
        """Check that the model has the sites of the fit, and no others.

        Raises:
            ModelError: it does not; the message names those that differ.
        """
        differing = []
        for name in {**saved.sites, **found.sites}:
            a, b = saved.sites.get(name), found.sites.get(name)
            if a is None or b is None:
                differing.append(f"'{name}' is only in the {'model' if a is None else 'fit'}")
            elif (a.kind, a.shape) != (b.kind, b.shape):
                differing.append(
                    f"'{name}' is {a.kind} of shape {a.shape} in the fit, and {b.kind} of shape "
                    f"{b.shape} in the model"
                )
        if differing:
            raise ModelError(
                f"the model '{program.name}' is not that of the fit in {self.path}: "
                f"{'; '.join(differing)}. Pass the model that was fitted, or fit this one anew."
            )


def _restore(modules: list[Any], states: Any) -> None:
    """Give modules their saved parameters, buffers and mode."""
    for module, saved in zip(modules, states, strict=True):
        module.load_state_dict(saved["state"])
        module.train(saved["training"])
