"""Eight numbers (or more) as one value in numba kernels, so that loops over channels become vector instructions.

LLVM's own vectoriser wants longer loops than ours (a triangle is five pixels wide, a code has 16 channels) and takes
its time. Here the width is fixed, and LLVM only maps it to what the machine has: one AVX register, two of SSE or NEON.

    total = load(a, i) * w0 + load(a, j) * w1       # 8 entries each, from flat positions i and j on
    store(out, p, total)

A loop that serves several widths takes lanes of the wanted width, all 0, and asks for others `like` them.

`kernel` compiles such a function for given types when it is first called, and keeps it on disk. numba notices changes
of the kernel's own file only: after a change of this one, delete the `*.nbi` files.

Lanes hold float32, float64, int32 or booleans. Operators take two lanes of a kind, or lanes and a scalar of their kind.
Arrays are one-dimensional and contiguous, or a `pointer` into any array; positions are not checked, so callers check
them first. Arrays of uint16 hold bfloat16 and arrays of int16 hold float16 (numba has neither): `load` widens them to
float32, `store` rounds to even.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.core.typing.templates import signature as typed
from numba.extending import intrinsic, lower_builtin, models, register_model

from .memory import LINE

WIDTH = 8


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a numba function of exactly these types that runs without the interpreter lock.

    It is compiled, or loaded from the cache on disk, at its first call and not on import. Arguments of other types or
    memory orders raise TypeError instead of being compiled for as well.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        dispatcher = njit(cache=True, nogil=True, error_model="numpy")(function)
        compiling = threading.Lock()  # the first call may come from several threads at once
        compiled = False  # asking the dispatcher takes longer than a small kernel

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            nonlocal compiled
            if not compiled:
                with compiling:
                    if not compiled:
                        dispatcher.compile(signature)
                        dispatcher.disable_compile()
                        compiled = True
            return dispatcher(*args)

        return call

    return decorate


_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32 = ir.FloatType()
_ELEMENTS = {
    types.float32: _F32,
    types.float64: ir.DoubleType(),
    types.int32: _I32,
    types.boolean: ir.IntType(1),
    types.uint16: _I16,
    types.int16: ir.HalfType(),
}


class Lanes(types.Type):
    """Numba's type of WIDTH numbers of one kind, or of another count."""

    def __init__(self, dtype: types.Type, width: int = WIDTH) -> None:
        super().__init__(f"Lanes({dtype}, {width})")
        self.dtype, self.width = dtype, width


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, _vector(_ELEMENTS[kind.dtype], kind.width))


def _vector(element: Any, width: int = WIDTH) -> ir.VectorType:
    return ir.VectorType(element, width)


def _constant(element: Any, value: float, width: int = WIDTH) -> ir.Constant:
    return ir.Constant(_vector(element, width), [value] * width)


def _splat(builder: Any, value: Any, width: int = WIDTH) -> Any:
    undefined = ir.Constant(_vector(value.type, width), ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(undefined, value, ir.Constant(_I32, 0)), undefined, _constant(_I32, 0, width)
    )


def _entry(context: Any, builder: Any, kind: types.Type, memory: Any, at: Any) -> Any:
    """Address of one entry of an array or of memory behind a pointer."""
    data = memory if isinstance(kind, types.CPointer) else context.make_array(kind)(context, builder, memory).data
    return builder.gep(data, [at])


def _pointer(context: Any, builder: Any, kind: types.Type, memory: Any, at: Any, element: Any) -> Any:
    return builder.bitcast(_entry(context, builder, kind, memory, at), element.as_pointer())


def _wide(dtype: types.Type) -> types.Type:
    """What an array's entries are in lanes."""
    return types.float32 if dtype in (types.uint16, types.int16) else dtype


