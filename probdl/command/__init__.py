"""The ``probdl`` command: read options and files, call the public functions, print text or JSON."""
