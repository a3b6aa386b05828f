"""``load``: read a fit from the folder that ``Fit.save`` wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import DataError, ModelError, ProbdlError, SettingError, warn
from probdl.findings import Finding
from probdl.io import idata
from probdl.io.folders import ARRAYS, IDATA, INDEX, folder_path, open_folder
from probdl.io.identity import digest_of, identify
from probdl.io.packing import Opaque, opaque_parts, unpack
from probdl.io.schema import check_index, check_sites
from probdl.io.source import source_of
from probdl.methods import METHODS, Method
from probdl.model.callables import runnable, signature
from probdl.model.encoding import Encoding
from probdl.model.fingerprint import fingerprint
from probdl.model.loader import MissingLoader
from probdl.model.preparing import prepared
from probdl.model.program import Program
from probdl.model.sites import Site, Structure, discover
from probdl.model.without_model import WithoutModel
from probdl.results.fit import Fit
from probdl.results.guided import GuidedFit
from probdl.results.latent import Proposal
from probdl.util.isolation import isolated, sheltered
from probdl.util.text import has_controls

__all__ = ["load"]

_PARTS_OF_MODELS = {
    "source_sha256": "The source of",
    "captured_sha256": "A value captured by",
}


# By name of a stat of a training: its number of dimensions.
TRAINING = {"elbo": 1, "validation_elbo": 1, "validation_steps": 1, "best_step": 0, "rows": 0}


@dataclass(frozen=True, repr=False)
class _IncompleteMethod(Method):
    """The method of a loaded fit if some of its settings could not be saved."""

    recorded: str = ""
    shown: str = ""

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.recorded

    @property
    def draws_are_independent(self) -> bool:  # type: ignore[override]
        kind = METHODS.get(self.recorded)
        return kind is not None and kind.draws_are_independent

    def __repr__(self) -> str:
        return self.shown

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Raise the error that the settings are incomplete."""
        raise ModelError(
            f"Some settings of {self.shown} could not be saved, and fitting again needs them. Pass "
            "the method: probdl.load(folder, model=..., method=...)."
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

    Without the model, the fit can do everything that does not run the model; new predictions,
    scores of new data and guides need it. The folder contains the data of the fit.

    Args:
        folder: the folder of the fit.
        args: the arguments of the model, as they were passed to :func:`infer`; needed only if some
            of them could not be saved (a network, a function). Pass all of them.
        model: the model that was fitted, or one with the same sites.
        method: the method of the fit; needed only if its settings contain objects that cannot be
            saved, such as a guide function of ``SVI`` or the discriminator of a ``GAN``.
        kwargs: the model's keyword arguments.

    Returns:
        The fit with its draws, stats, findings and ArviZ container.

    Raises:
        DataError: there is no fit, its files are damaged or of a later version, or ``args`` differ
            from the data that were fitted.
        ModelError: the sites of the model differ from those of the fit; the message names them.
        SettingError: the method is not that of the fit.

    Warns:
        UserWarning: the source of the model has changed since the fit was saved.

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
    path = folder_path(folder)
    if method is not None and not isinstance(method, Method):
        raise SettingError(
            f"method={method!r} is a {type(method).__name__}; pass the method with the settings of "
            "the fit, such as probdl.SVI(guide=guide)."
        )
    if model is None and (args or kwargs):
        raise SettingError("Data were passed without a model. Pass the model too, as model=.")
    with open_folder(path, (ARRAYS, IDATA)) as (index, files), _contents_of(path):
        check_index(index, INDEX)
        arrays = safetensors.torch.load(files[ARRAYS].read())
        container = idata.read(files[IDATA])
        idata.check_texts(container, path)
        saved = _SavedFit(path, index, arrays, container)
        fit = saved.without_model(method)
    if model is None:
        return fit
    with _contents_of(path):
        return saved.with_model(fit, model, args, kwargs)


@contextmanager
def _contents_of(path: Path) -> Iterator[None]:
    """Report what fails while the contents of a folder are converted to a fit.

    Raises:
        DataError: something does. The contents may be of any origin, so it may be anything.
    """
    try:
        yield
    except ProbdlError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise DataError(
            f"The contents of {path} are not those of a fit ({type(error).__name__}: {reason}). "
            "Another program or an early version of probdl wrote them; save the fit again."
        ) from None


class _SavedFit:
    """The contents of a fit's folder, and their conversion to a fit."""

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
        """Return the fit, with its data but without its model."""
        index = self.index
        dims = unpack(index["dims"], self.arrays)
        check_sites(index["sites"], dims)
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
                term=s.get("term", "pointwise" if s["kind"] == "observed" else None),
                event_dim=s.get("event_dim", 0),
                given_others=s.get("given_others"),
                mask=unpack(s["mask"], self.arrays) if "mask" in s else None,
            )
            for s in index["sites"]
        }
        for site in sites.values():
            held = site.value, *(() if site.mask is None else (site.mask,))
            if not all(isinstance(each, Tensor) for each in held):
                raise ValueError(f"the value or the mask of the site '{site.name}' is no array")
        fit = self.fit_type()(
            self.method(method),
            self.without_program(),
            Structure(sites, index["plate_depth"]),
            self.draws(sites),
            self.stats(),
            index["seed"],
            [Finding.saved(f) for f in index["findings"]],
            {
                n: v
                for n, v in idata.labels(self.container).items()
                # The container has other names for plates that are named like a variable.
                if {n, n.removesuffix("_dim")} & {*index["coords"]}
            },
            dims,
            timings=index["timings"],
        )
        vars(fit)["idata"] = self.container  # the cache of the property
        return fit

    def stats(self) -> dict[str, Any]:
        """Return the stats; those of a training, which are printed, are numbers.

        Raises:
            ValueError: they are not.
        """
        stats = unpack(self.index["stats"], self.arrays)
        if not isinstance(stats, dict):
            raise ValueError("its stats have no names")
        for name, ndim in TRAINING.items():
            if name in stats:
                value = stats[name]
                if isinstance(value, Opaque) or np.asarray(value).dtype.kind not in "iuf":
                    raise ValueError(f"its '{name}' is no number")
                if np.ndim(value) != ndim:
                    raise ValueError(f"its '{name}' has {np.ndim(value)} dimensions")
        if len(stats.get("validation_steps", ())) != len(stats.get("validation_elbo", ())):
            raise ValueError("its 'validation_steps' are not those of 'validation_elbo'")
        return stats

    def draws(self, sites: Mapping[str, Site]) -> dict[str, NDArray[Any]]:
        """Return the draws, which must have the shapes of their sites.

        Raises:
            ValueError: they do not.
        """
        posterior = idata.variables(self.container, "posterior")
        draws = {name: np.asarray(posterior[name]) for name in self.index["draws"]}
        leading = {a.shape[:2] for a in draws.values()}
        if not draws or len(leading) != 1 or 0 in (lead := leading.pop()) or len(lead) != 2:
            raise ValueError("its draws have no common chains and draws")
        for name, array in draws.items():
            if array.dtype.kind not in "biuf" or array.shape[2:] != sites[name].shape:
                raise ValueError(f"the draws of '{name}' have dtype {array.dtype}, {array.shape}")
        return draws

    def without_program(self) -> WithoutModel:
        """Return the stand-in for the program."""
        index = self.index
        program = WithoutModel(index["model"]["name"], self.arguments, self.dtype)
        program.encodings, program.shared = self.encodings(), self.shared()
        program.masks_missing = index["data"].get("masks_missing", False)
        if index["data"].get("minibatch"):
            program.loader = MissingLoader()
        return program

    def encodings(self) -> dict[str, Encoding]:
        """Return how categories and tables among the arguments became numbers.

        Raises:
            ValueError: their labels are not printable.
        """
        found = {}
        for saved in self.index["data"].get("encodings", ()):
            texts = [saved["argument"], *saved["labels"]]
            if any(isinstance(text, str) and has_controls(text) for text in texts):
                raise ValueError("labels of its data have control characters")
            found[saved["argument"]] = Encoding(saved["kind"], tuple(saved["labels"]))
        return found

    def shared(self) -> dict[str, str]:
        """Return the common name of arguments that have the same codes."""
        saved = self.index["data"].get("encodings", ())
        return {of["argument"]: of.get("shared", of["argument"]) for of in saved}

    def fit_type(self) -> type[Fit]:
        """Return the class of the fits of the method."""
        kind = METHODS.get(self.index["method"]["name"])
        return Fit if kind is None else kind.fit_type

    def method(self, given: Method | None) -> Method:
        """Return the method with its saved settings, or check a given method against them."""
        recorded = self.index["method"]
        name = recorded["name"]
        settings = unpack({"dict": [*recorded["settings"].items()]}, self.arrays)
        if given is not None:
            if given.name != name:
                raise SettingError(
                    f"The fit in {self.path} is by {name!r}, not {given.name!r}. Pass its method."
                )
            defaults = {f.name: f.default for f in fields(given)}  # settings that were left out
            left_out: dict[str, Any] = {}
            for setting, value in settings.items():
                # Where files are written is no part of a fit.
                if (
                    opaque_parts(value, "")
                    or not hasattr(given, setting)
                    or setting == "checkpoint"
                ):
                    continue
                if setting in defaults and getattr(given, setting) is defaults[setting]:
                    left_out[setting] = value
                    continue
                if identify(getattr(given, setting)) != identify(value):
                    raise SettingError(
                        f"The fit in {self.path} is by {recorded['shown']}, but method= has "
                        f"{setting}={getattr(given, setting)!r}. Pass the settings of the fit."
                    )
            return replace(given, **left_out)
        # A folder that may come from elsewhere does not say where this machine's files are written.
        settings.pop("checkpoint", None)
        kind = METHODS.get(name)
        known = {f.name for f in fields(kind)} if kind is not None else set()
        if kind is None or opaque_parts(settings, "") or not settings.keys() <= known:
            return _IncompleteMethod(name, recorded["shown"])
        try:
            return kind(**settings)
        except SettingError as error:
            raise DataError(f"The settings in {self.path} are none of a fit: {error}") from None

    def with_model(
        self, fit: Fit, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Fit:
        """Return the fit with its model, whose parameters are set to those of the fit."""
        with isolated(fit.seed):
            return self._with_model(fit, model, args, kwargs)

    def _with_model(
        self, fit: Fit, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Fit:
        index = self.index
        program = self.program(model, args, kwargs)
        structure = discover(program)
        self.compare_sites(program, structure, fit.structure)
        current = source_of(program.original)
        for part, what in _PARTS_OF_MODELS.items():
            saved_hash = index["model"].get(part)
            if saved_hash is not None and current[part] not in (saved_hash, None):
                warn(
                    f"{what} the model '{program.name}' has changed since {self.path} was saved. "
                    "Its sites are the same, but its density may differ; if it does, fit it again."
                )
                break
        _restore(program.modules, unpack(index["modules"], self.arrays) or ())
        values = {s.name: s.value for s in fit.structure.of("param")}
        structure = structure.with_values(values)
        proposal = None
        if index["proposal"] is not None:
            recorded = index["proposal"]
            first = {n: torch.from_numpy(np.array(v[0, 0])) for n, v in fit.draws.items()}
            assert isinstance(fit.method, Method)
            proposal = fit.method.restore(
                program,
                structure,
                Proposal(
                    None, unpack(recorded["values"], self.arrays), {}, tuple(recorded["local"])
                ),
                first,
            )
            if proposal is not None and proposal.program is not None:
                _restore(proposal.program.modules, unpack(recorded["modules"], self.arrays))
        container = fit.idata
        changed: dict[str, Any] = {"program": program, "structure": structure}
        if isinstance(fit, GuidedFit):
            changed["proposal"] = proposal
        fit = replace(fit, **changed)
        vars(fit)["idata"] = container
        return fit

    def program(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Program:
        """Return the model as a program, on the saved data or on the data passed to ``load``."""
        if args or kwargs:
            saved = self.index["data"]
            missing = saved.get("masks_missing", False)
            program = prepared(model, args, kwargs, dtype=self.dtype, masks_missing=missing)
            digest = digest_of(program.all_arguments)
            same = fingerprint(program.tensors()) == saved["fingerprint"]
            if not same or digest != saved.get("arguments_sha256", digest):
                raise DataError(
                    f"The arguments differ from those of the fit in {self.path}. Pass those "
                    "that were passed to infer(); to predict at new data, use fit.predict()."
                )
            return program
        if missing := opaque_parts(self.arguments, "arguments"):
            name, what = next(iter(missing.items()))
            raise ModelError(
                f"{name} is {what!r}: some arguments of the model could not be saved. Pass all of "
                "them as to infer(): probdl.load(folder, *args, model=model)."
            )
        wanted = signature(runnable(model))
        if unknown := self.arguments.keys() - wanted.parameters.keys():
            raise ModelError(
                f"The fit in {self.path} has data for {', '.join(self.arguments)}, but the model "
                f"has no argument {', '.join(sorted(unknown))} (its arguments: "
                f"{', '.join(wanted.parameters) or 'none'}). Pass the model that was fitted."
            )
        bound = wanted.bind_partial()
        bound.arguments.update(self.arguments)
        missing = self.index["data"].get("masks_missing", False)
        program = Program(model, bound.args, bound.kwargs, dtype=self.dtype, masks_missing=missing)
        program.encodings, program.shared = self.encodings(), self.shared()
        if self.index["data"].get("minibatch"):
            program = program.in_minibatches()
            program.loader = MissingLoader()
        return program

    def compare_sites(self, program: Program, found: Structure, saved: Structure) -> None:
        """Check that the model has the same sites as the fit.

        Raises:
            ModelError: it does not; the message names the sites that differ.
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
                f"The model '{program.name}' does not match the fit in {self.path}: "
                f"{'; '.join(differing)}. Pass the model that was fitted, or fit this model."
            )


def _restore(modules: list[Any], states: Any) -> None:
    """Restore the saved parameters, buffers and training mode of modules."""
    for module, saved in zip(modules, states, strict=True):
        module.load_state_dict(saved["state"])
        module.train(saved["training"])
