"""What XLA's FFI hands to a function on a CPU, by the words of its structures (`xla/ffi/api/c_api.h`).

The layout is that of versions 0.3 to 0.5, which jaxlib 0.10.2 to 0.12 have; fields are only ever added at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llvmlite import ir

from medha_jax.native.instructions import INT, POINTER, WORD, Instructions, word

# words of structures; each begins with its size and a list of extensions
FRAME_EXTENSION, FRAME_API, FRAME_CONTEXT, FRAME_STAGE, FRAME_ARGUMENTS, FRAME_RESULTS = 1, 2, 3, 4, 9, 14
EXTENSION_KIND, EXTENSION_METADATA = 1, 3
METADATA_VERSION, METADATA_TRAITS = 3, 4
API_VERSION, API_ERROR_CREATE, API_ERROR_DESTROY, API_SCHEDULE, API_THREADS = 4, 6, 8, 17, 18
BUFFER_DATA, BUFFER_SIZES = 3, 5
METADATA, EXECUTE = 1, 3  # kind of an extension; stage of a call
RESOURCE_EXHAUSTED = 8
NO_MEMORY = b"there is no memory for a list of tasks\0"


@dataclass
class Call:
    """Writes what a handler does with its call frame, to `code`. To be made where the handler begins."""

    code: Instructions
    frame: ir.Value
    _words: ir.Value = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._words = self.code.space(WORD, 6)  # for the arguments of XLA's own functions

    def _field(self, number: int) -> ir.Value:
        return self.code.get(self.frame, number, POINTER)

    def _api(self, number: int, *words: ir.Value) -> ir.Value:
        """Call a function of XLA's with a structure of these fields."""
        code = self.code
        for place, value in enumerate((word(8 * (2 + len(words))), word(0), *words)):
            code.put(value, self._words, place)
        kind = ir.FunctionType(POINTER, [POINTER]).as_pointer()
        return code.builder.call(code.get(self._field(FRAME_API), number, kind), [self._words])

    def answer_other_questions(self) -> None:
        """Return from calls that only ask for the version, or that prepare."""
        code, b = self.code, self.code.builder
        nothing = ir.Constant(POINTER, None)
        extension = self._field(FRAME_EXTENSION)
        with b.if_then(b.icmp_unsigned("!=", extension, nothing)):
            kind = b.trunc(code.get(extension, EXTENSION_KIND), INT)
            with b.if_then(b.icmp_signed("==", kind, ir.Constant(INT, METADATA))):
                metadata = code.get(extension, EXTENSION_METADATA, POINTER)
                code.put(code.get(self._field(FRAME_API), API_VERSION), metadata, METADATA_VERSION)
                b.store(ir.Constant(INT, 0), code.place(metadata, word(METADATA_TRAITS), WORD))
                b.ret(nothing)
        stage = b.trunc(code.get(self.frame, FRAME_STAGE), INT)
        with b.if_then(b.icmp_signed("!=", stage, ir.Constant(INT, EXECUTE))):
            b.ret(nothing)

    def argument(self, number: int | ir.Value) -> ir.Value:
        """The buffer of an argument."""
        return self.code.get(self._field(FRAME_ARGUMENTS), number, POINTER)

    def result(self, number: int) -> ir.Value:
        """The buffer of a result."""
        return self.code.get(self._field(FRAME_RESULTS), number, POINTER)

    def data(self, buffer: ir.Value) -> ir.Value:
        """Where a buffer's elements are."""
        return self.code.get(buffer, BUFFER_DATA, POINTER)

    def size(self, buffer: ir.Value, axis: int) -> ir.Value:
        """The size of an axis of a buffer."""
        return self.code.get(self.code.get(buffer, BUFFER_SIZES, POINTER), axis)

    def threads(self) -> ir.Value:
        """Threads of XLA's pool; 1 if there is no pool."""
        code, b = self.code, self.code.builder
        count = code.place(self._words, word(5), WORD)
        b.store(word(1), count)
        error = self._api(API_THREADS, self._field(FRAME_CONTEXT), count)
        with b.if_then(b.icmp_unsigned("!=", error, ir.Constant(POINTER, None))):
            self._forget(error)
        return b.load(count, typ=WORD)

    def schedule(self, function: ir.Function, data: ir.Value) -> ir.Value:
        """Have a thread of XLA's pool call `function(data)`. Whether it was refused."""
        b = self.code.builder
        error = self._api(API_SCHEDULE, self._field(FRAME_CONTEXT), function, data)
        refused = b.icmp_unsigned("!=", error, ir.Constant(POINTER, None))
        with b.if_then(refused):
            self._forget(error)
        return refused

    def out_of_memory(self) -> ir.Value:
        """An error for XLA."""
        module, b = self.code.builder.module, self.code.builder
        text = ir.GlobalVariable(module, ir.ArrayType(ir.IntType(8), len(NO_MEMORY)), "no_memory")
        text.linkage, text.global_constant = "internal", True
        text.initializer = ir.Constant(text.value_type, bytearray(NO_MEMORY))
        place = b.gep(text, [word(0)], source_etype=ir.IntType(8))
        return self._api(API_ERROR_CREATE, place, word(RESOURCE_EXHAUSTED))

    def _forget(self, error: ir.Value) -> None:
        self._api(API_ERROR_DESTROY, error)
