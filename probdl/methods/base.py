"""The abstract base class of methods, and the table of methods by name."""

from __future__ import annotations

import inspect
from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from probdl.errors import SettingError
from probdl.model.callables import callable_name
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.model.sites import Structure, discover
from probdl.model.starting import as_settings
from probdl.results.fit import Fit
from probdl.results.latent import Proposal
from probdl.util.memory import machine_memory
from probdl.util.settings import INT_MAX, check_choice, check_int, check_real, plain, setting_error
from probdl.util.suggestions import did_you_mean, nearest

__all__ = ["METHODS", "Method", "resolve"]

COPIES = 3  # of draws in memory: on R^d, constrained, and in the container
CHAIN_BYTES = 2**16  # of a chain beside its draws, at most: the state of its sampler

METHODS: dict[str, type[Method]] = {}
"""The methods by name. A subclass of ``Method`` with a name registers itself."""

PYRO_NAMES = {
    "num_samples": "draws",
    "warmup_steps": "warmup",
    "num_warmup": "warmup",
    "tune": "warmup",
    "num_chains": "chains",
    "lr": "learning_rate",
    "optim": "optimizer",
    "loss": "elbo",
    "num_steps": "steps",
    "num_iterations": "steps",
    "num_epochs": "epochs",
    "target_accept_prob": "target_accept",
    "max_tree_depth": "max_treedepth",
    "max_plate_nesting": "",
    "full_mass": "mass_matrix",
    "init_strategy": "init",
    "jit_compile": "engine",
}
"""Names of settings in Pyro and other packages, and the names here; '' if there is none."""


def setting_named(name: str) -> str:
    """Translate the name of a setting in Pyro to the name here; return other names unchanged."""
    return PYRO_NAMES.get(name) or name


class _CheckedSettings(ABCMeta):
    """Metaclass that suggests the right name if a method is called with an unknown setting."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """The settings with their defaults, which ``__call__`` below would hide from help()."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        settings = [p for name, p in signature.parameters.items() if name != "self"]
        return signature.replace(parameters=settings, return_annotation=cls)

    def _checked(cls, *args: Any, **kwargs: Any) -> Any:
        settings = [p for p in inspect.signature(cls.__init__).parameters if p != "self"]  # type: ignore[misc]
        if inspect.isabstract(cls):
            raise SettingError(
                f"{cls.__name__} is an abstract base class; use a concrete method such as "
                "probdl.NUTS()."
            )
        if len(args) > len(settings):
            raise SettingError(
                f"{cls.__name__} takes {len(settings)} settings, but got {len(args)}."
            )
        for name in kwargs:
            if name not in settings:
                meant = PYRO_NAMES.get(name)
                if meant in settings:
                    hint = f"Here it is called {meant}."
                elif similar := nearest(name, settings):
                    hint = f"Did you mean {similar}?"
                else:
                    hint = f"Its settings are {', '.join(settings)}."
                raise SettingError(f"{cls.__name__} has no setting {name!r}. {hint}")
        return super().__call__(*args, **kwargs)

    if not TYPE_CHECKING:  # type checkers then read the settings from the dataclass
        __call__ = _checked


