"""Heavy libraries, imported on first use, which saves 1.5 seconds at start-up.

Plots, tables and statistics need them; defining and fitting a model does not. The rest of the
package imports them from here, as in ``from probdl.util.lazy import pandas as pd``.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from probdl.util.lock import GLOBAL_LOCK

__all__ = [
    "after_scipy",
    "arviz",
    "backend_bases",
    "cloudpickle",
    "ecdf_utils",
    "h5netcdf",
    "h5py",
    "linalg",
    "matplotlib",
    "optimize",
    "pandas",
    "pyplot",
    "stats",
    "xarray",
]

after_scipy: list[Callable[[], Any]] = []
"""Functions that are called after a part of SciPy was imported."""

if TYPE_CHECKING:
    import arviz
    import cloudpickle
    import h5netcdf
    import h5py
    import matplotlib
    import pandas
    import xarray
    from arviz_stats import ecdf_utils
    from matplotlib import backend_bases, pyplot
    from scipy import linalg, optimize, stats
else:

    class _Deferred(ModuleType):
        """A stand-in for a module, which is imported when one of its attributes is first read.

        Args:
            name: the name of the module.
            alternatives: modules to try if there is no module of that name.
        """

        def __init__(self, name: str, *alternatives: str) -> None:
            super().__init__(name)
            self.__dict__["_names"] = (name, *alternatives)

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("__"):  # asked for by tools that inspect modules
                raise AttributeError(attribute)
            return getattr(_import(*self._names), attribute)

    def _import(name: str, *alternatives: str) -> ModuleType:
        with GLOBAL_LOCK, warnings.catch_warnings():  # ArviZ 0.23 warns about version 1.0 on import
            warnings.filterwarnings("ignore", r"\s*ArviZ", FutureWarning)
            try:
                is_new = name not in sys.modules
                with _interrupts_wait():
                    module = importlib.import_module(name)
                if is_new and name.startswith("scipy."):
                    for function in after_scipy:
                        function()
                return module
            except ModuleNotFoundError:
                if not alternatives:
                    raise
            except OSError:  # ArviZ 0.23 writes to the cache folder, which may be read-only
                return _import_with_temporary_cache(name)
        return _import(*alternatives)

    @contextmanager
    def _interrupts_wait() -> Iterator[None]:
        """Let Ctrl-C wait for the end of the context: a half-imported library stays broken."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return
        came: list[Any] = []
        signal.signal(signal.SIGINT, lambda *args: came.append(args))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            if came:
                before(*came[0])

    def _import_with_temporary_cache(name: str) -> ModuleType:
        before = os.environ.get("XDG_CACHE_HOME")
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            try:
                return importlib.import_module(name)
            finally:
                del os.environ["XDG_CACHE_HOME"]
                if before is not None:
                    os.environ["XDG_CACHE_HOME"] = before

    arviz = _Deferred("arviz")
    backend_bases = _Deferred("matplotlib.backend_bases")
    cloudpickle = _Deferred("cloudpickle")
    ecdf_utils = _Deferred("arviz_stats.ecdf_utils", "arviz.stats.ecdf_utils")
    h5netcdf = _Deferred("h5netcdf")
    h5py = _Deferred("h5py")
    linalg = _Deferred("scipy.linalg")
    matplotlib = _Deferred("matplotlib")
    optimize = _Deferred("scipy.optimize")
    pandas = _Deferred("pandas")
    pyplot = _Deferred("matplotlib.pyplot")
    stats = _Deferred("scipy.stats")
    xarray = _Deferred("xarray")
