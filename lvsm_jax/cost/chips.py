"""Published numbers of accelerators, and the roofline of a step on them.

Peaks, HBM and interconnect are those of the chips' pages under docs.cloud.google.com/tpu/docs; the
interconnect is the sum of a chip's links, both directions. The side of the matrix units and the
clock are those of jax-ml.github.io/scaling-book/tpus; peak = 2 · side² · units · clock.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published numbers of one chip."""

    peak: float  # bfloat16 FLOP/s
    hbm: int  # bytes of memory
    hbm_bandwidth: float  # bytes/s
    interconnect: float  # bytes/s of all links to other chips, in both directions together
    matrix_side: int  # rows of a matrix unit; heads of fewer channels leave some idle
    clock: float  # cycles/s
    megacore: bool = False  # whether two cores work as one device


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 128, 1.05e9, megacore=True),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 400e9, 128, 1.5e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 1200e9, 128, 1.75e9, megacore=True),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 800e9, 256, 1.75e9),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does in a step."""

    model_flops: float  # of the published mathematics, without recomputation
    linear_flops: float  # executed by linear layers, with recomputation
    attention_flops: float  # executed by attention, with recomputation
    head_dim: int  # channels of an attention head
    hbm_bytes: int  # read and written
    sent_bytes: float  # to other chips
    cycles: int  # the compiler's estimate of all but attention kernels and collectives


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step, at best and by the compiler's estimate, and model FLOPs utilisation."""

    arithmetic: float  # matmuls at peak; attention at the part of it that its heads can use
    hbm: float  # traffic at full bandwidth
    interconnect: float  # traffic at half the links' sum, since each byte is sent once
    roofline: float  # the longest of the three; the others overlap with it
    roofline_mfu: float  # `model_flops` in that time, over peak
    compiler: float  # its cycles, attention kernels and interconnect one after another
    compiler_mfu: float  # `model_flops` in that time, over peak


def estimate(chip: Chip, work: Work) -> Estimate:
    """How long a step takes on a chip, under the assumptions that `Estimate` names."""
    filled = min(1.0, work.head_dim / chip.matrix_side)
    attention = work.attention_flops / (chip.peak * filled)
    arithmetic = work.linear_flops / chip.peak + attention
    hbm = work.hbm_bytes / chip.hbm_bandwidth
    interconnect = work.sent_bytes / (chip.interconnect / 2)
    roofline = max(arithmetic, hbm, interconnect)
    compiler = work.cycles / chip.clock + attention + interconnect
    roofline_mfu, compiler_mfu = (
        work.model_flops / (seconds * chip.peak) for seconds in (roofline, compiler)
    )
    return Estimate(arithmetic, hbm, interconnect, roofline, roofline_mfu, compiler, compiler_mfu)
