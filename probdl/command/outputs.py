"""Checks of output paths, made before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from probdl.errors import SettingError
from probdl.util.lazy import backend_bases

__all__ = ["check_file", "check_folder", "check_picture"]


def check_picture(out: Path) -> None:
    """Check that matplotlib can write a plot to a file.

    Raises:
        SettingError: as in `check_file`.
    """
    known = backend_bases.FigureCanvasBase.get_supported_filetypes()
    check_file(out, "plots", [f".{ending}" for ending in known])


def check_file(out: Path, what: str, endings: Sequence[str]) -> None:
    """Check the name of an output file, and create its folder.

    Raises:
        SettingError: the file has the wrong ending, or is a folder.
    """
    if out.suffix not in endings:
        allowed = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise SettingError(f"--out {out}: {what} are written to {allowed} files.")
    if out.is_dir():
        raise SettingError(f"--out {out} is a folder; pass the name of a file.")
    out.resolve().parent.mkdir(parents=True, exist_ok=True)


def check_folder(out: Path) -> None:
    """Check that a fit can be saved in a folder, and create its parent.

    Raises:
        SettingError: it is a file, or a folder that does not hold a fit.
    """
    if out.exists() and not out.is_dir():
        raise SettingError(f"--out {out} is a file; a fit is saved as a folder. Pass a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / "fit.json").exists():
        raise SettingError(
            f"--out {out} is a folder that contains other files than a fit. Pass a new folder."
        )
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
