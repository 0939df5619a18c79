"""The report of a step compiled for a TPU pod: memory, FLOPs, collectives and estimates."""

import dataclasses
import itertools
import operator
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from lvsm_jax.common.table import format_table
from lvsm_jax.cost import hlo
from lvsm_jax.cost.chips import Work, estimate
from lvsm_jax.cost.flops import Macs, forward_macs, training_flops
from lvsm_jax.cost.topology import USABLE, Case, least_sent


def work(case: Case, mesh: Mesh, text: str) -> Work:
    """What a chip does in a step of a compiled program."""
    scenes, model, kernels = case.batch / mesh.size, case.training.model, hlo.kernels(text)
    forward = forward_macs(model, **case.scene)
    back = sum(times for name, times in kernels.items() if "dkv" in name)
    ahead = sum(times for name, times in kernels.items() if "fwd" in name)
    passes = ahead / back if back else 1.0
    # A fused backward kernel has five matmuls where the forward one has two.
    attention = 1.0 if case.render else passes + 2.5
    linear = 1 if case.render else 3 + (model.remat == "full")
    return Work(
        model_flops=scenes * (forward.flops if case.render else training_flops(forward)),
        linear_flops=scenes * linear * Macs(linear=forward.linear).flops,
        attention_flops=scenes * attention * Macs(attention=forward.attention).flops,
        head_dim=model.head_dim,
        hbm_bytes=hlo.hbm_bytes(text),
        sent_bytes=float(sum(c.sent for c in hlo.collectives(text))),
        cycles=hlo.cycles(text),
    )


def report(
    case: Case, mesh: Mesh, program: str, memory: Any, compiler_flops: float | None
) -> dict[str, Any]:
    """The report of a compiled program as JSON values: bytes, FLOPs and seconds of a chip.

    `program` is its optimised HLO, `memory` what `jax.stages.Compiled.memory_analysis` returned;
    `compiler_flops` are of its `cost_analysis`.
    """
    done, training = work(case, mesh, program), case.training
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    total, least = sum(parts.values()), least_sent(case, mesh)
    fewest = sum(least.values())
    return {
        "topology": case.topology,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "program": "render" if case.render else "train",
        "batch": case.batch,
        **case.scene,
        "grad_accumulation": training.grad_accumulation,
        "remat": training.model.remat,
        "dtype": training.model.dtype,
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
    names, rows = ("kind", "dtype", "group", "times"), []
    key = operator.attrgetter(*names)
    for values, group in itertools.groupby(sorted(hlo.collectives(program), key=key), key):
        alike = list(group)
        sums = {"payload": sum(c.payload for c in alike), "sent": sum(c.sent for c in alike)}
        rows.append(dict(zip(names, values, strict=True)) | {"operations": len(alike)} | sums)
    return rows


def text(result: Mapping[str, Any]) -> str:
    """A report to read."""
    sizes = " × ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    memory, work, guess = result["memory"], result["work"], result["estimate"]
    rows = [
        (c["kind"], c["dtype"], c["group"], c["times"], c["operations"], f"{c['sent'] / 1e6:.1f}")
        for c in result["collectives"]
    ]
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
        format_table(("collectives", "dtype", "group", "times", "operations", "MB sent"), rows),
        f"sent {work['sent_bytes'] / 1e6:.1f} MB, at least "
        + " + ".join(f"{v / 1e6:.1f} ({k})" for k, v in result["least_sent"].items())
        + (f": {result['sent_over_least']:.3f} times" if result["sent_over_least"] else ""),
        "",
        "estimate of a step, see lvsm_jax.cost.chips.Estimate",
        f"  arithmetic {guess['arithmetic'] * 1e3:.0f} ms, HBM {guess['hbm'] * 1e3:.0f} ms, "
        f"interconnect {guess['interconnect'] * 1e3:.1f} ms",
        f"  roofline         {guess['roofline'] * 1e3:7.0f} ms, MFU {guess['roofline_mfu']:.0%}",
        f"  compiler's       {guess['compiler'] * 1e3:7.0f} ms, MFU {guess['compiler_mfu']:.0%}",
    ]
    return "\n".join(lines)


def advice_text(found: Mapping[str, Any]) -> str:
    """What to change, in a line or two."""
    fitting = ", ".join(f"{policy} {n}" for policy, n in found["scenes_at_once"].items())
    advice = "not even one does: raise mesh.fsdp or mesh.view, or take more chips"
    if found["remat"] is not None:
        advice = (
            f"recommended: --config.model.remat={found['remat']} "
            f"--config.run.grad_accumulation={found['grad_accumulation']}"
        )
    return f"scenes that fit a chip at once, by remat: {fitting} (counted, not compiled)\n{advice}"
