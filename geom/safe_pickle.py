"""Reading the pickles that head models are published as, without running anything that is in them.

A pickle is a program: loading a stranger's file with `pickle.load` runs whatever it names. FLAME's files (and landmark
embeddings, which are pickles inside a .npy) need only numpy arrays, scipy.sparse matrices, chumpy arrays and, in DECA's
embedding, torch tensors. This reader

* maps exactly those names to stand-ins that collect their state as plain data, and refuses every other name;
* never calls numpy's, scipy's or chumpy's own unpickling code: their state can be forged so that it points outside its
  memory. Arrays are built afterwards from checked bytes, shapes and indices.

Nothing of chumpy is imported or needed. Python 2 pickles are read as latin1, as numpy arrays in them require.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class UnsafePickleError(ValueError):
    """The file names something that a head model does not need; nothing of it was run."""


def read_pickle(path: Path | str) -> Any:
    """The content of a pickle: dictionaries, lists, tuples, numbers, strings and dense numpy arrays.

    chumpy arrays, sparse matrices and torch tensors come back as dense numpy arrays.

    Raises:
        UnsafePickleError: the file names a class or function beyond those; the message tells which.
        ValueError: the file is no pickle, or is damaged.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    return _load(path.read_bytes(), path)


def read_npy(path: Path | str) -> Any:
    """The content of a .npy file; object arrays (pickles inside) go through the same reader as `read_pickle`.

    A 0-d object array, which is how `np.save` stores a dictionary, comes back as the object itself.
    """
    path = Path(path)
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read_header:
                raise ValueError(f"its format version is {version}")
            _, _, dtype = read_header[version](file)
        except ValueError as error:
            raise ValueError(f"{path} is no readable .npy file: {error}.") from None
        if not dtype.hasobject:
            file.seek(0)
            return np.load(file, allow_pickle=False)
        value = _load(file.read(), path)
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows a fixed list of names; see the module docstring."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path
        # Classes that a pickle instantiates are made anew for each file: a pickle can write attributes of what it is
        # given.
        self._classes: dict[str, type[_State]] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _FUNCTIONS.get((module, name))
        if found is not None:
            return found
        if name in _SPARSE and re.fullmatch(r"scipy\.sparse(\._?[a-z]+)?", module):
            return self._stand_in(name)
        if _CHUMPY.get(name) == module.partition(".")[2] and module.partition(".")[0] in ("chumpy", "chumpy_fork"):
            return self._stand_in("chumpy " + name)
        raise UnsafePickleError(
            f"{self._path} was refused: it names {module}.{name}, which no head model needs. Pickles can run programs; "
            "get the file from its authors' site, or convert it to .npz where you trust it."
        )

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(f"{self._path} was refused: it refers to objects outside the file.")

    def _stand_in(self, kind: str) -> type[_State]:
        return self._classes.setdefault(kind, type("StandIn", (_State,), {"kind": kind}))


class _State:
    """Stand-in of an object of a known class: what it was made of, as data."""

    kind = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> _State:
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_State):
    kind = "array"


class _DType(_State):
    kind = "dtype"


class _Function:
    """A name that a pickle may call. Without attributes of its own, so that a pickle cannot change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("the file was refused: it tries to change a function.")


def _forget(*args: Any) -> None:
    """For names that are only ever arguments (numpy.ndarray, object)."""


def _reconstruct(*args: Any) -> _State:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _State:
    return _filled((1, shape, dtype, order == "F", bytes(data)))


def _scalar(dtype: Any, data: Any = None) -> _State:
    return _filled((1, (), dtype, False, data))


def _filled(state: tuple[Any, ...]) -> _State:
    array = _Array()
    array.state = state
    return array


def _dtype(text: Any, *rest: Any) -> _State:
    return _DType(text)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes into old protocols; latin1 only, codecs can do much more."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError(f"bytes in the unknown encoding {encoding!r}")
    return text.encode("latin1")


def _reconstructor(cls: Any, base: Any = None, state: Any = None) -> Any:
    """`copyreg._reconstructor`, by which Python 2 writes instances."""
    if not (isinstance(cls, type) and issubclass(cls, _State)):
        raise ValueError("an instance of an unknown class")
    return cls.__new__(cls)


def _tensor(storage: NDArray[Any], offset: int, size: Iterable[int], stride: Iterable[int], *rest: Any) -> NDArray[Any]:
    """`torch._utils._rebuild_tensor_v2`: a part of a storage, every place checked by numpy's own indexing."""
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0 or math.prod(size) > len(storage):
        raise ValueError("a torch tensor that does not fit its storage")
    places = np.array(offset)
    for count, step in zip(size, stride, strict=True):
        places = places[..., None] + step * np.arange(count)
    return storage[places]


def _storage(data: bytes) -> NDArray[Any]:
    """`torch.storage._load_from_bytes`: a storage in torch's own format, read by torch's restricted reader."""
    import torch

    storage = torch.load(io.BytesIO(data), weights_only=True)
    return torch.tensor([], dtype=storage.dtype).set_(storage).numpy()


