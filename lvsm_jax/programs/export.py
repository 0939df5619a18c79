"""Exports the weights of a training run's checkpoint, or packs those of an export.

    lvsm export runs/quickstart runs/quickstart/export_step_500 --step=500
    lvsm export runs/quickstart exports/small --dtype=int8 --name="my rooms"
    lvsm export runs/quickstart/export exports/small --dtype=bfloat16

The result is what `lvsm_jax.load` and `lvsm eval --checkpoint` take. `lvsm train` makes one by
itself at the end of a run; this is for the steps between, and for passing weights on. Averaged
weights are taken where the run keeps them.

A packed export (--dtype) has one file of weights of half the size (bfloat16) or a quarter (int8,
with a float32 scale for each output channel), which are float32 again when they are loaded. Paths
of this machine are left out of it.
"""

import argparse
import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import check_writable

if TYPE_CHECKING:
    from lvsm_jax.models.base import ViewSynthesisModel

_DTYPES = ("float32", "bfloat16", "int8")
# What `save` says of the weights themselves.
_OF_SAVE = {"arrays", "files", "checksum", "format", "version", "dtype"}
_OURS = _OF_SAVE | {"architecture", "import", "model"}


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, and exports."""
    parser = argument_parser("export", __doc__)
    add = parser.add_argument
    add("source", type=path, metavar="RUN", help="directory of a run of lvsm train, or an export")
    add("output", type=path, metavar="OUT", help="directory to make")
    add("--step", type=int, help="checkpoint to take (the newest)")
    add("--dtype", choices=_DTYPES, default="float32", help="of the stored weights (float32)")
    add("--name", help="that lvsm render and lvsm view tell the weights by")
    add("--overwrite", action="store_true", help="replace an export that is there")
    given = parser.parse_args(arguments)

    from etils import epath  # only now, so that --help comes at once

    from lvsm_jax.weights.exports import check_free, save

    source = epath.Path(given.source)
    is_export = (source / "weights").exists()
    if is_export and given.step is not None:
        raise UserError(f"--step={given.step}, but {source} is an export, of one step alone")
    if not (source / "config.json").exists():
        raise FileNotFoundError(f"{source} is no training run: {source / 'config.json'} is missing")
    check_free(given.output, given.overwrite)
    check_writable("OUT", given.output)
    model, about = (_of_export if is_export else _of_run)(source, given)
    if given.dtype != "float32":
        about = _without_places(about)
    if given.name is not None:
        about |= {"name": given.name}
    save(model, given.output, dtype=given.dtype, about=about, overwrite=given.overwrite)
    step = f"step {about['step']}" if "step" in about else f"{source}"
    print(f"exported {step} to {given.output}")
    if given.dtype != "float32":
        print(_cost_of_packing(model, given.output))
    print(
        f"What is in it: lvsm describe {given.output}\n"
        f"Look through it: lvsm view SCENE --weights={given.output}"
    )


def _of_run(workdir: Any, given: argparse.Namespace) -> "tuple[ViewSynthesisModel, dict[str, Any]]":
    """The weights of a checkpoint, and what the export says of them."""
    import jax

    from lvsm_jax.parallel.mesh import make_mesh
    from lvsm_jax.training.checkpoints import Checkpoints
    from lvsm_jax.training.settings import recorded_config
    from lvsm_jax.training.train_state import TrainingConfig, abstract_state

    config = recorded_config(workdir)
    try:
        training = TrainingConfig.of(config)
    except UserError as error:
        raise UserError(f"{workdir / 'config.json'}: {error}") from error
    mesh = make_mesh()
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep_last=None)) as checkpoints:
        step = checkpoints.latest_step if given.step is None else given.step
        if step not in checkpoints.steps:
            raise FileNotFoundError(
                f"{workdir} has no checkpoint of step {step}, but of {checkpoints.steps}"
            )
        with jax.set_mesh(mesh):
            state = checkpoints.restore(abstract_state(training, mesh), step)
    return state.best_weights, {"step": step, "config": config.to_dict()}


def _of_export(export: Any, _: argparse.Namespace) -> "tuple[ViewSynthesisModel, dict[str, Any]]":
    """The weights of an export, and what it says of them."""
    from lvsm_jax.weights.exports import describe, load

    said = describe(export)
    return load(export), {name: value for name, value in said.items() if name not in _OURS}


def _without_places(said: Mapping[str, Any]) -> dict[str, Any]:
    """What an export says, with the last part alone of each path from the root of a disk."""

    def place(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: place(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [place(inner) for inner in value]
        if isinstance(value, str) and os.path.isabs(value):
            return os.path.basename(value.rstrip("/"))
        return value

    return place(said)


def _cost_of_packing(model: "ViewSynthesisModel", output: str) -> str:
    """Size of a packed export, and its largest error of a weight."""
    import jax.numpy as jnp
    from etils import epath

    from lvsm_jax.common.tree import named_leaves
    from lvsm_jax.weights.exports import load

    full, packed = named_leaves(model), named_leaves(load(output))
    errors = {name: float(jnp.abs(packed[name] - leaf).max()) for name, leaf in full.items()}
    worst = max(errors, key=errors.__getitem__)
    largest = float(jnp.abs(full[worst]).max())
    size = sum(file.stat().length for file in (epath.Path(output) / "weights").iterdir())
    whole = sum(leaf.nbytes for leaf in full.values())
    return (
        f"{size / 1e6:.2f} MB of {whole / 1e6:.2f} MB; largest error of a weight "
        f"{errors[worst]:.2g}, in {worst}, whose largest is {largest:.2g}"
    )
