"""Compiles the training step for TPUs or GPUs that are not here, and says what the compiler says.

    pip install 'lvsm_jax[tpu]'                     # brings the compiler; no TPU is needed
    pip install 'lvsm_jax[cuda]'                    # the one for GPUs, 3 GB; no GPU is needed
    lvsm aot --config=configs/re10k_256.py --topology=v5e:8x8
    lvsm aot --config=configs/re10k_256.py --topology=v4:4x4x4 --mesh=16,4,1
    lvsm aot --config=configs/re10k_512.py --topology=v5e:16x16 --batch=256 --output=aot.json
    lvsm aot --config=configs/re10k_256.py --topology=v6e:8x8 --render --batch=64
    lvsm aot --config=configs/re10k_256_repa.py:gpu --topology=h100:1x8 --batch=64
    lvsm aot --config=configs/re10k_256.py:gpu --topology=a100:8x8

TPU topologies are those of Google Cloud: v4:4x4x4 is a cube of 64 chips, v5e:16x16 a pod of 256.
Those of GPUs are hosts x GPUs of each: a100:8x8 is 64 A100s of 80 GB in 8 machines, h100:1x1 one
H100. The step is the one that lvsm train runs, with the attention kernel of that platform, the
config's model and batch and, unless --mesh gives data,fsdp,view, its mesh. Compiling takes one to
four minutes on two cores, and more with model.unroll, as the variants for GPUs (:gpu) have it.

Printed are, for one chip: memory, FLOPs, kernels, the collectives of the optimised program with
their bytes beside the least that the mesh needs (lvsm_jax.cost.topology.least_sent), and the time
of a step, kernel by kernel (lvsm_jax.cost.kernels says by which shares of the peaks). MFU counts
the FLOPs of the model alone; the networks that losses look through are in everything else, and
--config.loss.perceptual=0 compiles without those. Where the step does not fit, it says what would.
"""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

import ml_collections

from lvsm_jax.common import command_line
from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError

if TYPE_CHECKING:
    from lvsm_jax.cost.topology import Case


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, compiles, prints and writes."""
    parser = argument_parser("aot", __doc__)
    command_line.add_config_option(parser)
    parser.add_argument(
        "--topology", metavar="NAME", required=True, help="such as v5e:8x8, or h100:1x8"
    )
    parser.add_argument("--mesh", metavar="D,F,V", help="data,fsdp,view (the config's mesh)")
    parser.add_argument("--batch", type=int, help="scenes of a step (the config's run.batch_size)")
    parser.add_argument("--render", action="store_true", help="compile the forward pass alone")
    parser.add_argument("--output", type=path, metavar="FILE", help="also write numbers as JSON")
    parser.add_argument("--hlo", type=path, metavar="FILE", help="also write the optimised program")
    parser.add_argument("--overwrite", action="store_true", help="replace these files")
    given, config = command_line.parse_with_config(parser, arguments)

    import jax  # only now, so that --help comes at once

    from lvsm_jax.common.files import check_new_file, check_parent, write_text
    from lvsm_jax.cost.step_report import advice_text, report, text
    from lvsm_jax.cost.topology import advice, compile_case, topology_mesh

    files = [file for file in (given.output, given.hlo) if file]
    for file in files:
        check_new_file(file, given.overwrite)
        check_parent(file)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what is kept cannot be analysed
    case = read_case(given, config)
    mesh = topology_mesh(case.topology, case.mesh)
    print(f"compiling for {mesh.size} chips; minutes", file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        compiled = compile_case(case, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(advice_text(advice(case, mesh)))
        reason = str(error).splitlines()[0][:300]
        raise UserError(f"the compiler finds too little memory: {reason}") from error
    seconds, hlo = time.monotonic() - start, compiled.as_text()
    flops = (compiled.cost_analysis() or {}).get("flops")
    result = report(case, mesh, hlo, compiled.memory_analysis(), flops)
    result["compile_seconds"] = round(seconds, 1)
    print(text(result))
    if not result["fits"]:
        print(advice_text(advice(case, mesh)))
    if given.output:
        write_text(given.output, json.dumps(result, indent=1) + "\n")
    if given.hlo:
        write_text(given.hlo, hlo)
    if files:
        print(f"\nwrote {', '.join(files)}")


def read_case(given: argparse.Namespace, config: ml_collections.ConfigDict) -> "Case":
    """What to compile, from the command line; raises UserError for values that cannot be."""
    from lvsm_jax.common.config import DataConfig, RunConfig, section
    from lvsm_jax.cost.topology import Case
    from lvsm_jax.parallel.mesh import MeshConfig
    from lvsm_jax.training.train_state import TrainingConfig

    mesh = section(config, "mesh", MeshConfig)
    if given.mesh:
        sizes = given.mesh.split(",")
        if len(sizes) != 3 or not all(size.lstrip("-").isdigit() for size in sizes):
            raise UserError(f"--mesh={given.mesh}: expected data,fsdp,view as in --mesh=8,8,1")
        mesh = MeshConfig(*map(int, sizes))
    batch = section(config, "run", RunConfig).batch_size if given.batch is None else given.batch
    if batch < 1:
        raise UserError(f"--batch={batch}: expected at least 1")
    training, data = TrainingConfig.of(config), section(config, "data", DataConfig)
    return Case(given.topology, mesh, training, data, batch, given.render)
