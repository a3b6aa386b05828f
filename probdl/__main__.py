"""``python -m probdl`` is the command ``probdl``."""

from probdl.command.app import app

if __name__ == "__main__":
    app(prog_name="probdl")
