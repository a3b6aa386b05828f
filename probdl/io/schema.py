"""Check the types of the index of a saved fit, whose author is not trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probdl.errors import DataError
from probdl.util.text import has_controls

__all__ = ["check_index", "check_sites"]

NUMBER = (int, float)
SITE = {
    "name": str,
    "kind": ("latent", "discrete", "param", "observed", "factor", "deterministic"),
    "shape": [int],
    "dims": [(str, None)],
    "distribution": str,
    "count": int,
    "flat": bool,
    "term?": ("pointwise", "joint", None),
    "event_dim?": int,
    "given_others?": bool,
}
FINDING = {
    "severity": ("info", "warning", "error"),
    "check": str,
    "message": str,
    "remedy": str,
    "sites": [str],
}
ENCODING = {
    "argument": str,
    "kind": ("categories", "columns"),
    "labels": [(str, int, float, bool)],
    "shared?": str,
}
INDEX = {
    "model": {
        "name": str,
        "qualname?": (str, None),
        "object?": (str, None),
        "whole?": bool,
        "file?": (str, None),
        "source_sha256?": (str, None),
        "captured_sha256?": str,
    },
    "method": {"name": str, "shown": str, "settings": {}},
    "seed": int,
    "timings": {},
    "data": {
        "fingerprint": str,
        "arguments_sha256?": str,
        "minibatch?": bool,
        "masks_missing?": bool,
        "encodings?": [ENCODING],
        "dtype": ("float64", "float32", "float16", "bfloat16"),
    },
    "draws": [str],
    "sites": [SITE],
    "plate_depth": int,
    "proposal": ({"local": [str]}, None),
    "findings": [FINDING],
    "coords": [str],
}
"""The form of an index: types, lists of one type, and objects, whose keys may be optional ("?").

Objects may have further keys, which a later version adds. A tuple lists alternatives.
"""


SHOWN = ("model", "method", "sites", "draws", "dims", "coords", "findings")
"""The parts of an index with texts that are printed."""


def check_index(index: Any, file: str) -> None:
    """Check an index.

    Args:
        index: JSON values.
        file: its file, for the message.

    Raises:
        DataError: a value is missing or has another type; the message names it.
    """
    if isinstance(index, dict) and _has_controls([index.get(part) for part in SHOWN]):
        raise DataError(f"The index {file} is refused, because it contains control characters.")
    where = _mismatch(index, INDEX, "")
    if where is None and not 0 <= index["seed"] < 2**63:
        where = "seed"
    if where is None and not all(type(v) in NUMBER for v in index["timings"].values()):
        where = "timings"
    if where is None and not 0 <= index["plate_depth"] <= 64:
        where = "plate_depth"
    if where is not None:
        raise DataError(
            f"The index {file} is not that of a fit: '{where}' is missing or of the wrong type. "
            "Another program or an early version of probdl wrote it; save the fit again."
        )


def _has_controls(tree: Any) -> bool:
    """Return whether a text in JSON values has control characters, which command terminals."""
    if isinstance(tree, dict):
        return any(map(_has_controls, (*tree, *tree.values())))
    if isinstance(tree, list):
        return any(map(_has_controls, tree))
    return isinstance(tree, str) and has_controls(tree)


def check_sites(sites: Sequence[Mapping[str, Any]], dims: Any) -> None:
    """Check that there is a name, or none, for each dimension of a site.

    Args:
        sites: the entry of the index.
        dims: names of further dimensions by site.

    Raises:
        ValueError: there are more or fewer.
    """
    for site in sites:
        if len(site["dims"]) != len(site["shape"]):
            raise ValueError(f"the site '{site['name']}' has {len(site['dims'])} dimensions")
    if _mismatch([*dims.values()], [[(str, None)]], "dims") is not None:
        raise ValueError("'dims' are no names of dimensions")


def _mismatch(value: Any, form: Any, path: str) -> str | None:
    """Return the path to a value that does not have a form; None if there is none."""
    if isinstance(form, tuple):
        found = [_mismatch(value, each, path) for each in form]
        return None if None in found else found[0]
    if isinstance(form, list):
        if not isinstance(value, list):
            return path
        found = [_mismatch(v, form[0], f"{path}[{i}]") for i, v in enumerate(value)]
        return next(filter(None, found), None)
    if isinstance(form, Mapping):
        if not isinstance(value, dict):
            return path
        for key, of in form.items():
            name = key.removesuffix("?")
            inner = f"{path}.{name}" if path else name
            if name not in value:
                if key == name:
                    return inner
            elif (bad := _mismatch(value[name], of, inner)) is not None:
                return bad
        return None
    if isinstance(form, type):
        return None if type(value) is form else path or "index"
    return None if value == form and type(value) is type(form) else path or "index"
