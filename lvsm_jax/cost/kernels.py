"""Kernels of a compiled program: what each moves and computes, and how long it should take.

A GPU runs them one after another. Each takes the larger of its bytes over the memory's bandwidth
and its FLOPs over a share of the peak, and a launch. On TPUs the compiler's own cycles go before,
where it gives them.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence

from lvsm_jax.cost import hlo
from lvsm_jax.cost.chips import Chip
from lvsm_jax.cost.hlo import Collective, Computations, Instruction

# Of the peak, what such kernels usually reach: large matmuls of cuBLAS or Triton, cuDNN's fused
# attention and its backward pass, implicit-GEMM convolutions; and of the bandwidth. Shares of
# blending Gaussians are reasoned, not measured: it has few of the multiply-adds that make half of
# the vector units' peak, lists of tiles are uneven, and backward most instructions sum over pixels.
SHARES = {
    "matmul": 0.7,
    "attention": 0.6,
    "attention backward": 0.45,
    "convolution": 0.6,
    "blending": 0.1,
    "blending backward": 0.05,
    "other": 1.0,
}
BANDWIDTH_SHARE = 0.85
# FLOPs of a Gaussian at a pixel, and for each of its features; an exponential or division is one.
_BLENDING = {"blend_backward": ("blending backward", 54, 4), "blend": ("blending", 18, 2)}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel and what one run of it does."""

    name: str  # of a library's routine, or the kind of operation
    kind: str  # of `SHARES`
    times: int  # runs in a step
    bytes: float  # read and written
    flops: float  # of its matmuls, or of blending Gaussians
    dtype: str  # of these: `bf16`, `tf32`, `f32`, or `vector` for float32 without matrix units
    head_dim: int = 0  # channels of a head, of attention
    cycles: int = 0  # the compiler's estimate

    def seconds(self, chip: Chip) -> float:
        """Time of all its runs in a step."""
        if self.cycles and chip.clock:
            return self.times * self.cycles / chip.clock
        peak = {"tf32": chip.peak / 2, "f32": chip.float32, "vector": chip.vector}.get(
            self.dtype, chip.peak
        )
        filled = min(1.0, self.head_dim / chip.matrix_side) if self.head_dim else 1.0
        arithmetic = self.flops / (SHARES[self.kind] * filled * peak)
        memory = self.bytes / (BANDWIDTH_SHARE * chip.hbm_bandwidth)
        return self.times * (max(arithmetic, memory) + chip.launch)


@dataclasses.dataclass(frozen=True)
class Total:
    """Sums over kernels of a step."""

    runs: int
    flops: float
    bytes: float
    seconds: float


def kernels(
    text: str, turns: Callable[[Instruction], int | None] = lambda loop: None
) -> list[Kernel]:
    """The kernels of a program, from its optimised HLO.

    Collectives are none, nor copies that the program starts and goes on. Loops whose turns cannot
    be read, and of which `turns` knows none, count as one turn.
    """
    computations = hlo.parse(text)
    return [
        _kernel(instruction, times or 1, computations)
        for times, instruction in hlo.executed(text, inside_fusions=False, turns=turns)
        if hlo.does_work(instruction)
        and instruction.opcode not in hlo.KINDS
        and not instruction.opcode.endswith("-start")
    ]


def totals(found: Sequence[Kernel], chip: Chip) -> dict[str, Total]:
    """What the kernels of each kind do together."""
    return {
        kind: Total(
            runs=sum(k.times for k in found if k.kind == kind),
            flops=sum(k.times * k.flops for k in found if k.kind == kind),
            bytes=sum(k.times * k.bytes for k in found if k.kind == kind),
            seconds=sum(k.seconds(chip) for k in found if k.kind == kind),
        )
        for kind in SHARES
        if any(k.kind == kind for k in found)
    }


