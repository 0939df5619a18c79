"""Published numbers of accelerators, and the roofline of a step on them.

Peaks, HBM and interconnect are those of the chips' pages under docs.cloud.google.com/tpu/docs; the
interconnect is the sum of a chip's links, both directions. The side of the matrix units and the
clock are those of jax-ml.github.io/scaling-book/tpus; peak = 2 · side² · units · clock.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published numbers of one chip.

    Attributes:
        peak: bfloat16 FLOP/s.
        hbm: bytes of memory.
        hbm_bandwidth: bytes/s.
        interconnect: bytes/s of all links to other chips, in both directions together.
        matrix_side: rows of a matrix unit; heads of fewer channels leave some idle.
        clock: cycles/s.
        megacore: whether two cores work as one device.
    """

    peak: float
    hbm: int
    hbm_bandwidth: float
    interconnect: float
    matrix_side: int
    clock: float
    megacore: bool = False


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 128, 1.05e9, megacore=True),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 400e9, 128, 1.5e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 1200e9, 128, 1.75e9, megacore=True),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 800e9, 256, 1.75e9),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does in a step.

    Attributes:
        model_flops: of the published mathematics, without recomputation.
        linear_flops: executed by linear layers, with recomputation.
        attention_flops: executed by attention, with recomputation.
        head_dim: channels of an attention head.
        hbm_bytes: read and written.
        sent_bytes: to other chips.
        cycles: the compiler's estimate of all but attention kernels and collectives.
    """

    model_flops: float
    linear_flops: float
    attention_flops: float
    head_dim: int
    hbm_bytes: int
    sent_bytes: float
    cycles: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step, at best and by the compiler's estimate, and model FLOPs utilisation.

    Attributes:
        arithmetic: matmuls at peak; attention at the part of the peak that its heads can use.
        hbm: traffic at full bandwidth.
        interconnect: traffic at half the links' sum, since each byte is sent once.
        roofline: the longest of the three; the others overlap with it.
        roofline_mfu: `model_flops` in that time, over peak.
        compiler: the compiler's cycles, attention kernels and interconnect one after another.
        compiler_mfu: `model_flops` in that time, over peak.
    """

    arithmetic: float
    hbm: float
    interconnect: float
    roofline: float
    roofline_mfu: float
    compiler: float
    compiler_mfu: float


def estimate(chip: Chip, work: Work) -> Estimate:
    """How long a step takes on a chip, under the assumptions that `Estimate` names."""
    filled = min(1.0, work.head_dim / chip.matrix_side)
    attention = work.attention_flops / (chip.peak * filled)
    arithmetic = work.linear_flops / chip.peak + attention
    hbm = work.hbm_bytes / chip.hbm_bandwidth
    interconnect = work.sent_bytes / (chip.interconnect / 2)
    roofline = max(arithmetic, hbm, interconnect)
    compiler = work.cycles / chip.clock + attention + interconnect
    return Estimate(
        arithmetic=arithmetic,
        hbm=hbm,
        interconnect=interconnect,
        roofline=roofline,
        roofline_mfu=work.model_flops / (roofline * chip.peak),
        compiler=compiler,
        compiler_mfu=work.model_flops / (compiler * chip.peak),
    )
