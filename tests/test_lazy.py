"""Heavy libraries are imported whole, also if Ctrl-C comes meanwhile."""

import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
import probdl
from probdl.util.lazy import arviz

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib.rcsetup":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
try:
    arviz.summary
except KeyboardInterrupt:
    print("interrupted")
import matplotlib
print(callable(matplotlib.get_data_path), callable(arviz.summary))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_waits_for_the_end_of_an_import():
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert found.stdout in ("interrupted\nTrue True\n", "True True\n"), found.stderr
