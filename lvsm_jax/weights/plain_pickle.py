"""Reads pickles as data: containers, text, numbers, and the few names that the caller knows.

A pickle is a program. Python runs it as one: it imports what is named, hashes whatever stands as a
key, for which 500 bytes of nested tuples take for ever, and believes every length. Here each
instruction is looked up in a short list; nothing is imported, nothing but plain keys is hashed, and
the work is proportional to the bytes.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lvsm_jax.common.errors import UserError

# A byte may become a list of some 60 bytes; those of checkpoints take a hundred bytes a tensor.
_MAX_BYTES = 128 * 2**20
_MAX_INSTRUCTIONS = 16 * 2**20

_KEYS = (str, bytes, int, bool, type(None))  # whose hash takes no longer than to read them
_LARGEST_KEY = 2**60  # beyond, many whole numbers have the same hash

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(UserError):
    """A pickle that is damaged, or asks for more than data."""


class Unread(NamedTuple):
    """What stands for an object of an unknown class: the name that was asked for, and no more."""

    name: str


def read_pickle(
    data: bytes,
    known: Mapping[tuple[str, str], Any],
    persistent: Callable[[Any], Any] | None = None,
    *,
    keep_unknown: bool = False,
) -> Any:
    """The object of a pickle of protocol 2 to 5.

    `known` gives what module and name stand for; of these, callables are called when the pickle
    asks for it, and their results may have `__setstate__`: all must be inert. `persistent` makes an
    object of its persistent id, which may be anything. With `keep_unknown` an object of another
    class becomes `Unread`, and what the pickle does to it is dropped. PickleError says why another
    pickle is refused; damaged bytes, and arguments that `known` does not expect, may also raise
    other exceptions.
    """
    if len(data) > _MAX_BYTES:
        raise PickleError(f"a pickle of {len(data) >> 20} MiB, expected at most {_MAX_BYTES >> 20}")
    machine = _Machine(known, persistent, keep_unknown, most_passed=1000 + 4 * len(data))
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if count >= _MAX_INSTRUCTIONS:
            raise PickleError(f"a pickle of more than {_MAX_INSTRUCTIONS} instructions")
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.run(opcode.name, argument, position)
    raise PickleError("a pickle without an end")


def put(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Sets an item; PickleError for a key that is neither text nor a small whole number."""
    if type(key) not in _KEYS or (type(key) is int and abs(key) > _LARGEST_KEY):
        what = type(key).__name__.strip("_")
        raise PickleError(f"a dict with {what} as a key: expected text or small whole numbers")
    target[key] = value


class _Machine:
    """Stack and memo of a pickle, and what each instruction does to them."""

    def __init__(
        self,
        known: Mapping[tuple[str, str], Any],
        persistent: Any,
        keep_unknown: bool,
        *,
        most_passed: int,
    ):
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._known, self._persistent, self._keep_unknown = known, persistent, keep_unknown
        self._passed, self._most_passed = 0, most_passed  # elements in arguments of calls

    def run(self, name: str, argument: Any, position: int) -> None:
        """Does one instruction, at this position in bytes."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "BINPUT" | "LONG_BINPUT":
                if argument > position:  # never of an honest writer
                    raise PickleError(f"memo index {argument} at byte {position}")
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "APPEND":
                self._append([stack.pop()])
            case "APPENDS":
                self._append(self._since_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._since_mark())
            case "GLOBAL":
                stack.append(self._global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self._global(module, name))
            case "BINPERSID" if self._persistent:
                stack.append(self._persistent(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._call(function, arguments))
            case "NEWOBJ" if isinstance(stack[-2], Unread):
                stack.pop()  # the arguments; the class stands for the object
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if isinstance(target, Unread):
                    return
                if not hasattr(type(target), "__setstate__"):
                    raise PickleError(f"sets attributes of a {type(target).__name__.strip('_')}")
                target.__setstate__(state)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _VALUES:
                stack.append(argument)
            case _ if name in _TUPLES:
                items = stack[-_TUPLES[name] :]
                del stack[-len(items) :]
                stack.append(tuple(items))
            case _:
                raise PickleError(f"refused the pickle's instruction {name} at byte {position}")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], Unread):
            return
        if type(self.stack[-1]) is not list:
            raise PickleError(f"appends to a {type(self.stack[-1]).__name__.strip('_')}")
        self.stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], Unread):
            return
        if not isinstance(self.stack[-1], dict):
            raise PickleError(f"sets items of a {type(self.stack[-1]).__name__.strip('_')}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            put(self.stack[-1], key, value)

    def _global(self, module: Any, name: Any) -> Any:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("a global whose name is no text")
        if (module, name) not in self._known:
            asked = f"{module}.{name}"[:100]
            if self._keep_unknown:
                return Unread(asked)
            raise PickleError(
                f"refused the global {asked}: only tensors, containers, text and numbers are read"
            )
        return self._known[module, name]

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Unread):
            return function
        is_known = any(function is one for one in self._known.values())
        if not (is_known and callable(function) and type(arguments) is tuple):
            raise PickleError(f"calls a {type(function).__name__.strip('_')}")
        # Of one list, which the memo gives again and again, each call may look at all elements.
        self._passed += sum(len(one) for one in arguments if isinstance(one, list | tuple | dict))
        if self._passed > self._most_passed:
            raise PickleError("passes the same elements to calls again and again")
        return function(*arguments)
