"""Eight numbers (or sixteen) as one value in numba kernels, so that loops over channels become vector instructions.

LLVM's own vectoriser wants longer loops than ours (a triangle is five pixels wide, a code has 16 channels) and takes
its time. Here the width is fixed, and LLVM only maps it to what the machine has: one AVX register, two of SSE or NEON.
`load_wide` takes twice as many: half the instructions where registers are that wide (AVX-512), the same where not.

    total = load(a, i) * w0 + load(a, j) * w1       # 8 entries each, from flat positions i and j on
    store(out, p, total)

`kernel` compiles such a function for given types when it is first called.

Lanes hold float32, float64, int32 or booleans. Operators take two lanes of a kind, or lanes and a scalar of their kind.
Arrays are one-dimensional and contiguous; positions are not checked, so callers check them first. Arrays of uint16 hold
bfloat16 and arrays of int16 hold float16 (numba has neither): `load` widens them to float32, `store` rounds to even.
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

WIDTH = 8
WIDE = 16


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a numba function of exactly these types that runs without the interpreter lock.

    It is compiled, or loaded from the cache on disk, at its first call and not on import. Arguments of other types or
    memory orders raise TypeError instead of being compiled for as well.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        dispatcher = njit(cache=True, nogil=True, error_model="numpy")(function)
        compiling = threading.Lock()  # the first call may come from several threads at once

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            if not dispatcher.signatures:
                with compiling:
                    if not dispatcher.signatures:
                        dispatcher.compile(signature)
                        dispatcher.disable_compile()
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


def _pointer(context: Any, builder: Any, kind: types.Array, array: Any, at: Any, element: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), element.as_pointer())


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
def load_wide(typingctx, array, at):  # type: ignore[no-untyped-def]
    """Entries at, at + 1, ... of an array, WIDE of them."""
    return _load(array, WIDE)


@intrinsic
def store(typingctx, array, at, value):  # type: ignore[no-untyped-def]
    """Writes lanes to entries at, at + 1, ... of an array."""
    dtype = array.dtype

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
        builder.store(lanes, place, align=dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def get(typingctx, array, at):  # type: ignore[no-untyped-def]
    """One entry; unlike array[at] it does not ask whether the position is negative."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), codegen


@intrinsic
def put(typingctx, array, at, value):  # type: ignore[no-untyped-def]
    """Writes one entry."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        data = context.make_array(array)(context, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), codegen


@intrinsic
def ramp(typingctx, first):  # type: ignore[no-untyped-def]
    """first, first + 1, ... of a float."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        steps = ir.Constant(_vector(args[0].type), list(range(WIDTH)))
        return builder.fadd(_splat(builder, args[0]), steps)

    return Lanes(first)(first), codegen


@intrinsic
def splat(typingctx, value):  # type: ignore[no-untyped-def]
    """The same scalar in every lane."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _splat(builder, args[0])

    return Lanes(value)(value), codegen


@intrinsic
def splat_wide(typingctx, value):  # type: ignore[no-untyped-def]
    """The same scalar in WIDE lanes."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _splat(builder, args[0], WIDE)

    return Lanes(value, WIDE)(value), codegen


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


@njit
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
