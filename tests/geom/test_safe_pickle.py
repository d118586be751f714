from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from headwarp.geom.safe_pickle import UnsafePickleError, read_npy, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def dump(path: Path, value: Any, protocol: int = 2, rename: bool = True) -> Path:
    """A pickle as the original chumpy writes it: the fork's modules carry another name."""
    blob = pickle.dumps(value, protocol)
    if rename and protocol <= 2:  # protocols 3 and later store names with their length
        blob = blob.replace(b"cchumpy_fork.", b"cchumpy.")
    path.write_bytes(blob)
    return path


class Call:
    """Pickles as a call of any function: what malicious files are made of."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.parts = (function, args, state) if state is not None else (function, args)

    def __reduce__(self) -> Any:
        return self.parts


X = np.arange(12.0).reshape(4, 3) / 7


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_chumpy_arrays_become_arrays(chumpy, tmp_path, protocol):
    found = read_pickle(dump(tmp_path / "a.pkl", {"a": chumpy.array(X)}, protocol))
    assert type(found["a"]) is np.ndarray
    np.testing.assert_array_equal(found["a"], X)


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize(
    "operation",
    [
        lambda a: a * 2,
        lambda a: a + a,
        lambda a: a - 1,
        lambda a: a / 3,
        lambda a: -a,
        lambda a: a[1:3],
        lambda a: a[:, 1],
        lambda a: a.T,
        lambda a: a.reshape(2, 6),
        lambda a: (-a[:2]).reshape(6).T * 3 + 1,
    ],
)
def test_chumpy_operations_are_worked_out(chumpy, tmp_path, protocol, operation):
    array = chumpy.array(X)
    found = read_pickle(dump(tmp_path / "a.pkl", operation(array), protocol))
    np.testing.assert_allclose(found, operation(X), rtol=1e-15)


def test_chumpy_concatenation(chumpy, tmp_path):
    array = chumpy.array(X)
    for axis in (0, 1):
        found = read_pickle(dump(tmp_path / "a.pkl", chumpy.concatenate([array, 2 * array], axis=axis)))
        np.testing.assert_array_equal(found, np.concatenate([X, 2 * X], axis=axis))


def test_other_chumpy_operations_are_refused_by_name(chumpy, tmp_path):
    with pytest.raises(UnsafePickleError, match=r"names chumpy\.ch_ops\.sin"):
        read_pickle(dump(tmp_path / "a.pkl", chumpy.sin(chumpy.array(X))))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        X,
        np.asfortranarray(X),
        X.astype(">f4"),
        X.astype(np.float16),
        (X * 100).astype(np.uint32),
        X > 0.5,
        X.astype(complex),
        np.array(["a", "bc"]),
        np.array([b"a", b"bc"]),
        np.zeros((0, 3)),
        np.float64(2.5),
        np.int32(-3),
    ],
    ids=str,
)
def test_numpy_arrays_of_every_protocol(tmp_path, array, protocol):
    found = read_pickle(dump(tmp_path / "a.pkl", [array], protocol))[0]
    np.testing.assert_array_equal(found, array)
    assert np.shape(found) == np.shape(array)
    assert found.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["csc_matrix", "csr_matrix", "coo_matrix", "csc_array"])
def test_sparse_matrices_become_dense(tmp_path, kind, protocol):
    dense = np.where(np.random.default_rng(0).random((5, 20)) < 0.3, 1.5, 0)
    found = read_pickle(dump(tmp_path / "a.pkl", getattr(scipy.sparse, kind)(dense), protocol))
    np.testing.assert_array_equal(found, dense)


def test_python_2_pickle(tmp_path):
    """Written by hand: what Python 2 wrote for {'x': numpy.arange(3.), 'name': 'a'} (str data, old module names)."""
    raw = "".join(f"\\x{b:02x}" for b in np.arange(3.0).tobytes())
    blob = (
        "(dp0\nS'x'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
        "(I1\n(I3\ntp8\ncnumpy\ndtype\np9\n(S'f8'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nb"
        f"I00\nS'{raw}'\np15\ntp16\nbsS'name'\np17\nS'a'\np18\ns."
    )
    path = tmp_path / "two.pkl"
    path.write_text(blob)
    found = read_pickle(path)
    np.testing.assert_array_equal(found["x"], [0.0, 1.0, 2.0])
    assert found["name"] == "a"


def test_python_2_chumpy_instance(tmp_path):
    """copy_reg._reconstructor and __builtin__.object, Python 2's way to write an instance."""
    path = tmp_path / "two.pkl"
    path.write_text(
        "ccopy_reg\n_reconstructor\np0\n(cchumpy.ch\nCh\np1\nc__builtin__\nobject\np2\nNtp3\nRp4\n"
        "(dp5\nS'_dirty_vars'\np6\nc__builtin__\nset\np7\n((lp8\ntp9\nRp10\nsS'x'\np11\nF2.5\nsb."
    )
    np.testing.assert_array_equal(read_pickle(path), 2.5)


