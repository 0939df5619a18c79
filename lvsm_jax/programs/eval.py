r"""Scores a model on held-out views, beside two baselines, and shows what it renders.

    lvsm eval --config=configs/quickstart.py --checkpoint=runs/quickstart/export
    lvsm eval --config=configs/re10k_256.py --checkpoint=runs/re10k_256/export \
        --config.eval.num_inputs=4 --output=results/four_inputs
    lvsm eval --config=configs/worlds_64.py --checkpoint=runs/worlds_64/export --beside
    lvsm eval --config=configs/worlds_64.py --checkpoint=runs/worlds_64/export --panel

With --beside=EXPORT a second model sees the same inputs and is asked for the same targets; --beside
alone takes the weights that come with lvsm_jax. The page has its renders next to the model's.

The protocol is RealEstate10K's published one: the targets of an evaluation index, PSNR, SSIM and
LPIPS in float32, every image counted. Transparent pictures are scored whole, on their background,
and by the PSNR of the object's pixels beside. With `eval.worlds` it is so many held-out worlds
instead, and the PSNR is told by how many inputs see a pixel. Of the config are used `data`, `eval`,
`mesh`, `processes`, `worlds`, and of `model` how to compute: `dtype`, `attention` and
`targets_at_once`. Any field can be set with --config.SECTION.FIELD=VALUE; `lvsm config` explains
each. The output
directory holds

    index.html      table, distribution, best, median and worst scenes
    summary.json    the means, with and without targets that are input views
    per_image.csv   one row for each target

With --panel the same scenes and targets are scored once as they are, and once for each of these
changes: the world scaled by 0.5 and by 2, turned by 90° and rolled by 15°; targets of other focal
lengths than the inputs; 1, 2, 4, 8 and 16 inputs, spread and contiguous. Then the output directory
holds

    index.html      the table, and pictures of three scenes under every change
    panel.json      the means of every row
"""

import shlex
from typing import Any

from lvsm_jax.common import command_line
from lvsm_jax.common.table import format_table


@command_line.program
def main(arguments: list[str]) -> None:
    """Reads the command line, and evaluates."""
    parser, path = command_line.argument_parser("eval", __doc__), command_line.path
    command_line.add_config_option(parser)
    parser.add_argument(
        "--checkpoint", type=path, required=True, help="directory of an export of lvsm train"
    )
    parser.add_argument(
        "--beside",
        nargs="?",
        const=True,
        type=path,
        metavar="EXPORT",
        help="score this export too, on the same targets (without a value: the weights that come "
        "with lvsm_jax)",
    )
    panel = "score it under changes of the world's frame, of focal lengths, and of the inputs"
    parser.add_argument("--panel", action="store_true", help=panel)
    written = "directory to write (CHECKPOINT_evaluation, or CHECKPOINT_panel)"
    parser.add_argument("--output", type=path, help=written)
    replace = "replace an evaluation that is there"
    parser.add_argument("--overwrite", action="store_true", help=replace)
    given, config = command_line.parse_with_config(parser, arguments)

    # Only now, so that --help comes at once.
    from lvsm_jax.common.config import EvalConfig, RunConfig, section
    from lvsm_jax.parallel import processes
    from lvsm_jax.parallel.mesh import MeshConfig, simulate_cpu_devices
    from lvsm_jax.parallel.processes import ProcessesConfig
    from lvsm_jax.programs import evaluation_run, panel_run
    from lvsm_jax.training.run_log import log_to
    from lvsm_jax.weights.shipped import SHIPPED

    batch_size = section(config, "eval", EvalConfig).batch_size
    kind = "panel" if given.panel else "evaluation"
    output = given.output or f"{given.checkpoint.rstrip('/')}_{kind}"
    count = processes.start(section(config, "processes", ProcessesConfig))
    run, mesh = section(config, "run", RunConfig), section(config, "mesh", MeshConfig)
    simulate_cpu_devices(run.cpu_devices, mesh, batch_size, processes=count)
    log_to(None)
    processes.check_same_config(config.to_dict())
    how = {"overwrite": given.overwrite, "command": shlex.join(["lvsm", "eval", *arguments])}
    how["beside"] = SHIPPED if given.beside is True else given.beside
    run_it = panel_run.evaluate_panel if given.panel else evaluation_run.evaluate_export
    summary = run_it(config, given.checkpoint, output, **how)
    if processes.is_main():
        print(panel_run.table(summary) if given.panel else table(summary))
        print(f"\nPictures and all: {output}/index.html")


def table(summary: dict[str, Any]) -> str:
    """The means, for a terminal; of two models also which they are."""
    beside, baselines = summary["beside"], summary["baselines"]
    methods = [("model", summary), *([(beside["label"], beside)] if beside else [])]
    methods += [(method.replace("_", " "), scores) for method, scores in baselines.items()]
    decimals = {"psnr": 2, "psnr_object": 2, "ssim": 3, "lpips": 3}
    metrics = [metric for metric in decimals if summary.get(metric) is not None]
    names = [metric.upper().replace("_", " OF ") for metric in metrics]

    def means(title: str, methods: list[tuple[str, dict[str, float]]]) -> str:
        rows = ([name, *(f"{of[m]:.{decimals[m]}f}" for m in metrics)] for name, of in methods)
        return format_table([title, *names], rows)

    tables = [means(f"{summary['num_images']:,} targets", methods)]
    context = summary["num_context_targets"]
    if 0 < context < summary["num_images"]:
        others = [(name, scores["without_context_targets"]) for name, scores in methods]
        tables.append(means(f"without the {context:,} that are input views", others))
    if seen := summary.get("psnr_by_inputs_that_see"):
        header = [f"{group} ({of['share']:.0%} of pixels)" for group, of in seen.items()]
        rows = (
            [name, *map(_decibels, scores["psnr_by_inputs_that_see"].values())]
            for name, scores in methods
        )
        tables.append(format_table(["PSNR by inputs that see a pixel", *header], rows))
    if beside:
        tables.append(f"model: {summary['weights']}\n{beside['label']}: {beside['weights']}")
    return "\n\n".join(tables)


def _decibels(group: dict[str, float | None]) -> str:
    return "–" if group["psnr"] is None else f"{group['psnr']:.2f}"
