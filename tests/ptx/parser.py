"""PTX text -> variables, kernels and instructions (PTX ISA manual, chapters 3 to 5 and 11)."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)|(?P<text>"[^"\n]*")
    |(?P<word>[\w.%$]+(?:::[\w.]+)*)|(?P<mark>[{}()\[\],;:|@!<>+\-=])""",
    re.VERBOSE | re.DOTALL,
)
SPACES = {".reg", ".shared", ".local", ".global", ".const", ".param"}
LINKING = {".visible", ".extern", ".weak", ".common"}
# Directives of one line that change nothing in what is computed.
LINE_DIRECTIVES = {".version", ".target", ".address_size", ".file", ".pragma", ".loc"}
TUNING = {".maxntid", ".reqntid", ".minnctapersm", ".maxnreg", ".maxnctapersm"}


class PtxError(Exception):
    """What the interpreter refuses: `kind` says which rule was broken, `line` where in the PTX.

    Kinds: parse, unsupported, bounds, alignment, uninitialised, race, mask, barrier, division,
    endless, trap, arguments.
    """

    def __init__(self, kind: str, line: int, message: str) -> None:
        super().__init__(f"PTX line {line}: {kind}: {message}")
        self.kind, self.line = kind, line


class Token(NamedTuple):
    text: str
    line: int


@dataclass(frozen=True)
class Register:
    name: str
    negated: bool = False


@dataclass(frozen=True)
class Immediate:
    """A number as written: `bits` of a 0f / 0d literal, or the value of an integer."""

    value: int
    float_bits: int = 0  # 32 or 64 for a 0f / 0d literal, 0 for an integer


