"""Places to write to, checked before the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from probdl.errors import SettingError
from probdl.util.lazy import backend_bases

__all__ = ["check_file", "check_folder", "check_picture"]


def check_picture(out: Path) -> None:
    """Refuse a file that matplotlib cannot write, before the work."""
    known = backend_bases.FigureCanvasBase.get_supported_filetypes()
    check_file(out, "plots", [f".{ending}" for ending in known])


def check_file(out: Path, what: str, endings: Sequence[str]) -> None:
    """Refuse a file that cannot be written, before the work, and make its folder."""
    if out.suffix not in endings:
        last = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise SettingError(f"--out {out}: {what} are written to {last}.")
    if out.is_dir():
        raise SettingError(f"--out {out} is a folder; give the name of a file.")
    out.resolve().parent.mkdir(parents=True, exist_ok=True)


def check_folder(out: Path) -> None:
    """Refuse a place that a fit cannot be saved in, before the work."""
    if out.exists() and not out.is_dir():
        raise SettingError(f"--out {out} is a file; a fit is saved in a folder of its own.")
    if out.is_dir() and any(out.iterdir()) and not (out / "fit.json").exists():
        raise SettingError(f"--out {out} is a folder that holds something else than a fit.")
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
