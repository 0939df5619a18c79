"""Imports flow one way: this table is the one document of structure that cannot go stale."""

import ast
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# What each room may import besides itself. Rooms of lvsm_jax go without their prefix.
ALLOWED = {
    "common": set(),
    "parallel": {"common"},
    "gaussians": {"common"},  # scenes of a model, which render themselves
    "models": {"common", "gaussians", "parallel"},
    "scenes": {"common"},
    "poses": {"common", "scenes"},
    "worlds": {"batch", "common", "models", "parallel", "scenes"},
    "batch": {"common", "models", "parallel"},
    "rendering": {"common", "gaussians", "models", "parallel", "scenes"},
    "weights": {"common", "models", "parallel"},
    "evaluation": {"batch", "common", "models", "parallel"},
    "frozen": {"common", "models", "parallel", "weights"},
    "training": {
        "batch",
        "common",
        "evaluation",
        "frozen",
        "models",
        "parallel",
        "weights",
        "worlds",
    },
    "cost": {"batch", "common", "frozen", "gaussians", "models", "parallel", "training"},
    "viewer": {
        "common",
        "evaluation",
        "gaussians",
        "input_pipeline",
        "poses",
        "programs",
        "rendering",
        "scenes",
        "weights",
    },
    "programs": {
        "batch",
        "common",
        "cost",
        "evaluation",
        "frozen",
        "gaussians",
        "input_pipeline",
        "models",
        "parallel",
        "poses",
        "rendering",
        "scenes",
        "training",
        "weights",
        "worlds",
    },
    "input_pipeline": {"batch", "common", "parallel", "scenes", "weights", "worlds"},
    "lvsm_jax": {"models", "rendering", "scenes", "weights"},  # the face
    # Of weights, own_256 reads the export that it starts from.
    "configs": {"common", "models", "parallel", "training", "weights", "worlds"},
    "benchmarks": {  # but no experiments
        "batch",
        "common",
        "cost",
        "evaluation",
        "frozen",
        "input_pipeline",
        "models",
        "parallel",
        "poses",
        "rendering",
        "scenes",
        "training",
        "worlds",
    },
}


def room(module: str) -> str:
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] or package if package == "lvsm_jax" else package


def imported(file: pathlib.Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "lvsm_jax":
            modules |= {f"lvsm_jax.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):  # relative ones are those of the face
            modules.add(f"lvsm_jax.{node.module}" if node.level else node.module)
    ours = ("lvsm_jax", "input_pipeline", "configs", "benchmarks", "experiments", "tests")
    return {module for module in modules if module.partition(".")[0] in ours}


def files_of(package: str) -> list[pathlib.Path]:
    return sorted(file for file in (REPOSITORY / package).rglob("*.py*") if file.suffix != ".pyc")


@pytest.mark.parametrize("package", ["lvsm_jax", "input_pipeline", "configs", "benchmarks"])
def test_imports_flow_one_way(package):
    wrong = []
    for file in files_of(package):
        module = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
        here = room(module.removesuffix(".__init__"))
        for other in imported(file):
            there = room(other)
            if there[:1].isupper() or there == "lvsm_jax" or not _is_room(there):
                continue  # a public name, which the face finds
            if there != here and there not in ALLOWED[here]:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "add the pair to the table only if the floor plan has it:\n" + "\n".join(
        wrong
    )


def _is_room(name: str) -> bool:
    return name in ALLOWED or name in ("benchmarks", "experiments", "tests")


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import lvsm_jax", ("jax", "numpy", "tensorflow")),
        (
            "import lvsm_jax; lvsm_jax.load",
            ("lvsm_jax.training", "input_pipeline", "tensorflow", "grain"),
        ),
    ],
)
def test_what_an_import_brings(statement, forbidden):
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    brought = set(out.stdout.split())
    under = tuple(f"{name}." for name in forbidden)
    assert not {m for m in brought if m in forbidden or m.startswith(under)}
