"""``python -m probdl`` is the command ``probdl``."""

from probdl.cli import app

if __name__ == "__main__":
    app(prog_name="probdl")
