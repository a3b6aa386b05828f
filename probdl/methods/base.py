"""What a method is, and the table of their names."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from probdl.errors import SettingError
from probdl.model.program import Program
from probdl.model.sites import Structure, discover
from probdl.results.fit import Fit
from probdl.results.latent import Proposal
from probdl.util.memory import machine_memory

__all__ = ["METHODS", "Method", "resolve"]

METHODS: dict[str, type[Method]] = {}
"""The methods by name; a class that derives from ``Method`` enters itself."""


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
"""What Pyro (and others) call a setting, and what it is called here."""


def setting_named(name: str) -> str:
    """Translate Pyro's name of a setting; a name of ours stays as it is."""
    return PYRO_NAMES.get(name) or name


class _Checked(ABCMeta):
    """Tell of a setting that a method does not have, and which one may be meant."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        settings = [p for p in inspect.signature(cls.__init__).parameters if p != "self"]  # type: ignore[misc]
        if inspect.isabstract(cls):
            raise SettingError(f"{cls.__name__} is what methods have in common; take one of them.")
        if len(args) > len(settings):
            raise SettingError(f"{cls.__name__} takes {len(settings)} settings, not {len(args)}.")
        for name in kwargs:
            if name not in settings:
                meant = PYRO_NAMES.get(name)
                if meant in settings:
                    hint = f"Here it is called {meant}"
                elif near := difflib.get_close_matches(name, settings, 1):
                    hint = f"Did you mean {near[0]}"
                else:
                    hint = f"It has {', '.join(settings)}"
                raise SettingError(f"{cls.__name__} has no setting {name!r}. {hint}.")
        return super().__call__(*args, **kwargs)


@dataclass(frozen=True, repr=False)
class Method(metaclass=_Checked):
    """How inference is done: settings only, checked when they are made, and one operation."""

    name: ClassVar[str]
    takes_loader: ClassVar[bool] = False  # whether a DataLoader may stand for the data
    uses_prior: ClassVar[bool] = True  # whether the priors of latent sites count

    def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name = name
            METHODS[name] = cls

    def __repr__(self) -> str:
        """Show the settings that are not the defaults."""
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    @abstractmethod
    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program, a model with its data, and return the fit.

        Args:
            program: the model with its data.
            seed: all randomness derives from it; global generators are seeded with it too.
            progress: whether to show progress; None leaves it to the terminal.
        """

    def refit(self, fit: Fit, program: Program, seed: int) -> Fit:
        """Fit one of many data sets of the same shapes, drawn from the model or from others' data.

        Methods that can do so leave out what has been found out already.

        Args:
            fit: the fit of another one.
            program: the model with the data.
            seed: all randomness derives from it.
        """
        return self.run(program, seed, False)

    def restore(
        self,
        program: Program,
        structure: Structure,
        saved: Proposal,
        start: Mapping[str, Tensor],
    ) -> Proposal | None:
        """Put a guide that was saved back on a model; None where the method has none.

        Args:
            program: the model with its data.
            structure: its sites.
            saved: the guide's parameters, without its program.
            start: values of the latent sites, where an automatic guide is made.
        """
        return None

    def _check_int(self, **least: int) -> None:
        """Check that settings are whole numbers of at least so much."""
        for setting, low in least.items():
            value = getattr(self, setting)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not whole or value < low:
                self._refuse(setting, f"must be a whole number of at least {low}")

    def _check_real(self, **between: tuple[float, float]) -> None:
        """Check that settings are numbers strictly between two bounds."""
        for setting, (low, high) in between.items():
            value = getattr(self, setting)
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not real or not low < float(value) < high:
                bounds = f"above {low}" + (f" and below {high}" if math.isfinite(high) else "")
                self._refuse(setting, f"must be a number {bounds}")

    def _check_choice(self, **choices: tuple[str, ...]) -> None:
        """Check that settings are one of some words."""
        for setting, words in choices.items():
            if getattr(self, setting) not in words:
                near = difflib.get_close_matches(str(getattr(self, setting)), words, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                self._refuse(setting, f"must be one of {', '.join(map(repr, words))}{hint}")

    def _discover(self, program: Program) -> Structure:
        """Find the sites of a program, and check that the draws can be held.

        Native code ends the process where they cannot.

        Raises:
            SettingError: they need more than the memory of the machine.
        """
        structure = discover(program)
        told = {name: getattr(self, name, 0) for name in ("draws", "num_samples", "warmup")}
        runs = getattr(self, "chains", getattr(self, "paths", 1))
        scalars = sum(math.prod(site.shape) for site in structure.of("latent"))
        needed = 8 * scalars * runs * (max(told["draws"], told["num_samples"]) + told["warmup"])
        if needed > (there := machine_memory(unknown=2**36)):
            settings = ", ".join(f"{name}={value}" for name, value in told.items() if value)
            raise SettingError(
                f"{type(self).__name__}({settings}): the draws of {scalars} numbers each take "
                f"{needed / 2**30:.3g} GiB, and this machine has {there / 2**30:.3g} GiB of "
                "memory. Ask for fewer."
            )
        return structure

    def _refuse(self, setting: str, rule: str) -> None:
        value = getattr(self, setting)
        raise SettingError(f"{type(self).__name__}({setting}={value!r}): {setting} {rule}.")


def resolve(method: str | Method | type[Method]) -> Method:
    """Turn a name, or a class, into the method with its default settings.

    >>> resolve("mle")
    MLE()
    >>> resolve("nutz")
    Traceback (most recent call last):
    probdl.errors.SettingError: there is no method 'nutz'; did you mean 'nuts'? ...
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, type) and issubclass(method, Method):
        return method()
    if isinstance(method, str):
        if method.lower() in METHODS:
            return METHODS[method.lower()]()
        near = difflib.get_close_matches(method.lower(), METHODS, 1, cutoff=0.0)
        names = ", ".join(map(repr, sorted(METHODS)))
        raise SettingError(f"there is no method {method!r}; did you mean {near[0]!r}? ({names})")
    raise SettingError(
        f"method is a {type(method).__name__}; pass a name such as 'nuts', or a method with its "
        "settings such as probdl.NUTS(draws=2000)."
    )
