r"""The model card of the weights that come with the package: scores, and what there is to say.

    python -m experiments.model_card --data=DIR
    python -m experiments.model_card runs/worlds/export_int8 --data=DIR --output=card \
        --full=runs/worlds/export

Scores an export, by default the shipped one, on held-out worlds and on the photographs in DIR
(`re10k_sample/`, `hololens_office/`, `strecha/`), with several numbers of inputs, spread and
contiguous ones apart, beside a copy of the nearest input; `experiments/card_sets.py` has the rules.
With --full it also says how far the packed weights are from the full ones. Into the output folder
go

    README.md     the card: what experiments/shipped_weights.md says, and the tables
    scores.json   the same numbers, unrounded
"""

import argparse
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

import lvsm_jax
from benchmarks.common import Report, hardware, markdown_table, module_parser, write_report
from experiments.card_sets import BATCH, CardSet, photo_sets, worlds_set
from lvsm_jax.batch import shard_batch
from lvsm_jax.common.command_line import path, program
from lvsm_jax.common.config import DataConfig
from lvsm_jax.common.files import write_text
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.evaluation.scoring import COPY_NEAREST, METRICS, MODEL, Metrics, evaluate
from lvsm_jax.frozen.lpips import find_weights, load_lpips
from lvsm_jax.parallel.mesh import MeshConfig, make_mesh, replicate, simulate_cpu_devices
from lvsm_jax.scenes.placing import ARRANGEMENTS
from lvsm_jax.weights.exports import describe, model_config
from lvsm_jax.weights.shipped import SHIPPED, introduce

COUNTS = (1, 2, 4, 8)

_TEXT = pathlib.Path(__file__).parent / "shipped_weights.md"
_SEEN = "psnr_by_inputs_that_see"  # of sets that know it, as worlds do
_DECIMALS = {"psnr": 2, "ssim": 3, "lpips": 3}


@program
def main(arguments: list[str]) -> None:
    """Scores, and writes the card."""
    options = _parser().parse_args(arguments)
    simulate_cpu_devices(options.cpu_devices, MeshConfig(), BATCH)
    report = make_report(options)
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    write_report(str(output / "scores.json"), report)
    card = make_card(report, pathlib.Path(options.text).read_text())
    write_text(output / "README.md", card)
    print(f"{card}\nwrote {output / 'README.md'} and {output / 'scores.json'}")


def make_report(options: argparse.Namespace) -> Report:
    """What the card says in numbers: `scores` has a row for each set, arrangement and count."""
    about = describe(options.export)
    config = about.get("config", {})
    height = options.size or config.get("data", {}).get("image_height", 256)
    patch = model_config(options.export).patch_size
    settings = DataConfig("", image_height=height, patch_size=patch)
    mesh = make_mesh()
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as work:
        sets = [worlds_set(options.worlds, settings, config)] if options.worlds else []
        if options.data:
            sets += photo_sets(pathlib.Path(options.data), pathlib.Path(work), settings)
        models = {"model": lvsm_jax.load(options.export)}
        if options.full:
            models["full"] = lvsm_jax.load(options.full)
        metrics: Metrics = METRICS
        if options.lpips:
            lpips = load_lpips(find_weights(without="--no-lpips"))
            metrics = METRICS | {"lpips": replicate(mesh, lpips)}
        put = functools.partial(shard_batch, mesh)
        scores = score_sets(replicate(mesh, models), metrics, sets, options.inputs, put)
    return {
        "weights": introduce(about),
        "architecture": about["architecture"],
        "model": about["model"],
        "dtype": about.get("dtype", "float32"),
        "step": about.get("step"),
        "config": config,
        "bytes": _bytes_in(pathlib.Path(options.export)),
        "image_size": height,
        "hardware": hardware(),
        "sets": {one.name: {"title": one.title, "rule": one.rule} for one in sets},
        "scores": scores,
    }


