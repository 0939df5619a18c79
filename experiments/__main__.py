"""The arms of experiments/configs/arms.py, trained over several seeds and compared.

    python -m experiments runs/experiments                     # hours on two CPU cores
    python -m experiments runs/experiments --measure-steps 20  # let nothing else run
    python -m experiments runs/experiments --no-train          # reports what is there

Trains with train.py in runs/experiments/ARM/seed_S, several runs at a time that share the cores,
the first seed of all arms before the second. Interrupted at any moment, the same command goes on.
All are evaluated on the same views (index.json): two contexts of each test clip far apart, and
targets between them that are no input, however many inputs are spread from one context to the
other. It writes

    experiments.json   configs, curves, PSNR by number of inputs, seconds and FLOPs of a step
    curves.png         PSNR on held-out scenes over steps and over minutes
    view_counts.png    PSNR over the number of inputs
    pictures.png       renders of two arms from more and more inputs

and prints Markdown tables. Where arms differ by less than the seeds of one, it means nothing.
Minutes are steps times the seconds of a step, which are measured with --measure-steps, the arms in
turns, on random pictures; until then they are those that the runs logged.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import lvsm_jax
from benchmarks.common import hardware, module_parser, save_figure, write_report
from experiments import report as reporting
from experiments import runs as training
from experiments.configs.arms import ARMS, step_flops, steps_of_like_cost
from experiments.parallel_runs import Run, threads_each, train_all
from input_pipeline.loading import EvalSet, open_eval_set
from input_pipeline.view_index import COUNTS, TARGETS, make_index
from lvsm_jax.common.command_line import program, read_config_file
from lvsm_jax.common.config import DataConfig, EvalConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import write_text
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.evaluation.scoring import COPY_NEAREST, MODEL, evaluate, render_scenes
from lvsm_jax.weights.exports import describe

SCENES_SHOWN = 3


@program
def main(arguments: list[str]) -> None:
    """Trains, evaluates, measures, reports."""
    options = _parser().parse_args(arguments)
    options.directory = options.directory.resolve()
    runs = [make_run(arm, seed, options) for seed in options.seeds for arm in options.arms]
    failed = []
    if not options.no_train:
        write_index(options)
        failed = train_all(runs, options.directory / ".compiled", options.at_once)
    report = make_report(runs, options)
    write_report(options.directory / "experiments.json", report)
    write_figures(report, runs, options)
    print(reporting.tables(report))
    print(f"\nwrote experiments.json and figures to {options.directory}")
    if failed:
        raise UserError(f"not trained to the end, see their .txt: {', '.join(failed)}")


def make_run(arm: str, seed: int, options: argparse.Namespace) -> Run:
    """A run of an arm; those of other scenes and targets have the steps of like cost."""
    config, base = (
        read_config_file(f"{training.CONFIGS}/arms.py:{name}", options.train_flags)
        for name in (arm, "plucker")
    )
    steps = base.run.num_steps = options.steps or base.run.num_steps
    if arm == "many_scenes":
        steps = steps_of_like_cost(config, base)
    workdir, index = options.directory / arm / f"seed_{seed}", options.directory / "index.json"
    fields = {"run.seed": seed, "run.num_steps": steps, "eval.index": index}
    command = training.train_command(f"arms.py:{arm}", workdir, fields, options.train_flags)
    return Run(arm, seed, steps, workdir, command)


def write_index(options: argparse.Namespace) -> None:
    """Writes the evaluation index, unless it is there: all runs and calls keep to the first."""
    file = options.directory / "index.json"
    if file.exists():
        return
    config = read_config_file(f"{training.CONFIGS}/arms.py", options.train_flags)
    entries = make_index(config.data.path, config.eval.split, options.inputs, options.index_seed)
    options.directory.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(entries) + "\n")


def eval_set(run: Run, num_inputs: int) -> EvalSet:
    """The views that runs are evaluated on, `num_inputs` of them as inputs."""
    config = training.read_config(run.workdir)
    settings = dataclasses.replace(section(config, "eval", EvalConfig), num_inputs=num_inputs)
    return open_eval_set(section(config, "data", DataConfig), settings)


def evaluate_run(run: Run, counts: Sequence[int]) -> dict[str, dict[str, float]]:
    """PSNR of model and nearest input by number of inputs; kept beside the run's export."""
    file, step = run.workdir / "psnr_by_inputs.json", describe(run.export)["step"]
    known = json.loads(file.read_text()) if file.exists() else {}
    scores = known["inputs"] if known.get("step") == step else {}
    missing = [count for count in counts if str(count) not in scores]
    if missing:
        model = lvsm_jax.load(run.export)
        for count in tqdm(missing, f"evaluating {run.name}"):
            result = evaluate(model, eval_set(run, count), metrics={"psnr": psnr}, progress=False)
            methods = (MODEL, COPY_NEAREST)
            scores[str(count)] = {method: result.mean("psnr", method) for method in methods}
        write_text(file, json.dumps({"step": step, "inputs": scores}, indent=2) + "\n")
    return {str(count): scores[str(count)] for count in counts}


