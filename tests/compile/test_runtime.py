"""Failing compilers and cache folders: results are correct, and a finding gives the reason."""

import errno
import importlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import probdl
from probdl import health
from probdl.compile.runtime import cache, library, toolchain
from probdl.models import normal_normal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="compilers here are shell scripts")

DATA = np.ones(4), np.arange(4.0)
MEAN = 6 / 5
SVI = probdl.SVI(steps=200, learning_rate=0.05)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Use an empty cache folder, and forget the failures of other tests."""
    place = tmp_path / "cache"
    monkeypatch.setenv("PROBDL_CACHE", str(place))
    monkeypatch.setattr(cache, "_failed", {})
    return place


def fit(method="laplace", **options):
    """Fit a model with a known posterior; return the fit and its engine and cache findings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probdl.FindingWarning)
        found = probdl.infer(normal_normal, *DATA, method=method, seed=1, **options)
    if method == "laplace":
        assert found.stats["mode"][0] == pytest.approx(MEAN)
    findings = [f for f in found.diagnose() if f.check in ("engine", "cache")]
    return found, findings


def native():
    found, findings = fit()
    assert found.stats["engine"] == "native", findings
    return findings


def slower(*parts):
    """Fit on a slower engine, and check that the only finding contains these parts."""
    found, findings = fit()
    assert found.stats["engine"] != "native"
    assert len(findings) == 1
    for part in parts:
        assert part in str(findings[0])


def compiler(tmp_path, monkeypatch, script):
    """Set $CC to a shell script with the arguments "$@", which is to write the file $out."""
    path = tmp_path / "mycc"
    head = 'before=""; for a in "$@"; do [ "$before" = -o ] && out="$a"; before="$a"; done'
    path.write_text(f"#!/bin/bash\n{head}\n{textwrap.dedent(script)}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))


ANSWERS = 'if [ "$1" = --version ]; then echo mycc 1.0; exit 0; fi\n'


# -- compilers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        'if [ "$1" = --version ]; then exit 0; fi; exec cc "$@"',  # prints nothing
        'if [ "$1" = --version ]; then printf \'caf\\xe9 1\\n\'; exit 0; fi; exec cc "$@"',
        ANSWERS + "printf 'd\\xe9pr\\xe9ci\\xe9\\n' >&2; exec cc \"$@\"",  # warns in Latin-1
    ],
)
def test_a_compiler_with_unusual_output_works(tmp_path, monkeypatch, script):
    compiler(tmp_path, monkeypatch, script)
    assert native() == []


