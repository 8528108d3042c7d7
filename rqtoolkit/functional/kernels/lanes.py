"""Addresses and vector registers for compiled loops.

numba counts references to arrays and checks their indices for a count from the end: that costs
more than the short loops of a search do themselves. These functions work on bare addresses, as C
does; whoever takes one keeps the array alive. Registers hold `LANES` float32 numbers, which LLVM
splits where the processor's are smaller.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rqtoolkit.functional.codebook_products import LANES

__all__ = [
    "address",
    "at_most",
    "below",
    "count_bits",
    "lowest_bit",
    "minimum",
    "moved",
    "prefetch",
]

_Code = Callable[..., Any]
_REGISTER = ir.VectorType(ir.FloatType(), LANES)


@intrinsic
def address(_: Any, array: Any) -> tuple[Any, _Code]:
    """Address of the first element of a flat array; indexed as the array is."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, values[0]).data

    return types.CPointer(array.dtype)(array), code


@intrinsic
def moved(_: Any, pointer: Any, count: Any) -> tuple[Any, _Code]:
    """Address of the element `count` after an address."""

    def code(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.gep(values[0], [values[1]])

    return pointer(pointer, count), code


@intrinsic
def prefetch(_: Any, pointer: Any) -> tuple[Any, _Code]:
    """Ask for the cache line at an address, which is to be read soon."""

    def code(context: Any, builder: Any, _: Any, values: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        read, keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(function, [builder.bitcast(values[0], byte), read, keep, data])
        return context.get_dummy_value()

    return types.void(pointer), code


@intrinsic
def minimum(_: Any, out: Any, first: Any, second: Any) -> tuple[Any, _Code]:
    """Put the smaller of each pair of numbers of two registers to a third; all by address."""

    def code(context: Any, builder: Any, _: Any, values: Any) -> Any:
        to, *of = (builder.bitcast(value, _REGISTER.as_pointer()) for value in values)
        x, y = (builder.load(pointer, align=4) for pointer in of)
        builder.store(builder.select(builder.fcmp_ordered("<", x, y), x, y), to, align=4)
        return context.get_dummy_value()

    return types.void(out, first, second), code


def _comparison(operator: str) -> Any:
    def compare(_: Any, pointer: Any, bound: Any) -> tuple[Any, _Code]:
        def code(_: Any, builder: Any, __: Any, values: Any) -> Any:
            x = builder.load(builder.bitcast(values[0], _REGISTER.as_pointer()), align=4)
            first = ir.Constant(ir.IntType(32), 0)
            bounds = builder.insert_element(ir.Constant(_REGISTER, ir.Undefined), values[1], first)
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            bounds = builder.shuffle_vector(bounds, bounds, everywhere)
            bits = builder.fcmp_ordered(operator, x, bounds)
            return builder.zext(builder.bitcast(bits, ir.IntType(LANES)), ir.IntType(64))

        return types.int64(pointer, bound), code

    return intrinsic(compare)


at_most = _comparison("<=")
"""Bit mask of the numbers of a register, given by address, that are at most a bound."""

below = _comparison("<")
"""Bit mask of the numbers of a register, given by address, that are below a bound."""


@intrinsic
def count_bits(_: Any, bits: Any) -> tuple[Any, _Code]:
    """Count the ones of a number."""

    def code(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.ctpop(values[0])

    return bits(bits), code


@intrinsic
def lowest_bit(_: Any, bits: Any) -> tuple[Any, _Code]:
    """Place of the lowest one of a number that is not 0."""

    def code(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))

    return bits(bits), code
