"""`train.py` and `eval.py` as modules."""

import importlib.util
import pathlib
import sys
from types import ModuleType

from absl import flags

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_FLAGS = ("config", "workdir", "checkpoint", "output", "overwrite")


def load_program(name: str) -> ModuleType:
    """The module of a program. Both define flags of the same names: those of the other go first."""
    module = f"lvsm_{name}_program"
    if module not in sys.modules:
        for flag in _FLAGS:
            if flag in flags.FLAGS:
                delattr(flags.FLAGS, flag)
        spec = importlib.util.spec_from_file_location(module, _REPOSITORY / f"{name}.py")
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    return sys.modules[module]