def test_object_array_npy_of_arrays_and_tensors(tmp_path):
    path = tmp_path / "embedding.npy"
    content = {"a": X, "idx": torch.arange(6).reshape(2, 3), "w": torch.full((2, 1), 0.5)}
    np.save(path, content, allow_pickle=True)  # type: ignore[arg-type]
    found = read_npy(path)
    np.testing.assert_array_equal(found["a"], X)
    np.testing.assert_array_equal(found["idx"], np.arange(6).reshape(2, 3))
    assert found["w"].dtype == np.float32


def test_plain_npy(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), X)


def marker(path: Path) -> str:
    return f"touch {path}"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", ["top", "list", "key", "state", "array", "argument"])
def test_programs_are_refused_and_not_run(tmp_path, protocol, place):
    proof = tmp_path / "ran"
    bomb = Call(os.system, marker(proof))
    value: Any = {
        "top": bomb,
        "list": [X, [bomb]],
        "key": {("a", bomb): 1},
        "state": Call(set, [1], state={"x": X, "_dirty": bomb}),
        "array": np.array([1, bomb, None], object),
        "argument": Call(np.dtype, bomb),
    }[place]
    blob = pickle.dumps(value, protocol)
    path = tmp_path / "bad.pkl"
    path.write_bytes(blob)
    with pytest.raises(UnsafePickleError, match=r"names (posix|nt)\.system, which no head model needs"):
        read_pickle(path)
    assert not proof.exists()
    np.save(tmp_path / "bad.npy", np.array(value, object), allow_pickle=True)
    with pytest.raises(UnsafePickleError):
        read_npy(tmp_path / "bad.npy")
    assert not proof.exists()


def test_program_inside_a_chumpy_array(chumpy, tmp_path):
    proof = tmp_path / "ran"
    for attribute in ("x", "label", "_dirty_vars"):
        array = chumpy.array(X)
        array.__dict__[attribute] = [Call(os.system, marker(proof))]
        with pytest.raises(UnsafePickleError, match="system"):
            read_pickle(dump(tmp_path / "bad.pkl", {"shapedirs": array}))
    assert not proof.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("__builtin__", "apply"),
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("operator", "attrgetter"),
        ("functools", "partial"),
        ("importlib", "import_module"),
        ("pickle", "loads"),
        ("numpy", "load"),
        ("numpy", "f2py"),
        ("numpy.f2py", "compile"),
        ("numpy", "ndarray.__array_ufunc__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.lib.npyio", "load"),
        ("scipy.sparse", "os"),
        ("scipy.sparse.linalg", "csc_matrix.__init__"),
        ("chumpy.ch", "pickle"),
        ("chumpy.utils", "Ch"),
        ("torch", "load"),
        ("torch.storage", "_load_from_file"),
        ("codecs", "encode"),
        ("_codecs", "decode"),
        ("collections", "namedtuple"),
        ("headwarp.geom.safe_pickle", "_encode"),
    ],
)
def test_every_name_outside_the_list_is_refused(tmp_path, module, name):
    path = tmp_path / "bad.pkl"
    for blob in (
        f"c{module}\n{name}\n(S'1'\ntR.".encode(),
        b"\x80\x04\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(name)])
        + name.encode()
        + b"\x93.",
    ):
        path.write_bytes(blob)
        with pytest.raises(UnsafePickleError) as caught:
            read_pickle(path)
        assert f"{module}.{name}" in str(caught.value)
        assert "\n" not in str(caught.value)


