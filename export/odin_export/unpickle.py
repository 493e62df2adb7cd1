"""A reader of pickles that executes nothing.

A pickle is a program: its instructions may import any name and call it, so Python's own reader runs
whatever a file's author wrote. The reader here interprets the instructions itself and knows no
import and no call. Where Python would call something, it makes an `Instance`, a note of what would
have been called and with what. Names are compared with a list of those that checkpoints contain;
any other name is refused, although it could do no harm.

Python's `pickletools` splits the stream into instructions; it does not run them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

import torch

# No file, member or tensor of a checkpoint may be larger than this, whatever it says of itself.
MAX_BYTES = 2 << 30

# Copies are what lets a short pickle take long: a list copied a thousand times costs two
# instructions a copy.
_MAX_COPIED = 5_000_000


_FETCH_AGAIN = (
    "download or copy the file again, or write it anew where the network can be loaded, with "
    "torch.save(model.state_dict(), FILE)"
)
_CONVERT = (
    "if you trust it, load the network where it was made, write its weights with "
    "torch.save(model.state_dict(), FILE), and give that file"
)


class FormatError(Exception):
    """What is wrong with a checkpoint, and what to do; who knows the file's name puts it before."""

    def __init__(self, what: str, remedy: str = _FETCH_AGAIN) -> None:
        super().__init__(f"{what}; {remedy}")


@dataclass(frozen=True)
class Global:
    """A name the pickle refers to, such as `torch.FloatStorage`. Nothing was imported."""

    name: str


@dataclass(eq=False)
class Instance:
    """What calling `name` with `args` would have made; `state` is what it would then be given."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of numbers kept outside of the pickle.

    `key` finds it; it holds `numel` numbers of type `dtype`. A view on it, as PyTorch 0.1 wrote
    them, starts at `view_offset` and has `view_numel` numbers.
    """

    key: str
    dtype: torch.dtype
    numel: int
    view_offset: int
    view_numel: int


@dataclass
class Pickled:
    """One pickle's content: its root, and every storage that it mentions, by key."""

    root: Any = None
    storages: dict[str, Storage] = field(default_factory=dict)


_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
STORAGES = {
    f"{module}.{name}": dtype
    for module in ("torch", "torch.cuda", "torch.storage")
    for name, dtype in _STORAGE_DTYPES.items()
}
# PyTorch 0.1.10 pickled a tensor as its type, called with nothing, and a state of four.
TENSOR_TYPES = {name.replace("Storage", "Tensor") for name in STORAGES}

