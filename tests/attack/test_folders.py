"""Hostile folders of fits: each is refused with a DataError, or read correctly."""

import io
import json
import os
import random
import shutil

import h5py
import numpy as np
import pytest
import torch

import probdl
from probdl.models import linear_regression
from tests.attack.hostile import (
    FULL,
    attempt,
    count,
    paths_in,
    replace_file,
    rewrite,
    sealed,
    set_at,
    some,
)

FILES = ("fit.json", "idata.nc", "arrays.safetensors")
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")


@pytest.fixture(scope="module", params=["laplace", "svi", "nuts"] if FULL else ["svi"])
def sound(request, tmp_path_factory):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(10, 2))
    settings = {
        "laplace": probdl.Laplace(draws=50),
        "svi": probdl.SVI(steps=100, draws=50),
        "nuts": probdl.NUTS(draws=50, warmup=50, chains=2),
    }
    y = x @ [1.0, 2.0] + rng.normal(size=10)
    fit = probdl.infer(linear_regression, x, y, method=settings[request.param], seed=1)
    fit.log_likelihood()
    return fit.save(tmp_path_factory.mktemp("fits") / "sound")


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "fit")


def use(folder, *, predict=False):
    """Do with a folder what users do; return the error if it is refused at once."""
    fit = attempt(probdl.load, folder)
    count("folder", fit)
    if isinstance(fit, probdl.ProbdlError):
        assert isinstance(fit, probdl.DataError), fit
        return fit
    for action in (fit.__repr__, fit.diagnose, fit.summary, fit._repr_html_, fit.loo):
        attempt(action)
    if predict:
        again = attempt(probdl.load, folder, model=linear_regression)
        if not isinstance(again, probdl.ProbdlError):
            attempt(again.predict, np.ones((3, 2)))
    return None


# -- files that are no files ------------------------------------------------------------------


def as_pipe(path):
    os.mkfifo(path)


def as_folder(path):
    path.mkdir()


def as_link_to_zeros(path):
    path.symlink_to("/dev/zero")


def as_link_to_itself(path):
    path.symlink_to(path)


def as_link_to_nothing(path):
    path.symlink_to(path.parent / "nothing")


def as_link_to_the_real_file(path):
    shutil.copy(path.parent / f"{path.name}.real", path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def as_hole(path):
    """A file of 8 TB that takes no space."""
    with path.open("wb") as file:
        file.truncate(2**43)


def as_empty(path):
    path.write_bytes(b"")


KINDS = [
    *(as_pipe, as_folder, as_link_to_zeros, as_link_to_itself, as_link_to_nothing),
    *(as_link_to_the_real_file, as_hole, as_empty),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FILES, "fit.json.commit", "idata.nc.new"])
def test_only_plain_files_are_read(folder, name, kind):
    path = folder / name
    if path.exists():
        shutil.copy(path, folder / f"{name}.real")
        path.unlink()
    elif kind is as_link_to_the_real_file:
        shutil.copy(folder / name.rpartition(".")[0], folder / f"{name}.real")
    kind(path)
    refused = use(folder)
    if name in FILES:
        assert refused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["fit.json.commit", *(f"{name}.new" for name in FILES)])
def test_saving_never_follows_a_link(folder, name, kind, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = folder / name
    if kind is as_link_to_the_real_file:
        path.symlink_to(victim)
    else:
        kind(path)
    x = np.ones((3, 2))
    fit = probdl.infer(linear_regression, x, np.ones(3), method="map", seed=1)
    saved = attempt(fit.save, folder)
    count("save", saved)
    assert victim.read_text() == "precious"
    if not isinstance(saved, probdl.ProbdlError):
        assert probdl.load(folder).method.name == "map"


@pytest.mark.parametrize(
    "listed", ["../outside", "/tmp/outside", "a/../../outside", "idata.nc/../../outside", ""]
)
def test_a_commit_renames_only_the_files_of_a_fit(folder, listed, tmp_path):
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "outside.new").write_text("hostile")
    index = json.loads((folder / "fit.json").read_text())
    index["files"][listed] = {"bytes": 0, "sha256": ""}
    (folder / "fit.json.commit").write_text(sealed(index))
    use(folder)
    x = np.ones((3, 2))
    probdl.infer(linear_regression, x, np.ones(3), method="map", seed=1).save(folder)
    assert (tmp_path / "outside").read_text() == "precious"
    assert (tmp_path / "outside.new").read_text() == "hostile"


@pytest.mark.parametrize("listed", ["/dev/zero", "../victim", "idata.nc/../../victim", "."])
def test_an_index_names_no_other_files(folder, listed, tmp_path):
    (tmp_path / "victim").write_text("")

    def change(index):
        index["files"][listed] = {"bytes": 0, "sha256": ""}

    rewrite(folder, change)
    assert use(folder) is None  # it is not looked at


