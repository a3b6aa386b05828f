"""Run the notebooks, and store them with their outputs: `make notebooks`.

Output on standard error (progress, warnings of other packages) is not stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbclient
import nbformat

HERE = Path(__file__).parent


def clean(notebook: nbformat.NotebookNode) -> None:
    """Remove standard error, and metadata that differ between runs."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            cell.metadata.pop("execution", None)


def main() -> None:
    for path in [HERE / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(HERE)}}
        nbclient.NotebookClient(notebook, timeout=None, resources=resources).execute()
        clean(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
