"""Lists the benchmarks: `python -m benchmarks`."""

import ast
import pathlib

_NO_BENCHMARKS = ("__init__", "__main__", "common")


def main() -> None:
    """Prints a line for each benchmark: the first of its docstring, without importing it."""
    for file in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        if file.stem not in _NO_BENCHMARKS:
            about = ast.get_docstring(ast.parse(file.read_text())) or ""
            print(f"python -m benchmarks.{file.stem:14}{about.splitlines()[0]}")
    print("\nEach explains itself with --help.")


if __name__ == "__main__":
    main()
