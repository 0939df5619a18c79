"""Published numbers of accelerators, and how long a step takes on them.

TPUs: peaks, HBM and interconnect are those of the chips' pages under
docs.cloud.google.com/tpu/docs; the interconnect is the sum of a chip's links, both directions. The
side of the matrix units and the clock are those of jax-ml.github.io/scaling-book/tpus;
peak = 2 · side² · units · clock.

GPUs: NVIDIA's data sheets of H100 SXM and A100 SXM with 80 GB, dense, without sparsity; the
interconnect is NVLink. The network is that of NVIDIA's own machines: a port of 400 Gb/s a GPU in
DGX H100, of 200 Gb/s in DGX A100.
"""

import dataclasses

from lvsm_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published numbers of one chip."""

    peak: float  # bfloat16 FLOP/s
    hbm: int  # bytes of memory
    hbm_bandwidth: float  # bytes/s
    interconnect: float  # bytes/s of all links to other chips, in both directions together
    float32: float  # FLOP/s of matmuls whose precision is "highest"
    matrix_side: int = 1  # rows of a matrix unit; heads of fewer channels leave some idle
    clock: float = 0.0  # cycles/s, where the compiler counts them
    megacore: bool = False  # whether two cores work as one device
    network: float = 0.0  # bytes/s to other hosts, in one direction; of GPUs
    launch: float = 0.0  # seconds that a kernel costs beside its work

    @property
    def vector(self) -> float:
        """FLOP/s of float32 outside of matrix units; of a TPU 4 × 8 × 128 lanes of one core."""
        return 4 * 8 * 128 * self.clock or self.float32


# TPUs make a float32 matmul of six in bfloat16.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 275e12 / 6, 128, 1.05e9, megacore=True),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 400e9, 197e12 / 6, 128, 1.5e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 1200e9, 459e12 / 6, 128, 1.75e9, megacore=True),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 800e9, 918e12 / 6, 256, 1.75e9),
}
GPUS = {
    "h100": Chip(989.4e12, 84_978_434_048, 3352e9, 900e9, 67e12, network=50e9, launch=2e-6),
    "a100": Chip(312e12, 84_987_740_160, 2039e9, 600e9, 19.5e12, network=25e9, launch=2e-6),
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
    kernel_seconds: float  # the sum over its kernels (`cost.kernels`)
    link_seconds: float  # of its collectives, one after another


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step, at best and kernel by kernel, and model FLOPs utilisation."""

    arithmetic: float  # matmuls at peak; attention at the part of it that its heads can use
    hbm: float  # traffic at full bandwidth
    interconnect: float  # collectives, one after another
    roofline: float  # the longest of the three; the others overlap with it
    roofline_mfu: float  # `model_flops` in that time, over peak
    sum: float  # kernels and collectives one after another
    sum_mfu: float  # `model_flops` in that time, over peak


def estimate(chip: Chip, work: Work) -> Estimate:
    """How long a step takes on a chip, under the assumptions that `Estimate` names."""
    filled = min(1.0, work.head_dim / chip.matrix_side)
    attention = work.attention_flops / (chip.peak * filled)
    arithmetic = work.linear_flops / chip.peak + attention
    hbm = work.hbm_bytes / chip.hbm_bandwidth
    roofline = max(arithmetic, hbm, work.link_seconds)
    total = work.kernel_seconds + work.link_seconds
    roofline_mfu, sum_mfu = (
        work.model_flops / (seconds * chip.peak) for seconds in (roofline, total)
    )
    return Estimate(arithmetic, hbm, work.link_seconds, roofline, roofline_mfu, total, sum_mfu)


def chip_of(topology: str) -> Chip:
    """The numbers of a topology's chips; UserError for a name that is none."""
    name, known = topology.partition(":")[0], CHIPS | GPUS
    if name not in known:
        raise UserError(
            f"topology {topology!r}: expected one of {tuple(known)}, as in v5e:8x8 or h100:1x8"
        )
    return known[name]
