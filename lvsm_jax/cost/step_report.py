"""The report of a compiled step: memory, FLOPs, collectives, kernels and estimates."""

import dataclasses
import itertools
import operator
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from lvsm_jax.common.table import format_table
from lvsm_jax.cost import hlo
from lvsm_jax.cost.chips import Work, estimate
from lvsm_jax.cost.flops import forward_macs, training_flops
from lvsm_jax.cost.kernels import kernels, link_seconds, totals
from lvsm_jax.cost.memory import rasterizer_chunks
from lvsm_jax.cost.topology import USABLE, Case, least_sent


def rasterizer_turns(case: Case, mesh: Mesh) -> int | None:
    """Turns of loops whose length the program does not tell: a rasteriser's, with all room used."""
    scene = {name: case.scene[name] for name in ("views", "height", "width")}
    with jax.set_mesh(mesh):
        return rasterizer_chunks(case.training.model, **scene)


def work(case: Case, mesh: Mesh, text: str) -> Work:
    """What a chip does in a step of a compiled program."""
    scenes, forward = case.batch / mesh.size, forward_macs(case.training.model, **case.scene)
    count = rasterizer_turns(case, mesh)
    turns = lambda loop: count  # noqa: E731
    by_kind, collectives = totals(kernels(text, turns), case.chip), hlo.collectives(text)

    def flops(*kinds: str) -> float:
        return sum(by_kind[kind].flops for kind in kinds if kind in by_kind)

    return Work(
        model_flops=scenes * (forward.flops if case.render else training_flops(forward)),
        linear_flops=flops("matmul", "convolution"),
        attention_flops=flops("attention", "attention backward"),
        head_dim=case.training.model.head_dim,
        hbm_bytes=hlo.hbm_bytes(text, turns),
        sent_bytes=float(sum(c.sent for c in collectives)),
        kernel_seconds=sum(total.seconds for total in by_kind.values()),
        link_seconds=sum(link_seconds(c, case.chip, case.devices_of_host) for c in collectives),
    )


def report(
    case: Case, mesh: Mesh, program: str, memory: Any, compiler_flops: float | None
) -> dict[str, Any]:
    """The report of a compiled program as JSON values: bytes, FLOPs and seconds of a chip.

    `program` is its optimised HLO, `memory` what `jax.stages.Compiled.memory_analysis` returned;
    `compiler_flops` are of its `cost_analysis`.
    """
    done, training = work(case, mesh, program), case.training
    turns = rasterizer_turns(case, mesh)
    by_kind = totals(kernels(program, lambda loop: turns), case.chip)
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
        "rasterizer_turns": turns,
        "kernels": hlo.kernels(program),
        "by_kind": {kind: dataclasses.asdict(total) for kind, total in by_kind.items()},
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


_UNITS = {"flops": 1e-12, "bytes": 1e-9, "seconds": 1e3}  # of the table of kernels


def text(result: Mapping[str, Any]) -> str:
    """A report to read."""
    sizes = " × ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    memory, work, guess = result["memory"], result["work"], result["estimate"]
    rows = [
        (c["kind"], c["dtype"], c["group"], c["times"], c["operations"], f"{c['sent'] / 1e6:.1f}")
        for c in result["collectives"]
    ]
    kinds = [
        (name, of["runs"], *(f"{of[part] * scale:.2f}" for part, scale in _UNITS.items()))
        for name, of in result["by_kind"].items()
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
        f"  HBM              {work['hbm_bytes'] / 1e9:9.2f} GB",
        f"  launches         {sum(kind['runs'] for kind in result['by_kind'].values()):9}",
        "",
        format_table(("kernels", "runs", "TFLOP", "GB", "ms"), kinds),
        *(
            [f"a rasteriser's loops: {turns} turns each, as if all its room were used"]
            if (turns := result.get("rasterizer_turns"))
            else []
        ),
        *(
            ["blending: as if all of the rasteriser's room were used"]
            if "blending" in result["by_kind"]
            else []
        ),
        "libraries' kernels: "
        + (", ".join(f"{name} {n}" for name, n in result["kernels"].items()) or "none"),
        "",
        format_table(("collectives", "dtype", "group", "times", "operations", "MB sent"), rows),
        f"sent {work['sent_bytes'] / 1e6:.1f} MB, at least "
        + " + ".join(f"{v / 1e6:.1f} ({k})" for k, v in result["least_sent"].items())
        + (f": {result['sent_over_least']:.3f} times" if result["sent_over_least"] else ""),
        "",
        "estimate of a step, see lvsm_jax.cost.kernels",
        f"  arithmetic {guess['arithmetic'] * 1e3:.0f} ms, HBM {guess['hbm'] * 1e3:.0f} ms, "
        f"interconnect {guess['interconnect'] * 1e3:.1f} ms",
        f"  the longest      {guess['roofline'] * 1e3:9.1f} ms, MFU {guess['roofline_mfu']:.0%}",
        f"  kernel by kernel {guess['sum'] * 1e3:9.1f} ms, MFU {guess['sum_mfu']:.0%}",
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