@dataclass(frozen=True)
class Symbol:
    """The address of a variable, or a label."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Immediate
    offset: int = 0


@dataclass(frozen=True)
class Vector:
    parts: tuple[Register | Immediate | Symbol, ...]


@dataclass(frozen=True)
class Pair:
    """`p|q`: two destinations."""

    first: Register
    second: Register


Operand = Register | Immediate | Symbol | Address | Vector | Pair


@dataclass(frozen=True)
class Instruction:
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    line: int
    text: str


@dataclass(frozen=True)
class Variable:
    name: str
    space: str  # shared, local, global, const, param
    type: str  # u8, f32, b64 ...
    size: int  # bytes; 0 for extern .shared x[]
    align: int
    initial: bytes | None = None


@dataclass
class Kernel:
    name: str
    parameters: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: dict[str, Variable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # label -> instruction number
    tuning: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class Module:
    variables: dict[str, Variable] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)


def tokenize(text: str) -> list[Token]:
    tokens, line, end = [], 1, 0
    for match in TOKEN.finditer(text):
        if match.start() != end:
            break
        end, kind, word = match.end(), match.lastgroup, match.group()
        if kind == "space":
            line += word.count("\n")
        else:
            tokens.append(Token(word, line))
    if end != len(text):
        raise PtxError("parse", line, f"unexpected character {text[end]!r}")
    return tokens


def parse(text: str) -> Module:
    """Parse a whole PTX module; PtxError names the line of what is not understood."""
    return _Parser(tokenize(text)).module()


@functools.cache
def size_of(type_name: str) -> int:
    """Bytes of a scalar type, e.g. 4 for f16x2."""
    if type_name.endswith("x2"):
        return 2 * size_of(type_name[:-2])
    bits = re.sub(r"\D+", "", type_name.removeprefix("bf"))
    return int(bits) // 8


@functools.cache
def number(text: str) -> Immediate | None:
    """Read 12, 0x1F, 017, 0b101, 12U, 0f3F800000, 0d3FF0000000000000."""
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return Immediate(int(match[1], 16), 32)
    if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
        return Immediate(int(match[1], 16), 64)
    plain = text.rstrip("U")
    if re.fullmatch(r"0[0-7]+", plain):
        return Immediate(int(plain, 8))
    if re.fullmatch(r"\d+|0[xX][0-9a-fA-F]+|0[bB][01]+", plain):
        return Immediate(int(plain, 0))
    return None


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.position = tokens, 0
        self.scopes: list[dict[str, str]] = []  # written name -> unique name, innermost last
        self.scope_count = 0

    # Tokens

    @property
    def line(self) -> int:
        return self.tokens[min(self.position, len(self.tokens) - 1)].line

    def peek(self) -> str:
        return self.tokens[self.position].text if self.position < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        text = self.peek()
        if text == "" or (expected is not None and text != expected):
            raise PtxError("parse", self.line, f"expected {expected or 'more'}, found {text!r}")
        self.position += 1
        return text

    def accept(self, text: str) -> bool:
        found = self.peek() == text
        self.position += found
        return found

    def integer(self) -> int:
        sign = -1 if self.accept("-") else 1
        value = number(self.take())
        if value is None or value.float_bits:
            raise PtxError("parse", self.line, "expected an integer")
        return sign * value.value

    def skip_line(self) -> None:
        line = self.tokens[self.position - 1].line
        while self.peek() and self.line == line:
            self.take()

    # Module level

    def module(self) -> Module:
        module = Module()
        while self.peek():
            word = self.take()
            if word in LINE_DIRECTIVES:
                self.skip_line()
            elif word in LINKING:
                continue
            elif word == ".entry":
                kernel = self.kernel()
                module.kernels[kernel.name] = kernel
            elif word in SPACES:
                for variable in self.declaration(word):
                    module.variables[variable.name] = variable
            else:
                raise PtxError("unsupported", self.line, f"{word} at module level")
        return module

    def kernel(self) -> Kernel:
        self.current = kernel = Kernel(self.take())
        if self.accept("("):
            while not self.accept(")"):
                self.take(".param")
                kernel.parameters += self.declaration(".param", parameter=True)
                self.accept(",")
        while (word := self.take()) != "{":
            if word not in TUNING:
                raise PtxError("unsupported", self.line, f"{word} before the body of a kernel")
            values = [self.integer()]
            while self.accept(","):
                values.append(self.integer())
            kernel.tuning[word.lstrip(".")] = tuple(values)
        self.scopes = [{}]
        while self.scopes:
            self.statement()
        return kernel

    def declaration(self, space: str, parameter: bool = False) -> list[Variable]:
        """Read what follows `.shared`, `.param` ...: alignment, type, names, sizes, values."""
        align, type_name, pointer = 0, "", False
        while self.peek().startswith("."):
            word = self.take()
            if word == ".align":  # after .ptr: of what the pointer points to
                value = self.integer()
                align = align if pointer else value
            elif re.fullmatch(r"\.(b|u|s|f|bf)(8|16|32|64)(x2)?", word):
                type_name = word[1:]
            elif word == ".ptr":
                pointer = True
            elif not (pointer and word in SPACES):
                raise PtxError("unsupported", self.line, f"{word} in a declaration")
        if not type_name:
            raise PtxError("parse", self.line, "a declaration without a type")
        variables = [self.declared(space, type_name, align)]
        while not parameter and not self.accept(";"):
            self.take(",")
            variables.append(self.declared(space, type_name, align))
        return variables

    def declared(self, space: str, type_name: str, align: int) -> Variable:
        name, width = self.take(), size_of(type_name)
        size = width
        while self.accept("["):
            size = 0 if self.peek() == "]" else size * self.integer()
            self.take("]")
        initial = self.initializer(width, size) if self.accept("=") else None
        return Variable(name, space[1:], type_name, size, align or width, initial)

    def initializer(self, width: int, size: int) -> bytes:
        values = []
        if self.accept("{"):
            while not self.accept("}"):
                values.append(self.constant())
                self.accept(",")
        else:
            values.append(self.constant())
        mask = (1 << 8 * width) - 1
        return b"".join((v & mask).to_bytes(width, "little") for v in values).ljust(size, b"\0")

    def constant(self) -> int:
        sign = -1 if self.accept("-") else 1
        value = number(self.take())
        if value is None:
            raise PtxError("unsupported", self.line, "an initial value that is not a number")
        return sign * value.value

    # Statements

    def statement(self) -> None:
        if self.accept("{"):
            self.scopes.append({})
            self.scope_count += 1
        elif self.accept("}"):
            self.scopes.pop()
        elif self.accept(".reg"):
            self.registers()
        elif self.peek() in SPACES:
            for variable in self.declaration(self.take()):
                self.current.variables[self.rename(variable.name)] = variable
        elif self.peek() in LINE_DIRECTIVES:
            self.take()
            self.skip_line()
        elif self.position + 1 < len(self.tokens) and self.tokens[self.position + 1].text == ":":
            label = self.rename(self.take())
            self.take(":")
            self.current.labels[label] = len(self.current.instructions)
        else:
            self.current.instructions.append(self.instruction())

    def rename(self, name: str) -> str:
        """Give a name of an inner scope (inline assembly) one of its own."""
        unique = name if len(self.scopes) == 1 else f"{name}@{self.scope_count}"
        self.scopes[-1][name] = unique
        return unique

    def lookup(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name

    def registers(self) -> None:
        """`.reg .f32 %f<12>, x;`"""
        type_name = self.take().lstrip(".")
        if not re.fullmatch(r"pred|(b|u|s|f|bf)(8|16|32|64)(x2)?", type_name):
            raise PtxError("unsupported", self.line, f"registers of type {type_name}")
        while True:
            name = self.take()
            names = [name]
            if self.accept("<"):
                names = [f"{name}{i}" for i in range(self.integer())]
                self.take(">")
            for each in names:
                self.current.registers[self.rename(each)] = type_name
            if self.accept(";"):
                return
            self.take(",")

    def instruction(self) -> Instruction:
        start, guard = self.position, None
        line = self.line
        if self.accept("@"):
            negated = self.accept("!")
            guard = Register(self.lookup(self.take()), negated)
        opcode, *modifiers = self.take().split(".")
        operands: list[Operand] = []
        while not self.accept(";"):
            operands.append(self.operand())
            if self.peek() != ";":
                self.take(",")
        text = " ".join(token.text for token in self.tokens[start : self.position - 1])
        return Instruction(opcode, tuple(modifiers), tuple(operands), guard, line, text)

    def operand(self) -> Operand:
        if self.accept("["):
            address = self.address()
            self.take("]")
            return address
        if self.accept("{"):
            parts = []
            while not self.accept("}"):
                parts.append(self.simple())
                self.accept(",")
            return Vector(tuple(parts))
        first = self.simple()
        if self.accept("|"):
            second = self.simple()
            if not (isinstance(first, Register) and isinstance(second, Register)):
                raise PtxError("parse", self.line, "p|q of something else than registers")
            return Pair(first, second)
        return first

    def address(self) -> Address:
        base = self.simple()
        offset = 0
        if self.accept("+") or self.peek() == "-":
            offset = self.integer()
        return Address(base, offset)

    def simple(self) -> Register | Immediate | Symbol:
        negated = self.accept("!")
        minus = self.accept("-")
        word = self.take()
        value = number(word)
        if value is not None:
            return Immediate(-value.value if minus else value.value, value.float_bits)
        name = self.lookup(word)
        if name in self.current.registers or name.startswith("%") or name == "_":
            return Register(name, negated)
        return Symbol(name)
