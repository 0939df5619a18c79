"""The command line: `lvsm COMMAND`, which is `python -m lvsm_jax COMMAND`.

Nothing else is imported here at first: worker processes import this module again.
"""

import difflib
import importlib
import sys

import lvsm_jax

# Each command's module, whose `main(arguments)` runs it, and what it does.
COMMANDS = {
    "train": ("lvsm_jax.programs.train", "train a model, or go on with a run that was stopped"),
    "eval": ("lvsm_jax.programs.eval", "score a model on held-out views, with pictures"),
    "render": ("lvsm_jax.programs.render", "render a camera path: frames and a video"),
    "view": ("lvsm_jax.viewer.__main__", "walk through a scene in the browser"),
    "poses": ("lvsm_jax.programs.poses", "find the cameras of photographs that have none"),
    "check": ("lvsm_jax.programs.check", "show whether cameras fit their photographs"),
    "convert": ("lvsm_jax.programs.convert", "PyTorch weights to an export, and back"),
    "export": ("lvsm_jax.programs.export", "make an export of a run's checkpoint"),
    "describe": ("lvsm_jax.programs.describe", "parameters, FLOPs and memory of a model"),
    "aot": ("lvsm_jax.programs.aot", "compile a training step for TPUs that are not here"),
    "config": ("lvsm_jax.programs.config", "every field of a config: value, default, meaning"),
    "import-re10k": ("input_pipeline.re10k.__main__", "make a dataset of RealEstate10K's chunks"),
    "import-scenes": ("input_pipeline.own_scenes.__main__", "make a dataset of a folder of scenes"),
    "import-objects": ("input_pipeline.objects.__main__", "make a dataset of renders of objects"),
    "make-index": (
        "input_pipeline.make_index",
        "choose the views to evaluate a dataset on",
    ),
    "synthetic": ("input_pipeline.synthetic.__main__", "write a dataset of procedural worlds"),
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command that the first argument names."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(_help())
    elif command in ("-V", "--version"):
        print(f"lvsm_jax {lvsm_jax.__version__}")
    elif command in COMMANDS:
        importlib.import_module(COMMANDS[command][0]).main(rest)
    else:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        sys.exit(f"error: there is no command {command}{hint} See lvsm --help")


def _help() -> str:
    rows = "\n".join(f"    {name:<14}{text}" for name, (_, text) in COMMANDS.items())
    return (
        "Large view synthesis models in JAX: from a few posed photographs, new views.\n\n"
        f"    lvsm COMMAND [ARGUMENTS]\n\n{rows}\n\n"
        "lvsm COMMAND --help says what it needs and makes; lvsm --version, which version this is."
    )


if __name__ == "__main__":
    main()
