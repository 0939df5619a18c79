"""The one printer of tables: text to the left, numbers to the right."""

from collections.abc import Iterable, Sequence
from typing import Any


def format_table(
    header: Sequence[Any], rows: Iterable[Sequence[Any]], *, text: int = 1, markdown: bool = False
) -> str:
    """A table of plain text, or of Markdown that reads as well unrendered.

    Cells that are None are shown as a dash; `text` is how many columns, from the left, are text.
    """
    lines = [["–" if cell is None else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(2, *map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [
            cell.ljust(width) if i < text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    if not markdown:
        head, *body = ("  ".join(line) for line in padded)
        return "\n".join([head, "-" * len(head), *body])
    rule = ["-" * w if i < text else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    head, *body = (f"| {' | '.join(line)} |" for line in padded)
    return "\n".join([head, f"| {' | '.join(rule)} |", *body])
