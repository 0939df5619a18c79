"""What an accelerator that is not here has to do to render worlds, as its compiler says.

    python -m benchmarks.worlds_compiled --config=configs/worlds_256.py --topology=h100:1x1

Read from the compiled program: kernels and the bytes that each reads and writes. Assumed, as only
the worlds decide it: rays are followed into mirrors and panes everywhere, two legs of each. Each
kernel takes its bytes over 85 % of the memory's bandwidth and a launch. Its arithmetic is not in
that time: `python -m benchmarks.worlds --count` has its FLOPs. Rays are to be compared with all
solids of a form at once (`worlds.solids_at_once`): how often other loops turn is not known.
Compiling takes 80 seconds of processor time.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import common
from benchmarks.common import Report
from lvsm_jax.common.command_line import add_config_option, parse_with_config, program
from lvsm_jax.common.config import DataConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.cost.chips import chip_of
from lvsm_jax.cost.hlo import Instruction
from lvsm_jax.cost.kernels import BANDWIDTH_SHARE, kernels
from lvsm_jax.cost.topology import topology_mesh
from lvsm_jax.parallel.mesh import MeshConfig
from lvsm_jax.worlds import stream
from lvsm_jax.worlds.config import WorldsConfig

_LEGS = 2  # of a ray: the second one is that from a mirror


@program
def main(arguments: list[str]) -> None:
    """Prints a table and writes JSON."""
    options, config = parse_with_config(_parser(), arguments)
    common.report_benchmark(options, functools.partial(measure, config), table)


def measure(config: ml_collections.ConfigDict, options: argparse.Namespace) -> Report:
    """Kernels, bytes and seconds of rendering a batch.

    Raises UserError for worlds whose loops over solids have no known length, no such topology or no
    compiler for it.
    """
    data, worlds = section(config, "data", DataConfig), section(config, "worlds", WorldsConfig)
    check_solids(worlds)
    chip, mesh = chip_of(options.topology), topology_mesh(options.topology, MeshConfig())
    block = stream.Block(worlds, data.num_views, data.image_height, data.image_height)
    whole = NamedSharding(mesh, PartitionSpec())
    purpose, seed = ((), jnp.int32), ((), jnp.uint32)
    scenes, complexity = ((options.batch,), jnp.int32), ((), jnp.float32)
    shapes = purpose, seed, scenes, complexity
    inputs = [jax.ShapeDtypeStruct(*shape, sharding=whole) for shape in shapes]
    with jax.set_mesh(mesh):
        compiled = stream.render_block.lower(block, *inputs).compile()
    groups = -(-options.batch // (mesh.size * worlds.scenes_at_once))
    found = kernels(compiled.as_text(), functools.partial(turns, groups))
    runs, moved = sum(k.times for k in found), sum(k.times * k.bytes for k in found)
    return {
        **common.describe_run(options),
        "config": config.to_dict(),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "kernels": runs,
        "bytes": moved,
        "seconds": {
            "bytes": moved / (BANDWIDTH_SHARE * chip.hbm_bandwidth),
            "launches": runs * chip.launch,
        },
    }


def check_solids(worlds: WorldsConfig) -> None:
    """UserError where rays are compared with the solids of a form in several turns."""
    most = max(worlds.boxes, worlds.ellipsoids, worlds.cylinders)
    if worlds.solids_at_once < most:
        expected = f"expected at least the {most} solids of a form, else nobody knows their turns"
        raise UserError(f"worlds.solids_at_once is {worlds.solids_at_once}, {expected}")


def turns(groups: int, loop: Instruction) -> int:
    """Turns of a loop whose end the worlds decide: over groups of worlds, or legs of rays."""
    where = loop.attribute(r'op_name="([^"]*)"') or ""
    return groups if where.split("/").count("while") == 1 else _LEGS


def table(report: Report) -> str:
    """A line of what there is to do."""
    seconds = report["seconds"]
    header = ["kernels", "HBM, GB", "temporaries, GB", "ms: bytes", "launches", "both"]
    line = [f"{report['kernels']:,}", f"{report['bytes'] / 1e9:.1f}"]
    line += [f"{report['temporaries'] / 1e9:.2f}"]
    times = (seconds["bytes"], seconds["launches"], sum(seconds.values()))
    line += [f"{1e3 * time:.1f}" for time in times]
    return common.markdown_table(header, [line])


def _parser() -> argparse.ArgumentParser:
    parser = common.benchmark_parser("benchmarks.worlds_compiled", __doc__)
    add_config_option(parser)
    add = parser.add_argument
    add("--topology", metavar="NAME", default="h100:1x1", help="such as h100:1x1, the default")
    add("--batch", metavar="N", type=int, default=8, help="worlds, over all chips (8)")
    return parser


if __name__ == "__main__":
    main()
