"""The arms of experiments/configs/beyond_arms.py, trained over seeds and scored on two sets.

    python -m experiments.past_paper runs/past_paper              # two hours of one CPU core
    python -m experiments.past_paper runs/past_paper --no-train   # reports what is there

Trains with train.py in runs/past_paper/ARM/seed_S, the first seed of all arms before the second;
the same command goes on after an interruption. Every directory in runs/past_paper counts as an arm,
so runs with other flags stand beside them under names of one's own.

All are scored on the same held-out worlds, with 1, 2, 4, 8 and 16 spread inputs, and with two in
scaled, turned and rolled worlds. Choose by the first set; the second confirms the choice, on worlds
that had no part in it. It writes past_paper.json, and prints Markdown tables: means over seeds, in
parentheses the spread, largest less smallest.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

import lvsm_jax
from benchmarks.common import hardware, markdown_table, module_parser, write_report
from experiments import runs as training
from experiments.configs.arms import step_flops
from experiments.configs.beyond_arms import ARMS
from experiments.parallel_runs import Run, train_all
from experiments.report import score
from lvsm_jax.common.command_line import program, read_config_file
from lvsm_jax.common.config import DataConfig, EvalConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import write_text
from lvsm_jax.evaluation import panel
from lvsm_jax.evaluation.panel import INPUTS, Row
from lvsm_jax.evaluation.scoring import METRICS, Evaluation
from lvsm_jax.frozen.lpips import find_weights, load_lpips
from lvsm_jax.worlds.config import WorldsConfig
from lvsm_jax.worlds.held_out import HeldOutWorlds, open_worlds

COPY = "copy of the nearest input"
_WITH_LPIPS = ("2 inputs", "8 inputs")  # it takes a CPU far longer than all else
_FILE = "scores.json"
_VIEWS = 24  # along a path: room for 16 inputs and three targets

Scores = dict[str, dict[str, Any]]


@program
def main(arguments: list[str]) -> None:
    """Trains, scores, reports."""
    options = _parser().parse_args(arguments)
    options.directory = options.directory.resolve()
    failed = []
    if not options.no_train:
        runs = [make_run(arm, seed, options) for seed in options.seeds for arm in options.arms]
        failed = train_all(runs, options.directory / ".compiled", options.at_once)
        told = f"not trained to the end, see their .txt: {', '.join(failed)}"
        if len(failed) == len(runs):
            raise UserError(told)
    report = make_report(options)
    write_report(options.directory / "past_paper.json", report)
    print(tables(report))
    if failed:
        raise UserError(told)


def make_run(arm: str, seed: int, options: argparse.Namespace) -> Run:
    """A run of an arm."""
    config = read_config_file(f"{training.CONFIGS}/beyond_arms.py:{arm}", options.train_flags)
    workdir = options.directory / arm / f"seed_{seed}"
    fields = {"run.seed": seed}
    command = training.train_command(f"beyond_arms.py:{arm}", workdir, fields, options.train_flags)
    return Run(arm, seed, config.run.num_steps, workdir, command)


def make_report(options: argparse.Namespace) -> dict[str, Any]:
    """Scores of all runs that are at their end, by arm and seed; those missing are computed."""
    done = sorted(export.parent for export in options.directory.glob("*/seed_*/export"))
    if not done:
        raise UserError(f"no finished runs in {options.directory}; without --no-train they train")
    sets, metrics = (
        held_out_sets(done[0], options),
        {**METRICS, "lpips": load_lpips(find_weights())},
    )
    names = sorted({workdir.parent.name for workdir in done}, key=_order)
    arms: dict[str, Any] = {name: {"seeds": {}} for name in names}
    for workdir in tqdm(done, desc="scoring", unit="run"):
        config = training.read_config(workdir)
        arms[workdir.parent.name] |= {
            "steps": config.run.num_steps,
            "training_flops": config.run.num_steps * step_flops(config),
            "parameters": training.about(workdir)["parameters"],
        }
        arms[workdir.parent.name]["seeds"][workdir.name] = score_run(workdir, sets, metrics)
    workdirs = {name: [run for run in done if run.parent.name == name] for name in names}
    known = options.directory / "past_paper.json"
    return {
        "hardware": hardware(),
        "sets": {
            name: [int(of["2 inputs"].views.rows[i]) for i in (0, -1)] for name, of in sets.items()
        },
        "timing": training.find_timing(workdirs, known, options.measure_steps, 1),
        "arms": arms,
    }


def _order(name: str) -> tuple[int, str]:
    return (list(ARMS).index(name) if name in ARMS else len(ARMS)), name


def held_out_sets(workdir: pathlib.Path, options: argparse.Namespace) -> dict[str, dict[str, Row]]:
    """The rows of the panel for the worlds to choose by, and those that confirm; by name."""
    config = training.read_config(workdir)
    first, second = options.worlds
    evaluation = dataclasses.replace(
        section(config, "eval", EvalConfig),
        worlds=first + second,
        world_views=_VIEWS,
        num_inputs=2,
    )
    worlds = section(config, "worlds", WorldsConfig)
    every = open_worlds(section(config, "data", DataConfig), worlds, evaluation)
    every = dataclasses.replace(every, kept={})  # each world is rendered once for all runs
    return {
        "choice": _rows(every.some(range(first))),
        "confirmation": _rows(every.some(range(first, first + second))),
    }


def _rows(worlds: HeldOutWorlds) -> dict[str, Row]:
    rows = {}
    for count in INPUTS:
        evaluation = dataclasses.replace(worlds.evaluation, num_inputs=count)
        views = dataclasses.replace(worlds, evaluation=evaluation)
        name = f"{count} input{'s' if count > 1 else ''}"
        rows[name] = Row("inputs", name, views)
    return rows | {row.name: row for row in panel.frame_rows(rows["2 inputs"].views)}


def score_run(
    workdir: pathlib.Path, sets: Mapping[str, Mapping[str, Row]], metrics: Mapping[str, Any]
) -> dict[str, Scores]:
    """PSNR, SSIM, LPIPS and PSNR by inputs that see, by set and row; kept beside the export."""
    file, known = workdir / _FILE, {}
    if file.exists():
        known = json.loads(file.read_text())
    rows = {name: list(of.values()) for name, of in sets.items()}
    wanted = {name: [int(of[0].views.rows[i]) for i in (0, -1)] for name, of in rows.items()}
    if known.get("worlds") != wanted:
        model, found = lvsm_jax.load(workdir / "export", for_rendering=True), {}
        for name, of in rows.items():
            scored = _evaluate(model, of, metrics)
            found[name] = {x["name"]: _kept(x) for x in panel.summarize(of, scored)}
        known = {"worlds": wanted, "scores": found}
        write_text(file, json.dumps(known, indent=2) + "\n")
    return known["scores"]


def _evaluate(model: Any, rows: Sequence[Row], metrics: Mapping[str, Any]) -> list[Evaluation]:
    def evaluate(some: Sequence[Row], metrics: Mapping[str, Any]) -> list[Evaluation]:
        options = {"put": lambda batch: batch, "progress": False}
        return panel.evaluate_panel(model, some, metrics=metrics, **options)

    fully = iter(evaluate([row for row in rows if row.name in _WITH_LPIPS], metrics))
    others = iter(evaluate([row for row in rows if row.name not in _WITH_LPIPS], METRICS))
    return [next(fully if row.name in _WITH_LPIPS else others) for row in rows]


def _kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a record of the panel what the tables show, of the model and of copying."""

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 5)

    def means(of: Mapping[str, Any]) -> dict[str, Any]:
        scores = {name: rounded(of.get(name)) for name in ("psnr", "ssim", "lpips")}
        groups = of["psnr_by_inputs_that_see"].items()
        return scores | {"seen": {name: rounded(x["psnr"]) for name, x in groups}}

    return means(record) | {COPY: means(record["baselines"]["copy_nearest"])}