# -- the index --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"format":' * 100_000,
        b'{"format": 1, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"format": 1' + b"0" * 5000 + b"}",
        b'{"format": 1e400}',
        b'{"format": NaN}',
        b'{"format": true}',
        b'{"format": -1}',
        b'\xef\xbb\xbf{"format": 1}',
        b"\xff\xfe{",
        b"\0" * 100,
        b"null",
        b'"' + b"a" * 2**20 + b'"',
        b" " * (2**26 + 1),
        b'{"format": 1, "format": 1}',
        b'{"format": 1, "sha256": {}}',
        b'{"\\ud800": 1, "format": 1}',
    ],
)
def test_an_index_of_nonsense_is_refused(folder, text):
    (folder / "fit.json").write_bytes(text)
    assert use(folder)


BAD = [None, True, -1, 2**70, 0.5, float("nan"), "", "x", "\0", [], [[]], {}, {"x": 1}, [None]]
BAD += [{"tensor": "no such"}, {"opaque": "os.system"}, {"dict": 3}, {"list": {}}, "../../x", 1e400]


@pytest.mark.parametrize("part", some(range(20)))
def test_an_index_with_other_values_is_refused_or_read(folder, part):
    """Every value of the index is replaced, each by two of the bad values."""
    text = (folder / "fit.json").read_text()
    rng = random.Random(part)
    tried = 0
    for i, path in enumerate(paths_in(json.loads(text))):
        if not path or path[0] in ("sha256", "files") or i % 20 != part:
            continue
        for bad in rng.sample(BAD, 2):
            index = json.loads(text)
            set_at(index, path, bad)
            (folder / "fit.json").write_text(sealed(index))
            use(folder, predict=i % 3 == 0)
            tried += 1
    assert tried > 2


def test_an_index_without_a_value_is_refused_or_read(folder):
    text = (folder / "fit.json").read_text()
    for path in some(paths_in(json.loads(text))):
        if not path or path[0] in ("sha256", "files"):
            continue
        index = json.loads(text)
        tree = index
        for key in path[:-1]:
            tree = tree[key]
        del tree[path[-1]]
        (folder / "fit.json").write_text(sealed(index))
        use(folder)


# -- arrays -----------------------------------------------------------------------------------


def described(dtype, shape):
    """Return 8 bytes of an array that a header describes otherwise."""
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\xff" * 8


HEADERS = [
    b"",
    b"\0" * 8,
    b"\xff" * 8,
    (2**40).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"{}",
    (10**4).to_bytes(8, "little") + b"[" * 10**4,
    described("F64", [10**12]),
    described("load", [1]),
    described("F64", [-1]),
    described("BOOL", [8]),
    b"\x80\x04\x95.",  # a pickle
    b"PK\x03\x04",
]


@pytest.mark.parametrize("data", HEADERS)
def test_damaged_arrays_with_the_right_checksum_are_refused(folder, data):
    replace_file(folder, "arrays.safetensors", data)
    use(folder)


# -- netCDF -----------------------------------------------------------------------------------


def edited(folder, edit):
    """Return the bytes of the container after an edit by h5py."""
    path = folder / "idata.nc"
    with h5py.File(path, "r+") as file:
        edit(file)
    return path.read_bytes()


def claims_much(file):
    """24 kB that hold 800 GB of zeros."""
    file["posterior"].create_dataset("big", (10**11,), "f8", chunks=(10**6,), compression="gzip")


def claims_much_uncompressed(file):
    file["posterior"].create_dataset("big", (10**5, 10**6), "f8", chunks=(1, 10**6))


def is_stored_elsewhere(file):
    secret = [("secret.bin", 0, 80)]
    del file["posterior"]["sigma"]
    file["posterior"].create_dataset("sigma", (10,), "f8", external=secret)


def is_virtual(file):
    layout = h5py.VirtualLayout((10,), "f8")
    layout[:] = h5py.VirtualSource("secret.h5", "x", (10,))
    file["posterior"].create_virtual_dataset("big", layout)


def links_to_another_file(file):
    file["posterior"]["linked"] = h5py.ExternalLink("secret.h5", "/x")


def links_softly(file):
    file["posterior"]["linked"] = h5py.SoftLink("/posterior/linked")


def contains_itself(file):
    file["posterior"]["inner"] = file["posterior"]


def has_no_posterior(file):
    del file["posterior"]


def has_complex_numbers(file):
    file["posterior"]["z"] = np.ones(3, complex)


def has_text(file):
    del file["posterior"]["sigma"]
    file["posterior"]["sigma"] = "text"


def has_times(file):
    file["posterior"]["sigma"].attrs["units"] = "days since the big bang"


def has_fill_values(file):
    file["posterior"]["sigma"].attrs["scale_factor"] = "x"


def has_a_type_of_its_own(file):
    file["posterior"]["t"] = np.dtype([("a", "f8"), ("b", "i4")])


def has_many_groups(file):
    group = file["posterior"]
    for i in range(300):
        group = group.create_group(f"g{i}")


def has_groups_side_by_side(file):
    for i in range(300):
        file.create_group(f"g{i}")


def has_a_chunk_for_each_byte(file):
    file["posterior"].create_dataset("big", (3 * 10**5,), "i1", chunks=(1,))


