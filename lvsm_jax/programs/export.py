"""Exports the weights of a training run's checkpoint.

    lvsm export runs/quickstart runs/quickstart/export_step_500 --step=500

The result is what `lvsm_jax.load` and `lvsm eval --checkpoint` take. `lvsm train` makes one by
itself at the end of a run; this is for the steps between. Averaged weights are taken where the run
keeps them.
"""

import contextlib

from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import check_writable


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, and exports."""
    parser = argument_parser("export", __doc__)
    parser.add_argument("workdir", type=path, help="directory of a run of lvsm train")
    parser.add_argument("output", type=path, help="directory to make")
    parser.add_argument("--step", type=int, help="checkpoint to take (the newest)")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    given = parser.parse_args(arguments)

    import jax  # only now, so that --help comes at once
    from etils import epath

    from lvsm_jax.parallel.mesh import make_mesh
    from lvsm_jax.training.checkpoints import Checkpoints
    from lvsm_jax.training.settings import recorded_config
    from lvsm_jax.training.train_state import TrainingConfig, abstract_state
    from lvsm_jax.weights.exports import check_free, save

    workdir = epath.Path(given.workdir)
    file = workdir / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{workdir} is no training run: {file} is missing")
    check_free(given.output, given.overwrite)
    check_writable("output", given.output)
    config = recorded_config(workdir)
    try:
        training = TrainingConfig.of(config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    mesh = make_mesh()
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep_last=None)) as checkpoints:
        step = checkpoints.latest_step if given.step is None else given.step
        if step not in checkpoints.steps:
            raise FileNotFoundError(
                f"{workdir} has no checkpoint of step {step}, but of {checkpoints.steps}"
            )
        with jax.set_mesh(mesh):
            state = checkpoints.restore(abstract_state(training, mesh), step)
    about = {"step": step, "config": config.to_dict()}
    save(state.best_weights, given.output, about=about, overwrite=given.overwrite)
    print(
        f"exported step {step} to {given.output}\n"
        f"What is in it: lvsm describe {given.output}\n"
        f"Look through it: lvsm view {given.output} SCENE"
    )
