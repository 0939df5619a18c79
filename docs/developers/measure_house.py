"""Prints the figures of docs/developers/house.md for one or several checkouts, side by side.

    python docs/developers/measure_house.py [CHECKOUT ...]
    python docs/developers/measure_house.py --run ../before .   # and what running Python shows

Product is lvsm_jax, input_pipeline, configs, benchmarks, train.py and eval.py. Lab is experiments,
and before there was such a folder the files in LAB_BEFORE. Lines are those of Python files, blank
ones and comments included. Imports are counted wherever they stand in a file, save those for type
annotations alone. Only the standard library is needed; --run needs the environment of the
checkouts, and takes the least of five starts.
"""

import argparse
import ast
import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

PRODUCT = ("lvsm_jax", "input_pipeline", "configs", "benchmarks", "train.py", "eval.py")
LAB_BEFORE = {
    "configs": ("experiments", "side_by_side"),
    "benchmarks": (
        "attention_entropy",
        "experiment_report",
        "experiments",
        "one_clip",
        "parallel_runs",
        "runs",
        "side_by_side",
        "user_cameras",
        "view_index",
    ),
}
LONG = 60  # lines of a function
REPEATS = 5


def files_of(checkout: pathlib.Path, *places: str) -> list[pathlib.Path]:
    """Python files in folders of a checkout, or these files themselves."""
    found = []
    for place in map(checkout.joinpath, places):
        found += [place] if place.is_file() else sorted(place.rglob("*.py"))
    return found


def is_lab(checkout: pathlib.Path, file: pathlib.Path) -> bool:
    """Whether a file in a folder of the product is an experiment's."""
    return file.stem in LAB_BEFORE.get(str(file.parent.relative_to(checkout)), ())


def count_lines(files: list[pathlib.Path]) -> int:
    """Lines of all files together."""
    return sum(len(file.read_text().splitlines()) for file in files)


def module_name(checkout: pathlib.Path, file: pathlib.Path) -> str:
    """As it is imported."""
    name = ".".join(file.relative_to(checkout).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports, anywhere in it except for type annotations alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported_names(node)


def import_graph(checkout: pathlib.Path, files: list[pathlib.Path]) -> dict[str, set[str]]:
    """Modules of the product, and the modules of the product that each imports."""
    trees = {module_name(checkout, file): ast.parse(file.read_text()) for file in files}
    return {
        module: {name for name in imported_names(tree) if name in trees and name != module}
        - _packages_of(module, trees)
        for module, tree in trees.items()
    }


def _packages_of(module: str, modules: dict[str, ast.AST]) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))} & modules.keys()


def longest_chain(graph: dict[str, set[str]]) -> int:
    """Nodes on the longest path, where those that import each other count as one step each."""

    @functools.cache
    def reached(node: str) -> frozenset[str]:
        found, new = set(), [node]
        while new:
            here = new.pop()
            if here not in found:
                found.add(here)
                new += graph[here]
        return frozenset(found)

    @functools.cache
    def depth(node: str) -> int:
        circle = {other for other in reached(node) if node in reached(other)}
        below = {other for member in circle for other in graph[member]} - circle
        return len(circle) + max((depth(other) for other in below), default=0)

    return max(map(depth, graph), default=0)


def room_of(module: str) -> str:
    """The folder that a module is in; train.py, eval.py and configs are rooms of their own."""
    return module.rpartition(".")[0] or module


def rooms_graph(graph: dict[str, set[str]], packages: set[str]) -> dict[str, set[str]]:
    """The import graph of the folders; packages' own `__init__` belongs to the package."""
    room = {module: module if module in packages else room_of(module) for module in graph}
    edges: dict[str, set[str]] = {name: set() for name in room.values()}
    for module, others in graph.items():
        edges[room[module]] |= {room[other] for other in others} - {room[module]}
    return edges


def function_lengths(files: list[pathlib.Path]) -> list[int]:
    """Lines of every function, its docstring included."""
    lengths = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append(node.end_lineno - node.lineno + 1)
    return lengths


def measure(checkout: pathlib.Path) -> dict[str, int | str]:
    """The rows that follow from the files alone."""
    everything = files_of(checkout, *PRODUCT)
    product = [file for file in everything if not is_lab(checkout, file)]
    lab = [file for file in everything if is_lab(checkout, file)]
    lab += files_of(checkout, "experiments")
    library = files_of(checkout, "lvsm_jax", "input_pipeline")
    graph = import_graph(checkout, product)
    packages = {module_name(checkout, f) for f in product if f.name == "__init__.py"}
    rooms = rooms_graph(graph, packages)
    folders = [file.parent for file in library]
    lengths = function_lengths(product)
    return {
        "lines of product": count_lines(product),
        "lines of lab code (experiments)": count_lines(lab),
        "lines of tests": count_lines(files_of(checkout, "tests")),
        "modules of lvsm_jax and input_pipeline": len(folders),
        "rooms: folders that hold them": len(set(folders)),
        "most modules in one folder": max(map(folders.count, folders)),
        "imports between modules": sum(map(len, graph.values())),
        "longest import chain, modules": longest_chain(graph),
        "longest import chain, rooms": longest_chain(rooms),
        "pairs of rooms that import each other": sum(
            a < b for a, others in rooms.items() for b in others if a in rooms[b]
        ),
        f"functions over {LONG} lines": sum(length > LONG for length in lengths),
        "median lines of a function": sorted(lengths)[len(lengths) // 2],
    }


def run_python(checkout: pathlib.Path, program: str) -> str:
    """What a program prints in a fresh interpreter that imports from the checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def measure_running(checkout: pathlib.Path) -> dict[str, int | str]:
    """The rows that a fresh interpreter tells."""
    ours = (
        "import sys, lvsm_jax; lvsm_jax.load;"
        "print(sum(m.split('.')[0] in ('lvsm_jax', 'input_pipeline') for m in sys.modules))"
    )
    timed = (
        "import time; start = time.perf_counter(); import lvsm_jax; {use};"
        "print(time.perf_counter() - start)"
    )
    seconds = {
        use: min(float(run_python(checkout, timed.format(use=use))) for _ in range(REPEATS))
        for use in ("pass", "lvsm_jax.load")
    }
    return {
        "our modules that `lvsm_jax.load` imports": run_python(checkout, ours),
        "seconds of `import lvsm_jax`": f"{seconds['pass']:.3f}",
        "seconds of `lvsm_jax.load`, the import alone": f"{seconds['lvsm_jax.load']:.2f}",
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="*", default=["."], metavar="CHECKOUT")
    parser.add_argument("--run", action="store_true", help="also what running Python shows")
    arguments = parser.parse_args()
    columns = []
    for checkout in map(pathlib.Path, arguments.checkouts):
        checkout = checkout.resolve()
        columns.append(measure(checkout) | (measure_running(checkout) if arguments.run else {}))
    print("| | " + " | ".join(arguments.checkouts) + " |")
    print("|---|" + "---:|" * len(columns))
    for row in columns[0]:
        cells = (f"{c[row]:,}" if isinstance(c[row], int) else c[row] for c in columns)
        print(f"| {row} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