def tables(report: Mapping[str, Any]) -> str:
    """For each set its scores by number of inputs, and the changes of frames."""
    seconds = report["timing"]["step_seconds"]
    lines = [
        [
            name,
            f"{arm['parameters'] / 1e6:.2f} M",
            f"{arm['steps']:,}",
            f"{arm['training_flops'] / 1e12:.1f}",
            f"{seconds[name] * arm['steps']:.0f}" if name in seconds else None,
        ]
        for name, arm in report["arms"].items()
    ]
    header = ["arm", "parameters", "steps", "TFLOP", "seconds"]
    parts = [
        f"{report['hardware']}; seconds a step: {report['timing']['source']}",
        markdown_table(header, lines, text=1),
    ]
    for name, (first, last) in report["sets"].items():
        arms = {arm: list(about["seeds"].values()) for arm, about in report["arms"].items()}
        of_set = {arm: [seed[name] for seed in seeds] for arm, seeds in arms.items()}
        parts.append(f"{name.capitalize()}: worlds {first} to {last}")
        parts += [_by_inputs(of_set), _by_frame(of_set)]
    return "\n\n".join(parts)


def _by_inputs(arms: Mapping[str, Sequence[Scores]]) -> str:
    counts = [f"{count} input{'s' if count > 1 else ''}" for count in INPUTS]
    lines = [
        [name, *(_cell([seed[count]["psnr"] for seed in seeds]) for count in counts)]
        + [_cell([seed[count]["lpips"] for seed in seeds], 3) for count in _WITH_LPIPS]
        for name, seeds in arms.items()
    ]
    first = next(iter(arms.values()))[:1]  # copying is the same for all
    lines.append(
        [COPY, *(_cell([seed[count][COPY]["psnr"] for seed in first]) for count in counts)]
        + [_cell([x[n][COPY]["lpips"] for x in first], 3) for n in _WITH_LPIPS]
    )
    header = ["PSNR", *counts, "LPIPS, 2 inputs", "8 inputs"]
    return markdown_table(header, lines, text=1)


def _by_frame(arms: Mapping[str, Sequence[Scores]]) -> str:
    frames = [name for name in next(iter(arms.values()))[0] if name.startswith("world")]
    lines = []
    for name, seeds in arms.items():
        plain = [seed["2 inputs"] for seed in seeds]
        changes = [
            [seed[frame]["psnr"] - seed["2 inputs"]["psnr"] for seed in seeds] for frame in frames
        ]
        seen = [[of["seen"][group] for of in plain] for group in ("none", "one", "several")]
        lines.append([name, *map(_cell, seen), *map(_cell, changes)])
    header = ["2 inputs", "pixels that none sees", "one", "several", *frames]
    return markdown_table(header, lines, text=1)


def _cell(values: Sequence[float], digits: int = 2) -> str:
    found = score(values)
    spread = f" ({found['spread']:.{digits}f})" if found["seeds"] > 1 else ""
    return f"{found['mean']:.{digits}f}{spread}"


def _parser() -> argparse.ArgumentParser:
    parser = module_parser("experiments.past_paper", __doc__)
    training.add_training_options(parser)
    training.add_arm_options(parser, ARMS, use="train", at_once=1)
    add = parser.add_argument
    add("--worlds", nargs=2, type=int, default=[48, 96], metavar=("N", "M"),
        help="held-out worlds to choose by, and to confirm the choice on (48 96)")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
