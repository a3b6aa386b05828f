"""Heavy libraries, imported where they are first used: a second and a half of start-up in all.

Plots, tables and statistics need them; defining and fitting a model does not. The rest of the
package imports them from here, as in ``from probdl.util.lazy import pandas as pd``.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

from probdl.util.lock import TURN

__all__ = [
    "arviz",
    "arviz_stats_base",
    "backend_bases",
    "ecdf_utils",
    "h5netcdf",
    "linalg",
    "matplotlib",
    "optimize",
    "pandas",
    "pyplot",
    "special",
    "stats",
    "xarray",
]

if TYPE_CHECKING:
    import arviz
    import arviz_stats.base as arviz_stats_base
    import h5netcdf
    import matplotlib
    import pandas
    import xarray
    from arviz_stats import ecdf_utils
    from matplotlib import backend_bases, pyplot
    from scipy import linalg, optimize, special, stats
else:

    class _Deferred(ModuleType):
        """The place of a module that is imported when an attribute of it is first read.

        Args:
            name: of the module.
            instead: names of modules to try if there is none of that name.
        """

        def __init__(self, name: str, *instead: str) -> None:
            super().__init__(name)
            self.__dict__["_names"] = (name, *instead)

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("__"):  # tools that look at a module ask for these
                raise AttributeError(attribute)
            return getattr(_import(*self._names), attribute)

    def _import(name: str, *instead: str) -> ModuleType:
        with TURN, warnings.catch_warnings():  # ArviZ 0.23 announces 1.0 on every import
            warnings.filterwarnings("ignore", r"\s*ArviZ", FutureWarning)
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError:
                if not instead:
                    raise
            except OSError:  # ArviZ 0.23 writes to the user's cache folder, which may be read-only
                return _import_with_another_cache(name)
        return _import(*instead)

    def _import_with_another_cache(name: str) -> ModuleType:
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
    arviz_stats_base = _Deferred("arviz_stats.base")  # of ArviZ 1
    backend_bases = _Deferred("matplotlib.backend_bases")
    ecdf_utils = _Deferred("arviz_stats.ecdf_utils", "arviz.stats.ecdf_utils")
    h5netcdf = _Deferred("h5netcdf")
    linalg = _Deferred("scipy.linalg")
    matplotlib = _Deferred("matplotlib")
    optimize = _Deferred("scipy.optimize")
    pandas = _Deferred("pandas")
    pyplot = _Deferred("matplotlib.pyplot")
    special = _Deferred("scipy.special")
    stats = _Deferred("scipy.stats")
    xarray = _Deferred("xarray")
