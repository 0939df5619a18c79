"""Collectives, loops, cycles and HBM traffic of a compiled program, read from its optimised HLO.

The text has each computation once. A step runs the entry computation and all that it calls, the
body of a loop as often as the loop turns. The layers of a model are such a loop.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping

from lvsm_jax.common.errors import UserError
from lvsm_jax.cost.groups import first_group

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2}
_BYTES |= {"f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?[\s)}])([a-z][\w\-]*)\((.*)$")
# Type, sizes, and of the layout: the axes from the minor one on, tiles and memory.
ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\](?:\{([0-9,]*)(?::([^}]*))?\})?")
# Operations that move no data by themselves.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call")
FREE += ("conditional", "after-all", "partition-id", "iota")
_CALLS = re.compile(r"\b(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO, in pieces of text."""

    name: str  # of its result
    shape: str  # of its result
    opcode: str  # such as `fusion`
    rest: str  # operands and attributes
    computation: str  # that it belongs to

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes."""
        found = re.search(pattern, self.rest)
        return found and found.group(1)


# Instructions by the name of their computation and their own.
Computations = Mapping[str, Mapping[str, Instruction]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation."""

    kind: str  # one of `KINDS`
    dtype: str  # of its largest array
    payload: int  # bytes of the whole arrays, as before a reduce-scatter and after a gather
    members: tuple[int, ...]  # of the first group of devices that exchange data
    times: int  # how often a step runs it
    where: str  # the operation of the Python program that it comes from

    @property
    def group(self) -> int:
        """Number of devices that exchange data."""
        return len(self.members)

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, by the best algorithm (a ring)."""
        if self.kind == "collective-permute":
            return float(self.times * self.payload)
        passes = 2 if self.kind == "all-reduce" else 1
        return self.times * passes * self.payload * (self.group - 1) / self.group


def collectives(text: str) -> list[Collective]:
    """All collectives of a program, with the number of times that a step runs each.

    The compiler splits an asynchronous collective into pieces that it fuses with other operations.
    They carry the number of their chain, and count as one. Raises UserError for a loop around a
    collective whose number of turns cannot be read.
    """
    devices = int((re.search(r"num_partitions=(\d+)", text) or [0, 1])[1])
    found: dict[str, Collective] = {}
    for times, instruction in executed(text, inside_fusions=True):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        if times is None:
            raise UserError(f"{instruction.name} is in a loop whose turns cannot be read")
        chain = instruction.attribute(r'chain_id="(\d+)"')
        channel = instruction.attribute(r"channel_id=(\d+)")
        key = f"{channel} {chain}" if chain else f"at {len(found)}"
        found.setdefault(key, _collective(instruction, kind, times, devices))
    return [c for c in found.values() if c.group > 1]


def cycles(text: str) -> int:
    """The compiler's estimate of a step, in cycles of a TPU: the sum over its operations.

    Kernels (`tpu_custom_call`), collectives and waiting for copies have no estimate.
    """
    return sum(
        (times or 1) * int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
        for times, instruction in executed(text, inside_fusions=False)
    )


def hbm_bytes(text: str, turns: Callable[[Instruction], int | None] = lambda loop: None) -> int:
    """Bytes that a step reads from and writes to HBM: operands and results of each operation.

    Padding to tiles counts, on-chip memory does not. Of an array that an operation slices or
    updates, only that part counts. `turns` is that of `executed`.
    """
    total = sum(
        (times or 1) * moved(instruction, parse(text))
        for times, instruction in executed(text, inside_fusions=False, turns=turns)
        if does_work(instruction)
    )
    return int(total)


def does_work(instruction: Instruction) -> bool:
    """Whether an operation moves or computes anything by itself."""
    return instruction.opcode not in FREE and not instruction.opcode.endswith("-done")


def kernels(text: str) -> dict[str, int]:
    """How often a step runs each kernel of a library, or of Pallas, by name."""
    counts: dict[str, int] = collections.Counter()
    for times, instruction in executed(text, inside_fusions=False):
        if name := kernel_name(instruction):
            counts[name] += times or 1
    return dict(counts)


def kernel_name(instruction: Instruction) -> str | None:
    """The name of a Pallas kernel without its number, or of cuDNN's or cuBLAS's routine."""
    target = instruction.attribute(r'custom_call_target="([^"]*)"') or ""
    if target == "tpu_custom_call":
        return instruction.name.split(".")[0]
    if target == "__gpu$xla.gpu.triton":
        return instruction.attribute(r', name = "(\w+)", num_stages')
    if target.startswith(("__cudnn$", "__cublas$")):
        return target.removeprefix("__").replace("$", " ")
    return None


@functools.lru_cache(maxsize=1)
def parse(text: str) -> Computations:
    """A program's computations; that of the entry is also under the empty name."""
    computations: dict[str, dict[str, Instruction]] = collections.defaultdict(dict)
    name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            entry, name = found.groups()
            if entry:
                computations[""] = computations[name]
        elif found := _INSTRUCTION.match(line):
            instruction = Instruction(*found.groups(), name)
            computations[name][instruction.name] = instruction
    return dict(computations)


