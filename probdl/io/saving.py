"""Save a fit as ``idata.nc`` (for ArviZ), ``arrays.safetensors`` and ``fit.json``."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

import safetensors.torch
from torch import Tensor, nn

from probdl.errors import SettingError, warn
from probdl.io import idata
from probdl.io.folders import ARRAYS, IDATA, folder_path, replace_folder
from probdl.io.identity import digest_of
from probdl.io.packing import pack
from probdl.io.source import source_of
from probdl.model.fingerprint import fingerprint
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.model.without_model import WithoutModel

__all__ = ["save"]

_PACKAGES = ("probdl", "torch", "pyro-ppl", "arviz", "numpy")
MAX_PREDICTIVE_VALUES = 2**28  # of the log likelihood or the predictions: 2 GiB in float64


def save(fit: Any, folder: str | os.PathLike[str]) -> Path:
    """Save a fit to a folder; see ``Fit.save``."""
    path = folder_path(folder)
    if os.path.isfile(path):
        raise SettingError(f"{path} is a file; a fit is saved as a folder. Choose another name.")
    arrays: dict[str, Tensor] = {}
    index = describe(fit, arrays)
    container = _container(fit)
    replace_folder(
        path,
        index,
        {
            IDATA: lambda to: idata.write(container, to),
            ARRAYS: lambda to: _write_arrays(arrays, to),
        },
    )
    return path


def _write_arrays(arrays: dict[str, Tensor], file: IO[bytes]) -> None:
    # safetensors.save_file makes files private to their owner, and its errors are not OSErrors.
    file.write(safetensors.torch.save(arrays))


def describe(fit: Any, arrays: dict[str, Tensor]) -> dict[str, Any]:
    """Return all of a fit except its draws as JSON values; add its arrays to ``arrays``."""
    program: Program = fit.program
    loaded = isinstance(program, WithoutModel)
    proposal = getattr(fit, "proposal", None)  # of fits with a guide
    return {
        "model": ({} if loaded else source_of(program.original)) | {"name": program.name},
        "method": {
            "name": fit.method.name,
            "shown": repr(fit.method),
            "settings": {
                f.name: pack(getattr(fit.method, f.name), arrays, f"method.{f.name}")
                for f in fields(fit.method)
                if f.metadata.get("saved", True)
            },
        },
        "seed": fit.seed,
        "timings": dict(fit.timings),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "data": {
            "fingerprint": fingerprint(program.tensors()),
            "minibatch": program.loader is not None,
            "masks_missing": program.masks_missing,
            "dtype": str(program.dtype).removeprefix("torch."),
            "arguments": pack(program.arguments, arrays, "data"),
            "encodings": [
                {
                    "argument": name,
                    "kind": of.kind,
                    "labels": [*of.labels],
                    "shared": program.shared.get(name, name),
                }
                for name, of in program.encodings.items()
            ],
        }
        | ({} if loaded else {"arguments_sha256": digest_of(program.all_arguments)}),
        "draws": list(fit.draws),
        "sites": _sites(fit.structure, arrays, () if loaded else fit._given_others()),
        "plate_depth": fit.structure.plate_depth,
        "modules": None if loaded else pack(_module_states(program.modules), arrays, "model"),
        "proposal": None
        if proposal is None
        else {
            "local": list(proposal.local),
            "values": pack(dict(proposal.values), arrays, "guide"),
            "modules": pack(
                _module_states(proposal.program.modules if proposal.program else []),
                arrays,
                "guide",
            ),
        },
        "stats": pack(
            {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in fit.stats.items()},
            arrays,
            "stats",
        ),
        "findings": [asdict(finding) for finding in fit.findings],
        "coords": list(fit.coords),
        "dims": pack({k: list(v) for k, v in fit.dims.items()}, arrays, "dims"),
    }


def _sites(
    structure: Structure, arrays: dict[str, Tensor], given_others: Collection[str]
) -> list[dict[str, Any]]:
    return [
        {
            "name": s.name,
            "kind": s.kind,
            "shape": list(s.shape),
            "dims": list(s.dims),
            "distribution": s.distribution,
            "count": s.count,
            "flat": s.flat,
            "term": s.term,
            "event_dim": s.event_dim,
            "given_others": s.name in given_others or s.given_others is True,
            "mask": pack(s.mask, arrays, f"mask.{s.name}"),
            "value": pack(s.value, arrays, f"site.{s.name}"),
        }
        for s in structure.sites.values()
    ]


def _module_states(modules: list[Any]) -> list[Mapping[str, Any]]:
    return [{"training": m.training, "state": dict(m.state_dict())} for m in modules]


def _container(fit: Any) -> Any:
    """Return the ArviZ container, without predictive groups that are too large to save."""
    if "idata" in vars(fit):
        return fit.idata
    scalars = sum(max(math.prod(s.shape), s.count) for s in fit.whole.terms())
    if scalars * fit.num_chains * fit.num_draws <= MAX_PREDICTIVE_VALUES:
        return fit.idata
    warn(
        "The groups log_likelihood and posterior_predictive are not saved, because they are too "
        f"large: {scalars} observations and {fit.num_chains * fit.num_draws} draws. A fit loaded "
        "with its model computes them again."
    )
    return fit.to_idata(predictive=False)