def link_seconds(collective: Collective, chip: Chip, devices_of_host: int) -> float:
    """Time of a collective: what each device sends, over its slowest link.

    TPUs send by half the sum of their links, since each byte is sent once. GPUs send by NVLink
    inside a host; between hosts all GPUs of the group on one host share their ports.
    """
    rate, hosts = (
        chip.interconnect / 2,
        {device // devices_of_host for device in collective.members},
    )
    if chip.network and len(hosts) > 1:
        rate = min(rate, chip.network * collective.group / len(hosts))
    return collective.sent / rate + collective.times * chip.launch


def _kernel(instruction: Instruction, times: int, computations: Computations) -> Kernel:
    name = hlo.kernel_name(instruction)
    moved = hlo.moved(instruction, computations)
    cycles = int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
    operands = hlo.operand_shapes(instruction, computations)
    if name and (attention := _attention(name, operands)):
        kind, flops, channels = attention
        return Kernel(name, kind, times, moved, flops, "bf16", channels, cycles)
    if name and (blending := _blending(name, instruction, operands)):
        return Kernel(name, blending[0], times, moved, blending[1], "vector", cycles=cycles)
    products = list(_products(instruction, computations))
    kinds, flops, dtypes = zip(*products, strict=True) if products else ((), (), ())
    kind = next((kind for kind in ("matmul", "convolution") if kind in kinds), "other")
    dtype = max(dtypes, key=("bf16", "tf32", "f32").index, default="bf16")
    name = name or (kind if kind != "other" else instruction.opcode)
    return Kernel(name, kind, times, moved, float(sum(flops)), dtype, cycles=cycles)


def _attention(name: str, operands: Sequence[str]) -> tuple[str, float, int] | None:
    """Kind, FLOPs and channels of a head of a fused attention kernel; None for another.

    cuDNN's operands are `[b, t, m, c]`, those of the TPU's kernel `[*b, m, c, t]` as
    `models.attention` lays them. Forward it has two matmuls, backward five.
    """
    cudnn = "fmha" in name
    if not (cudnn or "splash" in name):
        return None
    floats = (shape for shape in operands if shape.startswith(("bf16", "f16", "f32")))
    queries, keys = [sizes for sizes in map(_sizes, floats) if len(sizes) > 2][:2]
    channels, tokens = (queries[-1], keys[1]) if cudnn else (queries[-2], keys[-1])
    flops = 4.0 * math.prod(queries) * tokens
    if "Backward" in name or "dkv" in name:
        return "attention backward", 2.5 * flops, channels
    return "attention", flops, channels


def _blending(
    name: str, instruction: Instruction, operands: Sequence[str]
) -> tuple[str, float] | None:
    """Kind and FLOPs of a kernel that blends Gaussians; None for another.

    Its first operand of floats has the Gaussians, each six numbers and its features: all for whom
    there is room. Images of tiles are `[tiles, features, *pixels]`, a result or an operand.
    """
    found = next((key for key in _BLENDING if key in name), None)
    if found is None:
        return None
    arrays = [
        hlo.integers(sizes)
        for text in (instruction.shape, *operands)
        for _, sizes, *_ in hlo.ARRAY.findall(text)
    ]
    _, features, *pixels = max(arrays, key=len)
    table = next(shape for shape in operands if shape.startswith("f32"))
    kind, flops, of_feature = _BLENDING[found]
    gaussians = math.prod(_sizes(table)) / (6 + features)
    return kind, gaussians * math.prod(pixels) * (flops + of_feature * features)


def _products(
    instruction: Instruction, computations: Computations
) -> Iterator[tuple[str, float, str]]:
    """Kind, FLOPs and type of the matmuls and convolutions in an operation."""
    if instruction.opcode in ("fusion", "call", "async-start"):
        callee = instruction.attribute(r"calls=%?([\w.\-]+)") or ""
        for inner in computations.get(callee, {}).values():
            yield from _products(inner, computations)
        return
    target = instruction.attribute(r'custom_call_target="__(?:cudnn|cublas)\$([^"]*)"') or ""
    operands = [_sizes(shape) for shape in hlo.operand_shapes(instruction, computations)]
    result = _sizes(instruction.shape)
    if instruction.opcode == "dot" or target.startswith(("gemm", "lt$matmul")):
        found = re.search(
            r'lhs_contracting_dims=\{([\d,]+)\}|"lhs_contracting_dimensions":\["(\d+)"',
            instruction.rest,
        )
        contracted = hlo.integers((found and (found[1] or found[2])) or "")
        depth = math.prod(operands[0][axis] for axis in contracted)
        yield "matmul", 2.0 * math.prod(result) * depth, _dtype(instruction, computations)
    elif instruction.opcode == "convolution" or target.startswith("conv"):
        output, kernel = result, operands[1]
        if target.startswith("convBackwardInput"):
            output = operands[0]  # its gradient
        elif target.startswith("convBackwardFilter"):
            output, kernel = operands[1], result
        labels = instruction.attribute(r"dim_labels=\w+_\w+->(\w+)") or ""
        channels = output[labels.index("f")] if "f" in labels else 1
        # TPUs have convolutions for matmuls: with a window that neither steps nor is padded, whose
        # sizes are 1 or summed over. Those that are batched dilate one side, those whose kernel has
        # more dimensions slide all of it over one place: such windows add nothing.
        window = instruction.attribute(r"window=\{([^}]*)\}") or ""
        spread = "lhs_dilate=" in window or _slides_over_one_place(window)
        is_matmul = not target and (spread or not re.search("pad=|stride=", window))
        depth = math.prod(kernel) / channels
        if is_matmul and spread and (sizes := re.search(r"size=([\dx]+)", window)):
            depth /= math.prod(map(int, sizes[1].split("x")))
        kind = "matmul" if is_matmul else "convolution"
        yield kind, 2.0 * math.prod(output) * depth, _dtype(instruction, computations)


def _slides_over_one_place(window: str) -> bool:
    sizes, pads = (re.search(rf"{name}=([\dx_]+)", window) for name in ("size", "pad"))
    if not (sizes and pads) or "stride=" in window:
        return False
    return pads[1] == "x".join(f"{int(n) - 1}_{int(n) - 1}" for n in sizes[1].split("x"))


def _dtype(instruction: Instruction, computations: Computations) -> str:
    """The arithmetic of a product: of float32 operands in full, or rounded to TF32."""
    shapes = hlo.operand_shapes(instruction, computations)
    if not any(shape.lstrip("(").startswith("f32") for shape in shapes[:2]):
        return "bf16"
    return "f32" if re.search(r"operand_precision=\{[^}]*high", instruction.rest) else "tf32"


def _sizes(shape: str) -> list[int]:
    """Sizes of an array, or of the first of a tuple."""
    found = hlo.ARRAY.search(shape)
    return hlo.integers(found[2]) if found else []