def forged(path: Path, *, shape: str, dtype: str, data: str, flags: str = "I0") -> Path:
    """A hand-written numpy array pickle (protocol 0) whose parts need not fit each other."""
    path.write_text(
        f"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n{shape}cnumpy\ndtype\n(S'{dtype}'\n"
        f"I0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\n{flags}\ntbI00\n{data}tb."
    )
    return path


@pytest.mark.parametrize(
    "parts",
    [
        {"shape": "(I1000000\nt", "dtype": "f8", "data": "S'abcdefgh'\n"},  # shape beyond the data
        {"shape": "(I1\nt", "dtype": "O8", "data": "S'AAAAAAAA'\n"},  # bytes as object pointers
        {"shape": "(I1\nt", "dtype": "O8", "data": "S'AAAAAAAA'\n", "flags": "I63"},
        {"shape": "(I2\nt", "dtype": "O8", "data": "(lI1\na"},
        {"shape": "(I1\nt", "dtype": "V8", "data": "S'AAAAAAAA'\n"},
        {"shape": "(I-1\nI-1\nt", "dtype": "f8", "data": "S'AAAAAAAA'\n"},
    ],
)
def test_forged_arrays_are_errors(tmp_path, parts):
    with pytest.raises(ValueError, match="no readable head-model pickle"):
        read_pickle(forged(tmp_path / "bad.pkl", **parts))


def test_forged_sparse_indices_are_errors(tmp_path):
    for bad in (np.array([0, 99]), np.array([0, -1])):
        matrix = scipy.sparse.csc_matrix(np.eye(2))
        matrix.indices = bad
        with pytest.raises(ValueError, match="no readable head-model pickle"):
            read_pickle(dump(tmp_path / "bad.pkl", matrix))


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD on a function or class would write its attributes, and so reach the next file that is read."""
    path = tmp_path / "bad.pkl"
    for name in (b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"cchumpy.ch\nCh\n", b"cscipy.sparse\ncsc_matrix\n"):
        for state in (b"(dS'_call'\nI1\ns", b"(N(dS'_call'\nI1\nsS'kind'\nS'x'\nst"):
            path.write_bytes(name + state + b"b.")
            with pytest.raises(ValueError, match=r"refused|no readable"):
                read_pickle(path)
    np.testing.assert_array_equal(read_pickle(dump(tmp_path / "good.pkl", X)), X)


def test_codecs_other_than_latin1_are_errors(tmp_path):
    path = tmp_path / "bad.pkl"
    path.write_bytes(b"c_codecs\nencode\n(S'eA=='\nS'zip'\ntR.")
    with pytest.raises(ValueError, match="no readable head-model pickle"):
        read_pickle(path)


@pytest.mark.parametrize("blob", [b"", b"\x00\x01", b"hello", pickle.dumps({"x": X})[:-40], pickle.dumps(X)[:60]])
def test_damaged_files_are_one_sentence(tmp_path, blob):
    path = tmp_path / "bad.pkl"
    path.write_bytes(blob)
    with pytest.raises(ValueError, match="no readable head-model pickle"):
        read_pickle(path)


def test_deep_nesting_is_an_error(tmp_path):
    path = tmp_path / "bad.pkl"
    path.write_bytes(b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(ValueError, match="no readable head-model pickle"):
        read_pickle(path)


def test_damaged_npy(tmp_path):
    path = tmp_path / "bad.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr'")
    with pytest.raises(ValueError, match=r"no readable \.npy file"):
        read_npy(path)


def test_ordered_dictionaries_become_dictionaries(tmp_path):
    assert read_pickle(dump(tmp_path / "a.pkl", OrderedDict(a=1, b=[2]))) == {"a": 1, "b": [2]}


def test_the_package_needs_no_chumpy():
    root = Path(__file__).parents[2]
    for file in root.glob("*/**/*.py"):
        if not {".venv", "tests", ".names"} & set(file.relative_to(root).parts):
            assert "import chumpy" not in file.read_text()


def test_program_inside_a_torch_storage(tmp_path):
    """A tensor's storage is a file of torch's inside the pickle; it must not get around the reader."""
    proof = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(Call(os.system, marker(proof)), buffer, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="no readable head-model pickle"):
        read_pickle(dump(tmp_path / "bad.pkl", Call(torch.storage._load_from_bytes, buffer.getvalue())))
    assert not proof.exists()
