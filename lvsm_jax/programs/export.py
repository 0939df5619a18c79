"""Exports the weights of a training run's checkpoint.

    python -m lvsm_jax.programs.export runs/quickstart runs/quickstart/export_step_500 --step=500

The result is what `lvsm_jax.load` and `eval.py --checkpoint` take. `train.py` makes one by itself
at the end of a run; this is for the steps between. Averaged weights are taken where the run keeps
them.
"""

import argparse
import json
import sys

import jax
import ml_collections
from etils import epath

from lvsm_jax.parallel.mesh import make_mesh
from lvsm_jax.training.checkpoints import Checkpoints
from lvsm_jax.training.train_state import TrainingConfig, abstract_state
from lvsm_jax.weights.exports import save


def export(
    workdir: epath.PathLike,
    output: epath.PathLike,
    *,
    step: int | None = None,
    overwrite: bool = False,
) -> int:
    """Exports a checkpoint (default: the newest) of a run, and returns its step.

    Raises:
        FileNotFoundError: no run, or no checkpoint of that step.
        FileExistsError: something is at `output` already.
    """
    workdir = epath.Path(workdir)
    file = workdir / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{workdir} is no training run: {file} is missing")
    config = ml_collections.ConfigDict(json.loads(file.read_text()))
    mesh = make_mesh()
    checkpoints = Checkpoints(workdir / "checkpoints", keep_last=None)
    try:
        step = checkpoints.latest_step if step is None else step
        if step not in checkpoints.steps:
            raise FileNotFoundError(
                f"{workdir} has no checkpoint of step {step}, but of {checkpoints.steps}"
            )
        training = TrainingConfig.of(config)
        with jax.set_mesh(mesh):
            state = checkpoints.restore(abstract_state(training, mesh), step)
    finally:
        checkpoints.close()
    about = {"step": step, "config": config.to_dict()}
    save(state.best_weights, output, about=about, overwrite=overwrite)
    return step


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, and exports."""
    parser = argparse.ArgumentParser(
        prog="python -m lvsm_jax.programs.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", help="directory of a run of train.py")
    parser.add_argument("output", help="directory to make")
    parser.add_argument("--step", type=int, help="checkpoint to take (the newest)")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    given = parser.parse_args(arguments)
    try:
        step = export(given.workdir, given.output, step=given.step, overwrite=given.overwrite)
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"exported step {step} to {given.output}")


if __name__ == "__main__":
    main()