def _bytes_in(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def score_sets(
    models: Mapping[str, Any],
    metrics: Metrics,
    sets: Iterable[CardSet],
    counts: Sequence[int],
    put: Any,
) -> list[dict[str, Any]]:
    """Rows with `set`, `arrangement`, `inputs`, `targets`, and the means of model and copy.

    One input is spread and contiguous at once, and has one row. `full` is the PSNR of the full
    weights, where these are given.
    """
    rows = []
    ways = [(way, n) for way in ARRANGEMENTS for n in counts if n > 1 or way == "spread"]
    for one, (arrangement, inputs) in tqdm(list(itertools.product(sets, ways)), "scoring"):
        views = one.open(arrangement, inputs)
        result = evaluate(models["model"], views, metrics=metrics, put=put, progress=False)
        result.check_finite()
        row = {"set": one.name, "arrangement": arrangement, "inputs": inputs}
        summary = result.summary()
        row["targets"] = summary["num_images"]
        for method, found in ((MODEL, summary), (COPY_NEAREST, summary["baselines"][COPY_NEAREST])):
            row[method] = {metric: found[metric] for metric in metrics}
            if seen := found.get(_SEEN):
                row[method][_SEEN] = {group: said["psnr"] for group, said in seen.items()}
        if "full" in models:
            how = {"metrics": {"psnr": psnr}, "baselines": False, "put": put, "progress": False}
            row["full"] = evaluate(models["full"], views, **how).mean("psnr")
        rows.append(row)
    return rows


def make_card(report: Report, text: str) -> str:
    """The card in Markdown, with `text` before the scores."""
    sections = [
        "# The weights in this package",
        f"Name and size: {report['weights']}. Licence: Apache-2.0, as the code.",
        text.strip(),
        f"## What is stored\n\n{describe_storage(report)}",
        f"## Scores\n\n{_HOW.format(**report)}",
    ]
    for name, said in report["sets"].items():
        rows = [row for row in report["scores"] if row["set"] == name]
        targets = f"{said['rule']} {rows[0]['targets']} targets."
        sections.append(f"### {said['title']}\n\n{targets}\n\n{table(rows)}")
        if _SEEN in rows[0][MODEL]:
            sections.append(f"PSNR of pixels by how many inputs see them:\n\n{seen_table(rows)}")
    return "\n\n".join(sections) + "\n"


_HOW = (
    "Pictures of {image_size} × {image_size} px, PSNR in dB, means over targets; beside each score "
    "that of copying the nearest input. *Spread* inputs lie evenly from end to end of a stretch of "
    "views, *contiguous* ones are neighbours in its middle; targets are the same for all and never "
    "an input. One input is the middle one. The cameras of inputs and targets define the scene's "
    "frame. `scores.json` has all digits. Few scenes: compare models on them, with no published "
    "number. Made by `python -m experiments.model_card` on {hardware}."
)


def describe_storage(report: Report) -> str:
    """Bytes and type of the weights, and what packing them costs where that was measured."""
    config = report["config"]
    run, data = config.get("run", {}), config.get("data", {})
    size = f"{report['bytes'] / 1e6:.2f} MB, matrices as {report['dtype']}, float32 when loaded."
    if apart := [abs(r["full"] - r[MODEL]["psnr"]) for r in report["scores"] if "full" in r]:
        size += f" PSNR differs from that of the full weights by {max(apart):.4f} dB at most."
    trained = (
        f"Step {report['step']}, seed {run.get('seed')}, {run.get('batch_size')} scenes a step, "
        f"inputs {data.get('input_counts') or [data.get('num_inputs')]}; `config.json` beside the "
        "weights has all fields."
    )
    return f"{size} {trained}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Scores by arrangement and number of inputs."""
    metrics = [metric for metric in _DECIMALS if metric in rows[0][MODEL]]
    header = ["inputs", ""]
    for metric in metrics:
        header += [metric.upper(), "copy"]
    cells = []
    for row in rows:
        of = (row[method][metric] for metric in metrics for method in (MODEL, COPY_NEAREST))
        digits = (_DECIMALS[metric] for metric in metrics for _ in range(2))
        numbers = [f"{value:.{d}f}" for value, d in zip(of, digits, strict=True)]
        cells.append([*_views(row), *numbers])
    return markdown_table(header, cells)


def seen_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """PSNR of the pixels that none, one or several of the inputs see."""
    header, cells = ["inputs", ""], []
    for group in rows[0][MODEL][_SEEN]:
        header += [f"seen by {group}", "copy"]
    for row in rows:
        both = zip(row[MODEL][_SEEN].values(), row[COPY_NEAREST][_SEEN].values(), strict=True)
        numbers = (value for pair in both for value in pair)
        cells.append([*_views(row), *(None if x is None else f"{x:.2f}" for x in numbers)])
    return markdown_table(header, cells)


def _views(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["arrangement"] if row["inputs"] > 1 else "one", row["inputs"]


def _parser() -> argparse.ArgumentParser:
    parser = module_parser("experiments.model_card", __doc__)
    add = parser.add_argument
    add("export", nargs="?", type=path, default=str(SHIPPED), metavar="EXPORT",
        help="to score (the shipped one)")  # fmt: skip
    add("--data", type=path, metavar="DIR", help="folder of real photographs (none)")
    add("--worlds", type=int, default=64, metavar="N", help="held-out worlds; 0: none (64)")
    add("--inputs", nargs="+", type=int, default=list(COUNTS), metavar="N",
        help=f"numbers of inputs ({' '.join(map(str, COUNTS))})")  # fmt: skip
    add("--size", type=int, metavar="H", help="height and width in pixels (as trained)")
    add("--full", type=path, metavar="EXPORT", help="the same weights unpacked, to compare with")
    add("--no-lpips", dest="lpips", action="store_false", help="do without LPIPS's weights")
    add("--cpu-devices", type=int, default=0, metavar="N", help="simulated; 0: one a core (0)")
    add("--text", type=path, default=str(_TEXT), metavar="FILE",
        help="Markdown before the scores (experiments/shipped_weights.md)")  # fmt: skip
    add("--output", type=path, default=str(SHIPPED.parent), metavar="FOLDER",
        help="to write to (that of the shipped weights)")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