_DICTS = {f"collections.{name}" for name in ("OrderedDict", "defaultdict", "Counter")}
# Python 2 says __builtin__, and so does every pickle of protocol 2.
_BUILTINS = {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("bool", "dict", "float", "frozenset", "int", "list", "object", "set", "str")
}
_SETS = {name for name in _BUILTINS if name.endswith("set")}
_TORCH_NAMES = {
    f"torch.{name}"
    for name in (
        *("Size", "device", "Tensor", "_tensor.Tensor", "autograd.variable.Variable"),
        *("_utils._rebuild_tensor", "_utils._rebuild_tensor_v2", "_tensor._rebuild_from_type_v2"),
        *("_utils._rebuild_parameter", "_utils._rebuild_parameter_with_state"),
        *("float32", "float64", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}
# Seen beside the weights in training checkpoints: accuracies as numpy numbers, the command line.
_OTHER_NAMES = {
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
    "argparse.Namespace",
}
_ALLOWED_NAMES = {*STORAGES, *TENSOR_TYPES, *_DICTS, *_BUILTINS, *_TORCH_NAMES, *_OTHER_NAMES}
_ALLOWED_MODULES = {
    "densenet",
    "wideresnet",
    "models.densenet",
    "models.wideresnet",
    "odin_export.networks",
    "__main__",
}
_ALLOWED_PACKAGES = ("torch.nn.", "torch.optim.")


def read_pickle(stream: IO[bytes]) -> Pickled:
    """Read one pickle (protocol 2 to 5) and leave `stream` behind its end.

    Raises:
        FormatError: the pickle is cut off or damaged, or refers to a name not on the list.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                machine.result.root = machine.pop()
                return machine.result
            step = _STEPS.get(opcode.name)
            if step is None:
                raise FormatError(f"is damaged: no checkpoint uses pickle's {opcode.name}")
            step(machine, argument)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise FormatError(f"is damaged or cut off inside a pickle ({str(error)[:200]})") from error
    raise FormatError("is cut off inside a pickle")


def allowed(module: str, name: str) -> bool:
    """Tell whether a checkpoint may refer to `module`.`name`."""
    if f"{module}.{name}" in _ALLOWED_NAMES:
        return True
    if not name.isidentifier():
        return False
    return module in _ALLOWED_MODULES or f"{module}.".startswith(_ALLOWED_PACKAGES)


class _Machine:
    """Pickle's stack machine: a stack, marks into it, and a memo of numbered objects."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0
        self.result = Pickled()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def drop_marked(self) -> None:
        self.pop_mark()

    def pop_or_unmark(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def memorize(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise FormatError("is damaged: it sets items of something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_plain_key(key)] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise FormatError("is damaged: it appends to something that is not a list")
        target.extend(items)

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise FormatError("is damaged: it adds to something that is not a set")
        target.update(map(_plain_key, items))

    def refer(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise FormatError("is damaged: it refers to a name that is not text")
        if not allowed(module, name):
            raise FormatError(
                f"refers to {f'{module}.{name}'[:200]!r}, which no checkpoint needs: "
                "it was refused, and nothing in it was executed",
                _CONVERT,
            )
        self.push(Global(f"{module}.{name}"))

    def refer_on_stack(self) -> None:
        name = self.pop()
        self.refer(self.pop(), name)

    def call(self, target: Any, args: Any) -> None:
        """Push a note of the call, or the dict or set that it would have made."""
        if not (isinstance(target, Global) and isinstance(args, tuple)):
            raise FormatError("is damaged: it calls something that has no name")
        if target.name in _DICTS:
            self.push(self._dict(args))
        elif target.name in _SETS:
            self.push(set(map(_plain_key, self._copy(args))))
        else:
            self.push(Instance(target.name, args))

    def _copy(self, args: tuple[Any, ...]) -> Iterable[Any]:
        if not args:
            return ()
        source = args[0]
        if isinstance(source, dict):
            source = list(source.items())
        if not isinstance(source, list | tuple | set):
            raise FormatError("is damaged: it fills a dict or a set from something else")
        self.copied += len(source)
        if self.copied > _MAX_COPIED:
            raise FormatError("is not a checkpoint: it copies the same items over and over")
        return source

    def _dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        # A defaultdict's first argument says what an absent item would be: no use to us.
        if args and (args[0] is None or isinstance(args[0], Global)):
            args = args[1:]
        # Python 2 wrote the pairs as lists.
        return {_plain_key(key): value for key, value in self._copy(args)}

    def call_popped(self) -> None:
        args = self.pop()
        self.call(self.pop(), args)

    def call_with_keywords(self) -> None:
        self.pop()  # keywords: no class we look into takes any
        self.call_popped()

    def call_marked(self) -> None:
        target, *args = self.pop_mark()
        self.call(target, tuple(args))

    def call_named(self, module: str, name: str) -> None:
        self.refer(module, name)
        target = self.pop()
        self.call(target, tuple(self.pop_mark()))

    def set_state(self) -> None:
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Instance):
            target.state = state
        elif not isinstance(target, dict):  # an OrderedDict's state: versions of its modules
            raise FormatError("is damaged: it gives a state to something that has none")

    def load_persistent(self) -> None:
        what, *details = self.pop()
        if what == "module" and details and isinstance(details[0], Global):
            self.push(details[0])  # followed by the class's source file and source: unread
        elif what == "storage":
            storage = _storage(*details)
            known = self.result.storages.setdefault(storage.key, storage)
            if (known.dtype, known.numel) != (storage.dtype, storage.numel):
                raise FormatError(f"is damaged: storage {storage.key[:80]!r} has two sizes")
            self.push(storage)
        else:
            raise FormatError("is damaged: it refers to something that is not a storage")


def _storage(kind: Any, key: Any, location: Any, numel: Any, view: Any = None) -> Storage:
    """Check a storage's description; `location`, the device it lay on, does not matter."""
    dtype = STORAGES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None or not isinstance(key, str | int):
        raise FormatError("is damaged: a storage has no known type")
    view_offset, view_numel = (0, numel) if view is None else view[1:]
    if not all(isinstance(number, int) for number in (numel, view_offset, view_numel)):
        raise FormatError("is damaged: a storage's size is not a number")
    if not 0 <= numel <= MAX_BYTES // dtype.itemsize:
        raise FormatError(f"is damaged: a storage would hold {numel} numbers")
    if view_offset < 0 or view_numel < 0 or view_offset + view_numel > numel:
        raise FormatError("is damaged: a view reaches outside of its storage")
    return Storage(str(key), dtype, numel, view_offset, view_numel)


def _plain_key(key: Any) -> Any:
    # Hashing a nested tuple can take for ever, and no name of a tensor is one.
    if isinstance(key, str | int | float | bytes | None | Global | Instance | Storage):
        return key
    raise FormatError(f"is damaged: it uses a {type(key).__name__} as a key")


# What each instruction does to the machine; `pickletools` documents them by these names.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, arg: None),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"),
            *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
            *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        ),
        lambda m, arg: m.push(arg),
    ),
    "NONE": lambda m, arg: m.push(None),
    "NEWTRUE": lambda m, arg: m.push(True),
    "NEWFALSE": lambda m, arg: m.push(False),
    "EMPTY_LIST": lambda m, arg: m.push([]),
    "EMPTY_TUPLE": lambda m, arg: m.push(()),
    "EMPTY_DICT": lambda m, arg: m.push({}),
    "EMPTY_SET": lambda m, arg: m.push(set()),
    "TUPLE1": lambda m, arg: m.push((m.pop(),)),
    "TUPLE2": lambda m, arg: m.push((m.pop(), m.pop())[::-1]),
    "TUPLE3": lambda m, arg: m.push((m.pop(), m.pop(), m.pop())[::-1]),
    "TUPLE": lambda m, arg: m.push(tuple(m.pop_mark())),
    "LIST": lambda m, arg: m.push(m.pop_mark()),
    "FROZENSET": lambda m, arg: m.push(set(map(_plain_key, m.pop_mark()))),
    "APPEND": lambda m, arg: m.append([m.pop()]),
    "APPENDS": lambda m, arg: m.append(m.pop_mark()),
    "ADDITEMS": lambda m, arg: m.add(m.pop_mark()),
    "SETITEM": lambda m, arg: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, arg: m.set_items(m.pop_mark()),
    "MARK": lambda m, arg: m.mark(),
    "POP": lambda m, arg: m.pop_or_unmark(),
    "POP_MARK": lambda m, arg: m.drop_marked(),
    "DUP": lambda m, arg: m.push(m.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, arg: m.memorize(arg)),
    "MEMOIZE": lambda m, arg: m.memorize(len(m.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, arg: m.push(m.memo[arg])),
    "GLOBAL": lambda m, arg: m.refer(*arg.split(" ", 1)),
    "STACK_GLOBAL": lambda m, arg: m.refer_on_stack(),
    "INST": lambda m, arg: m.call_named(*arg.split(" ", 1)),
    "OBJ": lambda m, arg: m.call_marked(),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, arg: m.call_popped()),
    "NEWOBJ_EX": lambda m, arg: m.call_with_keywords(),
    "BUILD": lambda m, arg: m.set_state(),
    "BINPERSID": lambda m, arg: m.load_persistent(),
}