BAD = {
    "fails in Latin-1": "printf 'caf\\xe9: no\\n' >&2; exit 1",
    "writes nothing": "cat > /dev/null; exit 0",
    "removes what it wrote": 'cat > /dev/null; rm -f "$out"; exit 0',
    "writes an empty file": 'cat > /dev/null; : > "$out"',
    "writes garbage": 'cat > /dev/null; echo garbage > "$out"',
    "writes half a library": 'cc "$@" && truncate -s 4000 "$out"',
    "writes another library": 'cat > /dev/null; echo "int f(void){return 1;}" | '
    'cc -x c -shared -fPIC -o "$out" -',
    "leaves a symbol undefined": 'cat > /dev/null; echo "int g(void); int logp(void){return g();}'
    ' int expand(void){return 1;}" | cc -x c -shared -fPIC -o "$out" -',
    "dies": "kill -SEGV $$",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_failing_compiler_is_named_and_leaves_no_files(tmp_path, monkeypatch, folder, kind):
    compiler(tmp_path, monkeypatch, ANSWERS + BAD[kind])
    slower("mycc", "CC")
    assert not list(folder.glob("*"))
    monkeypatch.setenv("CC", "cc")
    assert native() == []
    assert [path.suffix for path in folder.iterdir()] == [".so"]


def test_an_entry_that_does_not_load_is_replaced(folder):
    assert native() == []
    (entry,) = folder.iterdir()
    body = b"no library, with a good digest"
    entry.unlink()  # the loaded library keeps its own file
    entry.write_bytes(body + __import__("hashlib").sha256(body).digest())
    entry.chmod(0o700)
    library._loaded.clear()
    assert native() == []
    assert entry.stat().st_size > 1000


def test_a_command_that_cannot_be_parsed(monkeypatch):
    monkeypatch.setenv("CC", "gcc 'x")
    slower("$CC", "No closing quotation")


def test_a_missing_compiler_is_skipped(monkeypatch):
    monkeypatch.setenv("CC", "nowhere-to-be-found")
    assert native() == []


def running(word):
    """Return whether a process with this word in its command is running."""
    found = subprocess.run(["pgrep", "-f", word], capture_output=True, text=True)
    return bool(found.stdout.split())


def ended(word):
    for _ in range(200):
        if not running(word):
            return True
        time.sleep(0.05)
    return False


needs_pgrep = pytest.mark.skipif(shutil.which("pgrep") is None, reason="pgrep is not installed")


@needs_pgrep
@pytest.mark.parametrize("when", ["version", "compilation"])
def test_a_hanging_compiler_is_killed_with_its_children(tmp_path, monkeypatch, when):
    word = f"98765{os.getpid() % 1000:03d}"
    hang = f"cat > /dev/null; sleep {word} & wait"
    script = ANSWERS + hang if when == "compilation" else hang
    compiler(tmp_path, monkeypatch, script)
    monkeypatch.setattr(toolchain, "VERSION_TIMEOUT", 0.5)
    monkeypatch.setattr(toolchain, "COMPILE_TIMEOUT", 0.5)
    slower("mycc", "CC" if when == "version" else "not finished after")
    assert ended(f"sleep {word}")


@needs_pgrep
def test_a_time_limit_includes_compilation(tmp_path, monkeypatch):
    word = f"98764{os.getpid() % 1000:03d}"
    compiler(tmp_path, monkeypatch, ANSWERS + f"cat > /dev/null; sleep {word} & wait")
    with pytest.raises(probdl.TimeLimitError, match="compile"):
        fit(time_limit=1.0)
    assert ended(f"sleep {word}")


@needs_pgrep
def test_ctrl_c_kills_the_compiler(tmp_path, monkeypatch, interruptible):
    word = f"98763{os.getpid() % 1000:03d}"
    compiler(tmp_path, monkeypatch, ANSWERS + f"cat > /dev/null; sleep {word} & wait")

    def interrupt():
        while not running(f"sleep {word}"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fit()
    thread.join()
    assert ended(f"sleep {word}")


def test_the_doctor_has_a_time_limit(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, ANSWERS + "sleep 1000")
    monkeypatch.setattr(health, "_TOY_TIME_LIMIT", 0.5)
    report = probdl.doctor()
    assert not report.healthy
    assert "not finished after 0.5 s" in report.lines["toy model"]


def test_training_without_a_compiler_is_correct_and_reports_it(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, ANSWERS + "exit 1")
    found, findings = fit(SVI)
    assert found.stats["engine"] == "graph"
    assert len(findings) == 1
    assert "mycc" in str(findings[0])


@pytest.mark.parametrize(
    ("kernel", "method"), [("adam", SVI), ("walk", probdl.Metropolis(draws=200, warmup=200))]
)
def test_a_missing_kernel_costs_only_speed(tmp_path, monkeypatch, kernel, method):
    """A compiler that compiles models but fails to compile a kernel."""
    whole, _ = fit(method)
    script = (
        ANSWERS
        + f"""
        code=$(cat)
        if grep -q ' {kernel}(' <<< "$code"; then echo "no {kernel} today" >&2; exit 1; fi
        cc "$@" <<< "$code"
    """
    )
    compiler(tmp_path, monkeypatch, script)
    for module in ("adam", "random_walk"):
        loaded = importlib.import_module(f"probdl.compile.kernels.{module}")
        getattr(loaded, f"_{module}").cache_clear()
    found, findings = fit(method)
    assert found.stats["engine"] == "native"
    assert len(findings) == 1
    assert f"no {kernel} today" in str(findings[0])
    np.testing.assert_allclose(found.draws["mu"], whole.draws["mu"], rtol=1e-6)


# -- folders ------------------------------------------------------------------------------------


def replaced(*parts):
    """Fit with a private folder, and check that the only finding contains these parts."""
    findings = native()
    assert len(findings) == 1
    for part in ("PROBDL_CACHE", "private", *parts):
        assert part in str(findings[0])
    assert native() == findings  # reported again


def test_a_folder_that_is_a_file(folder):
    folder.write_text("a file")
    replaced(str(folder), "is not a folder")
    assert folder.read_text() == "a file"


def test_a_folder_below_a_file(folder, monkeypatch):
    folder.write_text("a file")
    monkeypatch.setenv("PROBDL_CACHE", str(folder / "below"))
    replaced("is not a folder")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_a_folder_that_cannot_be_made(monkeypatch):
    monkeypatch.setenv("PROBDL_CACHE", "/proc/probdl")
    replaced("/proc/probdl")


def test_a_folder_that_cannot_be_written(folder, monkeypatch):
    folder.mkdir(mode=0o700)
    right = cache.tempfile.mkstemp

    def mkstemp(*args, **kwargs):  # root can write to a read-only folder
        if kwargs.get("dir") == folder:
            raise OSError(30, "Read-only file system")
        return right(*args, **kwargs)

    monkeypatch.setattr(cache.tempfile, "mkstemp", mkstemp)
    replaced("Read-only file system")


def test_a_disk_that_is_no_longer_full_is_used_again(folder, monkeypatch):
    folder.mkdir(mode=0o700)
    right, full = cache.tempfile.mkstemp, [True]

    def mkstemp(*args, **kwargs):
        if kwargs.get("dir") == folder and full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(*args, **kwargs)

    monkeypatch.setattr(cache.tempfile, "mkstemp", mkstemp)
    replaced("No space left")
    full[0] = False
    library._loaded.clear()
    assert native() == []
    assert list(folder.glob("*.so"))


def test_a_disk_that_forbids_running_programs(folder, monkeypatch):
    right = library._load

    def load(path, functions):
        if path.parent == folder:
            raise OSError(f"{path}: failed to map segment from shared object")
        return right(path, functions)

    monkeypatch.setattr(library, "_load", load)
    replaced("failed to map segment")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", [".", "here", "./a b/ü"])
def test_a_relative_folder(tmp_path, monkeypatch, name):
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROBDL_CACHE", name)
    assert native() == []
    assert len(list((tmp_path / name).glob("*.so"))) == 1


def test_a_new_folder_is_private_to_the_user(folder):
    assert native() == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o700}


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_folder_that_others_can_write(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    replaced("other users can write")
    assert not list(folder.iterdir())


def test_a_folder_that_others_can_replace(tmp_path, monkeypatch):
    outer = tmp_path / "outer"
    outer.mkdir()
    outer.chmod(0o777)
    monkeypatch.setenv("PROBDL_CACHE", str(outer / "cache"))
    replaced("other users can replace it")


def only_entry(folder):
    assert native() == []
    library._loaded.clear()
    return next(folder.iterdir())


def test_an_entry_that_others_can_write_is_compiled_again(folder):
    entry = only_entry(folder)
    entry.chmod(0o777)
    assert native() == []
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
def test_an_entry_of_another_user_is_not_loaded(folder):
    entry = only_entry(folder)
    os.chown(entry, 12345, 12345)
    assert native() == []
    assert entry.stat().st_uid == 0
    os.chown(folder, 12345, 12345)
    library._loaded.clear()
    replaced("another user owns")


def test_an_entry_that_is_a_folder(folder):
    entry = only_entry(folder)
    entry.unlink()
    entry.mkdir()
    replaced()
    assert entry.is_dir()
    assert probdl.clear_cache() == 1


def test_an_entry_that_is_a_pipe_does_not_hang(folder):
    entry = only_entry(folder)
    entry.unlink()
    os.mkfifo(entry)
    assert native() == []
    assert entry.is_file()


def test_an_entry_that_is_a_link_is_replaced(folder, tmp_path):
    entry = only_entry(folder)
    elsewhere = tmp_path / "elsewhere.so"
    shutil.copy(entry, elsewhere)
    entry.unlink()
    entry.symlink_to(elsewhere)
    assert native() == []
    assert not entry.is_symlink()


def test_a_home_that_cannot_be_written(tmp_path):
    """No folder can be made: for our cache, ArviZ's cache, or matplotlib's settings."""
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "home")
    env = {k: v for k, v in os.environ.items() if k not in ("PROBDL_CACHE", "XDG_CACHE_HOME")}
    code = """if True:
        import os, numpy as np, probdl
        from probdl.models import normal_normal
        fit = probdl.infer(normal_normal, np.ones(4), np.arange(4.0), seed=1)
        print(fit.stats["engine"], len(fit.summary()), *(f.check for f in fit.diagnose()))
        assert "XDG_CACHE_HOME" not in os.environ
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=env | {"HOME": home},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["native", "1", "cache"]


def test_the_private_folder_is_removed_with_the_process(tmp_path):
    code = """if True:
        import os, numpy as np, probdl
        from probdl.compile.runtime import cache
        from probdl.models import normal_normal
        probdl.infer(normal_normal, np.ones(4), np.arange(4.0), method="laplace", seed=1)
        if os.fork() == 0:
            raise SystemExit
        os.wait()
        (place,) = cache._private.values()
        assert list(place.iterdir())
        print(place)
    """
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PROBDL_CACHE": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not Path(done.stdout.strip()).exists()