def has_one_text_many_times(file):
    texts = file["posterior"].create_dataset("big", (3000,), h5py.string_dtype())
    texts[...] = "x" * 2**20  # HDF5 writes it once for each


def widens_numbers(file):
    big = file["posterior"].create_dataset(
        "big", (2 * 10**7,), "i1", chunks=(10**6,), compression="gzip"
    )
    big.attrs["scale_factor"] = 0.5


def commands_the_terminal(file):
    name = next(iter(file["posterior"]))
    file["posterior"].move(name, "\x1b[2J")


def has_labels_that_command(file):
    labels = np.array(["\x1b]0;title\x07"], object)
    file["posterior"].create_dataset("label", data=labels, dtype=h5py.string_dtype())
    file["posterior"]["label"].make_scale("label")


EDITS = [
    *(has_groups_side_by_side, has_a_chunk_for_each_byte, widens_numbers),
    *(commands_the_terminal, has_labels_that_command),
    *(claims_much, claims_much_uncompressed, is_stored_elsewhere, is_virtual),
    *(links_to_another_file, links_softly, contains_itself, has_no_posterior),
    *(has_complex_numbers, has_text, has_times, has_fill_values, has_a_type_of_its_own),
    *(has_many_groups,),
]
REFUSED = {
    *(claims_much, claims_much_uncompressed, is_stored_elsewhere, is_virtual),
    *(links_to_another_file, links_softly, contains_itself, has_no_posterior, has_text),
    *(has_many_groups, has_groups_side_by_side, has_a_chunk_for_each_byte, widens_numbers),
    *(commands_the_terminal, has_labels_that_command),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_container_stands_for_itself(folder, edit, monkeypatch):
    (folder / "secret.bin").write_bytes(b"SECRET!!" * 10)
    monkeypatch.chdir(folder)  # where HDF5 looks for the other file
    replace_file(folder, "idata.nc", edited(folder, edit))
    refused = use(folder, predict=True)
    assert refused or edit not in REFUSED


@pytest.mark.parametrize("change", [bytes, complex, bool, "scalar", "chains", "rows", "missing"])
def test_an_altered_log_likelihood_is_no_raw_error(folder, change):
    def edit(file):
        group = file["log_likelihood"]
        name = next(n for n in group if group[n].ndim == 3)
        old = group[name][...]
        del group[name]
        if change == "missing":
            return
        new = {
            bytes: lambda: old.astype("S8"),
            complex: lambda: old.astype(complex),
            bool: lambda: old > 0,
            "scalar": lambda: 1.0,
            "chains": lambda: np.concatenate([old, old]),
            "rows": lambda: old[..., :0],
        }[change]()
        group[name] = new

    replace_file(folder, "idata.nc", edited(folder, edit))
    use(folder)
    fit = attempt(probdl.load, folder)
    if not isinstance(fit, probdl.ProbdlError):
        assert isinstance(attempt(fit.loo), probdl.ProbdlError)
        assert isinstance(attempt(probdl.compare, {"a": fit, "b": fit}), probdl.ProbdlError)


@pytest.mark.parametrize("text", ["\x1b[2J", "\x1b]0;title\x07", "a\x00b", "\x9b2J", "\ud800"])
@pytest.mark.parametrize("place", ["finding", "name", "shown"])
def test_an_index_does_not_command_the_terminal(folder, text, place):
    def change(index):
        if place == "finding":
            index["findings"] = [
                {"severity": "info", "check": "ess", "message": text, "remedy": "", "sites": []}
            ]
        elif place == "name":
            index["model"]["name"] = text
        else:
            index["method"]["shown"] = text

    rewrite(folder, change)
    assert "control characters" in str(use(folder))


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_container_with_the_right_checksum_is_refused_or_read(folder, seed):
    """Text and attributes are damaged; HDF5's own tables are checked by its library."""
    rng = random.Random(seed)
    data = bytearray((folder / "idata.nc").read_bytes())
    for _ in range(rng.choice([1, 3, 30])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if seed % 4 == 0:
        data = data[: rng.randrange(len(data))]
    replace_file(folder, "idata.nc", bytes(data))
    use(folder)


@pytest.mark.parametrize("kind", ["nan", "shape", "dtype", "empty"])
def test_draws_fit_their_sites(folder, kind):
    def edit(file):
        old = file["posterior"]["beta"][...]
        del file["posterior"]["beta"]
        new = {
            "nan": np.full_like(old, np.nan),
            "shape": old[..., :1],
            "dtype": old.astype("S8"),
            "empty": old[:, :0],
        }[kind]
        file["posterior"]["beta"] = new

    replace_file(folder, "idata.nc", edited(folder, edit))
    assert use(folder, predict=True) or kind == "nan"


def test_a_pickle_in_an_array_is_not_read(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    for name in ("arrays.safetensors", "idata.nc"):
        replace_file(folder, name, buffer.getvalue())
        assert use(folder)
    assert not (tmp_path / "executed").exists()