def _load(array: types.Array, width: int) -> tuple[Any, Callable[..., Any]]:
    dtype = array.dtype

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        place = _pointer(context, builder, array, *args, _vector(_ELEMENTS[dtype], width))
        value = builder.load(place, align=dtype.bitwidth // 8)
        if dtype == types.uint16:
            shifted = builder.shl(builder.zext(value, _vector(_I32, width)), _constant(_I32, 16, width))
            return builder.bitcast(shifted, _vector(_F32, width))
        return builder.fpext(value, _vector(_F32, width)) if dtype == types.int16 else value

    return Lanes(_wide(dtype), width)(array, types.intp), codegen


@intrinsic
def load(typingctx, array, at):  # type: ignore[no-untyped-def]
    """Entries at, at + 1, ... of an array, WIDTH of them."""
    return _load(array, WIDTH)


@intrinsic
def load_like(typingctx, array, at, like):  # type: ignore[no-untyped-def]
    """Entries at, at + 1, ... of an array, as many as `like` has."""
    signature, codegen = _load(array, like.width)
    return signature.return_type(*signature.args, like), lambda c, b, sig, args: codegen(c, b, sig, args[:2])


@intrinsic
def pointer(typingctx, array, at):  # type: ignore[no-untyped-def]
    """Where array[at] begins, of an array of any shape or of what a pointer leads to; it keeps no memory alive."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        if isinstance(array, types.CPointer):
            return _entry(context, builder, array, *args)
        value = context.make_array(array)(context, builder, args[0])
        stride = cgutils.unpack_tuple(builder, value.strides, array.ndim)[0]
        return cgutils.pointer_add(builder, value.data, builder.mul(args[1], stride))

    return types.CPointer(array.dtype)(array, types.intp), codegen


@intrinsic
def prefetch(typingctx, array, at, like):  # type: ignore[no-untyped-def]
    """Has most of the memory of entries at, at + 1, ... brought near, as many as `like` has; any address will do."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        byte = _pointer(context, builder, array, *args[:2], ir.IntType(8))
        arguments = [byte, *(ir.Constant(_I32, x) for x in (0, 2, 1))]  # to read, into the second cache, data
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in arguments])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for offset in range(0, like.width * array.dtype.bitwidth // 8, LINE):
            builder.call(function, [builder.gep(byte, [ir.Constant(_I64, offset)]), *arguments[1:]])
        return context.get_dummy_value()

    return types.void(array, types.intp, like), codegen


@intrinsic
def store(typingctx, array, at, value):  # type: ignore[no-untyped-def]
    """Writes lanes to entries at, at + 1, ... of an array."""
    return _store(array, value)


@intrinsic
def stream(typingctx, array, at, value):  # type: ignore[no-untyped-def]
    """`store` past the caches, for results that would not stay there until they are read.

    The address must be a multiple of the bytes that are written, or of LINE. Other threads see such entries after any
    lock has been taken or released.
    """
    return _store(array, value, past=True)


def _store(array: Any, value: Lanes, past: bool = False) -> tuple[Any, Callable[..., Any]]:
    dtype = array.dtype
    size = dtype.bitwidth // 8

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        lanes, width = args[2], value.width
        if dtype == types.uint16:
            bits = builder.bitcast(lanes, _vector(_I32, width))
            odd = builder.and_(builder.lshr(bits, _constant(_I32, 16, width)), _constant(_I32, 1, width))
            rounded = builder.add(bits, builder.add(odd, _constant(_I32, 0x7FFF, width)))
            quiet = builder.or_(bits, _constant(_I32, 0x400000, width))  # NaN must not round to infinity
            bits = builder.select(builder.fcmp_unordered("uno", lanes, lanes), quiet, rounded)
            lanes = builder.trunc(builder.lshr(bits, _constant(_I32, 16, width)), _vector(_I16, width))
        elif dtype == types.int16:
            lanes = builder.fptrunc(lanes, _vector(ir.HalfType(), width))
        place = _pointer(context, builder, array, *args[:2], lanes.type)
        written = builder.store(lanes, place, align=min(LINE, width * size) if past else size)
        if past:
            written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def get(typingctx, array, at):  # type: ignore[no-untyped-def]
    """One entry; unlike array[at] it does not ask whether the position is negative."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.load(_entry(context, builder, array, *args))

    return array.dtype(array, types.intp), codegen


@intrinsic
def put(typingctx, array, at, value):  # type: ignore[no-untyped-def]
    """Writes one entry."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        builder.store(args[2], _entry(context, builder, array, *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), codegen


@intrinsic
def ramp(typingctx, first):  # type: ignore[no-untyped-def]
    """first, first + 1, ... of a float."""
    return Lanes(first)(first), _ramp(WIDTH)


@intrinsic
def ramp_like(typingctx, first, like):  # type: ignore[no-untyped-def]
    """first, first + 1, ... of a float, as many as `like` has."""
    return Lanes(first, like.width)(first, like), _ramp(like.width)


def _ramp(width: int) -> Callable[..., Any]:
    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        steps = ir.Constant(_vector(args[0].type, width), list(range(width)))
        return builder.fadd(_splat(builder, args[0], width), steps)

    return codegen


@intrinsic
def splat(typingctx, value):  # type: ignore[no-untyped-def]
    """The same scalar in every lane."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _splat(builder, args[0])

    return Lanes(value)(value), codegen


@intrinsic(prefer_literal=True)
def nothing(typingctx, width):  # type: ignore[no-untyped-def]
    """So many float32 lanes of 0; the width is a number that stands in the source."""
    count = width.literal_value

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _constant(_F32, 0.0, count)

    return Lanes(types.float32, count)(width), codegen


@intrinsic
def select(typingctx, mask, this, other):  # type: ignore[no-untyped-def]
    """Lane by lane, `this` where the mask holds."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.select(*args)

    return this(mask, this, other), codegen


@intrinsic
def narrow(typingctx, value):  # type: ignore[no-untyped-def]
    """float64 lanes rounded to float32."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.fptrunc(args[0], _vector(_F32))

    return Lanes(types.float32)(value), codegen


@intrinsic
def truncate(typingctx, value):  # type: ignore[no-untyped-def]
    """float32 lanes to int32, towards zero. They must be within the range of int32."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.fptosi(args[0], _vector(_I32))

    return Lanes(types.int32)(value), codegen


@intrinsic
def widen(typingctx, value):  # type: ignore[no-untyped-def]
    """int32 lanes to float32."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.sitofp(args[0], _vector(_F32))

    return Lanes(types.float32)(value), codegen


@intrinsic
def add_product(typingctx, value, factor, scalar):  # type: ignore[no-untyped-def]
    """value + factor * scalar, rounded once where the machine can."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        kind = args[0].type
        name = f"llvm.fmuladd.v{value.width}f32"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        other = args[2] if isinstance(scalar, Lanes) else _splat(builder, args[2], value.width)
        return builder.call(fma, [args[1], other, args[0]])

    return value(value, factor, scalar), codegen


@intrinsic
def total(typingctx, value):  # type: ignore[no-untyped-def]
    """Sum of float lanes, the upper half added to the lower again and again: ((0+4) + (2+6)) + ((1+5) + (3+7))."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        (vector,) = args
        width = value.width
        while width > 1:
            width //= 2
            kind = ir.VectorType(_I32, width)
            low = builder.shuffle_vector(vector, vector, ir.Constant(kind, list(range(width))))
            high = builder.shuffle_vector(vector, vector, ir.Constant(kind, list(range(width, 2 * width))))
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.Constant(_I32, 0))

    return value.dtype(value), codegen


def _choice(comparison: str) -> Callable[..., Any]:
    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        emit = builder.fcmp_ordered if isinstance(sig.return_type, types.Float) else builder.icmp_signed
        return builder.select(emit(comparison, *args), *args)

    return codegen


@intrinsic
def least(typingctx, a, b):  # type: ignore[no-untyped-def]
    """The smaller of two scalars of one kind; Python's `min` compiles a function for every kind and count."""
    return a(a, a), _choice("<")


@intrinsic
def most(typingctx, a, b):  # type: ignore[no-untyped-def]
    """The larger of two scalars of one kind."""
    return a(a, a), _choice(">")


@njit(forceinline=True)
def write(target, at, value, past):  # type: ignore[no-untyped-def]
    """`stream` where `past`, else `store`."""
    if past:
        stream(target, at, value)
    else:
        store(target, at, value)


@njit(forceinline=True)
def copy(source, start, target, to, count):  # type: ignore[no-untyped-def]
    """target[to : to + count] = source[start : start + count]."""
    whole = count - count % WIDTH
    for at in range(0, whole, WIDTH):
        store(target, to + at, load(source, start + at))
    for at in range(whole, count):
        put(target, to + at, get(source, start + at))


def _define(symbol: Callable[..., Any], floats: str, integers: str, comparison: str = "") -> None:
    """Makes a Python operator work on lanes and scalars of their kind; `floats` and `integers` name builder methods."""

    class Template(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: object) -> Any:
            lanes = next((x for x in args if isinstance(x, Lanes)), None)
            if lanes is None or any(getattr(x, "dtype", x) != lanes.dtype for x in args):
                return None
            if any(isinstance(x, Lanes) and x.width != lanes.width for x in args):
                return None
            return typed(Lanes(types.boolean, lanes.width) if comparison else lanes, *args)

    def lower(context: Any, builder: Any, sig: Any, args: tuple[Any, ...]) -> Any:
        kind = next(x for x in sig.args if isinstance(x, Lanes))
        both = [
            x if isinstance(of, Lanes) else _splat(builder, x, kind.width) for x, of in zip(args, sig.args, strict=True)
        ]
        emit = getattr(builder, floats if isinstance(kind.dtype, types.Float) else integers)
        return emit(comparison, *both) if comparison else emit(*both)

    # Templates and lowering directly, not `overload`: that compiles a function per operator and pair of types.
    infer_global(symbol)(Template)
    for left, right in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(symbol, left, right)(lower)


_define(operator.add, "fadd", "add")
_define(operator.sub, "fsub", "sub")
_define(operator.mul, "fmul", "mul")
_define(operator.truediv, "fdiv", "sdiv")
_define(operator.and_, "and_", "and_")
_define(operator.or_, "or_", "or_")
_define(operator.lt, "fcmp_ordered", "icmp_signed", "<")
_define(operator.gt, "fcmp_ordered", "icmp_signed", ">")
_define(operator.ge, "fcmp_ordered", "icmp_signed", ">=")
_define(operator.eq, "fcmp_ordered", "icmp_signed", "==")
