"""What the attacks share: a time limit, the verdict on an action, and edits of an index."""

import faulthandler
import hashlib
import json
import os
import signal
import warnings
from contextlib import contextmanager

import probdl

LOG = os.environ.get("PROBDL_ATTACK")  # the file that `make attack` counts attempts in
FULL = LOG is not None
LIMIT_S = 120  # of one action: generous, since a hang has no end


class Hang(BaseException):
    """An action took longer than any machine needs."""


@contextmanager
def no_hang(seconds=LIMIT_S):
    """Raise Hang in the context after some seconds of waiting or work, with a traceback."""

    def stop(*_):
        faulthandler.dump_traceback()
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(action, *args, **kwargs):
    """Run an action; return its result, or the ProbdlError. Other errors are faults."""
    with no_hang(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return action(*args, **kwargs)
        except probdl.ProbdlError as error:
            return error


def count(kind, outcome):
    """Count an attempt, where attempts are counted.

    Args:
        kind: what was attacked: "folder", "checkpoint", "call" …
        outcome: an error that says what to do, or anything else.
    """
    if LOG is not None:
        refused = isinstance(outcome, probdl.ProbdlError)
        with open(LOG, "a") as file:  # in one write, so that processes do not mix their lines
            file.write(f"{kind}: {'refused' if refused else 'ok'}\n")


def sealed(index):
    """Return an index with the right checksum, as text."""
    index = {k: v for k, v in index.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    return json.dumps(index | {"sha256": digest})


def rewrite(folder, change):
    """Change the index of a fit, and make its checksum right again."""
    path = folder / "fit.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(sealed(index))


def replace_file(folder, name, data):
    """Replace a file of a fit, and make its recorded size and checksum right."""
    (folder / name).write_bytes(data)

    def change(index):
        index["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    rewrite(folder, change)


def paths_in(tree, path=()):
    """List the paths to all values of a JSON tree."""
    yield path
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield from paths_in(value, (*path, key))


def some(items):
    """Return all cases with PROBDL_ATTACK set, as `make attack` does, and every fifth without."""
    items = [*items]
    return items if FULL else items[::5]


def set_at(tree, path, value):
    """Replace the value at a path."""
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value