def make_report(runs: Sequence[Run], options: argparse.Namespace) -> dict[str, Any]:
    """All that is known of the runs; those that have not begun are left out."""
    begun = [run for run in runs if run.begun]
    if not begun:
        raise UserError(f"no runs in {options.directory}; without --no-train they are made")
    arms: dict[str, Any] = {}
    for run in begun:
        if run.arm not in arms:
            config = training.read_config(run.workdir)
            costs = {"steps": config.run.num_steps, "step_flops": step_flops(config)}
            arms[run.arm] = {
                "overrides": ARMS[run.arm],
                **costs,
                **training.about(run.workdir),
                "runs": {},
            }
            arms[run.arm]["config"]["eval"]["index"] = "index.json"  # wherever this directory is
        found: dict[str, Any] = {
            "curve": [list(point) for point in training.read_curve(run.workdir)]
        }
        if run.done:
            found["inputs"] = evaluate_run(run, options.inputs)
        arms[run.arm]["runs"][str(run.seed)] = found
    arms = {arm: arms[arm] for arm in ARMS if arm in arms}
    for arm in arms.values():
        arm["psnr"] = reporting.psnr_by_inputs(arm, options.inputs)
    workdirs = {arm: [run.workdir for run in begun if run.arm == arm] for arm in arms}
    known, threads = options.directory / "experiments.json", threads_each(options.at_once)
    return {
        "hardware": hardware(),
        "inputs": list(options.inputs),
        "timing": training.find_timing(workdirs, known, options.measure_steps, threads),
        "arms": arms,
    }


def write_figures(report: dict[str, Any], runs: Sequence[Run], options: argparse.Namespace) -> None:
    """The figures that there is something for."""
    figures: dict[str, Figure | None] = {
        "curves": reporting.draw_curves(report, options.curves),
        "view_counts": reporting.draw_view_counts(report),
    }
    done = {run.arm: run for run in reversed(runs) if run.done}  # of each arm the first seed
    shown = [done[arm] for arm in options.pictures if arm in done]
    if shown:
        pictures = make_pictures(shown, options.inputs)
        figures["pictures"] = reporting.draw_pictures(pictures, options.inputs)
    for name, figure in figures.items():
        if figure is not None:
            save_figure(options.directory / f"{name}.png", figure)


def make_pictures(runs: Sequence[Run], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Renders of scenes evenly spaced in the index, of the middle one of each scene's targets.

    Returns:
        For each scene its `target`, and `renders[arm][count]`, all `[h, w, 3]` in 0 to 1.
    """
    renders = [{run.arm: {} for run in runs} for _ in range(SCENES_SHOWN)]
    found: list[dict[str, Any]] = [{"renders": own} for own in renders]
    for run in tqdm(runs, "rendering"):
        model = lvsm_jax.load(run.export)
        for count in counts:
            scenes = _evenly_spaced(eval_set(run, count), SCENES_SHOWN)
            images = render_scenes(model, scenes)
            for scene, key in zip(found, scenes.keys, strict=True):
                scene["target"] = images[key].targets[TARGETS // 2] / 255
                scene["renders"][run.arm][count] = images[key].renders[TARGETS // 2]
    return found


def _evenly_spaced(scenes: EvalSet, count: int) -> EvalSet:
    places = np.linspace(0, scenes.num_scenes - 1, count).round().astype(int)
    views = tuple(scenes.views[place] for place in places)
    one_batch = dataclasses.replace(scenes.evaluation, batch_size=count)
    return dataclasses.replace(scenes, rows=scenes.rows[places], views=views, evaluation=one_batch)


def _parser() -> argparse.ArgumentParser:
    parser = module_parser("experiments", __doc__)
    training.add_training_options(parser)
    training.add_arm_options(parser, ARMS, use="train and report", at_once=2)
    add = parser.add_argument
    add("--steps", type=int,
        help="of each run, many_scenes those of like cost (the config's); keep to what a "
             "directory was begun with: the learning rate depends on it")  # fmt: skip
    add("--inputs", nargs="+", type=int, default=list(COUNTS), metavar="N",
        help=f"numbers of inputs to evaluate with ({' '.join(map(str, COUNTS))})")  # fmt: skip
    add("--index-seed", type=int, default=0, help="of the views in a new index.json (0)")
    add("--curves", nargs="+", metavar="ARM", choices=ARMS, default=list(ARMS)[:6],
        help="arms in curves.png (the first six)")  # fmt: skip
    add("--pictures", nargs="+", metavar="ARM", choices=ARMS, default=["plucker", "both_varied"],
        help="arms in pictures.png (plucker both_varied)")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
