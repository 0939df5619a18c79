"""Compiles the training step for TPUs that are not here, and says what the compiler says.

    pip install -c constraints.txt -e '.[tpu]'      # brings the compiler; no TPU is needed
    python -m lvsm_jax.programs.aot --config=configs/re10k_256.py --topology=v5e:8x8
    python -m lvsm_jax.programs.aot --config=configs/re10k_256.py --topology=v4:4x4x4 --mesh=16,4,1
    python -m lvsm_jax.programs.aot --config=configs/re10k_512.py --topology=v5e:16x16 --batch=256 \
        --config.model.remat=dots --output=aot.json
    python -m lvsm_jax.programs.aot --config=configs/re10k_256.py --topology=v6e:8x8 \
        --render --batch=64

Topologies are those of Google Cloud: v4:4x4x4 is a cube of 64 chips, v5e:16x16 a pod of 256. The
step is the one that train.py runs, with the attention kernel for TPUs, the config's model and batch
and, unless --mesh gives data,fsdp,view, its mesh. Compiling takes one to four minutes on two cores.

Printed are, for one chip: memory, FLOPs, the collectives of the optimised program with their bytes
beside the least that the mesh needs (lvsm_jax.topology.least_sent), and two estimates of a step
(lvsm_jax.chips.Estimate). Our FLOPs are the model's, without the networks that losses look through;
--config.loss.perceptual=0 compiles without those. Where the step does not fit, it says what would.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from lvsm_jax.common.command_line import read_config_file
from lvsm_jax.common.config import DataConfig, RunConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import write_text
from lvsm_jax.cost import hlo
from lvsm_jax.cost.chips import Work, estimate
from lvsm_jax.cost.flops import Macs, forward_macs, training_flops
from lvsm_jax.cost.topology import USABLE, Case, advice, compile_case, least_sent, topology_mesh
from lvsm_jax.parallel.mesh import MeshConfig
from lvsm_jax.training.train_state import TrainingConfig


def work(case: Case, mesh: Mesh, text: str) -> Work:
    """What a chip does in a step of a compiled program."""
    scenes = case.batch / mesh.size
    forward = forward_macs(case.training.model, **case.scene)
    kernels = hlo.kernels(text)
    back = sum(times for name, times in kernels.items() if "dkv" in name)
    ahead = sum(times for name, times in kernels.items() if "fwd" in name)
    passes = ahead / back if back else 1.0
    # A fused backward kernel has five matmuls where the forward one has two.
    attention = 1.0 if case.render else passes + 2.5
    again = case.training.model.remat == "full"
    linear = 1 if case.render else 3 + again
    return Work(
        model_flops=scenes * (forward.flops if case.render else training_flops(forward)),
        linear_flops=scenes * linear * Macs(linear=forward.linear).flops,
        attention_flops=scenes * attention * Macs(attention=forward.attention).flops,
        head_dim=case.training.model.head_dim,
        hbm_bytes=hlo.hbm_bytes(text),
        sent_bytes=float(sum(c.sent for c in hlo.collectives(text))),
        cycles=hlo.cycles(text),
    )


def report(
    case: Case, mesh: Mesh, program: str, memory: Any, compiler_flops: float | None
) -> dict[str, Any]:
    """All that is said of a compiled program, as JSON values: bytes, FLOPs and seconds a chip.

    Args:
        case: what was compiled.
        mesh: of its chips.
        program: optimised HLO.
        memory: of `jax.stages.Compiled.memory_analysis`.
        compiler_flops: of its `cost_analysis`.
    """
    done = work(case, mesh, program)
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    total, least = sum(parts.values()), least_sent(case, mesh)
    fewest = sum(least.values())
    return {
        **describe_case(case, mesh),
        "memory": {**parts, "total": total, "hbm": case.chip.hbm},
        "fits": total <= USABLE * case.chip.hbm,
        "work": dataclasses.asdict(done),
        "compiler_flops": compiler_flops,
        "kernels": hlo.kernels(program),
        "collectives": _collective_rows(program),
        "least_sent": least,
        "sent_over_least": done.sent_bytes / fewest if fewest else None,
        "estimate": dataclasses.asdict(estimate(case.chip, done)),
    }


def _collective_rows(program: str) -> list[dict[str, Any]]:
    """Collectives of a kind, type, group and number of turns in a row each."""
    rows: dict[tuple, list] = collections.defaultdict(lambda: [0, 0, 0.0])
    for c in hlo.collectives(program):
        row = rows[c.kind, c.dtype, c.group, c.times]
        row[0] += 1
        row[1] += c.payload
        row[2] += c.sent
    names = ("kind", "dtype", "group", "times")
    return [
        dict(zip(names, key, strict=True)) | {"operations": n, "payload": payload, "sent": sent}
        for key, (n, payload, sent) in sorted(rows.items())
    ]


def describe_case(case: Case, mesh: Mesh) -> dict[str, Any]:
    """What was asked for, as JSON values."""
    return {
        "topology": case.topology,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "program": "render" if case.render else "train",
        "batch": case.batch,
        **case.scene,
        "grad_accumulation": case.training.grad_accumulation,
        "remat": case.training.model.remat,
        "dtype": case.training.model.dtype,
    }


def text(result: Mapping[str, Any]) -> str:
    """A report to read."""
    sizes = " × ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    memory, work, guess = result["memory"], result["work"], result["estimate"]
    lines = [
        f"{result['program']} on {result['topology']}: {result['chips']} chips, {sizes}",
        f"{result['batch']} scenes of {result['views']} + {result['targets']} views, "
        f"{result['height']} × {result['width']}, {result['dtype']}, remat {result['remat']}",
        "",
        f"memory of a chip, of {memory['hbm'] / 1e9:.1f} GB: "
        + ("fits" if result["fits"] else "does NOT fit"),
        *(f"  {name:12}{memory[name] / 1e9:8.2f} GB" for name in memory if name != "hbm"),
        "",
        "a chip's step",
        f"  model            {work['model_flops'] / 1e12:9.2f} TFLOP",
        f"  executed         {(work['linear_flops'] + work['attention_flops']) / 1e12:9.2f} TFLOP",
        f"  compiler's count {(result['compiler_flops'] or 0) / 1e12:9.2f} TFLOP, without kernels, "
        "and of loops one turn",
        f"  HBM              {work['hbm_bytes'] / 1e9:9.2f} GB",
        "",
        "collectives          dtype  group  times  operations  MB sent",
        *(
            f"  {c['kind']:19}{c['dtype']:>5}{c['group']:7}{c['times']:7}{c['operations']:12}"
            f"{c['sent'] / 1e6:9.1f}"
            for c in result["collectives"]
        ),
        f"  sent {work['sent_bytes'] / 1e6:.1f} MB, at least "
        + " + ".join(f"{v / 1e6:.1f} ({k})" for k, v in result["least_sent"].items())
        + (f": {result['sent_over_least']:.3f} times" if result["sent_over_least"] else ""),
        "",
        "estimate of a step, see lvsm_jax.chips.Estimate",
        f"  arithmetic {guess['arithmetic'] * 1e3:.0f} ms, HBM {guess['hbm'] * 1e3:.0f} ms, "
        f"interconnect {guess['interconnect'] * 1e3:.1f} ms",
        f"  roofline         {guess['roofline'] * 1e3:7.0f} ms, MFU {guess['roofline_mfu']:.0%}",
        f"  compiler's       {guess['compiler'] * 1e3:7.0f} ms, MFU {guess['compiler_mfu']:.0%}",
    ]
    return "\n".join(lines)


def advice_text(found: Mapping[str, Any]) -> str:
    """What to change, in a line or two."""
    fitting = ", ".join(f"{policy} {n}" for policy, n in found["scenes_at_once"].items())
    lines = [f"scenes that fit a chip at once, by remat: {fitting} (counted, not compiled)"]
    if found["remat"] is None:
        lines.append("not even one does: raise mesh.fsdp or mesh.view, or take more chips")
    else:
        lines.append(
            f"recommended: --config.model.remat={found['remat']} "
            f"--config.run.grad_accumulation={found['grad_accumulation']}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, compiles, prints and writes."""
    given, config_fields = _parser().parse_known_args(arguments)
    unknown = [f for f in config_fields if not f.startswith(("--config.", "--noconfig."))]
    if unknown:
        sys.exit(f"error: unknown arguments {unknown}; config fields are --config.SECTION.FIELD=…")
    for path in filter(None, (given.output, given.hlo)):
        if os.path.exists(path) and not given.overwrite:
            sys.exit(f"error: {path} exists; --overwrite replaces it")
        if not pathlib.Path(path).absolute().parent.is_dir():
            sys.exit(f"error: there is no directory for {path}")
    jax.config.update("jax_platforms", "cpu")
    try:
        case = read_case(given, config_fields)
        mesh = topology_mesh(case.topology, case.mesh)
        print(f"compiling for {mesh.size} chips; minutes", file=sys.stderr, flush=True)
        start = time.monotonic()
        compiled = compile_case(case, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(advice_text(advice(case, mesh)))
        sys.exit(f"error: the compiler finds too little memory: {str(error).splitlines()[0][:300]}")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    seconds, program = time.monotonic() - start, compiled.as_text()
    flops = (compiled.cost_analysis() or {}).get("flops")
    result = report(case, mesh, program, compiled.memory_analysis(), flops)
    result["compile_seconds"] = round(seconds, 1)
    print(text(result))
    if not result["fits"]:
        print(advice_text(advice(case, mesh)))
    if given.output:
        write_text(given.output, json.dumps(result, indent=1) + "\n")
    if given.hlo:
        write_text(given.hlo, program)


def read_case(given: argparse.Namespace, config_fields: Sequence[str]) -> Case:
    """What to compile, from the command line.

    Raises:
        ValueError: values that cannot be, or do not go together.
        OSError: no such config file.
    """
    config = read_config_file(given.config, config_fields)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lvsm_jax.programs.aot",
        usage="%(prog)s --config=FILE [--config.SECTION.FIELD=VALUE ...] --topology=NAME [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="config file, see configs/")
    parser.add_argument("--topology", metavar="NAME", required=True, help="such as v5e:8x8")
    parser.add_argument("--mesh", metavar="D,F,V", help="data,fsdp,view (the config's mesh)")
    parser.add_argument("--batch", type=int, help="scenes of a step (the config's run.batch_size)")
    parser.add_argument("--render", action="store_true", help="compile the forward pass alone")
    parser.add_argument("--output", metavar="FILE", help="also write all numbers as JSON")
    parser.add_argument("--hlo", metavar="FILE", help="also write the optimised program")
    parser.add_argument("--overwrite", action="store_true", help="replace these files")
    return parser


if __name__ == "__main__":
    main()
