"""Tables to read in a terminal."""

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Columns aligned, with a line under the head: the first `words` of them left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
