"""What the ``probdl`` command needs beside the package: words and files in, text and JSON out."""