def executed(
    text: str,
    *,
    inside_fusions: bool,
    turns: Callable[[Instruction], int | None] = lambda loop: None,
    name: str = "",
    times: int | None = 1,
) -> Iterator[tuple[int | None, Instruction]]:
    """Each instruction that a step runs, and how often; None in a loop of unknown length.

    `turns` may know the length of a loop that the program does not tell.
    """
    computations = parse(text)
    for instruction in computations.get(name, {}).values():
        yield times, instruction
        if instruction.opcode == "fusion" and not inside_fusions:
            continue
        inner = times
        if instruction.opcode == "while":
            known = _turns(instruction, computations)
            known = turns(instruction) if known is None else known
            inner = None if known is None or times is None else times * known
        called = _CALLS.findall(instruction.rest)
        branches = instruction.attribute(r"branch_computations=\{([^}]*)\}") or ""
        for callee in [*called, *re.findall(r"%?([\w.\-]+)", branches)]:
            how = {"inside_fusions": inside_fusions, "turns": turns}
            yield from executed(text, **how, name=callee, times=inner)


def _turns(loop: Instruction, computations: Computations) -> int | None:
    """Turns of a loop: as the compiler notes, or the limit of a counter that starts at 0."""
    if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition = computations.get(loop.attribute(r"condition=%?([\w.\-]+)") or "", {})
    for instruction in condition.values():
        if instruction.opcode == "compare" and "direction=LT" in instruction.rest:
            limit = condition.get(re.findall(r"%?([\w.\-]+)", instruction.rest.split(")")[0])[-1])
            if limit and limit.opcode == "constant":
                value = limit.rest.split(")")[0]
                return int(value) if value.isdigit() else None
    return None


def _collective(instruction: Instruction, kind: str, times: int, devices: int) -> Collective:
    arrays = [
        (math.prod(integers(sizes)) * _BYTES.get(dtype, 1), dtype)
        for dtype, sizes, *_ in ARRAY.findall(instruction.shape)
    ]
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # Operands, then results, then scalars of the runtime.
        if kind == "collective-permute":
            arrays = arrays[:2]
        arrays = arrays[len(arrays) // 2 :]
    payload, members = sum(size for size, _ in arrays), first_group(instruction.rest, devices)
    if kind == "reduce-scatter":
        payload *= len(members)
    if kind == "all-reduce" and instruction.computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # fused with the slice that each device keeps of the sum
    dtype = max(arrays, key=lambda array: array[0])[1]
    where = instruction.attribute(r'op_name="([^"]*)"') or ""
    return Collective(kind, dtype, int(payload), members, times, where)


def operand_shapes(instruction: Instruction, computations: Computations) -> list[str]:
    """The operands' shapes, as the program writes them; empty for one that is not found."""
    here = computations[instruction.computation]
    names = re.findall(r"%([\w.\-]+)", instruction.rest.partition("), ")[0])
    return [here[name].shape if name in here else "" for name in names]


def moved(instruction: Instruction, computations: Computations) -> float:
    """HBM bytes of one operation."""
    result = _hbm_size(instruction.shape)
    if instruction.opcode.endswith("-start"):
        return result  # operands are part of the result
    sizes = [_hbm_size(shape) for shape in operand_shapes(instruction, computations)]
    if instruction.opcode in ("slice", "dynamic-slice"):
        return 2 * result
    if instruction.opcode == "dynamic-update-slice":
        return 2 * sizes[1]
    inner = computations.get(instruction.attribute(r"calls=%?([\w.\-]+)") or "", {})
    for index, size in enumerate(sizes):
        part, in_place = _part_touched(index, inner)
        if part is not None:
            sizes[index] = min(size, part)
            result -= size if in_place else 0.0
    return result + sum(sizes)


def _part_touched(index: int, inner: Mapping[str, Instruction]) -> tuple[float | None, bool]:
    """Bytes of a fusion's operand that it slices or updates, and whether it updates in place.

    None where it takes the whole.
    """
    parameters = (i for i in inner.values() if i.opcode == "parameter")
    name = next((i.name for i in parameters if i.rest.startswith(f"{index})")), None)
    users = [i for i in inner.values() if name and re.search(rf"%{re.escape(name)}[,)]", i.rest)]
    parts, in_place = 0.0, False
    for user in users:
        operands = re.findall(r"%([\w.\-]+)", user.rest)
        if user.opcode in ("slice", "dynamic-slice"):
            parts += _hbm_size(user.shape)
        elif user.opcode == "dynamic-update-slice" and operands[0] == name:
            parts += _hbm_size(inner[operands[1]].shape) if operands[1] in inner else 0.0
            in_place = True
        else:
            return None, False
    return (parts if users else None), in_place


def _hbm_size(shape: str) -> float:
    """Bytes in HBM of a shape with its layout, padded to tiles; 0 on the chip."""
    total = 0.0
    for dtype, sizes, order, layout in ARRAY.findall(shape):
        if "S(" in layout or (dtype == "u32" and not sizes):
            continue  # on the chip
        dims, minor = integers(sizes), integers(order)
        tile = re.match(r"T\(([\d,]+)\)", layout)
        for axis, step in zip(minor, reversed(integers(tile[1]) if tile else []), strict=False):
            dims[axis] = -(-dims[axis] // step) * step
        total += math.prod(dims) * _BYTES.get(dtype, 1)
    return total


def integers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(number) for number in text.split(",") if number]