@dataclass(frozen=True, repr=False)
class Method(metaclass=_CheckedSettings):
    """Base class of methods: frozen settings, checked on construction, and one operation, run."""

    name: ClassVar[str]
    takes_loader: ClassVar[bool] = False  # whether the model's data may be a DataLoader
    trains_networks: ClassVar[bool] = False
    uses_prior: ClassVar[bool] = True  # whether the priors of latent sites enter the fit
    sums_out: ClassVar[bool] = True  # whether all discrete sites are summed out
    draws_are_independent: ClassVar[bool] = False
    fit_type: ClassVar[type[Fit]] = Fit  # the class of the fits that run() returns

    def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
        """Register the subclass under a name.

        Raises:
            SettingError: another class has this name. A class that is defined again, as by running
                a notebook cell twice or reloading a module, replaces the earlier one.
        """
        super().__init_subclass__(**kwargs)
        if not name:
            return
        if (holder := METHODS.get(name)) is not None:
            redefined = (holder.__module__, holder.__qualname__) == (
                cls.__module__,
                cls.__qualname__,
            )
            if not redefined:
                raise SettingError(
                    f"The method name {name!r} is already taken by {holder.__module__}."
                    f"{holder.__qualname__}. Choose another name for {cls.__qualname__}: "
                    f"class {cls.__name__}(..., name=...)."
                )
        cls.name = name
        METHODS[name] = cls

    def __repr__(self) -> str:
        """Show the settings that differ from their defaults."""
        changed = [
            f"{f.name}={_shown(getattr(self, f.name))}"
            for f in fields(self)
            if f.repr and _differs(getattr(self, f.name), f.default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    @abstractmethod
    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program, a model with its data, and return the fit.

        Args:
            program: the model with its data.
            seed: all random numbers derive from it; the global generators are seeded with it, too.
            progress: whether to show progress; None shows it on a terminal and in a notebook only.
        """

    def _divides_batches(self, args: Sequence[Any]) -> bool:
        """Return whether processes that ``torchrun`` starts train together on these arguments."""
        return False

    def refit(self, fit: Fit, program: Program, seed: int) -> Fit:
        """Fit one of many data sets of the same shapes, such as simulated or resampled data.

        A method may override this to skip checks that were made for the first fit.

        Args:
            fit: a fit to another of the data sets.
            program: the model with its data.
            seed: all random numbers derive from it.
        """
        return self.run(program, seed, False)

    def restore(
        self,
        program: Program,
        structure: Structure,
        saved: Proposal,
        start: Mapping[str, Tensor],
    ) -> Proposal | None:
        """Rebuild the guide of a saved fit; return None if the method has no guide.

        Args:
            program: the model with its data.
            structure: its sites.
            saved: the parameters of the guide, without its program.
            start: values of the latent sites, from which an automatic guide is initialised.
        """
        return None

    def _check_int(self, high: int = INT_MAX, **least: int) -> None:
        """Check that settings are integers, given the smallest value of each, and the largest."""
        settings = {name: (getattr(self, name), low) for name, low in least.items()}
        check_int(type(self).__name__, high, **settings)
        self._make_plain(least)

    def _check_real(self, **between: tuple[float, float]) -> None:
        """Check that settings are numbers, given two bounds for each, both excluded."""
        settings = {name: (getattr(self, name), *bounds) for name, bounds in between.items()}
        check_real(type(self).__name__, **settings)
        self._make_plain(between)

    def _make_plain(self, settings: Iterable[str]) -> None:
        """Make NumPy's numbers Python's, which everything takes, and which can be saved."""
        for name in settings:
            object.__setattr__(self, name, plain(getattr(self, name)))

    def _check_choice(self, **choices: tuple[str, ...]) -> None:
        """Check that settings are one of some words, given the words for each."""
        settings = {name: (getattr(self, name), words) for name, words in choices.items()}
        check_choice(type(self).__name__, **settings)

    def _check_init(self, *words: str) -> None:
        """Check that ``init`` is one of the words, or a mapping of values by site, or None."""
        given = vars(self)["init"]
        if isinstance(given, Mapping):
            try:
                # Tensors and arrays could be neither compared nor saved with the other settings.
                object.__setattr__(self, "init", as_settings(given))
            except (TypeError, ValueError) as error:
                self._refuse("init", f"must map names of sites to numbers or arrays ({error})")
        elif words and isinstance(given, str):
            self._check_choice(init=words)
        elif words or given is not None:
            listed = f"one of {', '.join(map(repr, words))}, or " if words else ""
            self._refuse("init", f"must be {listed}a dict of values by site")

    def _density(self, program: Program, structure: Structure, **options: bool) -> LogDensity:
        """Return the density of a program, with starting points at the values of ``init``."""
        density = LogDensity(program, structure, **options)
        given = getattr(self, "init", None)
        return density.starting_at(given) if isinstance(given, Mapping) else density

    def _discover(self, program: Program) -> Structure:
        """Find the sites of a program, and check that the draws fit into memory.

        The check is needed because native code ends the process when memory runs out.

        Raises:
            SettingError: the draws need more than the memory of the machine.
        """
        structure = discover(program)
        if self.sums_out:
            structure.check_summable()
        sizes = {name: getattr(self, name, 0) for name in ("draws", "num_samples", "warmup")}
        runs = getattr(self, "chains", getattr(self, "paths", 1))
        scalars = structure.count_values("latent")
        count = max(sizes["draws"], sizes["num_samples"]) + sizes["warmup"]
        needed = COPIES * 8 * scalars * runs * count + CHAIN_BYTES * getattr(self, "chains", 0)
        if needed > (available := machine_memory(unknown=2**36)):
            shown = sizes | {"chains": getattr(self, "chains", 0)}
            settings = ", ".join(f"{name}={value}" for name, value in shown.items() if value)
            raise SettingError(
                f"{type(self).__name__}({settings}): the draws, of {scalars} numbers each, need "
                f"about {needed / 2**30:.3g} GiB, and this machine has {available / 2**30:.3g} GiB "
                "of memory. Request fewer draws."
            )
        return structure

    def _refuse(self, setting: str, rule: str) -> None:
        raise setting_error(type(self).__name__, setting, getattr(self, setting), rule)


def _shown(value: Any) -> str:
    """Return a setting as text, with the shapes of arrays instead of their values."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, tuple) and any(isinstance(v, (Tensor, np.ndarray)) for v in value):
        return f"({', '.join(map(_shown, value))}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {_shown(v)}' for k, v in value.items())}}}"
    if isinstance(value, nn.Module) or hasattr(value, "__self__"):
        return callable_name(value)  # the repr of a network has many lines
    return repr(value)


def _differs(value: Any, default: Any) -> bool:
    """Return whether a setting has another value than its default."""
    if value is default:
        return False
    try:
        return bool(value != default)
    except Exception:  # objects of the user need not be comparable
        return True


def resolve(method: str | Method | type[Method]) -> Method:
    """Return the method of a name or class, with default settings; return a method unchanged.

    >>> resolve("mle")
    MLE()
    >>> resolve("nutz")
    Traceback (most recent call last):
    probdl.errors.SettingError: There is no method 'nutz'; did you mean 'nuts'? ...
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, type) and issubclass(method, Method):
        return method()
    if isinstance(method, str):
        if method.lower() in METHODS:
            return METHODS[method.lower()]()
        hint = did_you_mean(method.lower(), METHODS, similarity=0.0)
        names = ", ".join(map(repr, sorted(METHODS)))
        raise SettingError(f"There is no method {method!r}; {hint} ({names})")
    raise SettingError(
        f"method is a {type(method).__name__}; pass a name such as 'nuts', or a method with "
        "settings such as probdl.NUTS(draws=2000)."
    )
