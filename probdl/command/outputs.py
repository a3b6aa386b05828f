"""Output paths: checks before any work, and files that appear when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from probdl.errors import SettingError
from probdl.io.folders import ARRAYS, IDATA, INDEX
from probdl.util.lazy import backend_bases

__all__ = ["check_file", "check_folder", "check_picture", "written"]


def check_picture(out: Path) -> None:
    """Check that matplotlib can write a plot to a file.

    Raises:
        SettingError: as in `check_file`.
    """
    known = backend_bases.FigureCanvasBase.get_supported_filetypes()
    check_file(out, "plots", [f".{ending}" for ending in known])


def check_file(
    out: Path, what: str, endings: Sequence[str], inputs: Sequence[Path] | None = None
) -> None:
    """Check the name of an output file, and create its folder.

    Args:
        out: the file.
        what: what it will contain, for messages.
        endings: the possible endings of its name.
        inputs: files that must stay as they are.

    Raises:
        SettingError: the file has the wrong ending, is a folder or an input, or belongs to a fit.
    """
    if out.suffix not in endings:
        allowed = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise SettingError(f"--out {out}: {what} are written to {allowed} files.")
    if out.is_dir():
        raise SettingError(f"--out {out} is a folder; pass the name of a file.")
    if any(out.resolve() == path.resolve() for path in inputs or ()):
        raise SettingError(f"--out {out} is one of the files of --data. Pass another name.")
    in_fit = any((folder / INDEX).exists() for folder in (out.parent, out.resolve().parent))
    if in_fit and out.name in (INDEX, IDATA, ARRAYS):
        raise SettingError(f"--out {out} is a file of a fit. Pass another name.")
    _make_parent(out)


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """Yield the name of a new file that takes the place of a file or link when it is complete."""
    part = out.with_name(f".{os.getpid()}-{out.name}")
    try:
        yield part
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _make_parent(out: Path) -> None:
    try:
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--out {out}: its folder cannot be created: {error}.") from None


def check_folder(out: Path) -> None:
    """Check that a fit can be saved in a folder, and create its parent.

    Raises:
        SettingError: it is a file, or a folder that does not hold a fit or cannot be created.
    """
    if out.exists() and not out.is_dir():
        raise SettingError(f"--out {out} is a file; a fit is saved as a folder. Pass a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / "fit.json").exists():
        raise SettingError(
            f"--out {out} is a folder that contains other files than a fit. Pass a new folder."
        )
    _make_parent(out)
    if not out.exists():
        try:  # rather now than after the fit
            out.mkdir()
            out.rmdir()
        except OSError as error:
            raise SettingError(f"--out {out} cannot be created: {error}.") from None
