"""Writing LLVM instructions: numbers, memory, loops and vectors of fp32.

`Instructions` write at one place of one function. Vectors have `lanes` elements, a power of two; LLVM divides them into
registers of the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

HALF, INT, WORD, FLOAT, POINTER = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.PointerType()
CACHE_LINE = 64  # bytes that one prefetch brings
# 2^f for -1/2 <= f <= 1/2, from the largest power of f to the smallest; largest relative error 1e-7, and 1 at 0.
EXP2 = (1.5353362e-4, 1.3398874e-3, 9.6184373e-3, 5.5503324e-2, 2.4022648e-1, 6.9314718e-1, 1.0)
ROUND = 1.5 * 2.0**23  # added to an fp32 number, it leaves the nearest whole number in the last bits
LOWEST = -126.0  # exponents below give 0


def word(value: int) -> ir.Constant:
    """A 64-bit integer."""
    return ir.Constant(WORD, value)


@dataclass(frozen=True)
class Instructions:
    """Writes instructions to `builder`."""

    builder: ir.IRBuilder
    lanes: int

    @property
    def vector(self) -> ir.VectorType:
        """The type of a vector of fp32."""
        return ir.VectorType(FLOAT, self.lanes)

    @property
    def integers(self) -> ir.VectorType:
        """The type of a vector of 32-bit integers."""
        return ir.VectorType(INT, self.lanes)

    def all_lanes(self, value: ir.Value | float) -> ir.Value:
        """A vector with `value` in each lane."""
        if not isinstance(value, ir.Value):
            return ir.Constant(self.vector, [float(np.float32(value))] * self.lanes)
        empty = ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(empty, value, ir.Constant(INT, 0))
        return self.builder.shuffle_vector(first, empty, ir.Constant(self.integers, [0] * self.lanes))

    def call(self, name: str, result: ir.Type, *values: ir.Value, flags: Sequence[str] = ()) -> ir.Value:
        """Call a function of the C library, or one of LLVM's own."""
        module = self.builder.module
        kind = ir.FunctionType(result, [value.type for value in values])
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return self.builder.call(function, values, fastmath=flags)

    def place(self, pointer: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
        """The address of element `index` of an array of `kind`."""
        place = self.builder.gep(pointer, [index], source_etype=kind)
        place.type = POINTER  # llvmlite still knows pointers to something, LLVM does not
        return place

    def get(self, pointer: ir.Value, index: ir.Value | int, kind: ir.Type = WORD) -> ir.Value:
        """Element `index` of an array of `kind`."""
        index = word(index) if isinstance(index, int) else index
        return self.builder.load(self.place(pointer, index, kind), typ=kind)

    def get_index(self, pointer: ir.Value, index: ir.Value | int) -> ir.Value:
        """Element `index` of an array of 32-bit integers, as a word."""
        return self.builder.sext(self.get(pointer, index, INT), WORD)

    def put(self, value: ir.Value, pointer: ir.Value, index: ir.Value | int) -> None:
        """Set element `index` of an array of the type of `value`."""
        index = word(index) if isinstance(index, int) else index
        self.builder.store(value, self.place(pointer, index, value.type))

    def put_indices(self, words: Sequence[ir.Value], pointer: ir.Value) -> None:
        """Set the first elements of an array of 32-bit integers."""
        for place, value in enumerate(words):
            self.put(self.builder.trunc(value, INT), pointer, place)

    def space(self, kind: ir.Type, count: int) -> ir.Value:
        """`count` elements on the stack. To be written at the beginning of a function only."""
        space = self.builder.alloca(kind, count)
        space.type = POINTER
        return space

    def load(self, pointer: ir.Value, index: ir.Value, bfloat16: bool = False) -> ir.Value:
        """A vector from element `index` on, of fp32, or widened from bfloat16."""
        builder = self.builder
        if not bfloat16:
            loaded = builder.load(self.place(pointer, index, FLOAT), typ=self.vector, align=4)
            return loaded
        short = builder.load(self.place(pointer, index, HALF), typ=ir.VectorType(HALF, self.lanes), align=2)
        wide = builder.shl(builder.zext(short, self.integers), ir.Constant(self.integers, [16] * self.lanes))
        return builder.bitcast(wide, self.vector)

    def store(self, vector: ir.Value, pointer: ir.Value, index: ir.Value) -> None:
        """Write a vector from element `index` of fp32 on."""
        self.builder.store(vector, self.place(pointer, index, FLOAT), align=4)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """`x * y + z`, rounded once."""
        return self.call(f"llvm.fma.v{self.lanes}f32", self.vector, x, y, z)

    def add_products(
        self, numbers: Sequence[ir.Value], vectors: Sequence[ir.Value], sums: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Add the products of each number with each vector to `sums [numbers, vectors]`."""
        pairs = [(one, vector) for one in map(self.all_lanes, numbers) for vector in vectors]
        return [self.fma(*pair, total) for pair, total in zip(pairs, sums, strict=True)]

    def sum(self, vector: ir.Value) -> ir.Value:
        """The sum over the lanes, pairs first."""
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f32"
        return self.call(name, FLOAT, ir.Constant(FLOAT, -0.0), vector, flags=["reassoc"])

    def transpose(self, rows: Sequence[ir.Value]) -> list[ir.Value]:
        """The columns of a square of `lanes` vectors: bit by bit, what is beside the diagonal changes places."""
        square, bit = list(rows), 1
        while bit < self.lanes:
            swap = [lane if not lane & bit else (lane ^ bit) + self.lanes for lane in range(self.lanes)]
            rest = [lane | bit if not lane & bit else lane + self.lanes for lane in range(self.lanes)]
            for row in range(self.lanes):
                if not row & bit:
                    pair = square[row], square[row | bit]
                    square[row], square[row | bit] = (
                        self.builder.shuffle_vector(*pair, ir.Constant(self.integers, order)) for order in (swap, rest)
                    )
            bit *= 2
        return square

    def larger(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The larger of two, lane by lane; `y` where `x` is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def largest(self, vector: ir.Value) -> ir.Value:
        """The largest lane; none may be NaN, whose care would take most of the time."""
        return self.call(f"llvm.vector.reduce.fmax.v{self.lanes}f32", FLOAT, vector, flags=["nnan"])

    def exp2(self, x: ir.Value) -> ir.Value:
        """Two to the power of each lane, at most 0; exactly 1 at 0, 0 below -126, NaN of NaN."""
        builder, all_lanes = self.builder, self.all_lanes
        low = builder.fcmp_ordered("<", x, all_lanes(LOWEST))
        shifted = builder.fadd(x, all_lanes(ROUND))
        rest = builder.fsub(x, builder.fsub(shifted, all_lanes(ROUND)))
        power = all_lanes(EXP2[0])
        for factor in EXP2[1:]:
            power = self.fma(power, rest, all_lanes(factor))
        # the whole number is in the last bits of `shifted`; there it is an fp32 exponent, beside the bias
        bias = 127 - int(np.float32(ROUND).view(np.int32))
        biased = builder.add(builder.bitcast(shifted, self.integers), self.all_lanes(ir.Constant(INT, bias)))
        whole = builder.bitcast(builder.shl(biased, self.all_lanes(ir.Constant(INT, 23))), self.vector)
        return builder.select(low, all_lanes(0.0), builder.fmul(power, whole))

    def fetch(self, pointer: ir.Value, offset: ir.Value, count: int) -> None:
        """Ask for `count` bytes from `offset` on, which will be read soon."""
        options = (ir.Constant(INT, 0), ir.Constant(INT, 3), ir.Constant(INT, 1))  # to read, keep, data
        for line in range(0, count, CACHE_LINE):
            at = self.place(pointer, self.builder.add(offset, word(line)), ir.IntType(8))
            self.call("llvm.prefetch.p0", ir.VoidType(), at, *options)

    def smaller(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The smaller of two words."""
        return self.builder.select(self.builder.icmp_signed("<", x, y), x, y)

    def ceil_div(self, x: ir.Value, y: int | ir.Value) -> ir.Value:
        """`x / y`, rounded up; neither is negative."""
        y = word(y) if isinstance(y, int) else y
        return self.builder.sdiv(self.builder.add(x, self.builder.sub(y, word(1))), y)

    def loop(
        self,
        first: ir.Value,
        past: ir.Value,
        carried: Sequence[ir.Value],
        body: Callable[[ir.Value, Sequence[ir.Value]], Sequence[ir.Value]],
    ) -> list[ir.Value]:
        """For every word from `first` to before `past`: the next `carried` values from the word and those before."""
        builder = self.builder
        before, head, done = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.cbranch(builder.icmp_signed("<", first, past), head, done)
        builder.position_at_end(head)
        index = builder.phi(WORD)
        old = [builder.phi(value.type) for value in carried]
        new = body(index, old)
        following, last = builder.add(index, word(1)), builder.block
        for phi, start, value in zip([index, *old], [first, *carried], [following, *new], strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, last)
        builder.cbranch(builder.icmp_signed("<", following, past), head, done)
        builder.position_at_end(done)
        results = [builder.phi(value.type) for value in carried]
        for phi, start, value in zip(results, carried, new, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, last)
        return results

    def each(self, first: ir.Value, past: ir.Value, body: Callable[[ir.Value], None]) -> None:
        """Do `body` for every word from `first` to before `past`."""

        def nothing_carried(index: ir.Value, _: Sequence[ir.Value]) -> Sequence[ir.Value]:
            body(index)
            return ()

        self.loop(first, past, (), nothing_carried)