_FUNCTIONS: dict[tuple[str, str], Any] = {
    **{(m, t.__name__): t for m in ("builtins", "__builtin__") for t in (set, frozenset, bytes)},
    **{(m, "object"): _Function(_forget) for m in ("builtins", "__builtin__")},
    **{(m, "_reconstructor"): _Function(_reconstructor) for m in ("copyreg", "copy_reg")},
    ("_codecs", "encode"): _Function(_encode),
    ("collections", "OrderedDict"): dict,
    ("numpy", "ndarray"): _Function(_forget),
    ("numpy", "dtype"): _Function(_dtype),
    **{(f"numpy.{c}.multiarray", "_reconstruct"): _Function(_reconstruct) for c in ("core", "_core")},
    **{(f"numpy.{c}.multiarray", "scalar"): _Function(_scalar) for c in ("core", "_core")},
    **{(f"numpy.{c}.numeric", "_frombuffer"): _Function(_from_buffer) for c in ("core", "_core")},
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
}
_SPARSE = ("csc_matrix", "csr_matrix", "coo_matrix", "csc_array", "csr_array", "coo_array")
_CHUMPY = {
    "Ch": "ch",
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "negative"), "ch_ops"),
    **dict.fromkeys(("Reshape", "transpose", "Select", "Concatenate"), "reordering"),
}
"""chumpy classes -> the module they live in: arrays, and the operations that a published model may still hold."""


def _load(data: bytes, path: Path) -> Any:
    try:
        return _resolve(_Unpickler(io.BytesIO(data), path).load(), {})
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged or forged pickle can fail in any way; all of them mean the same to the user
        raise ValueError(
            f"{path} is no readable head-model pickle ({type(error).__name__}: {error}). It may be damaged or only "
            "partly downloaded."
        ) from error


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    """Plain data with every stand-in turned into the numpy array it stands for."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        return {_resolve(key, done): _resolve(item, done) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, done) for item in value]
    if isinstance(value, tuple):
        return tuple(_resolve(item, done) for item in value)
    if isinstance(value, _State):
        if value.state is None:
            raise ValueError(f"a {value.kind or 'class'} without content")
        if value.kind == "array":
            result = _array(value.state, done)
        elif value.kind in _SPARSE:
            result = _sparse(value.kind, _resolve(value.state, done))
        elif value.kind.startswith("chumpy "):
            result = _chumpy(value.kind.removeprefix("chumpy "), _resolve(_terms(value.state), done))
        else:
            raise ValueError(f"a {value.kind} where data was expected")
        done[id(value)] = result
        return result
    if isinstance(value, (_Function, type)):
        raise ValueError("a function where data was expected")
    return value


def _array(state: Any, done: dict[int, Any]) -> Any:
    """The array of numpy's pickle state (version, shape, dtype, fortran order, bytes or list of objects)."""
    _, shape, dtype, fortran, data = state if len(state) == 5 else (1, *state)
    shape = tuple(int(n) for n in shape)
    order: Literal["F", "C"] = "F" if fortran else "C"
    if not (isinstance(dtype, _DType) and isinstance(dtype.args[0], str)):
        raise ValueError("an array of an unknown type")
    text = dtype.args[0]
    if re.fullmatch(r"[|<>=]?O8?", text):
        if not isinstance(data, list) or len(data) != math.prod(shape):
            raise ValueError("an array of objects that does not fit its shape")
        objects = np.empty(len(data), object)
        objects[:] = [_resolve(item, done) for item in data]
        return objects.reshape(shape, order=order)
    if not re.fullmatch(r"[|<>=]?([biufcSU][0-9]+|\?)", text):
        raise ValueError(f"an array of type {text}")
    byte_order: Any = dtype.state[1] if dtype.state else "|"
    kind = np.dtype(text)
    if byte_order in ("<", ">"):
        kind = kind.newbyteorder(byte_order)
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    values = np.frombuffer(raw, kind).reshape(shape, order=order)
    values = values.astype(kind.newbyteorder("="))
    return values[()] if shape == () else values


def _sparse(kind: str, state: dict[str, Any]) -> NDArray[Any]:
    """The dense array of a pickled sparse matrix. numpy checks every index; scipy's own code would not."""
    rows, columns = (int(n) for n in (state["_shape"] if "_shape" in state else state["shape"]))
    data = state["data"]
    if kind.startswith("coo"):
        i, j = state["coords"] if "coords" in state else (state["row"], state["col"])
    else:
        pointers, inner = state["indptr"], state["indices"]
        outer = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
        i, j = (inner, outer) if kind.startswith("csc") else (outer, inner)
    if len(i) != len(data) or len(j) != len(data) or (len(data) and min(i.min(), j.min()) < 0):
        raise ValueError("a sparse matrix whose indices do not fit its data")
    dense = np.zeros((rows, columns), data.dtype)
    np.add.at(dense, (i, j), data)
    return dense


def _terms(state: Any) -> dict[str, Any]:
    """What a chumpy object is made of; the bookkeeping (names with an underscore) is left behind."""
    return {key: value for key, value in state.items() if isinstance(key, str) and not key.startswith("_")}


def _chumpy(name: str, terms: dict[str, Any]) -> NDArray[Any]:
    """The value of a chumpy object from its terms."""
    if name == "Ch":
        return np.asarray(terms["x"])
    if name == "Concatenate":
        return np.concatenate([terms[key] for key in terms["dterms"]], axis=terms.get("axis", 0))
    a = np.asarray(terms["x"] if name == "negative" else terms["x1"] if name == "divide" else terms["a"])
    match name:
        case "Reshape":
            return a.reshape(terms["newshape"])
        case "transpose":
            return a.transpose(terms.get("axes"))
        case "Select":
            picked = a.ravel()[terms["idxs"]]
            return picked.reshape(terms.get("preferred_shape", picked.shape))
        case "negative":
            return -a
        case "add":
            return a + terms["b"]
        case "subtract":
            return a - terms["b"]
        case "multiply":
            return a * terms["b"]
        case "divide":
            return a / terms["x2"]
    raise ValueError(f"the chumpy operation {name}")
